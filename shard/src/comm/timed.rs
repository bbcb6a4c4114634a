//! Measures how long this rank spends in collectives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use lockstep_proto::Rank;

use super::{CommError, Communicator};

/// A communicator that adds up the time spent in another.
pub struct Timed {
    inner: Arc<dyn Communicator>,
    nanoseconds: AtomicU64,
}

impl Timed {
    /// Measures `inner`.
    pub fn new(inner: Arc<dyn Communicator>) -> Self {
        Self { inner, nanoseconds: AtomicU64::new(0) }
    }

    /// Time spent in collectives since this was made, in nanoseconds.
    pub fn nanoseconds(&self) -> u64 {
        self.nanoseconds.load(Ordering::Relaxed)
    }

    fn measure<T>(&self, collective: impl FnOnce(&dyn Communicator) -> T) -> T {
        let start = Instant::now();
        let result = collective(&*self.inner);
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        result
    }
}

impl Communicator for Timed {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn world_size(&self) -> u32 {
        self.inner.world_size()
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<(), CommError> {
        self.measure(|inner| inner.all_reduce(values))
    }

    fn all_gather(&self, mine: &[f32], all: &mut [f32]) -> Result<(), CommError> {
        self.measure(|inner| inner.all_gather(mine, all))
    }

    fn broadcast(&self, root: Rank, bytes: &mut [u8]) -> Result<(), CommError> {
        self.measure(|inner| inner.broadcast(root, bytes))
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.measure(|inner| inner.barrier())
    }

    fn abort(&self) {
        self.inner.abort();
    }

    #[cfg(feature = "cuda")]
    fn nccl(&self) -> Option<&super::Nccl> {
        self.inner.nccl()
    }
}
