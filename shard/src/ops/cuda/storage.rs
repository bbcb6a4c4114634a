//! Between candle's storage and the addresses kernels take.
//!
//! Everything a rank does on a device is on one stream, in order: what a kernel reads was written by those started
//! before it, and memory that is given back is taken again only after them. So addresses need no lifetimes here.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaStorage, CudaStorageSlice};
use candle_core::{CudaDevice, Layout, Result, bail};
use half::{bf16, f16};

use super::kernel::Address;
use crate::kv::KvDtype;

/// Where a contiguous tensor is.
pub(crate) fn address<T: CudaDType + DeviceRepr>(
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<Address> {
    let Some((first, _)) = layout.contiguous_offsets() else {
        bail!("read a tensor of shape {:?} on a device: it is not contiguous", layout.shape())
    };
    Ok(of_slice(storage.as_cuda_slice::<T>()?).plus(first * size_of::<T>()))
}

/// Where a pool of KV blocks is, and what it holds.
pub(crate) fn pool(storage: &CudaStorage, layout: &Layout) -> Result<(KvDtype, Address)> {
    let held = KvDtype::of_elements(storage.dtype())?;
    let place = match held {
        KvDtype::Float32 => address::<f32>(storage, layout)?,
        KvDtype::Bfloat16 => address::<bf16>(storage, layout)?,
        KvDtype::Float16 => address::<f16>(storage, layout)?,
        KvDtype::Int8 => address::<u8>(storage, layout)?,
        KvDtype::Float8 => {
            let CudaStorageSlice::F8E4M3(slice) = &storage.slice else {
                bail!("read KV blocks on a device: they are no floats of eight bits")
            };
            of_slice(slice).plus(layout.start_offset())
        }
    };
    Ok((held, place))
}

/// Where a slice is.
pub(crate) fn of_slice<T: DeviceRepr>(slice: &CudaSlice<T>) -> Address {
    let (address, _on_drop) = slice.device_ptr(slice.stream());
    Address(address)
}

/// Room for so many elements, which hold nothing of meaning.
pub(crate) fn room<T: DeviceRepr>(device: &CudaDevice, elements: usize) -> Result<CudaSlice<T>> {
    // SAFETY: every kernel writes all of what it is given to write before anything reads it. No room has no address.
    unsafe { device.alloc::<T>(elements.max(1)) }
}

/// A copy of what is on the host.
pub(crate) fn copy_of<T: DeviceRepr + Clone + Default + 'static>(
    device: &CudaDevice,
    values: &[T],
) -> Result<CudaSlice<T>> {
    if values.is_empty() { device.clone_htod(&[T::default()]) } else { device.clone_htod(values) }
}

/// `slice` as candle's.
pub(crate) fn wrapped(slice: CudaSlice<f32>, device: &CudaDevice) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(slice, device.clone())
}
