//! Why a step is not computed.

use lockstep_proto::{BlockId, Blocks, Epoch, Position, SequenceId, StepId, TokenId, Tokens};
use thiserror::Error;

use super::model::ModelError;
use crate::comm::CommError;
use crate::sampling::{ParamsError, SamplingError};

/// A step that was not computed.
#[derive(Debug, Error)]
pub enum StepError {
    /// It makes no sense: the router and this rank disagree on what there is. The rank ends.
    #[error("run step {step}: {reason}")]
    Invalid {
        /// Which step.
        step: StepId,
        /// What is wrong with it.
        reason: InvalidStep,
    },
    /// This rank is of no use any more.
    #[error("run step {step}: {reason}")]
    Fatal {
        /// Which step.
        step: StepId,
        /// What broke.
        reason: FatalError,
    },
}

/// What ends a rank.
#[derive(Debug, Error)]
pub enum FatalError {
    /// The model could not compute.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What it computed is no number. Its next incarnation is asked again; where the sequence is to blame, it is the
    /// router that finds out which.
    #[error(transparent)]
    Numbers(#[from] SamplingError),
    /// The group is broken.
    #[error(transparent)]
    Comm(#[from] CommError),
}

/// What is wrong with a step.
#[derive(Debug, Error, PartialEq)]
pub enum InvalidStep {
    /// Meant for another incarnation of the group.
    #[error("it is of epoch {found}, this group is epoch {expected}")]
    Epoch {
        /// The step's.
        found: Epoch,
        /// The group's.
        expected: Epoch,
    },
    /// Steps were lost or repeated.
    #[error("it follows step {last}")]
    Order {
        /// The step before it on this stream.
        last: StepId,
    },
    /// The KV cache has no size yet.
    #[error("call Configure before the first step")]
    NotConfigured,
    /// More tokens than `Configure` allowed.
    #[error("it has {found} tokens, at most {limit} were configured")]
    TooLarge {
        /// The step's.
        found: Tokens,
        /// The limit.
        limit: Tokens,
    },
    /// Something is wrong with one of its sequences.
    #[error("sequence {sequence}: {reason}")]
    Sequence {
        /// Which.
        sequence: SequenceId,
        /// What.
        reason: InvalidSequence,
    },
}

/// What is wrong with what a step says of a sequence.
#[derive(Debug, Error, PartialEq)]
pub enum InvalidSequence {
    /// It was not started, or was released.
    #[error("it is not known")]
    Unknown,
    /// It is there already.
    #[error("it was started before and not released")]
    StartedTwice,
    /// One chunk a step.
    #[error("it has two chunks in one step")]
    WorkedTwice,
    /// It has no token, or fewer than its prompt.
    #[error("its context has {context} tokens, its prompt {prompt}; both have one at least")]
    Context {
        /// Tokens of the context.
        context: Tokens,
        /// Tokens of the prompt.
        prompt: Tokens,
    },
    /// Its parameters give no distribution.
    #[error("{0}")]
    Params(ParamsError),
    /// A token that does not exist.
    #[error("token {token} is not in the vocabulary of {vocabulary}")]
    UnknownToken {
        /// The token.
        token: TokenId,
        /// The vocabulary's size.
        vocabulary: u32,
    },
    /// The chunk does not begin where the last one ended.
    #[error("its chunk begins at position {found}, the next to compute is {expected}")]
    Position {
        /// The chunk's.
        found: Position,
        /// The sequence's.
        expected: Position,
    },
    /// The chunk goes past the context.
    #[error("its chunk ends at {end}, the context at {context}")]
    PastContext {
        /// One past the chunk's last position.
        end: u64,
        /// Tokens of the context.
        context: Tokens,
    },
    /// The chunk's token is another than the context's.
    #[error("its token at position {position} is {found}, its context has {expected}")]
    OtherToken {
        /// Where.
        position: Position,
        /// The chunk's.
        found: TokenId,
        /// The context's.
        expected: TokenId,
    },
    /// The model's positions end before.
    #[error("its chunk ends at {end}, the model has {limit} positions")]
    TooLong {
        /// One past the chunk's last position.
        end: u64,
        /// The model's.
        limit: Tokens,
    },
    /// A block that does not exist.
    #[error("block {block} is not one of {blocks}")]
    UnknownBlock {
        /// The block.
        block: BlockId,
        /// How many there are.
        blocks: Blocks,
    },
    /// Its blocks do not hold the chunk.
    #[error("its {blocks} blocks end before its chunk, at {end}")]
    TooFewBlocks {
        /// Blocks of its table.
        blocks: Blocks,
        /// One past the chunk's last position.
        end: u64,
    },
    /// Sampled in the middle of what is known.
    #[error("it is sampled at {end}, its context ends at {context}")]
    SampledEarly {
        /// One past the chunk's last position.
        end: u64,
        /// Tokens of the context.
        context: Tokens,
    },
    /// A mask that no sampling of this step uses.
    #[error("it has a mask and is not sampled, or has two")]
    UnusedMask,
    /// A mask that does not cover the vocabulary.
    #[error("its mask has {found} bytes, the vocabulary needs {expected}")]
    ShortMask {
        /// The mask's.
        found: usize,
        /// At least.
        expected: usize,
    },
}

/// A KV cache that was not configured.
#[derive(Debug, Error)]
pub enum ConfigureError {
    /// Meant for another incarnation of the group.
    #[error("configure epoch {found}: this group is epoch {expected}")]
    Epoch {
        /// The one given.
        found: Epoch,
        /// The group's.
        expected: Epoch,
    },
    /// Nothing could be computed.
    #[error("configure {blocks} blocks and {max_step_tokens} tokens a step: both must be above 0")]
    Empty {
        /// The blocks given.
        blocks: Blocks,
        /// The limit given.
        max_step_tokens: Tokens,
    },
    /// More than this rank may use.
    #[error("configure {blocks} blocks: this rank's budget holds {limit}; see --kv-cache-bytes")]
    OverBudget {
        /// The blocks given.
        blocks: Blocks,
        /// What fits.
        limit: Blocks,
    },
    /// There is not enough memory.
    #[error(transparent)]
    Allocate(ModelError),
}
