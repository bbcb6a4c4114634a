//! Products by cuBLASLt, whose order of sums follows from the number of rows.
//!
//! One library with one workspace belongs to a rank's stream. The workspace is taken before anything is computed and stays
//! where it is for as long as the rank has matrices, so that recordings may hold its address; products that share it come
//! after one another, on the stream, whether they are run or replayed.
//!
//! The same product has the same bits whenever it is computed. Its algorithm is what the heuristic says of its sizes and the
//! alignment of its addresses, which is looked up and computes nothing; it is never the one that was the fastest in a trial,
//! since two trials may end otherwise, and two ranks' trials do. NVIDIA promises equal bits for one version of the library
//! on GPUs of one architecture and size, where every stream has a workspace of its own.

mod plan;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use candle_core::{CudaDevice, Error, Result, bail};

use self::plan::{Kind, Places, Plan};
use super::{Call, Sizes};
use crate::dtype::Dtype;
use crate::ops::cuda::gpu::Gpu;
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::recent::Recent;
use crate::ops::cuda::rows::{RoundParameters, round_rows};
use crate::ops::cuda::storage::{of_slice, room};

/// Plans that are kept, of some hundred bytes each. A model has about five kinds of matrices, so these are four hundred
/// numbers of rows: all that decode steps have, however many prompts of all lengths come between them.
pub(crate) const MOST_PLANS: usize = 2048;

/// The library of a rank, on its device's stream.
pub(crate) struct CublasLt {
    plans: Mutex<Recent<Kind, Plan>>,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
    /// Goes last.
    handle: Handle,
}

/// cuBLASLt's own. It is of one device, and any thread may use it.
struct Handle {
    library: sys::cublasLtHandle_t,
    context: Arc<CudaContext>,
}

// SAFETY: cuBLASLt takes calls with one handle from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above, at any time.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // A device that is lost has nothing to be given back.
        let _ = self.context.bind_to_thread();
        // SAFETY: nobody else has it.
        let _ = unsafe { result::destroy_handle(self.library) };
    }
}

impl fmt::Debug for CublasLt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CublasLt").field("workspace_bytes", &self.workspace_bytes()).finish_non_exhaustive()
    }
}

impl CublasLt {
    /// Opens the library for a device's stream and takes the workspace.
    ///
    /// # Errors
    /// When the library cannot be opened, or the device has no memory for it.
    pub(crate) fn open(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        context.bind_to_thread().map_err(Error::wrap)?;
        let (major, _) = context.compute_capability().map_err(Error::wrap)?;
        let bytes = workspace_for(major);
        let workspace = room::<u8>(device, bytes).map_err(|error| {
            Error::msg(format!("take a workspace of {} MiB for cuBLASLt: {error}", bytes >> 20))
        })?;
        let library = result::create_handle()
            .map_err(|error| Error::msg(format!("open cuBLASLt: it answers {:?}", error.0)))?;
        let handle = Handle { library, context: Arc::clone(context) };
        Ok(Self { plans: Mutex::new(Recent::new(MOST_PLANS)), workspace, stream, handle })
    }

    /// Bytes of the device's memory that it keeps.
    pub(crate) fn workspace_bytes(&self) -> usize {
        self.workspace.len()
    }

    /// Starts a product with weights of bf16, f16 or f32. A call whose plan is kept costs the host a look-up, and what any
    /// launch does.
    ///
    /// # Errors
    /// When the call is for another stream, or cuBLASLt refuses it.
    pub(crate) fn multiply(
        &self,
        call: &Call<'_>,
        sizes: Sizes,
        (weights, held): (Address, Dtype),
    ) -> Result<()> {
        if sizes.rows == 0 || sizes.outputs == 0 {
            return Ok(());
        }
        if !Arc::ptr_eq(&self.stream, &call.device.cuda_stream()) {
            bail!("multiply by cuBLASLt on another stream than its workspace is on: a rank has one");
        }
        let element = element_of(held);
        let rounded = rounded(call, sizes, held)?;
        let input = rounded.as_ref().map_or(call.input, of_slice);
        let places = Places { weights, input, output: call.output, workspace: of_slice(&self.workspace) };
        let kind = Kind { element, sizes, stride: call.stride, alignments: places.alignments() };
        self.handle.context.bind_to_thread().map_err(Error::wrap)?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |error| kind.failed(error);
        let make = || Plan::of(self.handle.library, &kind, self.workspace_bytes());
        let plan = plans.get(kind, make).map_err(failed)?;
        // SAFETY: the addresses are of as many elements as the sizes say, on this device and stream, where who gives them
        // back does so after the product; and so is the workspace.
        let started = unsafe {
            plan.start(self.handle.library, places, (self.workspace_bytes(), self.stream.cu_stream()))
        };
        started.map_err(failed)
    }
}

/// Bytes NVIDIA recommends for an architecture.
fn workspace_for(major: i32) -> usize {
    if major >= 9 { 32 << 20 } else { 4 << 20 }
}

/// What cuBLASLt calls the elements of weights.
fn element_of(held: Dtype) -> sys::cudaDataType {
    match held {
        Dtype::Float32 => sys::cudaDataType::CUDA_R_32F,
        Dtype::Bfloat16 => sys::cudaDataType::CUDA_R_16BF,
        Dtype::Float16 => sys::cudaDataType::CUDA_R_16F,
    }
}

/// The input in the type of the weights, of 16 bits, where that is not what it is in.
fn rounded(call: &Call<'_>, sizes: Sizes, held: Dtype) -> Result<Option<CudaSlice<u16>>> {
    if held == Dtype::Float32 {
        return Ok(None);
    }
    let elements = sizes.rows * sizes.inputs;
    let rounded = room::<u16>(call.device, elements)?;
    let round =
        RoundParameters { input: call.input, output: of_slice(&rounded), elements: elements as u64 };
    round_rows(&Gpu(call.device), held, &round)?;
    Ok(Some(rounded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_is_what_nvidia_recommends() {
        assert_eq!(workspace_for(8), 4 << 20);
        assert_eq!(workspace_for(9), 32 << 20);
    }
}
