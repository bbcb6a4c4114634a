//! Turns queries and keys by their positions, in place.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, bail};

use super::attention::AttentionShape;
use super::cpu::isa::Isa;
use super::cpu::parallel::{SharedSlice, for_each_range};
use super::cpu::rope::rotate;
use super::placed::Placed;
use super::{contiguous, contiguous_mut};
use crate::batch::BatchSequence;

/// Scalar operations turning an element takes.
const OPERATIONS: usize = 4;

/// (rows, all heads, head width), table (positions, rotary width): rotates the first elements, as many as
/// the table is wide, of the query and key heads of each row by its position's angles, cosines in the first
/// half of the table's row and sines in the second. The elements beyond stay.
pub(crate) struct Rope<'a> {
    pub(crate) shape: AttentionShape,
    pub(crate) rows: &'a Placed<'a>,
    pub(crate) isa: Isa,
}

impl Rope<'_> {
    /// How many elements of each head turn.
    pub(super) fn rotary_width(&self, table: &Layout) -> Result<usize> {
        let (positions, rotary) = table.shape().dims2()?;
        let width = self.shape.kv.head_width;
        if rotary > width || !rotary.is_multiple_of(2) {
            bail!(
                "rotate heads of {width} elements by {rotary} angles: an even number up to {width} works"
            );
        }
        let end = |sequence: &BatchSequence| sequence.first_position.index().saturating_add(sequence.rows);
        match self.rows.sequences.iter().map(end).max() {
            Some(end) if end > positions => {
                bail!("rotate by the angles of {end} positions: the table has {positions}")
            }
            Some(_) | None => Ok(rotary),
        }
    }
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
        let rotary = self.rotary_width(table_layout)?;
        let qkv = contiguous_mut::<f32>(qkv, qkv_layout)?;
        let table = contiguous::<f32>(table, table_layout)?;
        let (row_elements, width) = (self.shape.row_elements(), self.shape.kv.head_width);
        let rotated_elements = self.shape.query_elements() + self.shape.kv_elements();
        let positions: Vec<(usize, usize)> = self
            .rows
            .sequences
            .iter()
            .flat_map(|sequence| {
                (0..sequence.rows)
                    .map(|row| (sequence.first_row + row, sequence.first_position.index() + row))
            })
            .collect();
        // Rows of a sequence follow each other; a batch whose sequences share some is turned by one thread.
        let apart = positions.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let qkv = SharedSlice::new(qkv);
        let turn = |range: Range<usize>| {
            for (row, position) in &positions[range] {
                // SAFETY: a row stands once among the positions where several threads work on them.
                let heads = unsafe { qkv.part(row * row_elements, rotated_elements) };
                rotate(self.isa, heads, width, &table[position * rotary..][..rotary]);
            }
        };
        if apart {
            for_each_range(positions.len(), positions.len() * rotated_elements * OPERATIONS, turn);
        } else {
            turn(0..positions.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use lockstep_proto::Position;

    use super::*;
    use crate::kv::layout::KvLayout;
    use crate::ops::reference::Random;

    const SHAPE: AttentionShape = AttentionShape {
        query_heads: 2,
        kv: KvLayout { kv_heads: 1, head_width: 6 },
        scale: 1.0,
        window: None,
        softcap: None,
    };

    /// Rotates two rows from `first_position` by a table of four positions, and returns them before and after.
    fn rotated(rotary: usize, first_position: u32) -> Result<(Vec<f32>, Vec<f32>)> {
        let mut random = Random::new(19);
        let before = random.values(2 * SHAPE.row_elements());
        let qkv = Tensor::from_vec(before.clone(), (2, SHAPE.row_elements()), &Device::Cpu)?;
        let table = Tensor::from_vec(random.values(4 * rotary), (4, rotary), &Device::Cpu)?;
        let sequences = [BatchSequence {
            first_row: 0,
            rows: 2,
            first_position: Position(first_position),
            blocks: vec![],
        }];
        qkv.inplace_op2(
            &table,
            &Rope { shape: SHAPE, rows: &Placed::on_cpu(&sequences), isa: Isa::of_this_machine() },
        )?;
        Ok((before, qkv.flatten_all()?.to_vec1()?))
    }

    #[test]
    fn queries_and_keys_turn_and_values_and_the_rest_of_heads_stay() {
        let (before, after) = rotated(4, 2).unwrap();
        for (at, (before, after)) in before.iter().zip(&after).enumerate() {
            let (head, element) = (at / 6 % 4, at % 6);
            assert_eq!(before != after, head < 3 && element < 4, "head {head} element {element}");
        }
    }

    #[test]
    fn a_table_that_does_not_fit_is_refused() {
        assert!(rotated(6, 2).is_ok());
        let message = |outcome: Result<(Vec<f32>, Vec<f32>)>| outcome.unwrap_err().to_string();
        assert!(message(rotated(8, 0)).contains("an even number up to 6 works"));
        assert!(message(rotated(3, 0)).contains("an even number up to 6 works"));
        assert!(message(rotated(4, 3)).contains("the angles of 5 positions: the table has 4"));
    }
}
