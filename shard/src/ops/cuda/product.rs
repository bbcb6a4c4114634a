//! Products with a rank's matrices, on a device: by cuBLAS, or by the exact kernel.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::cublas::{result, sys as cublas};
use candle_core::{CudaDevice, DType, Error, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use super::gpu::Gpu;
use super::kernel::{Address, Executor, Grid, Kernel, Parameters, THREADS, launch};
use super::rows::{RoundParameters, TreeParameters, bf16_or_f32, round_rows, sum_parts};
use super::storage::{address, of_slice, room, wrapped};

/// Rows and columns of the result one block of the exact kernel computes.
const SIDE: usize = 64;

/// What decides the order of sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// What is fastest for the number of rows.
    Fastest,
    /// One for every number of rows, in the model's virtual shards.
    Exact,
}

/// A matrix on a device.
pub(crate) struct DeviceMatrix {
    /// (outputs, inputs), of bf16 or f32
    pub(crate) weights: Tensor,
    /// Parts of the inner dimension whose sums are added in a tree, where the order is exact.
    pub(crate) segments: usize,
    pub(crate) order: Order,
}

#[repr(C)]
pub(crate) struct ProductParameters {
    pub(crate) input: Address,
    pub(crate) weights: Address,
    pub(crate) parts: Address,
    pub(crate) rows: u32,
    pub(crate) inputs: u32,
    pub(crate) outputs: u32,
    pub(crate) segments: u32,
}

// SAFETY: as in product.cu.
unsafe impl Parameters for ProductParameters {}

/// Each segment's product, with weights of bf16 or f32.
pub(crate) fn product_parts(on: &dyn Executor, held: DType, parameters: &ProductParameters) -> Result<()> {
    let kernel = if held == DType::BF16 { Kernel::ProductBf16 } else { Kernel::ProductF32 };
    let ProductParameters { rows, outputs, segments, .. } = *parameters;
    let blocks =
        [(outputs as usize).div_ceil(SIDE) as u32, (rows as usize).div_ceil(SIDE) as u32, segments];
    launch(on, kernel, parameters, Grid { blocks, threads: THREADS, shared_bytes: 0 })
}

/// The sizes of a product.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl DeviceMatrix {
    /// Elements of a row that is multiplied, and of what comes out.
    pub(crate) fn sizes(&self) -> Result<(usize, usize)> {
        let (outputs, inputs) = self.weights.dims2()?;
        Ok((inputs, outputs))
    }

    /// (rows, inputs) → (rows, outputs)
    pub(crate) fn forward(&self, input: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, found) = layout.shape().dims2()?;
        let (inputs, outputs) = self.sizes()?;
        if found != inputs {
            bail!("multiply rows of {found} elements by a matrix that takes {inputs}");
        }
        let (weights, weights_layout) = self.weights.storage_and_layout();
        let Storage::Cuda(weights) = &*weights else {
            bail!("multiply on a device: the matrix is elsewhere")
        };
        let held = weights.dtype();
        let weights = bf16_or_f32(weights, weights_layout)?;
        let input_place = address::<f32>(input, layout)?;
        let sizes = Sizes { rows, inputs, outputs };
        let device = &input.device;
        let output = room::<f32>(device, rows * outputs)?;
        match self.order {
            Order::Fastest => by_cublas(device, sizes, (input_place, weights, held), of_slice(&output))?,
            Order::Exact => self.exactly(device, sizes, (input_place, weights, held), of_slice(&output))?,
        }
        Ok((wrapped(output, device), Shape::from((rows, outputs))))
    }

    fn exactly(
        &self,
        device: &CudaDevice,
        sizes: Sizes,
        (input, weights, held): (Address, Address, DType),
        output: Address,
    ) -> Result<()> {
        let Sizes { rows, inputs, outputs } = sizes;
        let scratch = if self.segments > 1 { self.segments * rows * outputs } else { 0 };
        let scratch = room::<f32>(device, scratch)?;
        let call = ProductParameters {
            input,
            weights,
            parts: if self.segments > 1 { of_slice(&scratch) } else { output },
            rows: rows as u32,
            inputs: inputs as u32,
            outputs: outputs as u32,
            segments: self.segments as u32,
        };
        product_parts(&Gpu(device), held, &call)?;
        if self.segments == 1 {
            return Ok(());
        }
        let elements = (rows * outputs) as u64;
        let sum = TreeParameters { parts: call.parts, sum: output, elements, count: self.segments as u32 };
        sum_parts(&Gpu(device), &sum)
    }
}

/// cuBLAS counts columns first: to it the matrix is (inputs, outputs), transposed, and the rows (inputs, rows).
fn by_cublas(
    device: &CudaDevice,
    sizes: Sizes,
    (input, weights, held): (Address, Address, DType),
    output: Address,
) -> Result<()> {
    let Sizes { rows, inputs, outputs } = sizes;
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    let is_bf16 = held == DType::BF16;
    let rounded = room::<bf16>(device, if is_bf16 { rows * inputs } else { 0 })?;
    let input = if is_bf16 {
        let elements = (rows * inputs) as u64;
        round_rows(&Gpu(device), &RoundParameters { input, output: of_slice(&rounded), elements })?;
        of_slice(&rounded)
    } else {
        input
    };
    let element =
        if is_bf16 { cublas::cudaDataType::CUDA_R_16BF } else { cublas::cudaDataType::CUDA_R_32F };
    let (one, zero) = (1.0_f32, 0.0_f32);
    let handle = device.cublas_handle();
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().map_err(Error::wrap)?;
    // SAFETY: the addresses are of as many elements as the sizes say, on the handle's device and stream; the two
    // factors outlive the call, which reads them.
    let multiplied = unsafe {
        result::gemm_ex(
            *handle.handle(),
            cublas::cublasOperation_t::CUBLAS_OP_T,
            cublas::cublasOperation_t::CUBLAS_OP_N,
            outputs as i32,
            rows as i32,
            inputs as i32,
            std::ptr::from_ref(&one).cast(),
            weights.0 as *const _,
            element,
            inputs as i32,
            input.0 as *const _,
            element,
            inputs as i32,
            std::ptr::from_ref(&zero).cast(),
            output.0 as *mut _,
            cublas::cudaDataType::CUDA_R_32F,
            outputs as i32,
            cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    };
    multiplied.map_err(Error::wrap)
}
