//! Products by cuBLAS, which chooses its order of sums by the number of rows.

use candle_core::cuda_backend::cudarc::cublas::{result, sys as cublas};
use candle_core::{Error, Result};

use super::{Call, Sizes};
use crate::dtype::Dtype;
use crate::ops::cuda::gpu::Gpu;
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::rows::{RoundParameters, round_rows};
use crate::ops::cuda::storage::{of_slice, room};

/// With weights of bf16, f16 or f32. cuBLAS counts columns first: to it the matrix is (inputs, outputs), transposed, and the
/// rows (inputs, rows).
pub(super) fn multiply(call: &Call<'_>, sizes: Sizes, (weights, held): (Address, Dtype)) -> Result<()> {
    let (Call { device, input, output, .. }, Sizes { rows, inputs, outputs }) = (*call, sizes);
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    let element = match held {
        Dtype::Bfloat16 => cublas::cudaDataType::CUDA_R_16BF,
        Dtype::Float16 => cublas::cudaDataType::CUDA_R_16F,
        Dtype::Float32 => cublas::cudaDataType::CUDA_R_32F,
    };
    let is_rounded = held != Dtype::Float32;
    let rounded = room::<u16>(device, if is_rounded { rows * inputs } else { 0 })?;
    let input = if is_rounded {
        let elements = (rows * inputs) as u64;
        round_rows(&Gpu(device), held, &RoundParameters { input, output: of_slice(&rounded), elements })?;
        of_slice(&rounded)
    } else {
        input
    };
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
            call.stride as i32,
            cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    };
    multiplied.map_err(Error::wrap)
}
