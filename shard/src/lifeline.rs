//! What a rank lives for: the stream of steps of a router, and for some time the hope for another router.
//!
//! What a rank has loaded is worth more than its router: where that dies, the rank finishes the steps it has
//! and waits for the next, which starts with no sequences. A rank that a router has given up, that does not
//! finish its step, or that nobody asks for leaves, and its group returns with the next epoch.

use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::Epoch;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::error::StreamEnd;
use crate::worker::{Command, StreamId};

/// Ends that wait to be told: those of two streams, of which one has taken over from the other, and that a router
/// has given the rank up. One more says nothing new.
const ENDS: usize = 3;

/// How long a rank waits for a router.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the steps it has, one or two. One that other ranks were not given does not end.
    pub for_step: Duration,
    /// For the next router.
    pub for_router: Duration,
}

impl Patience {
    /// A router is back within a second, and the launcher tries every ten where it does not start.
    pub const USUAL: Self = Self { for_step: Duration::from_secs(5), for_router: Duration::from_secs(60) };
}

/// What may end a rank that is well.
#[derive(Debug)]
enum Ended {
    Stream(StreamId, StreamEnd),
    /// A router has lost this epoch.
    GivenUp,
}

/// The streams of a rank, as those who feed them see it; clones are of the same rank.
#[derive(Clone)]
pub(crate) struct Streams {
    /// How many were opened: the last of them is the one steps are taken from.
    opened: Arc<watch::Sender<u64>>,
    ends: mpsc::Sender<Ended>,
}

/// The streams of a rank, as the rank sees it.
pub(crate) struct Lifeline {
    opened: watch::Receiver<u64>,
    ends: mpsc::Receiver<Ended>,
    /// Weak: the worker ends with the last who may ask it for steps.
    commands: mpsc::WeakSender<Command>,
    patience: Patience,
}

impl Streams {
    /// None yet, of a rank whose worker takes `commands`.
    pub(crate) fn new(commands: &mpsc::Sender<Command>, patience: Patience) -> (Self, Lifeline) {
        let (opened, watched) = watch::channel(0);
        let (ends, inbox) = mpsc::channel(ENDS);
        let commands = commands.downgrade();
        let lifeline = Lifeline { opened: watched, ends: inbox, commands, patience };
        (Self { opened: Arc::new(opened), ends }, lifeline)
    }

    /// A router opens one.
    pub(crate) fn open(&self) -> StreamId {
        let mut stream = 0;
        self.opened.send_modify(|opened| {
            stream = *opened;
            *opened += 1;
        });
        StreamId(stream)
    }

    /// One is over.
    pub(crate) fn on_end(&self, stream: StreamId, why: StreamEnd) {
        let _ = self.ends.try_send(Ended::Stream(stream, why));
    }

    /// A router has lost the epoch `lost`; this rank is of `epoch`.
    pub(crate) fn on_lost(&self, lost: Epoch, epoch: Epoch) {
        if epoch <= lost {
            let _ = self.ends.try_send(Ended::GivenUp);
        }
    }
}

impl Lifeline {
    /// Waits until there is nothing to live for, and says why.
    pub(crate) async fn cut(&mut self) -> StreamEnd {
        loop {
            match self.ends.recv().await {
                // The service is gone, and with it the process.
                None => std::future::pending().await,
                Some(Ended::GivenUp) => return StreamEnd::GivenUp,
                Some(Ended::Stream(stream, why)) => {
                    if let Some(why) = self.wait_for_router(stream, why).await {
                        return why;
                    }
                }
            }
        }
    }

    /// Waits for a stream after `stream`, which has ended. Says why where it is waited for in vain.
    async fn wait_for_router(&mut self, stream: StreamId, why: StreamEnd) -> Option<StreamEnd> {
        let next = stream.0 + 1;
        if *self.opened.borrow() > next {
            return None;
        }
        match why {
            StreamEnd::Closed | StreamEnd::Broken(_) | StreamEnd::Unread => {}
            StreamEnd::Refused(_) | StreamEnd::GivenUp => return Some(why),
        }
        if timeout(self.patience.for_step, self.caught_up()).await.is_err() {
            warn!("a step that was begun does not end without its router");
            return Some(why);
        }
        info!(%why, "the router's stream of steps is over; waiting for another router");
        let another = self.opened.wait_for(|opened| *opened > next);
        let patience = tokio::time::sleep(self.patience.for_router);
        tokio::pin!(another, patience);
        loop {
            tokio::select! {
                biased;
                _ = &mut another => {
                    info!("another router has come");
                    return None;
                }
                Some(ended) = self.ends.recv() => match ended {
                    Ended::GivenUp => return Some(StreamEnd::GivenUp),
                    // One that another had taken over from.
                    Ended::Stream(..) => {}
                },
                () = &mut patience => return Some(why),
            }
        }
    }

    /// Until the worker has done all it was asked.
    async fn caught_up(&self) {
        let (done, waiting) = oneshot::channel();
        // A worker that has ended ends the process, and is waited for beside this.
        let Some(commands) = self.commands.upgrade() else { return std::future::pending().await };
        let sent = commands.send(Command::CatchUp(done)).await;
        drop(commands);
        if sent.is_err() || waiting.await.is_err() {
            std::future::pending().await
        }
    }
}
