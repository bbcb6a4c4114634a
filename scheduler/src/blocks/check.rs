//! What always holds of blocks: each has one place, and who holds it is counted.

use lockstep_proto::{BlockId, Blocks, TokenId};

use super::prefix::Parent;
use super::table::BlockTable;
use super::{BlockCache, PrefixCaching};
use crate::invariants::Violation;
use crate::submission::CacheSalt;

impl BlockCache {
    /// Checks all blocks, given every table there is.
    pub(crate) fn check<'a>(
        &self,
        tables: impl Iterator<Item = &'a BlockTable> + Clone,
    ) -> Result<(), Violation> {
        self.check_references(tables.clone())?;
        self.check_free()?;
        self.check_sharing(tables)?;
        self.prefixes.check(|block| self.pool.references(block))
    }

    /// Checks that the published part of a table is in the tree as what it is: whole blocks of `computed`.
    pub(crate) fn check_path(
        &self,
        table: &BlockTable,
        salt: CacheSalt,
        computed: &[TokenId],
    ) -> Result<(), Violation> {
        if self.caching == PrefixCaching::Disabled && !table.published.count().is_empty() {
            return Err(Violation::of("a block is cached although caching is disabled"));
        }
        let mut parent = Parent::Root(salt);
        let published = table.published.count().len();
        let chunks = computed.chunks_exact(self.shape.block_size.len());
        if published > chunks.len() {
            return Err(Violation::of("a block is cached before it is computed"));
        }
        for (&block, tokens) in table.blocks[..published].iter().zip(chunks) {
            if !self.prefixes.is_node(block, parent, tokens) {
                return Err(Violation::of(format!(
                    "block {block} is cached as something else than it holds"
                )));
            }
            parent = Parent::Block(block);
        }
        Ok(())
    }

    fn check_references<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) -> Result<(), Violation> {
        let mut counts = vec![0u32; self.pool.total().len()];
        for block in tables.flat_map(|table| &table.blocks) {
            counts[block.index()] += 1;
        }
        for (block, found) in (0..).map(BlockId).zip(counts) {
            let counted = self.pool.references(block);
            if counted != found {
                return Err(Violation::of(format!(
                    "block {block} counts {counted} references and has {found}"
                )));
            }
        }
        Ok(())
    }

    /// Free blocks are nobody's, and there is no block that nobody has and that is not free.
    fn check_free(&self) -> Result<(), Violation> {
        let mut free = vec![false; self.pool.total().len()];
        for &block in self.pool.free_blocks() {
            if std::mem::replace(&mut free[block.index()], true) {
                return Err(Violation::of(format!("block {block} is free twice")));
            }
            if self.pool.references(block) > 0 || self.prefixes.contains(block) {
                return Err(Violation::of(format!("block {block} is free and in use")));
            }
        }
        for (block, free) in (0..).map(BlockId).zip(free) {
            if !free && self.pool.references(block) == 0 && !self.prefixes.contains(block) {
                return Err(Violation::of(format!("block {block} is leaked")));
            }
        }
        Ok(())
    }

    /// Blocks that are not cached have one holder at most: the one that writes to them.
    fn check_sharing<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) -> Result<(), Violation> {
        for table in tables {
            for (index, &block) in table.blocks.iter().enumerate() {
                let published = Blocks::of_len(index) < table.published.count();
                if published != self.prefixes.contains(block) {
                    return Err(Violation::of(format!(
                        "block {block} is cached, but not as its holder has it"
                    )));
                }
                if !published && self.pool.references(block) > 1 {
                    return Err(Violation::of(format!("block {block} is shared while it is written")));
                }
            }
        }
        Ok(())
    }
}
