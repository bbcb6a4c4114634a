//! Norms of rows and of projections, on a device; `heads.rs` has those of heads.

use candle_core::cuda_backend::CudaStorage;
use candle_core::{Layout, Result, Shape, bail};

use super::gpu::Gpu;
use super::kernel::{Address, Executor, Grid, Kernel, Parameters, THREADS, launch};
use super::storage::{address, of_slice, room, wrapped};
use crate::ops::add_norm::AddNorm;
use crate::ops::norm::{Norm, NormKind};
use crate::ops::projection_norm::{ProjectionNorm, ProjectionSquares};

#[repr(C)]
pub(crate) struct NormParameters {
    pub(crate) input: Address,
    pub(crate) delta: Address,
    pub(crate) parameters: Address,
    pub(crate) sum: Address,
    pub(crate) output: Address,
    pub(crate) width: u32,
    pub(crate) takes_mean: u32,
    pub(crate) has_bias: u32,
    pub(crate) epsilon: f32,
    pub(crate) delta_scale: f32,
}

// SAFETY: as in norm.cu.
unsafe impl Parameters for NormParameters {}

/// Norms `rows` rows, of the input or of its sum with a delta.
pub(crate) fn norm(on: &dyn Executor, parameters: &NormParameters, rows: usize) -> Result<()> {
    launch(on, Kernel::Norm, parameters, Grid::along_x(rows, THREADS))
}

#[repr(C)]
pub(crate) struct ProjectionSquaresParameters {
    pub(crate) qkv: Address,
    pub(crate) squares: Address,
    pub(crate) row_elements: u32,
    pub(crate) query_elements: u32,
    pub(crate) key_elements: u32,
    pub(crate) segments: u32,
}

// SAFETY: as in norm.cu.
unsafe impl Parameters for ProjectionSquaresParameters {}

/// Sums the squares of `rows` rows' queries, and of their keys.
pub(crate) fn projection_squares(
    on: &dyn Executor,
    parameters: &ProjectionSquaresParameters,
    rows: usize,
) -> Result<()> {
    let grid = Grid { blocks: [rows as u32, 2, 1], threads: THREADS, shared_bytes: 0 };
    launch(on, Kernel::ProjectionSquares, parameters, grid)
}

#[repr(C)]
pub(crate) struct ProjectionNormParameters {
    pub(crate) qkv: Address,
    pub(crate) squares: Address,
    pub(crate) weights: Address,
    pub(crate) row_elements: u32,
    pub(crate) query_elements: u32,
    pub(crate) key_elements: u32,
    pub(crate) query_width: u32,
    pub(crate) key_width: u32,
    pub(crate) epsilon: f32,
}

// SAFETY: as in norm.cu.
unsafe impl Parameters for ProjectionNormParameters {}

/// Norms the queries and keys of `rows` rows by sums over all ranks.
pub(crate) fn projection_norm(
    on: &dyn Executor,
    parameters: &ProjectionNormParameters,
    rows: usize,
) -> Result<()> {
    launch(on, Kernel::ProjectionNorm, parameters, Grid::along_x(rows, THREADS))
}

/// Whether norms of `width` elements have biases, by the shape of their parameters.
fn has_bias(width: usize, parameters: &Layout) -> Result<bool> {
    match parameters.shape().dims() {
        [count @ 1..=2, found] if *found == width && width > 0 => Ok(*count == 2),
        found => bail!("norm rows of {width} elements: the parameters are of shape {found:?}"),
    }
}

pub(crate) fn forward(
    op: &Norm,
    (input, input_layout): (&CudaStorage, &Layout),
    (parameters, parameters_layout): (&CudaStorage, &Layout),
) -> Result<(CudaStorage, Shape)> {
    let (rows, width) = input_layout.shape().dims2()?;
    let has_bias = has_bias(width, parameters_layout)?;
    let device = &input.device;
    let output = room::<f32>(device, rows * width)?;
    let call = NormParameters {
        input: address::<f32>(input, input_layout)?,
        delta: Address::NULL,
        parameters: address::<f32>(parameters, parameters_layout)?,
        sum: Address::NULL,
        output: of_slice(&output),
        width: width as u32,
        takes_mean: (op.kind == NormKind::Layer).into(),
        has_bias: has_bias.into(),
        epsilon: op.epsilon,
        delta_scale: 1.0,
    };
    norm(&Gpu(device), &call, rows)?;
    Ok((wrapped(output, device), input_layout.shape().clone()))
}

pub(crate) fn add_forward(
    op: &AddNorm,
    (residual, residual_layout): (&CudaStorage, &Layout),
    (delta, delta_layout): (&CudaStorage, &Layout),
    (parameters, parameters_layout): (&CudaStorage, &Layout),
) -> Result<(CudaStorage, Shape)> {
    let (rows, width) = residual_layout.shape().dims2()?;
    if delta_layout.shape() != residual_layout.shape() {
        let (delta, residual) = (delta_layout.shape(), residual_layout.shape());
        bail!("add a layer's output of shape {delta:?} to a residual stream of shape {residual:?}");
    }
    let has_bias = has_bias(width, parameters_layout)?;
    let device = &residual.device;
    let both = room::<f32>(device, 2 * rows * width)?;
    let sum = of_slice(&both);
    let call = NormParameters {
        input: address::<f32>(residual, residual_layout)?,
        delta: address::<f32>(delta, delta_layout)?,
        parameters: address::<f32>(parameters, parameters_layout)?,
        sum,
        output: sum.plus(rows * width * size_of::<f32>()),
        width: width as u32,
        takes_mean: (op.kind == NormKind::Layer).into(),
        has_bias: has_bias.into(),
        epsilon: op.epsilon,
        delta_scale: op.delta_scale,
    };
    norm(&Gpu(device), &call, rows)?;
    Ok((wrapped(both, device), Shape::from((2, rows, width))))
}

pub(crate) fn squares_forward(
    op: &ProjectionSquares,
    qkv: &CudaStorage,
    layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    op.check_segments()?;
    let rows = layout.shape().elem_count() / op.shape.row_elements();
    let squares = room::<f32>(&qkv.device, rows * 2)?;
    let call = ProjectionSquaresParameters {
        qkv: address::<f32>(qkv, layout)?,
        squares: of_slice(&squares),
        row_elements: op.shape.row_elements() as u32,
        query_elements: op.shape.query_elements() as u32,
        key_elements: op.shape.kv_elements() as u32,
        segments: op.segments as u32,
    };
    projection_squares(&Gpu(&qkv.device), &call, rows)?;
    Ok((wrapped(squares, &qkv.device), Shape::from((rows, 2))))
}

pub(crate) fn projection_forward(
    op: &ProjectionNorm,
    (qkv, qkv_layout): (&CudaStorage, &Layout),
    (squares, squares_layout): (&CudaStorage, &Layout),
    (weights, weights_layout): (&CudaStorage, &Layout),
) -> Result<()> {
    let rows = qkv_layout.shape().elem_count() / op.shape.row_elements();
    op.check_lengths(rows, weights_layout.shape().elem_count(), squares_layout.shape().elem_count())?;
    let call = ProjectionNormParameters {
        qkv: address::<f32>(qkv, qkv_layout)?,
        squares: address::<f32>(squares, squares_layout)?,
        weights: address::<f32>(weights, weights_layout)?,
        row_elements: op.shape.row_elements() as u32,
        query_elements: op.shape.query_elements() as u32,
        key_elements: op.shape.kv_elements() as u32,
        query_width: op.query_width as u32,
        key_width: op.key_width as u32,
        epsilon: op.epsilon,
    };
    projection_norm(&Gpu(&qkv.device), &call, rows)
}
