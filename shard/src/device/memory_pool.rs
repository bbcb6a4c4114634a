//! The pool of a device from which this process takes memory in the order of its streams' work.

use std::sync::Arc;

use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute as Attribute;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, result, sys};
use lockstep_proto::Bytes;

use super::DeviceError;

/// The pool of a rank's process, on its device.
pub(crate) struct MemoryPool {
    pool: sys::CUmemoryPool,
    stream: Arc<CudaStream>,
}

impl MemoryPool {
    /// The pool that a device's memory is taken from.
    ///
    /// # Errors
    /// When the driver has none.
    pub(crate) fn of(device: &CudaDevice) -> Result<Self, DeviceError> {
        let stream = device.cuda_stream();
        let device = stream.context().cu_device();
        // SAFETY: the device is one that the driver has given out.
        let pool = unsafe { result::device::get_default_mem_pool(device) };
        Ok(Self { pool: pool.map_err(|error| failed(&stream, error))?, stream })
    }

    /// Memory that is given back to the pool stays with it until [`Self::give_back_all_but`]: taking it from the system
    /// again would stall each step.
    ///
    /// # Errors
    /// When the driver refuses it.
    pub(crate) fn keep_all(&self) -> Result<(), DeviceError> {
        let mut most = u64::MAX;
        let value = (&raw mut most).cast();
        // SAFETY: the pool is the device's own, and the attribute is a number of 64 bits.
        let set = unsafe {
            result::mem_pool::set_attribute(self.pool, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, value)
        };
        set.map_err(|error| failed(&self.stream, error))
    }

    /// What it has of the device's memory, whether somebody uses it or not.
    ///
    /// # Errors
    /// When the driver does not say.
    pub(crate) fn reserved(&self) -> Result<Bytes, DeviceError> {
        let mut bytes = 0_u64;
        let value = (&raw mut bytes).cast();
        let reserved = Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
        // SAFETY: as above.
        let asked = unsafe { result::mem_pool::get_attribute(self.pool, reserved, value) };
        asked.map(|()| Bytes(bytes)).map_err(|error| failed(&self.stream, error))
    }

    /// Gives what nobody uses back to the device, until about as much as `kept` is left. The device does first what it has
    /// been asked to do: until then memory that was given back counts as used.
    ///
    /// # Errors
    /// When the device has failed.
    pub(crate) fn give_back_all_but(&self, kept: Bytes) -> Result<(), DeviceError> {
        self.stream.synchronize().map_err(|error| failed(&self.stream, error))?;
        let kept = usize::try_from(kept.0).unwrap_or(usize::MAX);
        // SAFETY: the pool is the device's own.
        let given_back = unsafe { result::mem_pool::trim_to(self.pool, kept) };
        given_back.map_err(|error| failed(&self.stream, error))
    }
}

fn failed(stream: &CudaStream, error: result::DriverError) -> DeviceError {
    DeviceError::Open { ordinal: stream.context().ordinal(), reason: format!("its memory pool: {error}") }
}
