//! The blocks of one sequence, in the order of its positions.

use lockstep_proto::{BlockId, Blocks};

/// Holds one reference to each of its blocks. Given back through [`BlockCache::release`] only, or lost with
/// the whole cache.
///
/// [`BlockCache::release`]: super::BlockCache::release
#[derive(Debug, Default)]
#[must_use = "blocks that are dropped are not given back"]
pub(crate) struct BlockTable {
    pub(super) blocks: Vec<BlockId>,
    /// How many of them the shards have been told.
    announced: usize,
    pub(super) published: Published,
}

/// How much of a table stands in the prefix tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// The first so many blocks are a path from the root; the next one may follow.
    Open(Blocks),
    /// As before, but another sequence's block stands where the next one would; none may follow. A tree
    /// path that is held partly would pin blocks nobody uses.
    Closed(Blocks),
}

impl Default for Published {
    fn default() -> Self {
        Self::Open(Blocks::ZERO)
    }
}

impl Published {
    /// Blocks that stand in the tree.
    pub(super) fn count(self) -> Blocks {
        match self {
            Self::Open(count) | Self::Closed(count) => count,
        }
    }
}

impl BlockTable {
    /// A table that begins with blocks of the prefix tree.
    pub(super) fn of_path(blocks: Vec<BlockId>) -> Self {
        let count = Blocks::of_len(blocks.len());
        Self { blocks, announced: 0, published: Published::Open(count) }
    }

    pub(crate) fn len(&self) -> Blocks {
        Blocks::of_len(self.blocks.len())
    }

    /// Whether blocks that fill up will be found by others.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.published, Published::Open(_))
    }

    /// Its first blocks that are found by others.
    pub(crate) fn published(&self) -> Blocks {
        self.published.count()
    }

    /// The blocks the shards have not been told; from here on they count as told.
    pub(crate) fn take_unannounced(&mut self) -> Vec<BlockId> {
        let news = self.blocks[self.announced..].to_vec();
        self.announced = self.blocks.len();
        news
    }
}
