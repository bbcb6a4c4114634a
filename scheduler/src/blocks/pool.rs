//! Reference counts of all blocks, and the free ones.

use lockstep_proto::{BlockId, Blocks};

/// Every block is free, or held by so many tables, or held by none and parked with the prefix tree.
#[derive(Debug)]
pub(crate) struct BlockPool {
    /// Tables that hold each block, by block.
    references: Vec<u32>,
    /// The block freed last is used first: its memory is the warmest.
    free: Vec<BlockId>,
}

impl BlockPool {
    pub(super) fn new(blocks: Blocks) -> Self {
        Self { references: vec![0; blocks.len()], free: (0..blocks.0).rev().map(BlockId).collect() }
    }

    /// Takes a free block, with one reference.
    pub(super) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.references[block.index()] = 1;
        Some(block)
    }

    /// Adds a reference to a block that is not free, and returns how many it has then.
    pub(super) fn retain(&mut self, block: BlockId) -> u32 {
        let count = &mut self.references[block.index()];
        *count += 1;
        *count
    }

    /// Takes a reference away and returns how many are left. A block with none stays out of the free ones
    /// until [`free`](Self::free).
    pub(super) fn release(&mut self, block: BlockId) -> u32 {
        let count = &mut self.references[block.index()];
        *count = count.checked_sub(1).expect("a table releases only blocks it holds");
        *count
    }

    /// Makes a block without references available.
    pub(super) fn free(&mut self, block: BlockId) {
        debug_assert_eq!(self.references(block), 0, "block {block} is freed while held");
        self.free.push(block);
    }

    pub(super) fn references(&self, block: BlockId) -> u32 {
        self.references[block.index()]
    }

    pub(super) fn free_blocks(&self) -> &[BlockId] {
        &self.free
    }

    pub(super) fn total(&self) -> Blocks {
        Blocks::of_len(self.references.len())
    }
}
