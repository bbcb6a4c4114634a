//! The bounded pool for work that takes a CPU: templates and tokenizing. Async threads never do either.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::sync::oneshot;
use tracing::error;

/// Stack of a thread: Rust's own default.
const STACK_BYTES: usize = 2 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// Why a job has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// As many jobs wait as may.
    #[error("queue work: the CPU pool's queue is full; try again later")]
    Full,
    /// It panicked; the pool goes on.
    #[error("finish work: it panicked")]
    Panicked,
}

/// A fixed number of threads and a bounded queue before them. They end when the pool is dropped.
#[derive(Clone)]
pub struct CpuPool {
    /// Absent where there are no threads.
    jobs: Option<SyncSender<Job>>,
}

impl CpuPool {
    /// Starts `threads` threads, at least one, before a queue of `queue_capacity_jobs`.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn start(threads: usize, queue_capacity_jobs: usize) -> std::io::Result<Self> {
        Self::start_with_stack(threads, queue_capacity_jobs, STACK_BYTES)
    }

    /// The same, with `stack_bytes` of stack for each thread.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn start_with_stack(
        threads: usize,
        queue_capacity_jobs: usize,
        stack_bytes: usize,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(queue_capacity_jobs.max(1));
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..threads.max(1) {
            let queue = Arc::clone(&queue);
            let thread = std::thread::Builder::new().name(format!("cpu-pool-{index}"));
            thread.stack_size(stack_bytes).spawn(move || work(&queue))?;
        }
        Ok(Self { jobs: Some(jobs) })
    }

    /// Without threads: a job is done where it is asked for, before anything else goes on. For tests, in which the
    /// same must happen each time.
    pub fn inline() -> Self {
        Self { jobs: None }
    }

    /// Runs `job` on one of the threads.
    ///
    /// # Errors
    /// When the queue is full or the job panics.
    ///
    /// # Cancel safety
    /// Dropping the future drops the result; a job that has begun runs to its end.
    pub async fn run<T, F>(&self, job: F) -> Result<T, PoolError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.begin(job)?.await.map_err(|_| PoolError::Panicked)
    }

    /// Has `job` run on one of the threads; its result is received. A receiver that is dropped takes back a
    /// job that has not begun, and one that gets nothing stands for a job that panicked.
    ///
    /// # Errors
    /// When the queue is full.
    pub fn begin<T, F>(&self, job: F) -> Result<oneshot::Receiver<T>, PoolError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (tx, rx) = oneshot::channel();
        let boxed: Job = Box::new(move || {
            if !tx.is_closed() {
                // The caller may have left meanwhile.
                let _ = tx.send(job());
            }
        });
        let Some(jobs) = &self.jobs else {
            run_one(boxed);
            return Ok(rx);
        };
        match jobs.try_send(boxed) {
            Ok(()) => Ok(rx),
            Err(TrySendError::Full(_)) => Err(PoolError::Full),
            Err(TrySendError::Disconnected(_)) => Err(PoolError::Panicked),
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        run_one(job);
    }
}

fn run_one(job: Job) {
    if std::panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
        error!("work on the CPU pool panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_fails_its_own_job_only() {
        let pool = CpuPool::start(1, 4).unwrap();
        let failed: Result<(), PoolError> = pool.run(|| panic!("on purpose")).await;
        assert_eq!(failed, Err(PoolError::Panicked));
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_full_queue_refuses() {
        let pool = CpuPool::start(1, 1).unwrap();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let (started_tx, started) = oneshot::channel();
        let first = pool.run(move || {
            let _ = started_tx.send(());
            let _ = wait.recv();
        });
        let mut first = Box::pin(first);
        let second = async {
            started.await.unwrap();
            let mut waiting = Box::pin(pool.run(|| 2));
            assert!(futures::poll!(waiting.as_mut()).is_pending());
            assert_eq!(pool.run(|| 3).await, Err(PoolError::Full));
            release.send(()).unwrap();
            assert_eq!(waiting.await, Ok(2));
        };
        let (first, ()) = futures::join!(first.as_mut(), second);
        assert_eq!(first, Ok(()));
    }
}
