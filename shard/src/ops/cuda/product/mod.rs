//! Products with a rank's matrices, on a device: on tensor cores in one order of sums, by the kernel for f32, or by
//! cuBLASLt.

pub(crate) mod cublaslt;
pub(crate) mod float8;
pub(crate) mod kernels;
pub(crate) mod tiles;

use std::sync::Arc;

use candle_core::cuda_backend::CudaStorage;
use candle_core::{CudaDevice, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use self::cublaslt::CublasLt;
use self::kernels::{
    ArrangeParameters, Coding, FEW_ROWS, ProductParameters, arrange_inputs, arranged_elements,
    waiting_elements,
};
use super::gpu::Gpu;
use super::kernel::Address;
use super::rows::{gate_forward, number_of, weights};
use super::storage::{address, of_slice, room, wrapped};
use crate::dtype::Dtype;
use crate::ops::activation::Activation;
use crate::ops::cpu::panels::PanelShape;
use crate::ops::tiles::TileFormat;

/// Rows from which on cuBLASLt multiplies by 16 bits where any order of sums will do. Up to here the time is that of reading
/// the weights, and rounding the inputs would be a launch of its own; two groups of rows are what a tile takes with no
/// more reading of inputs than of weights. To be tuned on a card.
const CUBLASLT_FROM: usize = 17;

/// What decides the order of sums over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// What is fastest for the number of rows.
    Fastest,
    /// One for every number of rows, in the model's virtual shards.
    Exact,
}

/// What decides the order of sums within products.
#[derive(Clone, Debug)]
pub(crate) enum Sums {
    /// As in [`Order::Fastest`], by the rank's library.
    Fastest(Arc<CublasLt>),
    /// As in [`Order::Exact`].
    Exact,
}

/// A matrix on a device: parts that take the same rows and whose columns stand beside each other.
pub(crate) struct DeviceMatrix {
    pub(crate) parts: Vec<DevicePart>,
    pub(crate) sums: Sums,
}

/// Gate and up of an MLP on a device.
pub(crate) struct DeviceGate {
    /// The gate's rows are the first half. Tiles have them beside those of the other.
    pub(crate) weights: DevicePart,
    pub(crate) sums: Sums,
}

/// Weights that are held alike.
pub(crate) struct DevicePart {
    pub(crate) weights: DeviceWeights,
    pub(crate) shape: PanelShape,
}

/// How weights are held.
pub(crate) enum DeviceWeights {
    /// (outputs, inputs) of bf16, f16 or f32
    Rows(Tensor),
    /// Quantized.
    Tiles {
        format: TileFormat,
        /// (tiles, bytes of a tile)
        bytes: Tensor,
        /// (segments, tiles, 16), where rows of segments have scales
        scales: Option<Tensor>,
    },
}

/// What multiplies.
#[derive(Clone, Copy)]
enum Way<'a> {
    CublasLt(&'a CublasLt, Dtype),
    F32,
    TensorCores(Coding),
}

/// One product's rows, and where they come from and go to.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) device: &'a CudaDevice,
    /// (rows, inputs) of f32
    pub(crate) input: Address,
    pub(crate) rows: usize,
    pub(crate) output: Address,
    /// Elements from a row of the output to the next.
    pub(crate) stride: usize,
}

/// The sizes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sizes {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl DeviceMatrix {
    /// Elements of a row that is multiplied, and of what comes out.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let inputs = self.parts.first().map_or(0, |part| part.shape.inputs);
        (inputs, self.parts.iter().map(|part| part.shape.outputs).sum())
    }

    /// All of its rows as they are, where they are not quantized.
    pub(crate) fn plain_rows(&self) -> Option<&Tensor> {
        match self.parts.as_slice() {
            [DevicePart { weights: DeviceWeights::Rows(rows), .. }] => Some(rows),
            _ => None,
        }
    }

    /// (rows, inputs) → (rows, outputs)
    pub(crate) fn forward(&self, input: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (inputs, outputs) = self.sizes();
        let rows = check_rows(layout, inputs)?;
        let device = &input.device;
        let output = room::<f32>(device, rows * outputs)?;
        let input = address::<f32>(input, layout)?;
        let mut first = 0;
        for part in &self.parts {
            let output = of_slice(&output).plus(first * size_of::<f32>());
            let call = Call { device, input, rows, output, stride: outputs };
            part.multiply(part.way(&self.sums, rows)?, None, &call)?;
            first += part.shape.outputs;
        }
        Ok((wrapped(output, device), Shape::from((rows, outputs))))
    }
}

impl DeviceGate {
    /// (rows, inputs) → (rows, outputs / 2): `activation(gate) * up`, the same bits as of the product and the activation
    /// one after the other.
    pub(crate) fn forward(
        &self,
        activation: Activation,
        input: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let shape = self.weights.shape;
        let rows = check_rows(layout, shape.inputs)?;
        let device = &input.device;
        let way = self.weights.way(&self.sums, rows)?;
        let (width, gate) = match way {
            Way::TensorCores(_) => (shape.outputs / 2, Some(activation)),
            Way::CublasLt(..) | Way::F32 => (shape.outputs, None),
        };
        let output = room::<f32>(device, rows * width)?;
        let place = of_slice(&output);
        let call =
            Call { device, input: address::<f32>(input, layout)?, rows, output: place, stride: width };
        self.weights.multiply(way, gate, &call)?;
        let output = wrapped(output, device);
        match gate {
            Some(_) => Ok((output, Shape::from((rows, width)))),
            None => gate_forward(activation, &output, &Layout::contiguous((rows, width))),
        }
    }
}

/// Whether the time of a product of so many rows is that of reading its weights, which our kernels do as fast as any.
fn is_streamed(held: Dtype, rows: usize) -> bool {
    held != Dtype::Float32 && rows < CUBLASLT_FROM
}

fn check_rows(layout: &Layout, inputs: usize) -> Result<usize> {
    let (rows, found) = layout.shape().dims2()?;
    if found != inputs {
        bail!("multiply rows of {found} elements by a matrix that takes {inputs}");
    }
    Ok(rows)
}

impl DevicePart {
    fn way<'a>(&self, sums: &'a Sums, rows: usize) -> Result<Way<'a>> {
        Ok(match (&self.weights, sums) {
            (DeviceWeights::Tiles { format, .. }, _) => Way::TensorCores(Coding::Quantized(*format)),
            (DeviceWeights::Rows(weights), sums) => match (Dtype::of_elements(weights.dtype())?, sums) {
                (held, Sums::Fastest(library)) if !is_streamed(held, rows) => Way::CublasLt(library, held),
                (Dtype::Float32, _) => Way::F32,
                (Dtype::Bfloat16, _) => Way::TensorCores(Coding::Bf16),
                (Dtype::Float16, _) => Way::TensorCores(Coding::F16),
            },
        })
    }

    /// How tensor cores read it, where they do.
    pub(crate) fn coding(&self) -> Option<Coding> {
        match &self.weights {
            DeviceWeights::Tiles { format, .. } => Some(Coding::Quantized(*format)),
            DeviceWeights::Rows(rows) => match Dtype::of_elements(rows.dtype()).ok()? {
                Dtype::Bfloat16 => Some(Coding::Bf16),
                Dtype::Float16 => Some(Coding::F16),
                Dtype::Float32 => None,
            },
        }
    }

    /// Where weights are, and scales where there are some beside them.
    pub(crate) fn addresses(&self) -> Result<(Address, Address)> {
        Ok(match &self.weights {
            DeviceWeights::Rows(rows) => (place_of(rows, weights)?.0, Address::NULL),
            DeviceWeights::Tiles { bytes, scales, .. } => {
                let scales = scales.as_ref().map(|scales| place_of(scales, address::<f32>));
                (place_of(bytes, address::<u8>)?, scales.unwrap_or(Ok(Address::NULL))?)
            }
        })
    }

    fn multiply(&self, way: Way<'_>, gate: Option<Activation>, call: &Call<'_>) -> Result<()> {
        let PanelShape { inputs, outputs, segments } = self.shape;
        let (weights, scales) = self.addresses()?;
        let parameters = ProductParameters {
            input: call.input,
            weights,
            scales,
            output: call.output,
            waiting: Address::NULL,
            rows: call.rows as u32,
            inputs: inputs as u32,
            outputs: outputs as u32,
            segments: segments as u32,
            stride: call.stride as u32,
            function: gate.map_or(0, |activation| 1 + number_of(activation)),
            parts: 0,
        };
        let sizes = Sizes { rows: call.rows, inputs, outputs };
        match way {
            Way::CublasLt(library, held) => library.multiply(call, sizes, (parameters.weights, held)),
            Way::F32 => kernels::product_f32(&Gpu(call.device), &parameters),
            Way::TensorCores(coding) if call.rows <= FEW_ROWS => {
                kernels::few(&Gpu(call.device), coding, &parameters)
            }
            Way::TensorCores(coding) => many(call.device, coding, parameters),
        }
    }
}

/// With what the kernel of many rows needs besides.
fn many(device: &CudaDevice, coding: Coding, parameters: ProductParameters) -> Result<()> {
    let [rows, inputs, outputs, segments] =
        [parameters.rows, parameters.inputs, parameters.outputs, parameters.segments]
            .map(|size| size as usize);
    let elements = rows * arranged_elements(inputs, segments);
    let arranged = room::<bf16>(device, elements)?;
    let waiting = room::<f32>(device, waiting_elements((rows, outputs), segments))?;
    let arrange = ArrangeParameters {
        input: parameters.input,
        output: of_slice(&arranged),
        pieces: (elements / 4) as u64,
        inputs: parameters.inputs,
        segments: parameters.segments,
        is_spread: coding.is_spread(),
        is_f16: coding.is_f16(),
    };
    arrange_inputs(&Gpu(device), &arrange)?;
    let call = ProductParameters { input: of_slice(&arranged), waiting: of_slice(&waiting), ..parameters };
    kernels::many(&Gpu(device), coding, &call)
}

/// Where a tensor of weights is.
fn place_of<T>(tensor: &Tensor, find: fn(&CudaStorage, &Layout) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("multiply on a device: the matrix is elsewhere") };
    find(storage, layout)
}
