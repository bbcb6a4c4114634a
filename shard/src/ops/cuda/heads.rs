//! What becomes of a row's heads between their product and attention, on a device.

use candle_core::cuda_backend::CudaStorage;
use candle_core::{Layout, Result, Storage, Tensor, bail};

use super::gpu::Gpu;
use super::kernel::{Address, Executor, Grid, Kernel, Parameters, THREADS, launch};
use super::storage::{address, pool};
use crate::kv::KvDtype;
use crate::ops::attention::AttentionShape;
use crate::ops::write_heads::WriteHeads;

/// Heads of a block, a warp each.
const HEADS: usize = 8;
/// Elements of the widest head there is room for.
const WIDEST: u32 = 256;

#[repr(C)]
pub(crate) struct WriteHeadsParameters {
    pub(crate) qkv: Address,
    pub(crate) weights: Address,
    pub(crate) table: Address,
    pub(crate) positions: Address,
    pub(crate) slots: Address,
    pub(crate) keys: Address,
    pub(crate) values: Address,
    pub(crate) rows: u32,
    pub(crate) row_elements: u32,
    pub(crate) query_heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) width: u32,
    pub(crate) padded_width: u32,
    pub(crate) rotary: u32,
    pub(crate) epsilon: f32,
}

// SAFETY: as in heads.cuh.
unsafe impl Parameters for WriteHeadsParameters {}

impl WriteHeadsParameters {
    /// Of so many rows, without addresses: nothing is normed, and nothing turns.
    pub(crate) fn of(shape: AttentionShape, rows: usize) -> Self {
        let none = Address::NULL;
        Self {
            qkv: none,
            weights: none,
            table: none,
            positions: none,
            slots: none,
            keys: none,
            values: none,
            rows: rows as u32,
            row_elements: shape.row_elements() as u32,
            query_heads: shape.query_heads as u32,
            kv_heads: shape.kv.kv_heads as u32,
            width: shape.kv.head_width as u32,
            padded_width: shape.kv.padded_width() as u32,
            rotary: 0,
            epsilon: 0.0,
        }
    }
}

/// Norms and turns queries and keys, and writes keys and values into pools that hold them so.
pub(crate) fn write_heads(
    on: &dyn Executor,
    held: KvDtype,
    parameters: &WriteHeadsParameters,
) -> Result<()> {
    let WriteHeadsParameters { rows, query_heads, kv_heads, width, .. } = *parameters;
    if width > WIDEST {
        bail!("write heads of {width} elements on a device: up to {WIDEST} work");
    }
    let kernel = match held {
        KvDtype::Float32 => Kernel::WriteHeadsF32,
        KvDtype::Bfloat16 => Kernel::WriteHeadsBf16,
        KvDtype::Float16 => Kernel::WriteHeadsF16,
        KvDtype::Int8 => Kernel::WriteHeadsInt8,
        KvDtype::Float8 => Kernel::WriteHeadsFp8,
    };
    let heads = rows as usize * (query_heads + 2 * kv_heads) as usize;
    launch(on, kernel, parameters, Grid::along_x(heads.div_ceil(HEADS), THREADS))
}

pub(crate) fn forward(op: &WriteHeads<'_>, (qkv, layout): (&CudaStorage, &Layout)) -> Result<()> {
    let (shape, rows) = (op.shape, op.rows.on_device()?);
    let (held, keys) = of_tensor(&op.kv.keys, pool)?;
    let (_, values) = of_tensor(&op.kv.values, pool)?;
    let mut call = WriteHeadsParameters {
        qkv: address::<f32>(qkv, layout)?,
        positions: rows.positions,
        slots: rows.slots,
        keys,
        values,
        ..WriteHeadsParameters::of(shape, rows.count)
    };
    if let Some((weights, epsilon)) = op.norm {
        if weights.dims() != [2, shape.kv.head_width] {
            bail!(
                "norm heads of {} elements: the weights are of shape {:?}",
                shape.kv.head_width,
                weights.dims()
            );
        }
        call.weights = of_tensor(weights, address::<f32>)?;
        call.epsilon = epsilon;
    }
    if let Some(table) = op.rope_table {
        call.rotary = op.rotary_width(table.layout())? as u32;
        call.table = of_tensor(table, address::<f32>)?;
    }
    write_heads(&Gpu(&qkv.device), held, &call)
}

/// Something of a tensor on a device.
fn of_tensor<T>(tensor: &Tensor, find: impl Fn(&CudaStorage, &Layout) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => find(storage, layout),
        Storage::Cpu(_) | Storage::Metal(_) => bail!("compute on a device: a tensor is in main memory"),
    }
}
