//! GPUs through the driver, whose libraries are opened when they are first needed.

use std::ffi::CStr;

use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, result};

use super::DeviceError;
use super::memory_pool::MemoryPool;

/// What a rank on a GPU calls, and where it comes from. The driver is the first.
const LIBRARIES: [(&[&CStr], &str, &str); 4] = [
    (&[c"libcuda.so.1"], "libcuda.so.1", "the NVIDIA driver"),
    (
        &[c"libcublasLt.so.13", c"libcublasLt.so.12"],
        "libcublasLt.so.13",
        "cuBLAS; is its folder in LD_LIBRARY_PATH?",
    ),
    (
        &[c"libcublas.so.13", c"libcublas.so.12"],
        "libcublas.so.13",
        "cuBLAS; is its folder in LD_LIBRARY_PATH?",
    ),
    (&[c"libcurand.so.10"], "libcurand.so.10", "cuRAND; is its folder in LD_LIBRARY_PATH?"),
];

/// NCCL, without which ranks exchange through main memory.
const NCCL: &[&CStr] = &[c"libnccl.so.2"];

/// Whether one of these files can be opened. It stays open: it is called later.
fn opens(names: &[&CStr]) -> bool {
    names.iter().any(|name| {
        // SAFETY: the name ends in a zero byte; these libraries may be opened by any thread at any time.
        !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null()
    })
}

/// Whether ranks can exchange from device to device.
pub(crate) fn have_nccl() -> bool {
    opens(NCCL)
}

/// Whether NCCL takes several ranks on a GPU: where its own variable says so, from its version 2.30 on.
pub(crate) fn does_nccl_share() -> bool {
    std::env::var_os("NCCL_MULTI_RANK_GPU_ENABLE").is_some_and(|value| value == "1")
}

pub(super) fn visible() -> Result<usize, DeviceError> {
    for (names, library, part) in LIBRARIES {
        if !opens(names) {
            return Err(DeviceError::NoLibrary { library, part });
        }
    }
    let none = |error: result::DriverError| DeviceError::NoGpu { reason: error.to_string() };
    result::init().map_err(none)?;
    let count = CudaContext::device_count().map_err(none)?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        Ok(_) | Err(_) => Err(DeviceError::NoGpu { reason: "no device is visible".to_owned() }),
    }
}

pub(super) fn open(ordinal: usize) -> Result<CudaDevice, DeviceError> {
    let failed = |reason: String| DeviceError::Open { ordinal, reason };
    let device = CudaDevice::new_with_stream(ordinal).map_err(|error| failed(error.to_string()))?;
    // SAFETY: all of a rank's work on the device is on this one stream, from before the first allocation on.
    unsafe { device.disable_event_tracking() };
    MemoryPool::of(&device)?.keep_all()?;
    let (name, architecture) = name(&device)?;
    if !architecture.starts_with("8.") && architecture != "9.0" {
        let kernels = "this binary has kernels for 8.0 to 8.9 and 9.0";
        return Err(failed(format!("{name} is of compute capability {architecture}, {kernels}")));
    }
    Ok(device)
}

/// Bytes of the device's memory that nobody has, and all of them.
pub(crate) fn memory(device: &CudaDevice) -> Result<(u64, u64), DeviceError> {
    let stream = device.cuda_stream();
    let context = stream.context();
    let failed = |error: result::DriverError| DeviceError::Open {
        ordinal: context.ordinal(),
        reason: error.to_string(),
    };
    let (free, total) = context.mem_get_info().map_err(failed)?;
    Ok((free as u64, total as u64))
}

/// What the device is: its name and its architecture, as 9.0.
pub(crate) fn name(device: &CudaDevice) -> Result<(String, String), DeviceError> {
    let stream = device.cuda_stream();
    let context = stream.context();
    let failed = |error: result::DriverError| DeviceError::Open {
        ordinal: context.ordinal(),
        reason: error.to_string(),
    };
    let (major, minor) = context.compute_capability().map_err(failed)?;
    Ok((context.name().map_err(failed)?, format!("{major}.{minor}")))
}
