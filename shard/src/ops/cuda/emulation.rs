//! Kernels on the host, thread by thread: slow, and right only where their indices and barriers are.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use candle_core::Result;

use super::kernel::{Executor, Grid, Kernel};

/// Kernels keep what a block shares in memory of their own, so that one runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The host as a device. Addresses are those of the host's memory.
pub(crate) struct Emulation;

impl Executor for Emulation {
    unsafe fn start(&self, kernel: Kernel, parameters: *const c_void, grid: Grid) -> Result<()> {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let run = kernel.emulated();
        // SAFETY: the caller has the parameters of this kernel; the function was compiled from it.
        unsafe { run(parameters, grid.blocks.as_ptr(), grid.threads, grid.shared_bytes as usize) };
        Ok(())
    }
}
