//! Kernels on a device: loaded once a device, started on its stream.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum as Attribute;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaFunction, CudaModule, result};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::{CudaDevice, Error, Result};

use super::kernel::{Executor, Grid, Kernel, Module};

/// Bytes of memory a block of attention, of a product or of routing may have beside what is declared: what the smallest of the devices has,
/// less a margin. It is asked for once, since a launch may not ask for more than the usual 48 KiB by itself.
const SHARED_BYTES: i32 = 96 << 10;

macro_rules! fatbin {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin"))
    };
}

fn image(module: Module) -> &'static [u8] {
    match module {
        Module::Norms => fatbin!("norm"),
        Module::Rows => fatbin!("rows"),
        Module::Products => fatbin!("product"),
        Module::FewProducts => fatbin!("product_few"),
        Module::FewQuantized => fatbin!("quantized_few"),
        Module::ManyProducts => fatbin!("product_many"),
        Module::Experts => fatbin!("experts"),
        Module::ExpertProducts => fatbin!("expert_products"),
        Module::Attention => fatbin!("attention"),
        Module::Sampling => fatbin!("sampling"),
    }
}

/// A device's kernels. Functions keep their modules.
struct Loaded {
    functions: HashMap<Kernel, CudaFunction>,
}

/// By the ordinal of the device, whose context there is one of in a process.
static LOADED: OnceLock<Mutex<HashMap<usize, Arc<Loaded>>>> = OnceLock::new();

fn loaded(context: &Arc<CudaContext>) -> Result<Arc<Loaded>> {
    let all = LOADED.get_or_init(Mutex::default);
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = all.get(&context.ordinal()) {
        return Ok(Arc::clone(loaded));
    }
    let loaded = Arc::new(load(context)?);
    all.insert(context.ordinal(), Arc::clone(&loaded));
    Ok(loaded)
}

fn load(context: &Arc<CudaContext>) -> Result<Loaded> {
    let mut modules: HashMap<Module, Arc<CudaModule>> = HashMap::new();
    let mut functions = HashMap::new();
    for kernel in Kernel::ALL {
        let module = match modules.get(&kernel.module()) {
            Some(module) => Arc::clone(module),
            None => {
                let image = image(kernel.module()).to_vec();
                let module = context.load_module(Ptx::from_binary(image)).map_err(Error::wrap)?;
                modules.insert(kernel.module(), Arc::clone(&module));
                module
            }
        };
        let function = module.load_function(kernel.name()).map_err(Error::wrap)?;
        if takes_much_memory(kernel.module()) {
            let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, SHARED_BYTES).map_err(Error::wrap)?;
        }
        functions.insert(*kernel, function);
    }
    Ok(Loaded { functions })
}

/// Whether blocks of a module's kernels have more memory than is usual.
fn takes_much_memory(module: Module) -> bool {
    match module {
        Module::Attention
        | Module::FewProducts
        | Module::FewQuantized
        | Module::ManyProducts
        | Module::Experts
        | Module::ExpertProducts => true,
        Module::Norms | Module::Rows | Module::Products | Module::Sampling => false,
    }
}

/// A device and its stream.
pub(crate) struct Gpu<'a>(pub(crate) &'a CudaDevice);

impl Executor for Gpu<'_> {
    unsafe fn start(&self, kernel: Kernel, parameters: *const c_void, grid: Grid) -> Result<()> {
        let stream = self.0.cuda_stream();
        let context = stream.context();
        context.bind_to_thread().map_err(Error::wrap)?;
        let loaded = loaded(context)?;
        let Some(function) = loaded.functions.get(&kernel) else {
            return Err(Error::msg(format!("start {kernel:?}: it was not loaded")));
        };
        let [x, y, z] = grid.blocks;
        // SAFETY: the function takes one structure, which the caller has; it is copied before the call returns.
        let started = unsafe {
            result::launch_kernel(
                function.cu_function(),
                (x, y, z),
                (grid.threads, 1, 1),
                grid.shared_bytes,
                stream.cu_stream(),
                &mut [parameters.cast_mut()],
            )
        };
        started.map_err(|error| Error::msg(format!("start {kernel:?} on {grid:?}: {error}")))
    }
}
