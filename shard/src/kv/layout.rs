//! Where in a pool a key or a value is.

use lockstep_proto::Bytes;

use super::dtype::KvDtype;
use crate::batch::BLOCK_SIZE;

/// Which of a layer's two pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    Keys,
    Values,
}

/// The sizes of one layer's blocks on one rank.
///
/// One head's keys, or values, of one block are a tile. Elements that one step of a product reads together
/// are neighbours in it: of keys those of one slot, of values those of one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvLayout {
    /// KV heads on this rank.
    pub(crate) kv_heads: usize,
    /// Elements of a head.
    pub(crate) head_width: usize,
}

impl KvLayout {
    /// Tokens in a block.
    pub(crate) const SLOTS: usize = BLOCK_SIZE.0 as usize;

    /// Neighbouring blocks of which the tiles of a head lie side by side. Blocks are mostly given out in order: reading a
    /// context's then goes on from one to the next for as long as machines fetch memory ahead, and those of one head
    /// are spread over all sets of a cache. Of all blocks at once they would need a page for each head as soon as
    /// anything is written.
    const RUN: usize = 32;

    /// Tiles of a pool that has so many blocks: those of whole runs.
    pub(crate) fn tiles(self, blocks: usize) -> usize {
        blocks.next_multiple_of(Self::RUN).saturating_mul(self.kv_heads)
    }

    /// Which of a pool's tiles is that of a head in a block.
    pub(crate) fn tile(self, block: usize, kv_head: usize) -> usize {
        let (run, in_run) = (block / Self::RUN, block % Self::RUN);
        (run * self.kv_heads + kv_head) * Self::RUN + in_run
    }

    /// Elements a head has room for: whole vectors. What is beyond its width is never written, and what is
    /// computed of it never read.
    pub(crate) fn padded_width(self) -> usize {
        self.head_width.next_multiple_of(Self::SLOTS)
    }

    /// Elements of one head's keys, or values, in one block.
    pub(crate) fn tile_elements(self) -> usize {
        self.padded_width() * Self::SLOTS
    }

    /// Where in a tile of keys an element is, where a step reads `step` of them: slots come before steps, so
    /// that the scores of all of a block's tokens are computed at once.
    pub(crate) fn key(self, slot: usize, element: usize, step: usize) -> usize {
        (element / step * Self::SLOTS + slot) * step + element % step
    }

    /// Where in a tile of values an element is, where a step reads those of `step` slots.
    pub(crate) fn value(self, slot: usize, element: usize, step: usize) -> usize {
        (slot / step * self.padded_width() + element) * step + slot % step
    }

    /// Bytes one block takes over all layers, keys and values.
    pub(crate) fn block_bytes(self, layers: usize, dtype: KvDtype) -> Bytes {
        Bytes((2 * layers * self.kv_heads * dtype.tile_bytes(self)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_of_every_block_has_a_tile_of_its_own() {
        for (kv_heads, blocks) in [(1, 1), (3, 31), (8, 32), (2, 100)] {
            let layout = KvLayout { kv_heads, head_width: 8 };
            let mut tiles: Vec<usize> = (0..blocks)
                .flat_map(|block| (0..kv_heads).map(move |head| layout.tile(block, head)))
                .collect();
            tiles.sort_unstable();
            assert!(tiles.windows(2).all(|pair| pair[0] < pair[1]), "{kv_heads} {blocks}");
            assert!(tiles[tiles.len() - 1] < layout.tiles(blocks), "{kv_heads} {blocks}");
            for block in (1..blocks).filter(|block| block % KvLayout::RUN != 0) {
                assert_eq!(layout.tile(block, 0), layout.tile(block - 1, 0) + 1, "{kv_heads} {block}");
            }
        }
    }

    #[test]
    fn every_element_has_a_place_of_its_own() {
        for (head_width, step) in [(1, 1), (8, 1), (8, 2), (20, 2), (33, 2), (64, 2), (64, 1)] {
            let layout = KvLayout { kv_heads: 1, head_width };
            let all = || (0..KvLayout::SLOTS).flat_map(|slot| (0..head_width).map(move |at| (slot, at)));
            let mut keys: Vec<usize> = all().map(|(slot, at)| layout.key(slot, at, step)).collect();
            let mut values: Vec<usize> = all().map(|(slot, at)| layout.value(slot, at, step)).collect();
            for places in [&mut keys, &mut values] {
                places.sort_unstable();
                assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "{head_width} by {step}");
                assert!(places[places.len() - 1] < layout.tile_elements(), "{head_width} by {step}");
            }
        }
    }
}
