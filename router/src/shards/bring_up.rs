//! Waits until all ranks are one group of a new incarnation, and sizes its cache.

use std::time::Duration;

use lockstep_proto::{Blocks, Bytes, Epoch, ShardDescription, Tokens};
use tracing::{debug, info};

use super::{GroupConfig, ShardError, ShardGroup};

/// Pause after the first failed attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause: a group that comes back is noticed within this. Streams wait for it, and an attempt that fails costs
/// a fraction of a millisecond.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A ready group, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupFacts {
    /// Its incarnation.
    pub epoch: Epoch,
    /// How many ranks it has.
    pub world_size: u32,
    /// Entries in a row of logits.
    pub vocabulary_size: u32,
    /// Longest context the model's positions allow.
    pub max_positions: Tokens,
    /// Tokens a KV block holds.
    pub block_size: Tokens,
    /// KV blocks on every rank.
    pub blocks: Blocks,
    /// Bytes of weights, over all ranks.
    pub weights: Bytes,
    /// Names the arithmetic: equal names mean bit-equal results.
    pub arithmetic: String,
}

impl GroupFacts {
    /// The longest context that both positions and cache allow.
    pub fn max_context(&self) -> Tokens {
        self.max_positions.min(self.blocks.tokens(self.block_size))
    }

    /// Whether an answer that one of them began the other can go on with.
    pub fn computes_like(&self, other: &Self) -> bool {
        let model = |facts: &Self| (facts.vocabulary_size, facts.max_positions);
        model(self) == model(other) && self.arithmetic == other.arithmetic
    }
}

/// Pauses between attempts: doubling, up to a limit.
#[derive(Clone, Copy, Debug)]
pub struct BackOff {
    next: Duration,
}

impl BackOff {
    /// Before the first attempt.
    pub fn new() -> Self {
        Self { next: FIRST_PAUSE }
    }

    /// How long to wait after another failed attempt.
    pub fn take_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

impl Default for BackOff {
    fn default() -> Self {
        Self::new()
    }
}

/// Tries until the ranks form one group newer than `lost` and its cache is sized.
///
/// # Cancel safety
/// Dropping the future leaves the group as any failed attempt does; the next call begins anew.
pub async fn bring_up<G: ShardGroup>(
    group: &mut G,
    mut lost: Option<Epoch>,
    max_step_tokens: u32,
) -> GroupFacts {
    let mut back_off = BackOff::new();
    let mut told = String::new();
    loop {
        match attempt(group, lost, max_step_tokens).await {
            Ok(facts) => {
                info!(
                    epoch = facts.epoch.0,
                    ranks = facts.world_size,
                    blocks = facts.blocks.0,
                    arithmetic = facts.arithmetic,
                    "shards ready"
                );
                return facts;
            }
            Err(error) => {
                if let ShardError::OutOfStep { epoch, .. } = &error {
                    lost = lost.max(Some(*epoch));
                }
                // Each cause once, and the rest for those who look closely.
                let cause = error.to_string();
                if told == cause {
                    debug!(error = cause, "shards not ready");
                } else {
                    info!(error = cause, "waiting for shards");
                    told = cause;
                }
            }
        }
        tokio::time::sleep(back_off.take_pause()).await;
    }
}

async fn attempt<G: ShardGroup>(
    group: &mut G,
    lost: Option<Epoch>,
    max_step_tokens: u32,
) -> Result<GroupFacts, ShardError> {
    let ranks = group.describe(lost).await?;
    let facts = agree(&ranks, lost)?;
    let config = GroupConfig { epoch: facts.epoch, blocks: facts.blocks, max_step_tokens };
    group.configure(config).await?;
    Ok(facts)
}

/// What the ranks have in common.
fn agree(ranks: &[ShardDescription], lost: Option<Epoch>) -> Result<GroupFacts, ShardError> {
    let no_group = |reason: String| Err(ShardError::NoGroup(reason));
    let Some(first) = ranks.first() else { return no_group("there are no ranks".to_owned()) };
    for (expected, rank) in ranks.iter().enumerate() {
        if rank.rank.0 as usize != expected || rank.world_size as usize != ranks.len() {
            return no_group(format!(
                "found rank {} of {} at place {expected} of {}",
                rank.rank,
                rank.world_size,
                ranks.len()
            ));
        }
        if rank.epoch != first.epoch {
            return no_group(format!(
                "rank {} is of epoch {}, rank 0 of epoch {}",
                rank.rank, rank.epoch, first.epoch
            ));
        }
        let model = |rank: &ShardDescription| (rank.vocabulary_size, rank.max_positions, rank.block_size);
        if model(rank) != model(first) || rank.arithmetic != first.arithmetic {
            return no_group(format!("rank {} serves another model or arithmetic than rank 0", rank.rank));
        }
    }
    if let Some(lost) = lost.filter(|lost| first.epoch <= *lost) {
        return no_group(format!("found epoch {}, expected one after {lost}", first.epoch));
    }
    let blocks = ranks.iter().map(ShardDescription::blocks_that_fit).min().unwrap_or_default();
    Ok(GroupFacts {
        epoch: first.epoch,
        world_size: first.world_size,
        vocabulary_size: first.vocabulary_size,
        max_positions: first.max_positions,
        block_size: first.block_size,
        blocks,
        weights: Bytes(ranks.iter().map(|rank| rank.weights.0).sum()),
        arithmetic: first.arithmetic.clone(),
    })
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Rank;

    use super::*;

    fn rank(rank: u32, epoch: u64) -> ShardDescription {
        ShardDescription {
            rank: Rank(rank),
            world_size: 2,
            epoch: Epoch(epoch),
            vocabulary_size: 300,
            max_positions: Tokens(2048),
            block_size: Tokens(16),
            block_bytes: Bytes(1000),
            kv_budget: Bytes(10_000 + u64::from(rank) * 5000),
            weights: Bytes(7),
            arithmetic: "test".to_owned(),
        }
    }

    #[test]
    fn a_group_has_the_blocks_of_its_smallest_rank() {
        let facts = agree(&[rank(0, 3), rank(1, 3)], Some(Epoch(2))).unwrap();
        assert_eq!((facts.epoch, facts.blocks, facts.weights), (Epoch(3), Blocks(10), Bytes(14)));
        assert_eq!(facts.max_context(), Tokens(160));
    }

    #[test]
    fn ranks_of_different_or_lost_epochs_are_no_group() {
        let cases = [
            (vec![rank(0, 3), rank(1, 2)], None, "rank 1 is of epoch 2"),
            (vec![rank(0, 3), rank(1, 3)], Some(Epoch(3)), "expected one after 3"),
            (vec![rank(1, 3), rank(0, 3)], None, "found rank 1 of 2 at place 0 of 2"),
            (vec![rank(0, 3)], None, "found rank 0 of 2"),
            (vec![], None, "no ranks"),
        ];
        for (ranks, lost, expected) in cases {
            let error = agree(&ranks, lost).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
