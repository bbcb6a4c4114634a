//! The KV cache as the scheduler sees it: which block holds what, and who holds the block.

mod check;
mod pool;
mod prefix;
mod table;

use lockstep_proto::{BlockId, Blocks, TokenId, Tokens};

use self::pool::BlockPool;
use self::prefix::{Cached, Insertion, Parent, PrefixIndex};
pub(crate) use self::table::BlockTable;
use self::table::Published;
use crate::limits::{CacheShape, PrefixCaching};
use crate::submission::CacheSalt;

/// All blocks of a group, for one epoch. A block is free, or held by tables, or idle in the prefix tree.
#[derive(Debug)]
pub(crate) struct BlockCache {
    shape: CacheShape,
    caching: PrefixCaching,
    pool: BlockPool,
    prefixes: PrefixIndex,
}

/// A path of the prefix tree, from its root. Nobody holds it yet.
#[derive(Debug)]
pub(crate) struct Found(Vec<BlockId>);

impl Found {
    pub(crate) fn len(&self) -> Blocks {
        Blocks::of_len(self.0.len())
    }
}

/// Not even the prefix tree has a block to spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfBlocks;

impl BlockCache {
    pub(crate) fn new(shape: CacheShape, caching: PrefixCaching) -> Self {
        let shape = shape.divisible();
        Self {
            shape,
            caching,
            pool: BlockPool::new(shape.blocks),
            prefixes: PrefixIndex::new(shape.blocks),
        }
    }

    pub(crate) fn shape(&self) -> CacheShape {
        self.shape
    }

    pub(crate) fn caching(&self) -> PrefixCaching {
        self.caching
    }

    /// What is cached of a sequence that begins with `tokens`, in whole blocks.
    pub(crate) fn find(&self, salt: CacheSalt, tokens: &[TokenId]) -> Found {
        match self.caching {
            PrefixCaching::Enabled => Found(self.prefixes.find(salt, tokens, self.shape.block_size)),
            PrefixCaching::Disabled => Found(Vec::new()),
        }
    }

    /// Blocks that are left for others if what was found is held.
    pub(crate) fn available_beside(&self, found: &Found) -> Blocks {
        let idle = found.0.iter().filter(|block| self.pool.references(**block) == 0);
        self.available() - Blocks::of_len(idle.count())
    }

    /// A table that holds what was found, since which nothing has changed.
    pub(crate) fn open(&mut self, found: Found) -> BlockTable {
        for &block in &found.0 {
            if self.pool.retain(block) == 1 {
                self.prefixes.on_held(block);
            }
        }
        BlockTable::of_path(found.0)
    }

    /// Grows `table` until it holds `context` tokens, evicting idle blocks as needed. On failure the table
    /// keeps what it got.
    pub(crate) fn extend(&mut self, table: &mut BlockTable, context: Tokens) -> Result<(), OutOfBlocks> {
        while table.len() < context.blocks_ceil(self.shape.block_size) {
            let block = self.allocate().ok_or(OutOfBlocks)?;
            table.blocks.push(block);
        }
        Ok(())
    }

    /// Enters the full blocks of `computed`, the table's context as far as it has been computed, into the
    /// prefix tree.
    pub(crate) fn publish(&mut self, table: &mut BlockTable, salt: CacheSalt, computed: &[TokenId]) {
        if self.caching == PrefixCaching::Disabled {
            return;
        }
        let size = self.shape.block_size;
        while let Published::Open(count) = table.published
            && count < Tokens::of_len(computed.len()).blocks_floor(size)
        {
            let parent = match count.len().checked_sub(1) {
                None => Parent::Root(salt),
                Some(last) => Parent::Block(table.blocks[last]),
            };
            let first = count.tokens(size).len();
            let tokens = &computed[first..first + size.len()];
            table.published = match self.prefixes.insert(parent, tokens, table.blocks[count.len()]) {
                Insertion::Inserted => Published::Open(count + Blocks(1)),
                Insertion::Replaced(idle) => {
                    self.pool.free(idle);
                    Published::Open(count + Blocks(1))
                }
                Insertion::Occupied => Published::Closed(count),
            };
        }
    }

    /// Takes all blocks of a table back. The last ones count as used least recently: a beginning is worth
    /// more than what follows it.
    pub(crate) fn release(&mut self, table: BlockTable) {
        for block in table.blocks.into_iter().rev() {
            if self.pool.release(block) == 0 && self.prefixes.on_idle(block) == Cached::No {
                self.pool.free(block);
            }
        }
    }

    /// Blocks that can be had without taking them from a sequence.
    pub(crate) fn available(&self) -> Blocks {
        self.free() + self.cached()
    }

    /// Blocks that nobody holds.
    pub(crate) fn free(&self) -> Blocks {
        Blocks::of_len(self.pool.free_blocks().len())
    }

    /// Blocks that only the prefix tree holds.
    pub(crate) fn cached(&self) -> Blocks {
        self.prefixes.unreferenced()
    }

    fn allocate(&mut self) -> Option<BlockId> {
        if let Some(block) = self.pool.allocate() {
            return Some(block);
        }
        let block = self.prefixes.evict()?;
        self.pool.free(block);
        self.pool.allocate()
    }
}
