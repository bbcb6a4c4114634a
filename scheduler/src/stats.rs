//! The scheduler in numbers.

use std::time::Duration;

use lockstep_proto::{Blocks, Tokens};

/// A snapshot, over all replicas. `blocks_used + blocks_cached + blocks_free` are all blocks there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences in the queue.
    pub waiting: usize,
    /// Sequences that hold blocks and advance.
    pub running: usize,
    /// Tokens known of the sequences in the queue: what must be computed or found before they go on.
    pub queue_tokens: Tokens,
    /// How long all that waits is expected to take, at the pace of recent steps.
    pub queue_time: Duration,
    /// Blocks that a sequence holds, cached or not.
    pub blocks_used: Blocks,
    /// Blocks that only the prefix tree holds; given up when they are needed.
    pub blocks_cached: Blocks,
    /// Blocks that nobody holds.
    pub blocks_free: Blocks,
    /// Tokens that were found in the prefix tree instead of computed, since the scheduler began.
    pub prefix_hit_tokens_total: u64,
    /// How often a sequence lost its blocks to one admitted before it, since the scheduler began.
    pub preemptions_total: u64,
    /// How often a sequence went on with another replica than the one it ran on before, since the scheduler began.
    pub moves_total: u64,
}
