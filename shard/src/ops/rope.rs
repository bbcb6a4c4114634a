//! Turns queries and keys by their positions, in place.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result};

use super::attention::AttentionShape;
use super::cpu::isa::Isa;
use super::cpu::rope::rotate;
use super::{contiguous, contiguous_mut};
use crate::batch::BatchSequence;

/// (rows, all heads, head width), table (positions, head width): rotates the query and key heads of each
/// row by its position's angles, cosines in the first half of the table's row and sines in the second.
pub(crate) struct Rope<'a> {
    pub(crate) shape: AttentionShape,
    pub(crate) sequences: &'a [BatchSequence],
    pub(crate) isa: Isa,
}

impl InplaceOp2 for Rope<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        qkv: &mut CpuStorage,
        qkv_layout: &Layout,
        table: &CpuStorage,
        table_layout: &Layout,
    ) -> Result<()> {
        let qkv = contiguous_mut::<f32>(qkv, qkv_layout)?;
        let table = contiguous::<f32>(table, table_layout)?;
        let (heads, kv_heads) = (self.shape.query_heads, self.shape.kv.kv_heads);
        let width = self.shape.kv.head_width;
        for sequence in self.sequences {
            for row in 0..sequence.rows {
                let position = sequence.first_position.index() + row;
                let start = (sequence.first_row + row) * (heads + 2 * kv_heads) * width;
                let rotated = &mut qkv[start..][..(heads + kv_heads) * width];
                rotate(self.isa, rotated, &table[position * width..][..width]);
            }
        }
        Ok(())
    }
}
