//! Numbers that change from step to step, at one place of a device and one of main memory, and their way between them while
//! the device goes on.

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, PinnedHostSlice, result, sys};
use candle_core::{CudaDevice, Error, Result};

use super::kernel::Address;
use super::storage::{of_slice, room};

/// Room for words on a device, and as much in main memory that the device reads and writes by itself. They go one of
/// both ways: by [`Self::write`], or by [`Self::start_return`].
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
        // SAFETY: words are written, or copied there, before they are read.
        let on_host = unsafe { stream.context().alloc_pinned::<u32>(count.max(1)) };
        let flags = Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        Ok(Self {
            device: device.clone(),
            on_device,
            on_host: on_host.map_err(Error::wrap)?,
            copied: stream.record_event(flags).map_err(Error::wrap)?,
        })
    }

    /// How many there is room for.
    pub(crate) fn room(&self) -> usize {
        self.on_host.len()
    }

    /// Where they are on the device.
    pub(crate) fn address(&self) -> Address {
        of_slice(&self.on_device)
    }

    /// Starts to copy words to the device, once it has taken the last ones.
    ///
    /// # Errors
    /// When the device fails, or there is no room for so many.
    pub(crate) fn write(&mut self, words: &[u32]) -> Result<()> {
        self.copied.synchronize().map_err(Error::wrap)?;
        let stream = self.device.cuda_stream();
        let device = of_slice(&self.on_device).0;
        let host = self.first(words.len())?;
        host.copy_from_slice(words);
        // SAFETY: both have room for so many, and stay until `copied` says that the copy is made.
        unsafe { result::memcpy_htod_async(device, host, stream.cu_stream()) }.map_err(Error::wrap)?;
        self.copied.record(&stream).map_err(Error::wrap)
    }

    /// Starts to copy the first words to the host, after what was started before; the words that were copied last were
    /// read.
    ///
    /// # Errors
    /// When the device fails, or there is no room for so many.
    pub(crate) fn start_return(&mut self, count: usize) -> Result<()> {
        let stream = self.device.cuda_stream();
        let device = of_slice(&self.on_device).0;
        let host = self.first(count)?;
        // SAFETY: as in `write`.
        unsafe { result::memcpy_dtoh_async(host, device, stream.cu_stream()) }.map_err(Error::wrap)?;
        self.copied.record(&stream).map_err(Error::wrap)
    }

    /// Where the device is once the last copy is made.
    pub(crate) fn copied(&self) -> &CudaEvent {
        &self.copied
    }

    /// Waits until the last copy is made, and returns all words there is room for, as the host has them.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn returned(&self) -> Result<&[u32]> {
        self.copied.synchronize().map_err(Error::wrap)?;
        self.on_host.as_slice().map_err(Error::wrap)
    }

    fn first(&mut self, count: usize) -> Result<&mut [u32]> {
        let found = self.room();
        let room = self.on_host.as_mut_slice().map_err(Error::wrap)?;
        let missing =
            || Error::msg(format!("copy {count} words to or from a device: there is room for {found}"));
        room.get_mut(..count).ok_or_else(missing)
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // Where the device has failed, nothing is copied any more.
        let _ = self.copied.synchronize();
    }
}
