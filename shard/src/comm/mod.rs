//! Exchanges numbers between the ranks of a group, bit-identically whatever the transport.
//!
//! Every collective is called by every rank, in the same order and with the same lengths, from one thread
//! of each rank at a time. What a sum is, is settled in [`tree`] and nowhere else.

#[cfg(feature = "cuda")]
pub(crate) mod nccl;
pub mod shared_memory;
mod solo;
mod tcp;
mod threads;
mod timed;
mod tree;

use std::io;
use std::time::Duration;

use lockstep_proto::{Epoch, Rank};
use thiserror::Error;

#[cfg(feature = "cuda")]
pub use nccl::Nccl;
pub use shared_memory::{SharedMemory, create};
pub use solo::Solo;
pub use tcp::Tcp;
pub use threads::Threads;
pub use timed::Timed;

/// One rank's connection to its group.
pub trait Communicator: Send + Sync {
    /// This rank's place.
    fn rank(&self) -> Rank;

    /// How many ranks the group has; a power of two.
    fn world_size(&self) -> u32;

    /// Replaces `values` by their sum over all ranks, added in one balanced binary tree over the ranks.
    ///
    /// # Errors
    /// When the group was aborted or a peer does not answer.
    fn all_reduce(&self, values: &mut [f32]) -> Result<(), CommError>;

    /// Writes every rank's `mine` into `all`, in the order of ranks.
    ///
    /// # Errors
    /// When `all` is not `world_size` times as long as `mine`, the group was aborted or a peer does not
    /// answer.
    fn all_gather(&self, mine: &[f32], all: &mut [f32]) -> Result<(), CommError>;

    /// Replaces `bytes` by those of `root` on every rank.
    ///
    /// # Errors
    /// When `root` is no rank of the group, the group was aborted or a peer does not answer.
    fn broadcast(&self, root: Rank, bytes: &mut [u8]) -> Result<(), CommError>;

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// When the group was aborted or a peer does not answer.
    fn barrier(&self) -> Result<(), CommError>;

    /// Ends the group: every call that waits on any rank, and every later one, fails. Callable from any
    /// thread.
    fn abort(&self);

    /// What exchanges between the devices of the ranks, where they have it.
    #[cfg(feature = "cuda")]
    fn nccl(&self) -> Option<&Nccl> {
        None
    }
}

/// A collective that cannot be completed. The group is of no use afterwards.
#[derive(Debug, Error)]
pub enum CommError {
    /// Some rank ended the group.
    #[error("exchange with the other ranks: the group was aborted")]
    Aborted,
    /// A peer's process is gone.
    #[error("exchange with rank {rank}: it is gone")]
    PeerLost {
        /// Which.
        rank: Rank,
    },
    /// A peer did not come.
    #[error("exchange with the other ranks: waited {waited:?} and not all came")]
    TimedOut {
        /// The watchdog's limit.
        waited: Duration,
    },
    /// A rank that its group cannot have.
    #[error(
        "join as rank {rank} of {world_size}: a group has 1, 2, 4, 8 or more ranks, a power of two, from 0"
    )]
    Membership {
        /// The rank given.
        rank: Rank,
        /// The group's size given.
        world_size: u32,
    },
    /// Buffers whose lengths do not fit each other.
    #[error("gather {mine} values from each of {world_size} ranks into {all}")]
    Length {
        /// Of this rank's part.
        mine: usize,
        /// Of the whole.
        all: usize,
        /// Of the group.
        world_size: u32,
    },
    /// The peer does something else than this rank, or belongs to another group.
    #[error("exchange with rank {rank}: expected {expected}, found {found}")]
    Protocol {
        /// Which peer.
        rank: Rank,
        /// What this rank is doing.
        expected: String,
        /// What the peer says.
        found: String,
    },
    /// The means of exchange cannot be had.
    #[error("open {what}: {source}")]
    Open {
        /// A path or an address.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A device, or what connects devices, failed.
    #[error("{what} over the group's devices: {reason}")]
    Device {
        /// What was being done.
        what: &'static str,
        /// What it says.
        reason: String,
    },
    /// A system call on an open connection failed.
    #[error("exchange with the other ranks: {source}")]
    Io {
        /// Why.
        source: io::Error,
    },
}

/// A rank's place in a group, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    rank: Rank,
    world_size: u32,
}

impl Membership {
    /// The most ranks a group may have.
    pub const MAX_WORLD_SIZE: u32 = 64;

    /// The place of `rank` in a group of `world_size`.
    ///
    /// # Errors
    /// When the group's size is no power of two or the rank is not in it.
    pub fn new(rank: Rank, world_size: u32) -> Result<Self, CommError> {
        let possible = world_size.is_power_of_two() && world_size <= Self::MAX_WORLD_SIZE;
        if possible && rank.0 < world_size {
            Ok(Self { rank, world_size })
        } else {
            Err(CommError::Membership { rank, world_size })
        }
    }

    /// The place.
    pub fn rank(self) -> Rank {
        self.rank
    }

    /// How many there are.
    pub fn world_size(self) -> u32 {
        self.world_size
    }

    fn index(self) -> usize {
        self.rank.0 as usize
    }

    fn ranks(self) -> usize {
        self.world_size as usize
    }

    fn check_root(self, root: Rank) -> Result<(), CommError> {
        Self::new(root, self.world_size).map(|_| ())
    }

    fn check_gather(self, mine: usize, all: usize) -> Result<(), CommError> {
        if mine.checked_mul(self.ranks()) == Some(all) {
            Ok(())
        } else {
            Err(CommError::Length { mine, all, world_size: self.world_size })
        }
    }
}

/// Which group a rank joins, and how long it waits there.
#[derive(Clone, Copy, Debug)]
pub struct Joining {
    /// The rank's place.
    pub membership: Membership,
    /// The group's incarnation.
    pub epoch: Epoch,
    /// How long one exchange may wait for the slowest rank.
    pub watchdog: Duration,
}
