//! A rank's matrices on its device: as plain rows, or quantized as tiles.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor, WithDType};
use half::{bf16, f16};
use lockstep_proto::Bytes;
use rayon::prelude::*;

use super::{Loader, modules, names};
use crate::decoder::embedding::Table;
use crate::decoder::mlp::HeldExperts;
use crate::decoder::stacks::{Run, Stack};
use crate::decoder::{LoadError, Quantize};
use crate::device::DeviceKind;
use crate::dtype::{Dtype, Overflow, as_f16};
use crate::ops::activation::Activation;
use crate::ops::cpu::panels::RowSource;
use crate::ops::cpu::quantized::Quantizing;
use crate::ops::cuda::experts::grouped::{ExpertMatrices, GroupedExperts, Groups};
use crate::ops::cuda::product::tiles::{TileRows, TileSource, Tiling, by_segment};
use crate::ops::cuda::product::{DeviceGate, DeviceMatrix, DevicePart, DeviceWeights, Sums};
use crate::ops::experts::Routing;
use crate::ops::gated_linear::GatedLinear;
use crate::ops::linear::Linear;
use crate::ops::matrix::{Matrix, Packing};
use crate::ops::tiles::{TILE, TileFormat, tiles};
use crate::weights::{StackedRows, StoredTensor};

/// What main memory holds at once of what goes to the device.
const AT_ONCE: Bytes = Bytes(256 << 20);

impl Loader<'_> {
    /// As on the CPU, its rows below each other, rows of padding zero.
    pub(super) fn linear_on_device(&self, stack: &Stack) -> Result<Linear, LoadError> {
        self.summed_on_device(stack, self.target.sums())
    }

    /// The same whose rows have the same bits in any batch and on every rank, whatever others have: of what is decided by it.
    pub(super) fn exact_linear_on_device(&self, stack: &Stack) -> Result<Linear, LoadError> {
        self.summed_on_device(stack, Sums::Exact)
    }

    fn summed_on_device(&self, stack: &Stack, sums: Sums) -> Result<Linear, LoadError> {
        let runs = stack.runs(self.spec, self.precision);
        let part = |run| self.part_on_device(stack, run, TileRows::InOrder);
        let parts = runs.iter().map(part).collect::<Result<_, _>>()?;
        let matrix = DeviceMatrix { parts, sums };
        Ok(Linear { matrix: Arc::new(Matrix::of_device(matrix)), isa: self.isa })
    }

    /// Gate and up as one, where they are held alike.
    pub(super) fn gate_on_device(
        &self,
        stack: &Stack,
        runs: &[Run],
        activation: Activation,
    ) -> Result<Option<GatedLinear>, LoadError> {
        let [run] = runs else { return Ok(None) };
        let weights = self.part_on_device(stack, run, TileRows::GateBesideUp)?;
        let gate = DeviceGate { weights, sums: self.target.sums() };
        Ok(Some(GatedLinear::of_device(gate, activation, self.isa)))
    }

    /// A layer's experts all at once, where they are on a device and tensor cores multiply by them.
    pub(super) fn grouped_experts(
        &self,
        layer: usize,
        how: (Routing, Activation),
    ) -> Result<Option<HeldExperts>, LoadError> {
        let Some(device) = self.target.gpu() else { return Ok(None) };
        let mine = self.slice.experts.clone();
        let stacks: Vec<[Stack; 2]> = mine.map(|expert| self.stacks.expert(layer, expert)).collect();
        let runs = |stack: &Stack| stack.runs(self.spec, self.precision);
        let is_f32 = |run: &Run| run.packing == Packing::Elements(Dtype::Float32);
        if stacks.as_flattened().iter().flat_map(runs).any(|run| is_f32(&run)) {
            return Ok(None);
        }
        let matrices = |which: usize, rows: TileRows| -> Result<ExpertMatrices, LoadError> {
            let of_which = stacks.iter().map(|of_expert| &of_expert[which]);
            let runs = of_which.flat_map(|stack| runs(stack).into_iter().map(move |run| (stack, run)));
            let matrices = runs.map(|(stack, run)| self.part_on_device(stack, &run, rows));
            Ok(ExpertMatrices::new(device, matrices.collect::<Result<_, _>>()?)?)
        };
        let both = (matrices(0, TileRows::GateBesideUp)?, matrices(1, TileRows::InOrder)?);
        let groups =
            Groups { first: self.slice.experts.start, count: stacks.len() / self.experts_of_a_group() };
        Ok(Some(HeldExperts::Grouped(Box::new(GroupedExperts::new(how, groups, both)))))
    }

    /// The embedding table; the head's rows where they are the same.
    pub(super) fn table_on_device(&self, table: &StoredTensor, head: &Linear) -> Result<Table, LoadError> {
        let head = head.matrix.on_device().and_then(DeviceMatrix::plain_rows);
        if let (true, Some(rows)) = (self.stacks.head_is_table(self.precision), head) {
            // Rows of padding come after those of the vocabulary.
            return Ok(Table::OnDevice(rows.clone()));
        }
        let shape = (self.spec.shape.vocabulary, self.spec.shape.hidden);
        let rows = StackedRows::new(vec![(table.clone(), 0..shape.0)], 0..shape.1);
        let rows = self.rows_on_device(&rows, shape, self.precision.dtype);
        Ok(Table::OnDevice(rows.map_err(|error| error.of(names::EMBEDDING))?))
    }

    fn part_on_device(
        &self,
        stack: &Stack,
        run: &Run,
        tile_rows: TileRows,
    ) -> Result<DevicePart, LoadError> {
        let (rows, shape) = (self.rows(stack, run.parts.clone())?, run.shape);
        let tiling = |source| Tiling { source, shape, rows: tile_rows };
        let weights = match (run.packing, self.precision.quantize) {
            (Packing::Elements(dtype), _) => {
                let size = (shape.outputs, shape.inputs);
                let rows =
                    self.rows_on_device(&rows, size, dtype).map_err(|error| error.of(&modules(stack)))?;
                DeviceWeights::Rows(rows)
            }
            (Packing::Quantized(format), Quantize::AsStored) => {
                self.tiles_on_device(&tiling(TileSource::Groups { rows: &rows, format }))?
            }
            (Packing::Quantized(format), _) => {
                let rows = Quantizing::of_this_machine(&rows, format);
                self.tiles_on_device(&tiling(TileSource::Groups { rows: &rows, format }))?
            }
            (Packing::Float8, _) => self.tiles_on_device(&tiling(TileSource::Float8(&rows)))?,
        };
        self.progress.add(run.packing.bytes(shape, DeviceKind::Cuda));
        Ok(DevicePart { weights, shape })
    }

    fn rows_on_device(
        &self,
        rows: &StackedRows,
        shape: (usize, usize),
        dtype: Dtype,
    ) -> Result<Tensor, NotCopied> {
        let device = &self.target.device;
        let tensor = match dtype {
            Dtype::Bfloat16 => copied::<bf16>(rows, shape, device, |value| Ok(bf16::from_f32(value))),
            Dtype::Float16 => copied::<f16>(rows, shape, device, as_f16),
            Dtype::Float32 => copied::<f32>(rows, shape, device, Ok),
        };
        let bytes = shape.0 * shape.1 * dtype.bytes();
        match tensor.map_err(|error| NotCopied::Device(out_of_memory(&error, bytes)))? {
            Copied { tensor, has_overflowed: false } => Ok(tensor),
            Copied { has_overflowed: true, .. } => Err(NotCopied::Overflow),
        }
    }

    fn tiles_on_device(&self, tiling: &Tiling<'_>) -> Result<DeviceWeights, LoadError> {
        let bytes = tiling.format().bytes(tiling.shape);
        tiled(tiling, &self.target.device).map_err(|error| out_of_memory(&error, bytes))
    }
}

/// A copy on the device.
struct Copied {
    tensor: Tensor,
    has_overflowed: bool,
}

/// Why there is none.
enum NotCopied {
    Device(LoadError),
    Overflow,
}

impl NotCopied {
    fn of(self, modules: &str) -> LoadError {
        match self {
            Self::Device(error) => error,
            Self::Overflow => LoadError::Held { modules: modules.to_owned(), reason: Overflow },
        }
    }
}

/// What the device says, and what was to be put there.
fn out_of_memory(error: &candle_core::Error, bytes: usize) -> LoadError {
    let bytes = Bytes(bytes as u64);
    let advice = "where its memory is full, split the model over more GPUs with --num-shard";
    candle_core::Error::msg(format!("put {bytes} of weights on the GPU: {error}; {advice}")).into()
}

/// Pieces of a matrix of `rows` rows that main memory has room for.
fn pieces(rows: usize, row_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let at_once = usize::try_from(AT_ONCE.0).map_or(1, |bytes| bytes / row_bytes.max(1)).max(1);
    (0..rows).step_by(at_once).map(move |first| first..rows.min(first + at_once))
}

/// (rows, columns), a piece at a time.
fn copied<T: WithDType>(
    source: &StackedRows,
    (rows, columns): (usize, usize),
    device: &Device,
    round: fn(f32) -> Result<T, Overflow>,
) -> candle_core::Result<Copied> {
    let target = Tensor::zeros((rows, columns), T::DTYPE, device)?;
    let has_overflowed = AtomicBool::new(false);
    for piece in pieces(rows, columns * size_of::<T>()) {
        let mut values = vec![T::zero(); piece.len() * columns];
        values.par_chunks_mut(columns.max(1)).enumerate().for_each_init(
            || vec![0.0; columns],
            |widened, (row, values)| {
                source.read_row(piece.start + row, widened);
                for (value, widened) in values.iter_mut().zip(widened) {
                    match round(*widened) {
                        Ok(rounded) => *value = rounded,
                        Err(Overflow) => has_overflowed.store(true, Ordering::Relaxed),
                    }
                }
            },
        );
        target.slice_set(&Tensor::from_vec(values, (piece.len(), columns), device)?, 0, piece.start)?;
        RowSource::release(source, piece);
    }
    Ok(Copied { tensor: target, has_overflowed: has_overflowed.into_inner() })
}

/// Tiles, a piece at a time.
fn tiled(tiling: &Tiling<'_>, device: &Device) -> candle_core::Result<DeviceWeights> {
    let (shape, format) = (tiling.shape, tiling.format());
    let (count, tile_bytes) = (tiles(shape), format.tile_bytes(shape));
    let target = Tensor::zeros((count, tile_bytes), candle_core::DType::U8, device)?;
    let mut scales = Vec::new();
    for piece in pieces(count, tile_bytes) {
        let (bytes, of_piece) = tiling.pack(piece.clone());
        scales.extend(of_piece);
        target.slice_set(&Tensor::from_vec(bytes, (piece.len(), tile_bytes), device)?, 0, piece.start)?;
        tiling.release(piece);
    }
    let scales = match format {
        TileFormat::Float8 => {
            let scales = by_segment(&scales, shape.segments);
            Some(Tensor::from_vec(scales, (shape.segments, count, TILE), device)?)
        }
        TileFormat::Int8
        | TileFormat::Int8Minimum
        | TileFormat::Int8Short
        | TileFormat::Int4
        | TileFormat::Int4Minimum => None,
    };
    Ok(DeviceWeights::Tiles { format, bytes: target, scales })
}
