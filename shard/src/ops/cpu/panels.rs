//! Weights packed for the matrix kernels: panels of sixteen output columns, streamed front to back.
//!
//! A panel holds, for each step along the inner dimension, the step's elements of its sixteen columns: two
//! bf16 or one f32 a column, 64 bytes a step. The inner dimension is zero-padded to a multiple of two (bf16)
//! and the columns to a multiple of sixteen.

use std::io;

use half::bf16;
use rayon::prelude::*;

use super::huge_memory::HugeMemory;
use super::simd::{LANES, round_to_bf16};
use crate::dtype::Dtype;

/// One step of a bf16 panel: two elements for each of sixteen columns.
pub(crate) type Bf16Step = [[bf16; 2]; LANES];
/// One step of an f32 panel: one element for each of sixteen columns.
pub(crate) type F32Step = [f32; LANES];

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
        self.outputs.div_ceil(LANES)
    }

    /// Steps of 64 bytes in a panel.
    pub(crate) fn steps(self, dtype: Dtype) -> usize {
        match dtype {
            Dtype::Bfloat16 => self.inputs.div_ceil(2),
            Dtype::Float32 => self.inputs,
        }
    }

    /// Bytes the panels take.
    pub(crate) fn bytes(self, dtype: Dtype) -> usize {
        self.panels() * self.steps(dtype) * 64
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
}

impl Panels {
    /// Packs `source`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn pack(shape: PanelShape, dtype: Dtype, source: &dyn RowSource) -> io::Result<Self> {
        assert!(shape.is_sound(dtype), "segments take whole steps: {shape:?}");
        let mut memory = HugeMemory::zeroed(shape.bytes(dtype))?;
        let panel_bytes = shape.steps(dtype) * 64;
        if panel_bytes > 0 {
            let panels = memory.as_mut_slice().par_chunks_exact_mut(panel_bytes).enumerate();
            panels.for_each_init(
                || vec![0.0; shape.inputs],
                |row, (panel, bytes)| pack_panel(shape, dtype, source, (panel, bytes, row)),
            );
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
        // SAFETY: any 64 bytes are a step of bf16 pairs; the memory is aligned to more than two bytes.
        let (before, steps, after) = unsafe { self.memory.as_slice().align_to() };
        assert!(before.is_empty() && after.is_empty(), "packed memory is whole steps");
        steps
    }

    /// All panels' steps, one panel after the other. The matrix was packed as f32.
    pub(crate) fn f32_steps(&self) -> &[F32Step] {
        assert_eq!(self.dtype, Dtype::Float32);
        // SAFETY: any 64 bytes are a step of f32; the memory is aligned to more than four bytes.
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
) {
    for lane in 0..LANES.min(shape.outputs - panel * LANES) {
        source.read_row(panel * LANES + lane, row);
        match dtype {
            Dtype::Bfloat16 => {
                for (k, value) in row.iter().enumerate() {
                    let at = (k / 2) * 64 + lane * 4 + (k % 2) * 2;
                    bytes[at..at + 2].copy_from_slice(&round_to_bf16(*value).to_ne_bytes());
                }
            }
            Dtype::Float32 => {
                for (k, value) in row.iter().enumerate() {
                    let at = k * 64 + lane * 4;
                    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
                }
            }
        }
    }
}
