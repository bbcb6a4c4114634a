//! One step as a value: what every rank is asked to compute, and what comes back.

use crate::{
    BlockId, Blocks, Bytes, Epoch, Position, Rank, SamplingParams, SequenceId, StepId, TokenId, Tokens,
};

/// What a rank says of itself once its weights are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardDescription {
    /// Its place in the group.
    pub rank: Rank,
    /// How many ranks the group has.
    pub world_size: u32,
    /// The group's incarnation.
    pub epoch: Epoch,
    /// Entries in a row of logits.
    pub vocabulary_size: u32,
    /// Longest context the model's positions allow.
    pub max_positions: Tokens,
    /// Tokens a KV block holds.
    pub block_size: Tokens,
    /// Bytes one KV block takes on this rank, over all layers.
    pub block_bytes: Bytes,
    /// Bytes this rank may spend on KV blocks.
    pub kv_budget: Bytes,
    /// Bytes of weights on this rank.
    pub weights: Bytes,
    /// Names the arithmetic: equal names mean bit-equal results.
    pub arithmetic: String,
}

impl ShardDescription {
    /// KV blocks that fit this rank's budget.
    pub fn blocks_that_fit(&self) -> Blocks {
        let blocks = self.kv_budget.0.checked_div(self.block_bytes.0).unwrap_or(0);
        Blocks(u32::try_from(blocks).unwrap_or(u32::MAX))
    }
}

/// One step: the same for every rank of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The group incarnation this step is meant for.
    pub epoch: Epoch,
    /// Counts up by one within a `Run` stream.
    pub step_id: StepId,
    /// Sequences named for the first time (or again, after they were released).
    pub starts: Vec<SequenceStart>,
    /// Chunks to compute; at most one a sequence.
    pub work: Vec<Work>,
    /// Grammar masks for this step's sampling.
    pub masks: Vec<TokenMask>,
    /// Sequences to forget, before anything else in this step.
    pub releases: Vec<SequenceId>,
}

/// A sequence the shard has not heard of, or has forgotten.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceStart {
    /// Its name.
    pub sequence: SequenceId,
    /// How its tokens are chosen.
    pub sampling: SamplingParams,
    /// Every token known so far: the prompt, then what was emitted before.
    pub context: Vec<TokenId>,
    /// How many of `context` are the prompt.
    pub prompt_tokens: Tokens,
}

/// One chunk of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Whose chunk it is.
    pub sequence: SequenceId,
    /// Absolute position of the chunk's first token.
    pub first_position: Position,
    /// The chunk's tokens.
    pub tokens: WorkTokens,
    /// Blocks to append to the sequence's block table.
    pub new_blocks: Vec<BlockId>,
    /// Whether a token is sampled from the logits of the chunk's last position.
    pub sampling: Sampling,
    /// Which log-probabilities of the context are wanted.
    pub logprobs: ContextLogprobs,
    /// Tokens to append to the context before anything of this chunk is computed: a grammar allowed no others,
    /// so nothing was sampled. They need not be part of this chunk.
    pub appended: Vec<TokenId>,
}

/// Where a chunk's tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkTokens {
    /// These, at least one.
    Ids(Vec<TokenId>),
    /// The one token this sequence sampled last, so that a step can be planned before it is known.
    LastSampled,
}

impl WorkTokens {
    /// How many tokens the chunk has.
    pub fn count(&self) -> Tokens {
        match self {
            Self::Ids(ids) => Tokens::of_len(ids.len()),
            Self::LastSampled => Tokens(1),
        }
    }
}

/// What is done with the logits of a chunk's last position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// Nothing: more of the context follows.
    Skip,
    /// A token is chosen.
    Sample,
}

/// Whether log-probabilities of the prompt are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptLogprobs {
    /// No.
    Skip,
    /// That of each token but the first.
    Return,
}

/// Which log-probabilities of tokens that are known already are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextLogprobs {
    /// None.
    Skip,
    /// For each position of the chunk from this one on that a context token follows, that token's.
    From(Position),
}

/// The tokens a grammar allows at a sequence's next position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    /// Whose position.
    pub sequence: SequenceId,
    /// One bit a token id, least significant bit first; a set bit allows the token.
    pub allowed: Vec<u8>,
}

/// One rank's answer to one step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutput {
    /// The incarnation that computed it.
    pub epoch: Epoch,
    /// Which step it answers.
    pub step_id: StepId,
    /// One an entry of `work`, in that order, from rank 0; empty from the others.
    pub results: Vec<SequenceResult>,
    /// Where the time went on this rank.
    pub timings: StepTimings,
}

/// Where a step's time went on one rank, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimings {
    /// The whole forward pass, communication included.
    pub forward_ns: u64,
    /// Sampling.
    pub sample_ns: u64,
    /// Waiting for and exchanging data with the other ranks.
    pub comm_ns: u64,
}

/// What a step computed for one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceResult {
    /// Whose result it is.
    pub sequence: SequenceId,
    /// Of the context's tokens that follow the chunk's positions, where asked for: the prompt's, and those that
    /// were appended.
    pub prompt: Vec<TokenLogprobs>,
    /// What came of the chunk.
    pub outcome: Outcome,
}

/// What came of a chunk.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was computed; nothing was sampled.
    Computed,
    /// This token follows.
    Sampled(TokenLogprobs),
    /// This sequence cannot go on, for this reason; the others of the step are not touched.
    Failed(String),
}

/// A token with its log-probability and its rivals'.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens of this position, most probable first, lower id first among equals.
    pub top: Vec<TokenLogprob>,
}

/// A token and its log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}
