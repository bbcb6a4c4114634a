//! How fast attention reads keys and values, for benchmarks: one token of one stream, layer after layer.

use std::time::Instant;

use candle_core::{Device, Result, Tensor};
use lockstep_proto::{BlockId, Blocks, Bytes, Position};

use super::attention::{Attention, AttentionShape};
use super::cpu::isa::Isa;
use super::placed::Placed;
use super::write_kv::WriteKv;
use crate::batch::{BLOCK_SIZE, BatchSequence};
use crate::dtype::Dtype;
use crate::kv::layout::{KvLayout, Pool};
use crate::kv::{KvCacheDtype, KvDtype, KvPool};

/// Rows whose keys and values are written at a time.
const ROWS: usize = 512;

/// The attention layers of a model and the KV blocks of one sequence, in main memory.
pub struct AttentionProbe {
    shape: AttentionShape,
    held: KvDtype,
    kv: KvPool,
    /// (1, heads of one position)
    qkv: Tensor,
    sequences: Vec<BatchSequence>,
}

impl AttentionProbe {
    /// For so many layers of query heads, KV heads and elements of a head, behind so many positions, one at least.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(
        (layers, query_heads, kv_heads, head_width): (usize, usize, usize, usize),
        positions: usize,
        dtype: KvCacheDtype,
    ) -> std::result::Result<Self, Box<dyn std::error::Error>> {
        let kv = KvLayout { kv_heads, head_width };
        let scale = 1.0 / (head_width as f32).sqrt();
        let shape = AttentionShape { query_heads, kv, scale, window: None, softcap: None };
        let blocks: Vec<BlockId> = (0..positions.div_ceil(BLOCK_SIZE.len()) as u32).map(BlockId).collect();
        let count = Blocks(blocks.len() as u32);
        let held = dtype.beside(Dtype::Bfloat16);
        let kv = KvPool::allocate((kv, layers), held, count, &Device::Cpu)?;
        let last = Position(positions as u32 - 1);
        let sequence = |first_position, rows| BatchSequence {
            first_row: 0,
            rows,
            first_position,
            blocks: blocks.clone(),
        };
        for first in (0..positions).step_by(ROWS) {
            let rows = ROWS.min(positions - first);
            let qkv = rows_of(rows, shape)?;
            let sequences = [sequence(Position(first as u32), rows)];
            let rows = &Placed::new(&sequences, (shape, held), &Device::Cpu)?;
            for layer in &kv.layers {
                layer.keys.inplace_op2(&qkv, &WriteKv { pool: Pool::Keys, shape, rows })?;
                layer.values.inplace_op2(&qkv, &WriteKv { pool: Pool::Values, shape, rows })?;
            }
        }
        let sequences = vec![sequence(last, 1)];
        Ok(Self { shape, held, kv, qkv: rows_of(1, shape)?, sequences })
    }

    /// Bytes of keys and values a step reads.
    pub fn bytes(&self) -> Bytes {
        self.kv.bytes()
    }

    /// Seconds that the last position's attention takes in all layers.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn seconds(&self) -> Result<f64> {
        let rows = &Placed::new(&self.sequences, (self.shape, self.held), &Device::Cpu)?;
        let attention = Attention { shape: self.shape, rows, isa: Isa::of_this_machine() };
        let begun = Instant::now();
        for layer in &self.kv.layers {
            std::hint::black_box(self.qkv.apply_op3_no_bwd(&layer.keys, &layer.values, &attention)?);
        }
        Ok(begun.elapsed().as_secs_f64())
    }
}

/// Queries, keys and values of so many positions.
fn rows_of(rows: usize, shape: AttentionShape) -> Result<Tensor> {
    Tensor::randn(0.0_f32, 1.0, (rows, shape.row_elements()), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_over_every_kind_of_blocks_reads_all_that_was_written() {
        // Elements of a tile of 16 slots and their scales, in bytes.
        for (dtype, tile) in [(KvCacheDtype::Bfloat16, 16 * 32 * 2), (KvCacheDtype::Int8, 16 * 32 + 16 * 4)]
        {
            let probe = AttentionProbe::new((2, 4, 2, 32), 700, dtype).unwrap();
            probe.seconds().unwrap();
            // Keys and values of two layers, 44 blocks and two heads.
            assert_eq!(probe.bytes(), Bytes(2 * 2 * 44 * 2 * tile), "{dtype}");
        }
    }
}
