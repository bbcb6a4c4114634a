//! The ranks that compute, as one group.

mod address;
mod bring_up;
mod client;
pub mod fake;
mod group;

use std::future::Future;
use std::time::Duration;

use lockstep_proto::{
    Blocks, Epoch, Rank, ShardDescription, Step, StepOutput, StepTimings, TraceParent, WireError,
};
use thiserror::Error;

pub use address::{AddressError, ShardAddress};
pub use bring_up::{BackOff, GroupFacts, bring_up};
pub use group::RemoteGroup;

/// The group cannot be reached, or gave an answer no group gives. Whatever the cause, what it held is lost.
#[derive(Debug, Error)]
pub enum ShardError {
    /// No connection.
    #[error("connect to the shard at {address}: {reason}")]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        reason: String,
    },
    /// A call failed.
    #[error("call {call} of the shard at {address}: {reason}")]
    Call {
        /// Where.
        address: String,
        /// Which call.
        call: &'static str,
        /// What it answered.
        reason: String,
    },
    /// A rank's stream of steps ended.
    #[error("read an answer of rank {rank}: its stream ended")]
    StreamEnded {
        /// Which rank.
        rank: Rank,
    },
    /// An answer is not one to the question.
    #[error(
        "read an answer of rank {rank}: found epoch {found_epoch} step {found_step}, expected epoch {epoch} step {step}"
    )]
    Mismatch {
        /// Which rank.
        rank: Rank,
        /// What it answered for.
        found_epoch: Epoch,
        /// What it answered for.
        found_step: u64,
        /// What was asked.
        epoch: Epoch,
        /// What was asked.
        step: u64,
    },
    /// A message no peer of this release sends.
    #[error("read an answer of rank {rank}: {source}")]
    Wire {
        /// Which rank.
        rank: Rank,
        /// What is wrong with it.
        source: WireError,
    },
    /// A rank answers though nothing was asked.
    #[error("wait for a step: rank {rank} answers step {step}, which was not asked")]
    Unasked {
        /// Which rank.
        rank: Rank,
        /// What it answered.
        step: u64,
    },
    /// They wait for each other in different steps.
    #[error("form a group: the ranks of epoch {epoch} have begun {steps:?} steps, expected equal numbers")]
    OutOfStep {
        /// Which ranks.
        epoch: Epoch,
        /// What they tell, in their order.
        steps: Vec<u64>,
    },
    /// The ranks do not form one group.
    #[error("form a group: {0}")]
    NoGroup(String),
    /// It took too long.
    #[error("finish within {} s", limit.as_secs_f32())]
    TooSlow {
        /// How long it was given.
        limit: Duration,
    },
}

/// Size of what a group is asked to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// The incarnation that is meant.
    pub epoch: Epoch,
    /// KV blocks on every rank.
    pub blocks: Blocks,
    /// Most tokens a step carries.
    pub max_step_tokens: u32,
}

/// All ranks as one. Any error means that what the group held is lost.
pub trait ShardGroup: Send + 'static {
    /// Connects to every rank and asks what it is; in the order of ranks.
    /// A rank of the epoch `lost` or an earlier one leaves.
    fn describe(
        &mut self,
        lost: Option<Epoch>,
    ) -> impl Future<Output = Result<Vec<ShardDescription>, ShardError>> + Send;

    /// Sizes the KV cache and opens the stream of steps, where all ranks have begun equally many.
    fn configure(&mut self, config: GroupConfig) -> impl Future<Output = Result<(), ShardError>> + Send;

    /// Hands a step to every rank, which computes it after those that were begun before. Two at most are begun and not
    /// finished.
    ///
    /// # Errors
    /// When a rank takes no steps any more.
    fn begin(&mut self, step: Step, traces: &[TraceParent]) -> Result<(), ShardError>;

    /// Waits until every rank has computed the oldest step that was begun; the output is rank 0's. The first rank to fail
    /// fails the step.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing but the wait.
    fn finish(&mut self) -> impl Future<Output = Result<StepOutput, ShardError>> + Send;

    /// What the step that was finished last cost each rank, in their order.
    fn timings(&self) -> &[StepTimings];

    /// Waits, while no step is begun, until the group is lost, and says how.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing but the wait.
    fn lost(&mut self) -> impl Future<Output = ShardError> + Send;
}
