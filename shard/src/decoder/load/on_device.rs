//! A rank's matrices as plain rows on its device.

use std::sync::Arc;

use candle_core::{Device, Tensor, WithDType};
use half::bf16;
use lockstep_proto::Bytes;
use rayon::prelude::*;

use super::Loader;
use crate::decoder::LoadError;
use crate::decoder::choices::Head;
use crate::decoder::embedding::Table;
use crate::decoder::stacks::Stack;
use crate::dtype::Dtype;
use crate::ops::cpu::panels::RowSource;
use crate::ops::cuda::product::DeviceMatrix;
use crate::ops::linear::Linear;
use crate::ops::matrix::Matrix;
use crate::weights::{StackedRows, StoredTensor};

/// What main memory holds at once of what goes to the device.
const AT_ONCE: Bytes = Bytes(256 << 20);

impl Loader<'_> {
    /// As on the CPU, its rows below each other, rows of padding zero.
    pub(super) fn linear_on_device(&self, stack: &Stack) -> Result<Linear, LoadError> {
        let shape = stack.shape;
        let rows = self.rows(stack, 0..stack.parts.len())?;
        let weights = self.rows_on_device(&rows, (shape.outputs, shape.inputs))?;
        self.progress.add(shape.outputs * shape.inputs * self.precision.dtype.bytes());
        let order = self.target.order();
        let matrix = DeviceMatrix { weights, segments: shape.segments, order };
        Ok(Linear { matrix: Arc::new(Matrix::of_device(matrix)), isa: self.isa })
    }

    /// The embedding table; the head's rows where they are the same and all here.
    pub(super) fn table_on_device(&self, table: &StoredTensor, head: &Linear) -> Result<Table, LoadError> {
        let shape = &self.spec.shape;
        let is_here =
            self.spec.choices.head == Head::Tied && self.slice.vocabulary.len() == shape.vocabulary;
        if let (true, Some(head)) = (is_here, head.matrix.on_device()) {
            return Ok(Table::OnDevice(head.weights.clone()));
        }
        let rows = StackedRows::new(vec![(table.clone(), 0..shape.vocabulary)], 0..shape.hidden);
        Ok(Table::OnDevice(self.rows_on_device(&rows, (shape.vocabulary, shape.hidden))?))
    }

    fn rows_on_device(&self, rows: &StackedRows, shape: (usize, usize)) -> Result<Tensor, LoadError> {
        let device = &self.target.device;
        let tensor = match self.precision.dtype {
            Dtype::Bfloat16 => copied::<bf16>(rows, shape, device, bf16::from_f32),
            Dtype::Float32 => copied::<f32>(rows, shape, device, |value| value),
        };
        tensor.map_err(|error| self.out_of_memory(error, shape))
    }

    /// What the device says, and what was to be put there.
    fn out_of_memory(&self, error: candle_core::Error, (rows, columns): (usize, usize)) -> LoadError {
        let bytes = Bytes((rows * columns * self.precision.dtype.bytes()) as u64);
        let advice = "where its memory is full, split the model over more GPUs with --num-shard";
        candle_core::Error::msg(format!("put {bytes} of weights on the GPU: {error}; {advice}")).into()
    }
}

/// (rows, columns), a piece at a time.
fn copied<T: WithDType>(
    source: &StackedRows,
    (rows, columns): (usize, usize),
    device: &Device,
    round: fn(f32) -> T,
) -> candle_core::Result<Tensor> {
    let row_bytes = columns.max(1) * size_of::<T>();
    let at_once = usize::try_from(AT_ONCE.0).map_or(1, |bytes| bytes / row_bytes).max(1);
    let target = Tensor::zeros((rows, columns), T::DTYPE, device)?;
    for first in (0..rows).step_by(at_once) {
        let count = at_once.min(rows - first);
        let mut values = vec![T::zero(); count * columns];
        values.par_chunks_mut(columns.max(1)).enumerate().for_each_init(
            || vec![0.0; columns],
            |widened, (row, values)| {
                source.read_row(first + row, widened);
                values.iter_mut().zip(widened).for_each(|(value, widened)| *value = round(*widened));
            },
        );
        target.slice_set(&Tensor::from_vec(values, (count, columns), device)?, 0, first)?;
        RowSource::release(source, first..first + count);
    }
    Ok(target)
}
