//! The KV blocks of one rank: for each layer a pool of keys and a pool of values.

mod dtype;
pub(crate) mod layout;

use candle_core::{Device, Tensor, WithDType};
use half::{bf16, f16};
#[cfg(feature = "cuda")]
use lockstep_proto::BlockId;
use lockstep_proto::{Blocks, Bytes};
use thiserror::Error;

pub use self::dtype::KvCacheDtype;
pub(crate) use self::dtype::KvDtype;
#[cfg(feature = "cuda")]
use crate::decoder::Recordings;
use crate::kv::layout::KvLayout;
use crate::ops::cpu::huge_memory::{ZeroBytes, on_huge_pages};

/// The KV blocks of one rank. Nothing in it is read before a forward pass wrote it.
pub struct KvPool {
    pub(crate) layers: Vec<LayerKv>,
    blocks: Blocks,
    bytes: Bytes,
    /// Passes over these blocks that were recorded, by the decoder that allocated them.
    #[cfg(feature = "cuda")]
    pub(crate) recordings: Recordings,
}

/// One layer's blocks.
pub(crate) struct LayerKv {
    /// (tiles, elements of a tile); on a device (blocks, KV heads, elements of a tile): slots by padded width, and their
    /// scales where they have some
    pub(crate) keys: Tensor,
    /// Likewise
    pub(crate) values: Tensor,
}

/// A pool that cannot be had.
#[derive(Debug, Error)]
#[error("allocate {blocks} KV blocks ({bytes}): {source}; ask for a smaller KV cache")]
pub struct AllocateError {
    blocks: Blocks,
    bytes: Bytes,
    source: candle_core::Error,
}

impl KvPool {
    /// How many blocks there are: ids are below this.
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// How many passes over its blocks were replayed.
    #[cfg(feature = "cuda")]
    pub fn replays(&self) -> u64 {
        self.recordings.replays()
    }

    /// A block more that there is on devices: rows that nobody asked for are written to it.
    #[cfg(feature = "cuda")]
    pub(crate) fn spare(&self) -> BlockId {
        BlockId(self.blocks.0)
    }

    /// Bytes they take, over all layers. As much as a run of blocks more has its addresses, and is never written.
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// `blocks` blocks for each of `layers` layers.
    pub(crate) fn allocate(
        (layout, layers): (KvLayout, usize),
        dtype: KvDtype,
        blocks: Blocks,
        device: &Device,
    ) -> Result<Self, AllocateError> {
        // Too many elements for a number are too many for the system, which says so below.
        let tiles = layout.tiles(blocks.len());
        let bytes = Bytes(layout.block_bytes(layers, dtype).0.saturating_mul(u64::from(blocks.0)));
        let failed = |source| AllocateError { blocks, bytes, source };
        let elements = dtype.tile_elements(layout).saturating_mul(tiles);
        let on_device = |_| -> candle_core::Result<LayerKv> {
            let shape = (blocks.len() + 1, layout.kv_heads, dtype.tile_elements(layout));
            let zeroes = || Tensor::zeros(shape, dtype.elements(), device);
            Ok(LayerKv { keys: zeroes()?, values: zeroes()? })
        };
        let in_memory = |_| -> candle_core::Result<LayerKv> {
            let shape = (tiles, dtype.tile_elements(layout));
            Ok(LayerKv {
                keys: zeroes(elements, dtype)?.reshape(shape)?,
                values: zeroes(elements, dtype)?.reshape(shape)?,
            })
        };
        let layers = match device {
            Device::Cpu => (0..layers).map(in_memory).collect::<candle_core::Result<_>>(),
            Device::Cuda(_) | Device::Metal(_) => (0..layers).map(on_device).collect(),
        };
        let layers = layers.map_err(failed)?;
        Ok(Self {
            layers,
            blocks,
            bytes,
            #[cfg(feature = "cuda")]
            recordings: Recordings::default(),
        })
    }
}

/// Zeroes the system hands out page by page when they are first written, on huge pages where it has them.
fn zeroes(elements: usize, dtype: KvDtype) -> candle_core::Result<Tensor> {
    match dtype {
        KvDtype::Float32 => zeroed::<f32>(elements),
        KvDtype::Bfloat16 => zeroed::<bf16>(elements),
        KvDtype::Float16 => zeroed::<f16>(elements),
        KvDtype::Int8 => zeroed::<u8>(elements),
        KvDtype::Float8 => {
            Err(candle_core::Error::msg("floating-point numbers of 8 bits are held on GPUs alone"))
        }
    }
}

fn zeroed<T: ZeroBytes + WithDType>(elements: usize) -> candle_core::Result<Tensor> {
    let values = on_huge_pages::<T>(elements).map_err(candle_core::Error::wrap)?;
    Tensor::from_vec(values, elements, &Device::Cpu)
}
