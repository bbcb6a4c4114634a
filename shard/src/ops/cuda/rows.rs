//! What is done to rows element by element, on a device.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::{CudaDevice, Layout, Result, Shape, bail};
use half::{bf16, f16};

use super::gpu::Gpu;
use super::kernel::{Address, Executor, Grid, Kernel, Parameters, launch};
use super::storage::{address, copy_of, of_slice, room, wrapped};
use crate::dtype::Dtype;
use crate::ops::activation::Activation;

#[repr(C)]
pub(crate) struct ActivationParameters {
    pub(crate) input: Address,
    pub(crate) output: Address,
    pub(crate) elements: u64,
    pub(crate) width: u32,
    pub(crate) function: u32,
    pub(crate) is_gated: u32,
}

// SAFETY: as in rows.cu.
unsafe impl Parameters for ActivationParameters {}

/// Activates as many elements as come out.
pub(crate) fn activation(on: &dyn Executor, parameters: &ActivationParameters) -> Result<()> {
    launch(on, Kernel::Activation, parameters, Grid::of_elements(parameters.elements as usize))
}

/// A function's number.
pub(crate) fn number_of(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}

#[repr(C)]
pub(crate) struct BiasParameters {
    pub(crate) values: Address,
    pub(crate) bias: Address,
    pub(crate) elements: u64,
    pub(crate) width: u32,
}

// SAFETY: as in rows.cu.
unsafe impl Parameters for BiasParameters {}

/// Adds a bias to every row.
pub(crate) fn add_bias(on: &dyn Executor, parameters: &BiasParameters) -> Result<()> {
    launch(on, Kernel::AddBias, parameters, Grid::of_elements(parameters.elements as usize))
}

#[repr(C)]
pub(crate) struct LogitParameters {
    pub(crate) logits: Address,
    pub(crate) elements: u64,
    pub(crate) divide_by: f32,
    /// 0 where there is none.
    pub(crate) cap: f32,
}

// SAFETY: as in rows.cu.
unsafe impl Parameters for LogitParameters {}

/// Divides logits, and bounds them where there is a cap.
pub(crate) fn logit_transform(on: &dyn Executor, parameters: &LogitParameters) -> Result<()> {
    launch(on, Kernel::LogitTransform, parameters, Grid::of_elements(parameters.elements as usize))
}

#[repr(C)]
pub(crate) struct RoundParameters {
    pub(crate) input: Address,
    pub(crate) output: Address,
    pub(crate) elements: u64,
}

// SAFETY: as in rows.cu.
unsafe impl Parameters for RoundParameters {}

/// Rounds f32 to 16 bits.
pub(crate) fn round_rows(on: &dyn Executor, to: Dtype, parameters: &RoundParameters) -> Result<()> {
    let kernel = match to {
        Dtype::Bfloat16 => Kernel::RoundRowsBf16,
        Dtype::Float16 => Kernel::RoundRowsF16,
        Dtype::Float32 => bail!("round rows of {to} to {to}"),
    };
    launch(on, kernel, parameters, Grid::of_elements(parameters.elements as usize))
}

#[repr(C)]
pub(crate) struct PickParameters {
    pub(crate) source: Address,
    pub(crate) rows: Address,
    pub(crate) output: Address,
    pub(crate) elements: u64,
    pub(crate) width: u32,
    pub(crate) scale: f32,
}

// SAFETY: as in rows.cu.
unsafe impl Parameters for PickParameters {}

/// Copies rows of a source of bf16, f16 or f32, scaled, as f32.
pub(crate) fn pick_rows(on: &dyn Executor, held: Dtype, parameters: &PickParameters) -> Result<()> {
    let kernel = match held {
        Dtype::Bfloat16 => Kernel::PickRowsBf16,
        Dtype::Float16 => Kernel::PickRowsF16,
        Dtype::Float32 => Kernel::PickRowsF32,
    };
    launch(on, kernel, parameters, Grid::of_elements(parameters.elements as usize))
}

#[repr(C)]
pub(crate) struct SpreadParameters {
    pub(crate) target: Address,
    pub(crate) source: Address,
    pub(crate) rows: Address,
    pub(crate) weights: Address,
    pub(crate) elements: u64,
    pub(crate) width: u32,
}

// SAFETY: as in rows.cu.
unsafe impl Parameters for SpreadParameters {}

/// Adds weighted rows to those they belong to.
pub(crate) fn add_rows(on: &dyn Executor, parameters: &SpreadParameters) -> Result<()> {
    launch(on, Kernel::AddRows, parameters, Grid::of_elements(parameters.elements as usize))
}

#[repr(C)]
pub(crate) struct TreeParameters {
    pub(crate) parts: Address,
    pub(crate) sum: Address,
    pub(crate) elements: u64,
    pub(crate) count: u32,
}

// SAFETY: as in rows.cu.
unsafe impl Parameters for TreeParameters {}

/// Sums a power of two of parts in one binary tree.
pub(crate) fn sum_parts(on: &dyn Executor, parameters: &TreeParameters) -> Result<()> {
    launch(on, Kernel::SumParts, parameters, Grid::of_elements(parameters.elements as usize))
}

#[repr(C)]
pub(crate) struct VocabularyParameters {
    pub(crate) parts: Address,
    pub(crate) output: Address,
    pub(crate) elements: u64,
    pub(crate) rows: u32,
    pub(crate) width: u32,
    pub(crate) vocabulary: u32,
}

// SAFETY: as in rows.cu.
unsafe impl Parameters for VocabularyParameters {}

/// Puts the ranks' slices of logits together.
pub(crate) fn join_vocabulary(on: &dyn Executor, parameters: &VocabularyParameters) -> Result<()> {
    launch(on, Kernel::JoinVocabulary, parameters, Grid::of_elements(parameters.elements as usize))
}

/// Where weights are, and what they are held in.
pub(crate) fn weights(storage: &CudaStorage, layout: &Layout) -> Result<(Address, Dtype)> {
    let held = Dtype::of_elements(storage.dtype())?;
    let place = match held {
        Dtype::Bfloat16 => address::<bf16>(storage, layout)?,
        Dtype::Float16 => address::<f16>(storage, layout)?,
        Dtype::Float32 => address::<f32>(storage, layout)?,
    };
    Ok((place, held))
}

pub(crate) fn gate_forward(
    function: Activation,
    gate_up: &CudaStorage,
    layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let (rows, both) = layout.shape().dims2()?;
    if !both.is_multiple_of(2) {
        bail!("activate rows of {both} elements: they are no gate and up of one width");
    }
    let (device, width) = (&gate_up.device, both / 2);
    let output = room::<f32>(device, rows * width)?;
    let call = ActivationParameters {
        input: address::<f32>(gate_up, layout)?,
        output: of_slice(&output),
        elements: (rows * width) as u64,
        width: width as u32,
        function: number_of(function),
        is_gated: 1,
    };
    activation(&Gpu(device), &call)?;
    Ok((wrapped(output, device), Shape::from((rows, width))))
}

pub(crate) fn activate_forward(function: Activation, values: &CudaStorage, layout: &Layout) -> Result<()> {
    let (rows, width) = layout.shape().dims2()?;
    let place = address::<f32>(values, layout)?;
    let call = ActivationParameters {
        input: place,
        output: place,
        elements: (rows * width) as u64,
        width: width as u32,
        function: number_of(function),
        is_gated: 0,
    };
    activation(&Gpu(&values.device), &call)
}

pub(crate) fn bias_forward(
    (rows, rows_layout): (&CudaStorage, &Layout),
    (bias, bias_layout): (&CudaStorage, &Layout),
) -> Result<()> {
    let (count, width) = rows_layout.shape().dims2()?;
    let found = bias_layout.shape().elem_count();
    if found != width {
        bail!("add a bias of {found} elements to rows of {width}");
    }
    let call = BiasParameters {
        values: address::<f32>(rows, rows_layout)?,
        bias: address::<f32>(bias, bias_layout)?,
        elements: (count * width) as u64,
        width: width as u32,
    };
    add_bias(&Gpu(&rows.device), &call)
}

/// (any, width) of bf16, f16 or f32 → (wanted, width) of f32.
pub(crate) fn pick_forward(
    (wanted, scale): (&[u32], f32),
    source: &CudaStorage,
    layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let (rows, _) = layout.shape().dims2()?;
    if let Some(row) = wanted.iter().find(|row| **row as usize >= rows) {
        bail!("copy row {row}: there are {rows}");
    }
    let numbers = copy_of(&source.device, wanted)?;
    pick_at((of_slice(&numbers), wanted.len(), scale), source, layout)
}

/// The same of rows whose numbers are on the device, and are of rows that are there.
pub(crate) fn pick_at(
    (numbers, count, scale): (Address, usize, f32),
    source: &CudaStorage,
    layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let (_, width) = layout.shape().dims2()?;
    let device: &CudaDevice = &source.device;
    let output = room::<f32>(device, count * width)?;
    let (place, held) = weights(source, layout)?;
    let call = PickParameters {
        source: place,
        rows: numbers,
        output: of_slice(&output),
        elements: (count * width) as u64,
        width: width as u32,
        scale,
    };
    pick_rows(&Gpu(device), held, &call)?;
    Ok((wrapped(output, device), Shape::from((count, width))))
}
