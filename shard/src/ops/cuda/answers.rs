//! Numbers that a step leaves on a device, on their way to the host while the next step may be under way.

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, PinnedHostSlice, result, sys};
use candle_core::{CudaDevice, Error, Result};

use super::kernel::Address;
use super::storage::{of_slice, room};

/// Room for words on a device, and as much in main memory that the device writes by itself.
pub(crate) struct Returned {
    device: CudaDevice,
    on_device: CudaSlice<u32>,
    on_host: PinnedHostSlice<u32>,
    /// After the last copy.
    copied: CudaEvent,
}

impl Returned {
    /// Room for so many words.
    ///
    /// # Errors
    /// When device or host have no memory for them.
    pub(crate) fn new(device: &CudaDevice, count: usize) -> Result<Self> {
        let stream = device.cuda_stream();
        let on_device = room(device, count)?;
        // SAFETY: words are copied to it before they are read.
        let on_host = unsafe { stream.context().alloc_pinned::<u32>(count.max(1)) };
        let flags = Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        Ok(Self {
            device: device.clone(),
            on_device,
            on_host: on_host.map_err(Error::wrap)?,
            copied: stream.record_event(flags).map_err(Error::wrap)?,
        })
    }

    /// How many words there is room for.
    pub(crate) fn room(&self) -> usize {
        self.on_host.len()
    }

    /// Where they are on the device.
    pub(crate) fn address(&self) -> Address {
        of_slice(&self.on_device)
    }

    /// Starts to copy the first words to the host, after what was started before; the words that were copied last were read.
    ///
    /// # Errors
    /// When the device fails, or there is no room for so many.
    pub(crate) fn start_copy(&mut self, count: usize) -> Result<()> {
        let found = self.on_host.len();
        let Some(host) = self.on_host.as_mut_slice().map_err(Error::wrap)?.get_mut(..count) else {
            return Err(Error::msg(format!("copy {count} words to the host: there is room for {found}")));
        };
        let stream = self.device.cuda_stream();
        // SAFETY: both have room for so many, and stay until `copied` says that the copy is made.
        unsafe { result::memcpy_dtoh_async(host, of_slice(&self.on_device).0, stream.cu_stream()) }
            .map_err(Error::wrap)?;
        self.copied.record(&stream).map_err(Error::wrap)
    }

    /// Where the device is once the copy is made.
    pub(crate) fn copied(&self) -> &CudaEvent {
        &self.copied
    }

    /// Waits until the copy is made, and returns all words there is room for.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn words(&self) -> Result<&[u32]> {
        self.copied.synchronize().map_err(Error::wrap)?;
        self.on_host.as_slice().map_err(Error::wrap)
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        // Where the device has failed, nothing is copied any more.
        let _ = self.copied.synchronize();
    }
}
