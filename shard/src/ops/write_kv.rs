//! Writes a batch's new keys, or values, into their sequences' KV blocks.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result};
use half::bf16;

use super::attention::AttentionShape;
use super::cpu::kv_element::KvElement;
use super::{contiguous, contiguous_mut};
use crate::batch::BatchSequence;

/// Which of the two pools is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    Keys,
    Values,
}

/// Writes the batch's rows of `pool`, out of (rows, all heads, head width), into the pool.
pub(crate) struct WriteKv<'a> {
    pub(crate) pool: Pool,
    pub(crate) shape: AttentionShape,
    pub(crate) sequences: &'a [BatchSequence],
}

impl WriteKv<'_> {
    fn on_cpu<K: KvElement>(&self, pool: &mut [K], qkv: &[f32]) {
        let (layout, width) = (self.shape.kv, self.shape.kv.head_width);
        let stride = (self.shape.query_heads + 2 * layout.kv_heads) * width;
        let first_head = match self.pool {
            Pool::Keys => self.shape.query_heads,
            Pool::Values => self.shape.query_heads + layout.kv_heads,
        };
        let slots = self.sequences.iter().flat_map(|sequence| {
            sequence.slots().enumerate().map(|(row, place)| (sequence.first_row + row, place))
        });
        for (row, (block, slot)) in slots {
            let heads = &qkv[row * stride + first_head * width..][..layout.kv_heads * width];
            for (head, elements) in heads.chunks_exact(width).enumerate() {
                let tile = &mut pool[layout.tile(block, head)..][..layout.tile_elements()];
                for (element, value) in elements.iter().enumerate() {
                    let at = match self.pool {
                        Pool::Keys => layout.key(slot, element),
                        Pool::Values => layout.value(slot, element),
                    };
                    tile[at] = K::from_f32(*value);
                }
            }
        }
    }
}

impl InplaceOp2 for WriteKv<'_> {
    fn name(&self) -> &'static str {
        "write_kv"
    }

    fn cpu_fwd(
        &self,
        pool: &mut CpuStorage,
        pool_layout: &Layout,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
    ) -> Result<()> {
        let qkv = contiguous::<f32>(qkv, qkv_layout)?;
        if pool.dtype() == DType::BF16 {
            self.on_cpu::<bf16>(contiguous_mut(pool, pool_layout)?, qkv);
        } else {
            self.on_cpu::<f32>(contiguous_mut(pool, pool_layout)?, qkv);
        }
        Ok(())
    }
}
