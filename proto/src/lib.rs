//! What crosses between router and shard: ids, units, steps, and their wire form.
//!
//! The domain types are what both sides work with; [`wire`] is generated from `protos/` and is touched by
//! [`convert`] and the two ends of the connection only.

mod convert;
mod ids;
mod sampling;
mod step;
mod trace;
mod units;
mod watermark;
pub mod wire;

pub use convert::WireError;
pub use ids::{BlockId, Epoch, Rank, ReplicaId, SequenceId, StepId, TokenId};
pub use sampling::{LogitBias, LogprobsOf, SamplingParams, Seeded, Selection};
pub use step::{
    ContextLogprobs, Outcome, PromptLogprobs, Sampling, SequenceResult, SequenceStart, ShardDescription,
    Step, StepOutput, StepTimings, TokenLogprob, TokenLogprobs, TokenMask, Work, WorkTokens,
};
pub use trace::{MAX_STEP_TRACES, TraceParent};
pub use units::{Blocks, Bytes, Position, Tokens};
pub use watermark::{GreenList, Watermark};
