//! From submitted sequences to streams of events: the only part that talks to scheduler and shards.

mod answer_check;
mod core;
mod deliver;
mod generations;
mod masks;
mod replicas;
mod run;
mod states;
mod step_times;
mod stop;
mod traces;
mod vitals;
mod watchdog;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use lockstep_proto::{Epoch, ReplicaId, SequenceId, TokenLogprobs, Tokens};
use lockstep_scheduler::{AdmissionError, ExpiredWhile, Submission};
use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use self::answer_check::AnswerCheck;
use self::states::Told;
use crate::grammar::CompiledGrammar;
use crate::shards::GroupFacts;

pub use generations::Generations;
pub use run::{EngineConfig, EngineTask};
pub use stop::{StopStrings, StopText};
pub use traces::TraceOrigin;
pub use vitals::Vitals;

/// Why a sequence was not taken, or cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EngineError {
    /// The scheduler refuses it.
    #[error(transparent)]
    Refused(#[from] AdmissionError),
    /// A shard cannot go on with it.
    #[error("generate: {0}")]
    Failed(String),
    /// The shards were lost and did not come back in time.
    #[error("generate: the shards were lost and did not come back within {} s", waited.as_secs())]
    GroupLost {
        /// How long they were waited for.
        waited: Duration,
    },
    /// Its deadline has come.
    #[error("generate: the deadline has come {}", match state { ExpiredWhile::Waiting => "while it waited", ExpiredWhile::Running => "before the answer was complete" })]
    Expired {
        /// How far it came.
        state: ExpiredWhile,
    },
    /// The engine has stopped or is stopping.
    #[error("generate: the server is stopping")]
    Stopping,
}

/// Whether the shards can be asked.
#[derive(Clone, Debug, PartialEq)]
pub enum GroupState {
    /// Not yet, or not again yet.
    Away {
        /// Since when.
        since: Instant,
    },
    /// They can.
    Ready(Arc<GroupFacts>),
}

/// How a group ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupEnd {
    /// It was asked to leave.
    Drained,
    /// By itself.
    Lost,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop string is in its text.
    StopSequence,
    /// Its last token is an end-of-sequence token.
    EndOfSequence,
    /// It has as many tokens as were asked for.
    Length,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedToken {
    /// The token and its rivals, with log-probabilities.
    pub token: TokenLogprobs,
    /// The text it brought to completion, cut where the answer ends; a special token's name.
    pub text: String,
    /// What it adds to the answer's text, stop strings obeyed. Joined, these are the answer.
    pub delta: String,
    /// Whether it is control, not text.
    pub special: bool,
    /// Set on the last one.
    pub finish: Option<FinishReason>,
}

/// What a sequence's owner hears of it, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerationEvent {
    /// It left the queue.
    Admitted {
        /// How long it waited there.
        queued: Duration,
        /// How much of its prompt came from the prefix cache.
        cached: Tokens,
    },
    /// More log-probabilities of the prompt, from its second token on.
    Prompt(Vec<TokenLogprobs>),
    /// A token; the last one says why.
    Token(GeneratedToken),
    /// Its prompt is computed, and no token was asked for.
    PromptDone,
    /// It cannot go on.
    Failed(EngineError),
}

impl GenerationEvent {
    /// Whether nothing follows it.
    fn is_last(&self) -> bool {
        match self {
            Self::Admitted { .. } | Self::Prompt(_) => false,
            Self::Token(token) => token.finish.is_some(),
            Self::PromptDone | Self::Failed(_) => true,
        }
    }
}

/// A sequence to generate and how its text is watched.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// What is computed.
    pub submission: Submission,
    /// What ends its text.
    pub stops: StopStrings,
    /// What its text must be.
    pub grammar: Option<Arc<CompiledGrammar>>,
    /// The span of the request it is for, where that is sampled.
    pub trace: Option<TraceOrigin>,
}

pub(crate) enum Command {
    Submit(Submit),
    /// Let the group of this incarnation end its step and leave.
    Drain {
        replica: ReplicaId,
        epoch: Epoch,
        reply: oneshot::Sender<()>,
    },
}

/// A sequence that arrives.
pub(crate) struct Submit {
    sequence: SequenceId,
    assignment: Box<Assignment>,
    reply: oneshot::Sender<Accepted>,
}

impl Submit {
    /// There is no hope for it.
    fn refuse(self, error: EngineError) {
        // Whoever asked may have left meanwhile.
        let _ = self.reply.send(Err(error));
    }
}

type Accepted = Result<mpsc::Receiver<GenerationEvent>, EngineError>;

/// The way to the engine; clones lead to the same one.
#[derive(Clone)]
pub struct Engine {
    commands: mpsc::Sender<Command>,
    wake: Arc<Notify>,
    next_sequence: Arc<AtomicU64>,
    /// How long what is queued should take, in milliseconds.
    queue_time_ms: Arc<AtomicU64>,
    told: Told,
    vitals: Arc<Vitals>,
}

impl Engine {
    /// Hands a sequence to the scheduler.
    ///
    /// # Errors
    /// When the scheduler refuses it or the engine has stopped.
    pub async fn submit(&self, assignment: Assignment) -> Result<Generation, EngineError> {
        let sequence = SequenceId(self.next_sequence.fetch_add(1, Ordering::Relaxed));
        let check = assignment.grammar.clone().map(AnswerCheck::new);
        let (reply, accepted) = oneshot::channel();
        let submit = Submit { sequence, assignment: Box::new(assignment), reply };
        self.commands.send(Command::Submit(submit)).await.map_err(|_| EngineError::Stopping)?;
        let events = accepted.await.map_err(|_| EngineError::Stopping)??;
        Ok(Generation { sequence, check, events, _wake: WakeOnDrop(Arc::clone(&self.wake)) })
    }

    /// How long all that is queued should take, at the pace of recent steps.
    pub fn queue_time(&self) -> Duration {
        Duration::from_millis(self.queue_time_ms.load(Ordering::Relaxed))
    }

    /// Whether it gets on.
    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// Whether the shards of any replica can be asked; changes are signalled.
    pub fn state(&self) -> watch::Receiver<GroupState> {
        self.told.any.clone()
    }

    /// The same of each replica, in their order.
    pub fn replica_states(&self) -> watch::Receiver<Vec<GroupState>> {
        self.told.each.clone()
    }

    /// What is known of the group that came last, also while none is there; `None` before the first.
    pub fn last_group(&self) -> Option<Arc<GroupFacts>> {
        self.told.last.borrow().clone()
    }

    /// Lets the group of this incarnation end its step and leave; what it computes goes on with the other replicas,
    /// or waits for the next group. Returns once it has left, at once where it does not serve.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn drain(&self, replica: ReplicaId, epoch: Epoch) -> Result<(), EngineError> {
        let (reply, left) = oneshot::channel();
        let command = Command::Drain { replica, epoch, reply };
        self.commands.send(command).await.map_err(|_| EngineError::Stopping)?;
        left.await.map_err(|_| EngineError::Stopping)
    }
}

/// A running sequence. Dropping it cancels it: its blocks are back once the steps under way are done.
pub struct Generation {
    sequence: SequenceId,
    /// Of a sequence that has a grammar.
    check: Option<AnswerCheck>,
    // Declared before `_wake`: the engine is woken when this is closed already.
    events: mpsc::Receiver<GenerationEvent>,
    _wake: WakeOnDrop,
}

struct WakeOnDrop(Arc<Notify>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Generation {
    /// Its name in steps and logs.
    pub fn sequence(&self) -> SequenceId {
        self.sequence
    }

    /// What happened next; `None` after the last token or a failure.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<GenerationEvent>> {
        match &mut self.check {
            None => self.events.poll_recv(context),
            Some(check) => check.poll_next(&mut self.events, context),
        }
    }
}
