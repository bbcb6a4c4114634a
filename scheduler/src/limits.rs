//! What the scheduler is allowed: how many requests, how many tokens a step, how much cache.

use lockstep_proto::{Blocks, Tokens};

/// Fixed for a scheduler's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests queued and running together; one more is refused with [`AdmissionError::Full`].
    ///
    /// [`AdmissionError::Full`]: crate::AdmissionError::Full
    pub max_requests: u32,
    /// Tokens of the sequences in the queue together, prompts and what was written before they came back;
    /// one that would make it more is refused with [`AdmissionError::QueueFull`]. An empty queue takes any.
    ///
    /// [`AdmissionError::QueueFull`]: crate::AdmissionError::QueueFull
    pub max_queue_tokens: Tokens,
    /// Sequences computed at once. More than `max_step_tokens` never run, so that each one that has caught
    /// up gets its token every step; 0 counts as 1.
    pub max_running: u32,
    /// Tokens of one step, over all its sequences; 0 counts as 1.
    pub max_step_tokens: Tokens,
    /// Context of one sequence: prompt and output together.
    pub max_total: Tokens,
    /// Whether KV blocks are kept for later sequences that begin alike.
    pub prefix_cache: PrefixCaching,
}

impl Limits {
    /// Tokens a step may carry; at least one.
    pub(crate) fn step_tokens(&self) -> Tokens {
        self.max_step_tokens.max(Tokens(1))
    }

    /// Sequences that may run at once; at least one.
    pub(crate) fn running(&self) -> usize {
        self.max_running.min(self.step_tokens().0).max(1) as usize
    }
}

/// Whether KV blocks are kept for later sequences that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixCaching {
    /// Blocks of finished and running sequences are found again by salt and tokens.
    Enabled,
    /// Every sequence computes its whole context.
    Disabled,
}

/// The KV cache of a group: the same on every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Blocks, numbered from 0.
    pub blocks: Blocks,
    /// Tokens a block holds. A cache of blocks that hold nothing counts as one without blocks.
    pub block_size: Tokens,
}

impl CacheShape {
    /// The same capacity with a block size that can be divided by.
    pub(crate) fn divisible(self) -> Self {
        if self.block_size.is_empty() { Self { blocks: Blocks::ZERO, block_size: Tokens(1) } } else { self }
    }

    /// Whether a context of `tokens` can be held at all.
    pub(crate) fn holds(&self, tokens: Tokens) -> bool {
        tokens.blocks_ceil(self.block_size) <= self.blocks
    }
}
