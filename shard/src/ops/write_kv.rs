//! Writes a batch's new keys, or values, into their sequences' KV blocks.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result};
use half::{bf16, f16};

use super::attention::AttentionShape;
use super::cpu::kv_element::KvElement;
use super::cpu::parallel::{SharedSlice, for_each_range};
use super::placed::Placed;
use super::{contiguous, contiguous_mut};
use crate::kv::layout::Pool;

/// Scalar operations an element takes to be rounded and put in its place.
const OPERATIONS: usize = 8;

/// Writes the batch's rows of `pool`, out of (rows, all heads, head width), into the pool.
pub(crate) struct WriteKv<'a> {
    pub(crate) pool: Pool,
    pub(crate) shape: AttentionShape,
    pub(crate) rows: &'a Placed<'a>,
}

impl WriteKv<'_> {
    fn on_cpu<K: KvElement>(&self, pool: &mut [K], qkv: &[f32]) {
        let (layout, rows) = (self.shape.kv, qkv.len() / self.shape.row_elements());
        let pool = SharedSlice::new(pool);
        let operations = rows * layout.kv_heads * layout.head_width * OPERATIONS;
        for_each_range(layout.kv_heads, operations, |heads| {
            for head in heads {
                self.write_head(pool, qkv, head);
            }
        });
    }

    fn write_head<K: KvElement>(&self, pool: SharedSlice<'_, K>, qkv: &[f32], head: usize) {
        let (layout, width) = (self.shape.kv, self.shape.kv.head_width);
        let first_head = match self.pool {
            Pool::Keys => self.shape.query_heads,
            Pool::Values => self.shape.query_heads + layout.kv_heads,
        };
        let slots = self.rows.sequences.iter().flat_map(|sequence| {
            sequence.slots().enumerate().map(|(row, place)| (sequence.first_row + row, place))
        });
        for (row, (block, slot)) in slots {
            let start = row * self.shape.row_elements() + (first_head + head) * width;
            let place = K::tile(layout, block, head);
            // SAFETY: no two heads share a tile, and one thread writes those of a head.
            let tile = unsafe { pool.part(place.start, place.len()) };
            K::write(tile, (layout, self.pool, slot), &qkv[start..][..width]);
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
        if pool.dtype() == DType::U8 {
            self.on_cpu::<u8>(contiguous_mut(pool, pool_layout)?, qkv);
        } else if pool.dtype() == DType::BF16 {
            self.on_cpu::<bf16>(contiguous_mut(pool, pool_layout)?, qkv);
        } else if pool.dtype() == DType::F16 {
            self.on_cpu::<f16>(contiguous_mut(pool, pool_layout)?, qkv);
        } else {
            self.on_cpu::<f32>(contiguous_mut(pool, pool_layout)?, qkv);
        }
        Ok(())
    }
}
