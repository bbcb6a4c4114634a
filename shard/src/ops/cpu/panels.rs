//! Weights packed for the matrix kernels: panels of 32 output columns, streamed front to back.
//!
//! A panel holds, for each step along the inner dimension, the step's elements of its columns: two bf16 or f16
//! or one f32 a column, 128 bytes a step, which is two vectors. With one vector a step, a row alone would wait for
//! its own sum at every step; two panels side by side would be two streams, of which a core reads each at half
//! the speed. The inner dimension is zero-padded to a multiple of two (16 bits) and the columns to a multiple of
//! 32.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};
use rayon::prelude::*;

use super::huge_memory::HugeMemory;
use super::simd::{LANES, round_to_bf16};
use crate::dtype::{Dtype, Overflow, as_f16};

/// Vectors of sums a panel has for each row.
pub(crate) const VECTORS: usize = 2;

/// Columns of a panel.
pub(crate) const COLUMNS: usize = VECTORS * LANES;

/// One step of a bf16 panel: two elements for each column.
pub(crate) type Bf16Step = [[[bf16; 2]; LANES]; VECTORS];
/// One step of an f16 panel: one element for each column, and the next of each.
pub(crate) type F16Step = [[[f16; LANES]; 2]; VECTORS];
/// One step of an f32 panel: one element for each column.
pub(crate) type F32Step = [[f32; LANES]; VECTORS];

/// Bytes of a step, of any type.
const STEP_BYTES: usize = size_of::<F32Step>();

/// The sizes of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PanelShape {
    /// Columns of the product: rows of the weight as checkpoints hold it.
    pub(crate) outputs: usize,
    /// Length of the dot products.
    pub(crate) inputs: usize,
    /// How many equal parts the inner dimension is cut into. Each is summed by itself, and then the parts
    /// are, in a balanced binary tree. A power of two.
    pub(crate) segments: usize,
}

impl PanelShape {
    pub(crate) fn panels(self) -> usize {
        self.outputs.div_ceil(COLUMNS)
    }

    /// Steps of a panel.
    pub(crate) fn steps(self, dtype: Dtype) -> usize {
        match dtype {
            Dtype::Bfloat16 | Dtype::Float16 => self.inputs.div_ceil(2),
            Dtype::Float32 => self.inputs,
        }
    }

    /// Bytes the panels take.
    pub(crate) fn bytes(self, dtype: Dtype) -> usize {
        self.panels() * self.steps(dtype) * STEP_BYTES
    }

    /// Whether each segment takes whole steps.
    pub(crate) fn is_sound(self, dtype: Dtype) -> bool {
        self.segments.is_power_of_two()
            && self.segments <= MAX_SEGMENTS
            && (self.segments == 1 || self.steps(dtype).is_multiple_of(self.segments))
            && (self.segments == 1 || self.inputs.is_multiple_of(self.segments * 2))
    }
}

/// The most parts the inner dimension may be cut into.
pub(crate) const MAX_SEGMENTS: usize = 8;

/// A packed matrix.
pub(crate) struct Panels {
    memory: HugeMemory,
    shape: PanelShape,
    dtype: Dtype,
}

/// Where packed elements come from: writes row `output` of the weight, `inputs` values, into the slice.
pub(crate) trait RowSource: Sync {
    fn read_row(&self, output: usize, into: &mut [f32]);

    /// The same row's bytes as little-endian elements of 16 bits, where these are what it is kept as: they are packed as
    /// they are.
    fn stored_row(&self, _output: usize, _dtype: Dtype) -> Option<&[u8]> {
        None
    }

    /// Is told which rows are not read any more.
    fn release(&self, _outputs: Range<usize>) {}
}

/// Panels packed by one thread before their rows are released.
const PANELS_TOGETHER: usize = 16;

impl Panels {
    /// Packs `source`.
    ///
    /// # Errors
    /// When there is no memory for it, or a number is too large for the type: [`io::ErrorKind::InvalidData`].
    pub(crate) fn pack(shape: PanelShape, dtype: Dtype, source: &dyn RowSource) -> io::Result<Self> {
        assert!(shape.is_sound(dtype), "segments take whole steps: {shape:?}");
        let mut memory = HugeMemory::zeroed(shape.bytes(dtype))?;
        let panel_bytes = shape.steps(dtype) * STEP_BYTES;
        let has_overflowed = AtomicBool::new(false);
        if panel_bytes > 0 {
            let together = memory.as_mut_slice().par_chunks_mut(panel_bytes * PANELS_TOGETHER).enumerate();
            together.for_each_init(
                || vec![0.0; shape.inputs],
                |row, (group, bytes)| {
                    let first = group * PANELS_TOGETHER;
                    let panels = bytes.chunks_exact_mut(panel_bytes);
                    let count = panels.len();
                    for (panel, bytes) in panels.enumerate() {
                        let packed = pack_panel(shape, dtype, source, (first + panel, bytes, row));
                        has_overflowed.fetch_or(packed.is_err(), Ordering::Relaxed);
                    }
                    source.release(first * COLUMNS..shape.outputs.min((first + count) * COLUMNS));
                },
            );
        }
        if has_overflowed.into_inner() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, Overflow));
        }
        Ok(Self { memory, shape, dtype })
    }

    pub(crate) fn shape(&self) -> PanelShape {
        self.shape
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// All panels' steps, one panel after the other. The matrix was packed as bf16.
    pub(crate) fn bf16_steps(&self) -> &[Bf16Step] {
        assert_eq!(self.dtype, Dtype::Bfloat16);
        // SAFETY: any 128 bytes are a step of bf16 pairs; the memory is aligned to more than two bytes.
        let (before, steps, after) = unsafe { self.memory.as_slice().align_to() };
        assert!(before.is_empty() && after.is_empty(), "packed memory is whole steps");
        steps
    }

    /// All panels' steps, one panel after the other. The matrix was packed as f16.
    pub(crate) fn f16_steps(&self) -> &[F16Step] {
        assert_eq!(self.dtype, Dtype::Float16);
        // SAFETY: any 128 bytes are a step of f16; the memory is aligned to more than two bytes.
        let (before, steps, after) = unsafe { self.memory.as_slice().align_to() };
        assert!(before.is_empty() && after.is_empty(), "packed memory is whole steps");
        steps
    }

    /// All panels' steps, one panel after the other. The matrix was packed as f32.
    pub(crate) fn f32_steps(&self) -> &[F32Step] {
        assert_eq!(self.dtype, Dtype::Float32);
        // SAFETY: any 128 bytes are a step of f32; the memory is aligned to more than four bytes.
        let (before, steps, after) = unsafe { self.memory.as_slice().align_to() };
        assert!(before.is_empty() && after.is_empty(), "packed memory is whole steps");
        steps
    }
}

fn pack_panel(
    shape: PanelShape,
    dtype: Dtype,
    source: &dyn RowSource,
    (panel, bytes, row): (usize, &mut [u8], &mut Vec<f32>),
) -> Result<(), Overflow> {
    let first = panel * COLUMNS;
    let columns = COLUMNS.min(shape.outputs - first);
    if columns == COLUMNS && shape.inputs.is_multiple_of(2) {
        let rows: [Option<&[u8]>; COLUMNS] =
            std::array::from_fn(|column| source.stored_row(first + column, dtype));
        if rows.iter().all(Option::is_some) {
            interleave(dtype, &rows.map(Option::unwrap_or_default), bytes);
            return Ok(());
        }
    }
    for column in 0..columns {
        source.read_row(first + column, row);
        match dtype {
            Dtype::Bfloat16 => {
                for (k, value) in row.iter().enumerate() {
                    let at = (k / 2) * STEP_BYTES + column * 4 + (k % 2) * 2;
                    bytes[at..at + 2].copy_from_slice(&round_to_bf16(*value).to_ne_bytes());
                }
            }
            Dtype::Float16 => {
                for (k, value) in row.iter().enumerate() {
                    let vector = (k / 2) * STEP_BYTES + column / LANES * (STEP_BYTES / VECTORS);
                    let at = vector + (k % 2) * LANES * 2 + column % LANES * 2;
                    bytes[at..at + 2].copy_from_slice(&as_f16(*value)?.to_ne_bytes());
                }
            }
            Dtype::Float32 => {
                for (k, value) in row.iter().enumerate() {
                    let at = k * STEP_BYTES + column * 4;
                    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
                }
            }
        }
    }
    Ok(())
}

/// Packs a panel's rows of elements of 16 bits, two of each row at a time.
fn interleave(dtype: Dtype, rows: &[&[u8]; COLUMNS], bytes: &mut [u8]) {
    /// Steps done together: a cache line of each row, so that every line is touched once.
    const TOGETHER: usize = 16;
    let pairs = rows.map(|row| row.as_chunks::<4>().0);
    let steps = bytes.as_chunks_mut::<STEP_BYTES>().0;
    for (block, steps) in steps.chunks_mut(TOGETHER).enumerate() {
        for (column, pairs) in pairs.iter().enumerate() {
            let pairs = &pairs[block * TOGETHER..][..steps.len()];
            for (step, pair) in steps.iter_mut().zip(pairs) {
                place_pair(dtype, step, (column, pair));
            }
        }
    }
}

/// Puts a column's two elements of a step where they belong.
#[inline(always)]
fn place_pair(dtype: Dtype, step: &mut [u8; STEP_BYTES], (column, pair): (usize, &[u8; 4])) {
    match dtype {
        Dtype::Float16 => {
            let elements = step.as_chunks_mut::<2>().0;
            let first = column / LANES * 2 * LANES + column % LANES;
            elements[first] = [pair[0], pair[1]];
            elements[first + LANES] = [pair[2], pair[3]];
        }
        Dtype::Bfloat16 | Dtype::Float32 => step.as_chunks_mut::<4>().0[column] = *pair,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rows kept as 16 bits, which are given out as such or not.
    struct Rows {
        elements: Vec<Vec<u8>>,
        dtype: Dtype,
        raw: bool,
    }

    impl RowSource for Rows {
        fn read_row(&self, output: usize, into: &mut [f32]) {
            for (value, bytes) in into.iter_mut().zip(self.elements[output].as_chunks().0) {
                *value = if self.dtype == Dtype::Float16 {
                    f16::from_le_bytes(*bytes).to_f32()
                } else {
                    bf16::from_le_bytes(*bytes).to_f32()
                };
            }
        }

        fn stored_row(&self, output: usize, dtype: Dtype) -> Option<&[u8]> {
            (self.raw && dtype == self.dtype).then(|| self.elements[output].as_slice())
        }
    }

    proptest! {
        #[test]
        fn rows_of_16_bits_are_packed_as_if_they_were_widened_and_rounded(
            outputs in 1..100_usize,
            inputs in 1..70_usize,
            seed in any::<u16>(),
        ) {
            let shape = PanelShape { outputs, inputs, segments: 1 };
            let value = |at: usize| ((at * 31 + usize::from(seed)) % 997) as f32 - 498.0;
            for dtype in [Dtype::Bfloat16, Dtype::Float16] {
                let bytes = |at: usize| match dtype {
                    Dtype::Float16 => f16::from_f32(value(at)).to_le_bytes(),
                    Dtype::Bfloat16 | Dtype::Float32 => bf16::from_f32(value(at)).to_le_bytes(),
                };
                let row = |output| (0..inputs).flat_map(|k| bytes(output * inputs + k)).collect();
                let elements: Vec<Vec<u8>> = (0..outputs).map(row).collect();
                let packed = |raw| {
                    let rows = Rows { elements: elements.clone(), dtype, raw };
                    Panels::pack(shape, dtype, &rows).unwrap()
                };
                let (raw, widened) = (packed(true), packed(false));
                prop_assert_eq!(raw.memory.as_slice(), widened.memory.as_slice());
            }
        }
    }

    struct One(f32);

    impl RowSource for One {
        fn read_row(&self, _: usize, into: &mut [f32]) {
            into.fill(self.0);
        }
    }

    #[test]
    fn a_weight_that_float16_has_no_room_for_is_refused() {
        let shape = PanelShape { outputs: 3, inputs: 4, segments: 1 };
        let packed = |dtype, weight| Panels::pack(shape, dtype, &One(weight)).map(|_| ());
        let refused = packed(Dtype::Float16, -65_520.0).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert!(refused.to_string().contains("beyond 65504"), "{refused}");
        for (dtype, weight) in [
            (Dtype::Float16, 65_519.0),
            (Dtype::Float16, f32::INFINITY),
            (Dtype::Bfloat16, 1e30),
            (Dtype::Float32, 1e30),
        ] {
            assert!(packed(dtype, weight).is_ok(), "{dtype} {weight}");
        }
    }
}
