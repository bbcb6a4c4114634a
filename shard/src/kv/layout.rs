//! Where in a pool a key or a value is.

use lockstep_proto::Bytes;

use crate::batch::BLOCK_SIZE;
use crate::dtype::Dtype;

/// The sizes of one layer's blocks on one rank.
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

    /// Elements of one head's keys, or values, in one block.
    pub(crate) fn tile_elements(self) -> usize {
        self.head_width * Self::SLOTS
    }

    /// Where one head's keys, or values, of a block begin.
    pub(crate) fn tile(self, block: usize, kv_head: usize) -> usize {
        (block * self.kv_heads + kv_head) * self.tile_elements()
    }

    /// Where in a tile of keys an element is: slots are innermost, so that the scores of all of a block's
    /// tokens are computed at once.
    pub(crate) fn key(self, slot: usize, element: usize) -> usize {
        element * Self::SLOTS + slot
    }

    /// Where in a tile of values an element is.
    pub(crate) fn value(self, slot: usize, element: usize) -> usize {
        slot * self.head_width + element
    }

    /// Bytes one block takes over all layers, keys and values.
    pub(crate) fn block_bytes(self, layers: usize, dtype: Dtype) -> Bytes {
        Bytes((2 * layers * self.kv_heads * self.tile_elements() * dtype.bytes()) as u64)
    }
}
