//! How the memory of a run is spent: weights, KV cache, and what is left alone. Refuses what does not fit.

use std::fmt;

use lockstep_proto::{Blocks, Bytes, Tokens};

use crate::config::KvCacheMemory;
use crate::error::LaunchError;
use crate::supervisor::Groups;

/// Left to the router for its code, its tokenizer and its requests.
const ROUTER: Bytes = Bytes(64 << 20);

/// Left to each rank for its code, its messages and its threads' scratch space.
const RANK: Bytes = Bytes(32 << 20);

/// The shortest longest context that is served where nobody asked for one: a model whose own is longer may not
/// fit with it, and is of use with this one.
const LEAST_CONTEXT: Tokens = Tokens(2048);

/// What a model takes on each of its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelSizes {
    /// How many ranks it is split over, and how often.
    pub groups: Groups,
    /// Bytes of weights on each rank.
    pub weights: Bytes,
    /// Bytes the largest step's activations take on each rank.
    pub activations: Bytes,
    /// Bytes one KV block takes on each rank, over all layers.
    pub block_bytes: Bytes,
    /// Tokens a KV block holds.
    pub block_size: Tokens,
    /// Longest context the model's positions allow.
    pub max_positions: Tokens,
}

impl ModelSizes {
    fn all_ranks(&self) -> u64 {
        u64::from(self.groups.replicas.max(1)) * u64::from(self.groups.ranks.max(1))
    }
}

/// What the run wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// For the KV cache, over all ranks of all replicas.
    pub kv_cache: KvCacheMemory,
    /// How many requests are permitted at once.
    pub requests: u32,
    /// The longest context that was asked for.
    pub context: Option<Tokens>,
}

/// How the memory is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    sizes: ModelSizes,
    kv_cache_per_rank: Bytes,
    available: Option<Bytes>,
}

impl MemoryBudget {
    /// Spends `available` memory; where it is not known, nothing is refused.
    ///
    /// # Errors
    /// When the weights, or the KV cache asked for, or one request at full length do not fit.
    pub fn new(sizes: ModelSizes, wish: Wish, available: Option<Bytes>) -> Result<Self, LaunchError> {
        let (replicas, ranks) = (u64::from(sizes.groups.replicas.max(1)), sizes.all_ranks());
        let rank = (sizes.weights + RANK).0.saturating_add(sizes.activations.0);
        let fixed = Bytes(rank.saturating_mul(ranks).saturating_add(ROUTER.0));
        let free = available.map(|available| available.saturating_sub(fixed));
        // One on every rank: each replica has room of its own.
        let block = Bytes(sizes.block_bytes.0.saturating_mul(ranks));
        let context = |tokens: Tokens| {
            let tokens = tokens.min(sizes.max_positions);
            Bytes(u64::from(tokens.blocks_ceil(sizes.block_size).0).saturating_mul(block.0))
        };
        let one_request = context(wish.context.unwrap_or(sizes.max_positions));
        let requests_each = u64::from(wish.requests).div_ceil(replicas);
        let every_request = Bytes(one_request.0.saturating_mul(requests_each));
        let least = context(wish.context.unwrap_or(LEAST_CONTEXT));
        let (kv_cache, hint) = match wish.kv_cache {
            KvCacheMemory::Fixed(asked) if asked < block => {
                return Err(LaunchError::KvCacheTooSmall { asked, block });
            }
            KvCacheMemory::Fixed(asked) => {
                (asked, "free memory, lower --kv-cache-memory or --max-batch-prefill-tokens")
            }
            KvCacheMemory::Fitting => {
                let half = free.map_or(Bytes(u64::MAX), |free| Bytes(free.0 / 2));
                let hint = "free memory, lower --max-total-tokens or --max-batch-prefill-tokens, or serve a smaller model";
                (every_request.min(half).max(least), hint)
            }
        };
        let needed = Bytes(fixed.0.saturating_add(kv_cache.0));
        if let Some(available) = available
            && available < needed
        {
            let ModelSizes { weights, activations, .. } = sizes;
            let (weights, activations) =
                (Bytes(weights.0 * ranks), Bytes(activations.0.saturating_mul(ranks)));
            let parts = format!("weights {weights}, activations {activations}, KV cache {kv_cache}");
            return Err(LaunchError::NotEnoughMemory { needed, parts, available, hint });
        }
        let kv_cache_per_rank = Bytes(kv_cache.0 / ranks);
        Ok(Self { sizes, kv_cache_per_rank, available })
    }

    /// Bytes each rank may spend on KV blocks.
    pub fn kv_cache_per_rank(&self) -> Bytes {
        self.kv_cache_per_rank
    }

    /// Blocks that fit on each rank.
    pub fn blocks(&self) -> Blocks {
        let blocks = self.kv_cache_per_rank.0.checked_div(self.sizes.block_bytes.0).unwrap_or(0);
        Blocks(u32::try_from(blocks).unwrap_or(u32::MAX))
    }

    /// The longest context the model and these blocks allow.
    pub fn context(&self) -> Tokens {
        self.sizes.max_positions.min(self.tokens())
    }

    /// Tokens that fit in them.
    pub fn tokens(&self) -> Tokens {
        self.blocks().tokens(self.sizes.block_size)
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ModelSizes { weights, activations, block_size, .. } = self.sizes;
        let (each, fit) = match self.sizes.groups {
            Groups { replicas: 1, ranks: 1 } => (String::new(), "fit"),
            Groups { replicas: 1, ranks } => (format!(" on each of {ranks} ranks"), "fit"),
            Groups { replicas, ranks: 1 } => (format!(" on each of {replicas} replicas"), "fit in each"),
            Groups { replicas, ranks } => {
                (format!(" on each of {ranks} ranks of {replicas} replicas"), "fit in each replica")
            }
        };
        write!(
            f,
            "memory: weights {weights}, activations {activations}, KV cache {}{each}; {} blocks of {block_size}: {} tokens {fit}",
            self.kv_cache_per_rank,
            self.blocks(),
            self.tokens(),
        )?;
        match self.available {
            Some(available) => write!(f, "; {available} are available"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SIZES: ModelSizes = ModelSizes {
        groups: Groups { replicas: 1, ranks: 2 },
        weights: Bytes(100 * MIB),
        activations: Bytes(18 * MIB),
        block_bytes: Bytes(MIB),
        block_size: Tokens(16),
        max_positions: Tokens(160),
    };
    // Two ranks take 100 MiB of weights, 18 MiB of activations and 32 MiB each, a router 64 MiB.
    const FIXED: u64 = 364 * MIB;

    fn budget(kv_cache: KvCacheMemory, available: Option<u64>) -> Result<MemoryBudget, String> {
        let wish = Wish { kv_cache, requests: 8, context: None };
        MemoryBudget::new(SIZES, wish, available.map(Bytes)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_cache_is_what_every_request_needs_or_half_of_what_is_free() {
        // Eight requests of ten blocks, on two ranks: 160 MiB.
        let cases = [
            (None, 80),
            (Some(FIXED + 1000 * MIB), 80),
            (Some(FIXED + 100 * MIB), 25),
            (Some(FIXED + 20 * MIB), 10),
        ];
        for (available, blocks) in cases {
            let budget = budget(KvCacheMemory::Fitting, available).expect("it fits");
            assert_eq!(budget.blocks(), Blocks(blocks), "{available:?}");
        }
    }

    #[test]
    fn a_context_that_does_not_fit_becomes_shorter_unless_it_was_asked_for() {
        let long = ModelSizes { max_positions: Tokens(1 << 17), ..SIZES };
        let wish = |context| Wish { kv_cache: KvCacheMemory::Fitting, requests: 8, context };
        let budget = |context, free: u64| {
            MemoryBudget::new(long, wish(context), Some(Bytes(FIXED + free * MIB)))
                .map(|budget| budget.context())
        };
        // A token takes 128 KiB over both ranks.
        assert_eq!(budget(None, 1024).expect("half of it"), Tokens(4096));
        assert_eq!(budget(None, 256).expect("the least"), Tokens(2048));
        assert!(budget(None, 255).is_err(), "less than the least");
        assert_eq!(budget(Some(Tokens(512)), 64).expect("as asked"), Tokens(512));
        assert!(budget(Some(Tokens(4096)), 256).is_err(), "what was asked for does not fit");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_hint() {
        let error = budget(KvCacheMemory::Fitting, Some(FIXED + 19 * MIB)).expect_err("too little");
        insta::assert_snapshot!(error, @"fit the model in memory: 384 MiB are needed (weights 200 MiB, activations 36.0 MiB, KV cache 20.0 MiB), 383 MiB are available; free memory, lower --max-total-tokens or --max-batch-prefill-tokens, or serve a smaller model");
        let error =
            budget(KvCacheMemory::Fixed(Bytes(64 * MIB)), Some(FIXED + 63 * MIB)).expect_err("too little");
        insta::assert_snapshot!(error, @"fit the model in memory: 428 MiB are needed (weights 200 MiB, activations 36.0 MiB, KV cache 64.0 MiB), 427 MiB are available; free memory, lower --kv-cache-memory or --max-batch-prefill-tokens");
        let error = budget(KvCacheMemory::Fixed(Bytes(MIB)), None).expect_err("less than a block");
        insta::assert_snapshot!(error, @"make a KV cache of 1.0 MiB: one block takes 2.0 MiB over all shards; raise --kv-cache-memory");
    }

    #[test]
    fn replicas_share_what_there_is() {
        let sizes = |replicas| ModelSizes { groups: Groups { replicas, ranks: 2 }, ..SIZES };
        let wish = Wish { kv_cache: KvCacheMemory::Fitting, requests: 8, context: None };
        let blocks = |replicas, available: Option<u64>| {
            let available = available.map(Bytes);
            MemoryBudget::new(sizes(replicas), wish, available).map(|budget| budget.blocks())
        };
        // Eight requests of ten blocks; each replica has room for its share of them, and for one at least.
        for (replicas, expected) in [(1, 80), (2, 40), (3, 30), (8, 10), (9, 10)] {
            assert_eq!(blocks(replicas, None).expect("enough"), Blocks(expected), "{replicas} replicas");
        }
        let fixed = 4 * 150 * MIB + 64 * MIB;
        assert_eq!(blocks(2, Some(fixed + 100 * MIB)).expect("half of it"), Blocks(12));
        assert_eq!(blocks(2, Some(fixed + 40 * MIB)).expect("one request each"), Blocks(10));
        assert!(blocks(2, Some(fixed + 39 * MIB)).is_err());
        let wish = Wish { kv_cache: KvCacheMemory::Fixed(Bytes(64 * MIB)), ..wish };
        let budget = MemoryBudget::new(sizes(2), wish, None).expect("it fits");
        insta::assert_snapshot!(budget, @"memory: weights 100 MiB, activations 18.0 MiB, KV cache 16.0 MiB on each of 2 ranks of 2 replicas; 16 blocks of 16: 256 tokens fit in each replica");
    }

    #[test]
    fn the_plan_reads_as_a_sentence() {
        let budget =
            budget(KvCacheMemory::Fixed(Bytes(64 * MIB)), Some(FIXED + 64 * MIB)).expect("it fits");
        insta::assert_snapshot!(budget, @"memory: weights 100 MiB, activations 18.0 MiB, KV cache 32.0 MiB on each of 2 ranks; 32 blocks of 16: 512 tokens fit; 428 MiB are available");
    }
}
