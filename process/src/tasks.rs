//! Every task of a process: it has a name, and a fate that says what its end means.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{error, info};

/// What it means that a task ends by itself or panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The process cannot do its work without it: stop.
    StopServer,
    /// It served one client or one attempt: say so where it panicked, and go on.
    Log,
}

/// The tasks of one process.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the process is to stop; tasks watch it.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// How many tasks are alive.
    pub fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Runs `future` as a task.
    pub fn spawn<F>(&self, name: &'static str, fate: Fate, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        let alive: TaskTrackerToken = self.tracker.token();
        let guarded = async move {
            let _alive = alive;
            let end = futures::FutureExt::catch_unwind(AssertUnwindSafe(future)).await;
            on_end(name, fate, end.is_err(), &stop);
        };
        #[expect(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
        tokio::task::spawn(guarded);
    }

    /// Tells every task to stop and waits until all have ended.
    pub async fn stop_and_wait(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

fn on_end(name: &'static str, fate: Fate, panicked: bool, stop: &CancellationToken) {
    let stopping = fate == Fate::StopServer && !stop.is_cancelled();
    if stopping {
        stop.cancel();
    }
    if panicked {
        error!(task = name, "task panicked");
    }
    if stopping {
        info!(task = name, "task ended; stopping");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_vital_task_stops_the_process() {
        let tasks = Tasks::new();
        tasks.spawn("vital", Fate::StopServer, async {});
        tasks.stop_token().cancelled().await;
        tasks.stop_and_wait().await;
        assert_eq!(tasks.count(), 0);
    }

    #[tokio::test]
    async fn a_panic_in_a_client_task_stops_nothing() {
        let tasks = Tasks::new();
        tasks.spawn("client", Fate::Log, async { panic!("on purpose") });
        tasks.tracker.close();
        tasks.tracker.wait().await;
        assert!(!tasks.stop_token().is_cancelled());
    }
}
