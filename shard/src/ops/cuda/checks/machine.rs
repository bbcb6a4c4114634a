//! Memory and kernels of a GPU, or of the host in its place.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Result};
use half::{bf16, f16};

use crate::device::{DeviceError, Target};
use crate::ops::cuda::emulation::Emulation;
use crate::ops::cuda::gpu::Gpu;
use crate::ops::cuda::kernel::{Address, Executor};
use crate::ops::cuda::storage::of_slice;

/// Where kernels are checked.
pub struct Machine(Kind);

enum Kind {
    Gpu { device: CudaDevice, memory: Vec<CudaSlice<u8>> },
    Emulated { memory: Vec<Vec<u64>> },
}

/// Numbers without gaps.
pub(super) trait Plain: Copy + Default {}

impl Plain for u8 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for crate::ops::cuda::experts::Bundle {}
impl Plain for f32 {}
impl Plain for bf16 {}
impl Plain for f16 {}
impl Plain for crate::ops::cuda::attention::Tile {}
impl Plain for crate::ops::cuda::sampling::AskParameters {}
impl Plain for crate::ops::cuda::sampling::Counted {}
impl Plain for crate::ops::cuda::sampling::Bias {}
impl Plain for crate::ops::cuda::sampling::Answer {}
impl Plain for crate::ops::cuda::sampling::Rival {}

/// As floating-point numbers, none.
const POISON: u8 = 0xff;

impl Machine {
    /// The host, thread by thread.
    pub fn emulated() -> Self {
        Self(Kind::Emulated { memory: Vec::new() })
    }

    /// The first of the visible GPUs, and what it is called.
    ///
    /// # Errors
    /// When there is none, or it cannot be opened.
    pub fn gpu() -> std::result::Result<(Self, String), DeviceError> {
        crate::device::visible_gpus()?;
        let target = Target::open_gpu(0, true)?;
        let device = target.gpu().ok_or(DeviceError::NotBuilt)?.clone();
        let (name, architecture) = crate::device::gpus::name(&device)?;
        Ok((Self::on(device), format!("{name}, {architecture}")))
    }

    /// A GPU that is open.
    pub(super) fn on(device: CudaDevice) -> Self {
        Self(Kind::Gpu { device, memory: Vec::new() })
    }

    /// Runs `work` with what starts kernels.
    pub(super) fn run(&self, work: impl FnOnce(&dyn Executor) -> Result<()>) -> Result<()> {
        match &self.0 {
            Kind::Gpu { device, .. } => work(&Gpu(device)),
            Kind::Emulated { .. } => work(&Emulation),
        }
    }

    /// Threads that look at a row of logits: the host would take long with as many as a device has.
    pub(super) fn sampling_threads(&self) -> u32 {
        match self.0 {
            Kind::Gpu { .. } => 1024,
            Kind::Emulated { .. } => 64,
        }
    }

    /// A copy of what is on the host.
    pub(super) fn put<T: Plain>(&mut self, values: &[T]) -> Result<Address> {
        // SAFETY: plain numbers are bytes without gaps.
        let bytes =
            unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        match &mut self.0 {
            Kind::Gpu { device, memory } => {
                memory.push(if bytes.is_empty() {
                    device.clone_htod(&[0])?
                } else {
                    device.clone_htod(bytes)?
                });
                Ok(memory.last().map_or(Address::NULL, of_slice))
            }
            Kind::Emulated { memory } => {
                let mut words = vec![0_u64; bytes.len().div_ceil(8).max(1)];
                // SAFETY: there are as many bytes of words at least.
                unsafe {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), words.as_mut_ptr().cast(), bytes.len())
                };
                let address = Address(words.as_ptr() as u64);
                memory.push(words);
                Ok(address)
            }
        }
    }

    /// Room for numbers, which holds none.
    pub(super) fn room<T: Plain>(&mut self, count: usize) -> Result<Address> {
        self.put(&vec![POISON; count * size_of::<T>()])
    }

    /// What is in memory, once the kernels started so far are done.
    pub(super) fn get<T: Plain>(&self, address: Address, count: usize) -> Result<Vec<T>> {
        let mut values = vec![T::default(); count];
        let length = count * size_of::<T>();
        let target = values.as_mut_ptr().cast::<u8>();
        match &self.0 {
            Kind::Gpu { device, memory } => {
                let of = |slice: &&CudaSlice<u8>| of_slice(*slice) == address && slice.len() >= length;
                let Some(slice) = memory.iter().rev().find(of) else {
                    candle_core::bail!("read {length} bytes at {address:?}: nothing was put there")
                };
                let bytes = device.clone_dtoh(&slice.slice(..length))?;
                // SAFETY: both are as long as the values.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, length) };
            }
            Kind::Emulated { memory } => {
                let of =
                    |words: &&Vec<u64>| words.as_ptr() as u64 == address.0 && words.len() * 8 >= length;
                let Some(words) = memory.iter().rev().find(of) else {
                    candle_core::bail!("read {length} bytes at {address:?}: nothing was put there")
                };
                // SAFETY: the memory is as long, and plain numbers take any bits.
                unsafe { std::ptr::copy_nonoverlapping(words.as_ptr().cast::<u8>(), target, length) };
            }
        }
        Ok(values)
    }

    /// Gives back everything.
    pub(super) fn clear(&mut self) {
        match &mut self.0 {
            Kind::Gpu { memory, .. } => memory.clear(),
            Kind::Emulated { memory } => memory.clear(),
        }
    }
}
