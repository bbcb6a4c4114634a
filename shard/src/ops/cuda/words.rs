//! Numbers that change from step to step, at one place of a device.

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, PinnedHostSlice, result, sys};
use candle_core::{CudaDevice, Error, Result};

use super::kernel::Address;
use super::storage::{of_slice, room};

/// Room for words on a device, and as much in main memory that the device reads by itself.
pub(crate) struct Words {
    device: CudaDevice,
    on_device: CudaSlice<u32>,
    on_host: PinnedHostSlice<u32>,
    /// After the last copy.
    copied: CudaEvent,
}

impl Words {
    /// Room for so many words.
    ///
    /// # Errors
    /// When device or host have no memory for them.
    pub(crate) fn new(device: &CudaDevice, count: usize) -> Result<Self> {
        let stream = device.cuda_stream();
        let on_device = room(device, count)?;
        // SAFETY: words are written before they are read.
        let on_host = unsafe { stream.context().alloc_pinned::<u32>(count.max(1)) };
        Ok(Self {
            device: device.clone(),
            on_device,
            on_host: on_host.map_err(Error::wrap)?,
            copied: stream
                .record_event(Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING))
                .map_err(Error::wrap)?,
        })
    }

    /// How many there is room for.
    pub(crate) fn room(&self) -> usize {
        self.on_host.len()
    }

    /// Where they are.
    pub(crate) fn address(&self) -> Address {
        of_slice(&self.on_device)
    }

    /// Starts to copy words, of which there are no more than there is room for, once the device has taken the last ones.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn write(&mut self, words: &[u32]) -> Result<()> {
        self.copied.synchronize().map_err(Error::wrap)?;
        let room = self.on_host.as_mut_slice().map_err(Error::wrap)?;
        let Some(host) = room.get_mut(..words.len()) else {
            return Err(Error::msg(format!(
                "copy {} words to a device: there is room for {}",
                words.len(),
                room.len()
            )));
        };
        host.copy_from_slice(words);
        let stream = self.device.cuda_stream();
        // SAFETY: both are as long as the words, and stay until `copied` says that the copy is made.
        unsafe { result::memcpy_htod_async(of_slice(&self.on_device).0, host, stream.cu_stream()) }
            .map_err(Error::wrap)?;
        self.copied.record(&stream).map_err(Error::wrap)
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // Where the device has failed, nothing is copied any more.
        let _ = self.copied.synchronize();
    }
}
