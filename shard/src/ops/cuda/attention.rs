//! Attention over block tables, on a device: how rows are cut into tiles, and where splits are computed apart.
//!
//! Keys and values of f32 are multiplied one by one, all others on tensor cores.

use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::{CudaDevice, Layout, Result, Shape, bail};

use super::gpu::Gpu;
use super::kernel::{Address, Executor, Grid, Kernel, Parameters, launch};
use super::storage::{address, copy_of, of_slice, pool, room, wrapped};
use crate::batch::{BLOCK_SIZE, BatchSequence};
use crate::kv::KvDtype;
use crate::ops::attention::AttentionShape;

/// Positions of a split, as in attention.cu.
pub(crate) const SPLIT: usize = 256;
/// Threads of a warp, and positions of a step without tensor cores.
const WARP: usize = 32;
/// Warps of a block.
const WARPS: usize = 8;
/// Widest head there is a kernel for.
const WIDEST: usize = 256;

/// Bytes of a block's memory for steps on tensor cores: two of keys and two of values, of 4,096 elements each.
const STEPS: usize = 4 * 4096 * 2;
/// For elements of eight bits: as many, two steps that are widened, and scales of four steps of up to 64 slots.
const SCALED_STEPS: usize = 4 * 4096 + 2 * 4096 * 2 + 4 * 64 * size_of::<f32>();

/// Warps below which a device is not full, so that splits are computed apart.
const FEW_WARPS: usize = 1056;
/// Bytes of memory splits that are computed apart may take.
pub(crate) const SCRATCH: usize = 128 << 20;

/// Neighbouring rows of one sequence.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    pub(crate) first_position: u32,
    /// Where among the block tables that of its sequence begins.
    pub(crate) table: u32,
}

// SAFETY: four plain numbers.
unsafe impl DeviceRepr for Tile {}

#[repr(C)]
pub(crate) struct AttentionParameters {
    pub(crate) qkv: Address,
    pub(crate) keys: Address,
    pub(crate) values: Address,
    pub(crate) tiles: Address,
    pub(crate) tables: Address,
    pub(crate) output: Address,
    pub(crate) partial: Address,
    pub(crate) row_elements: u32,
    pub(crate) query_heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) width: u32,
    pub(crate) padded_width: u32,
    pub(crate) tile_queries: u32,
    pub(crate) splits: u32,
    pub(crate) window: u32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
}

// SAFETY: as in attention.cuh.
unsafe impl Parameters for AttentionParameters {}

/// What multiplies queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Units {
    Plain,
    TensorCores,
}

impl Units {
    fn of(held: KvDtype) -> Self {
        match held {
            KvDtype::Float32 => Self::Plain,
            KvDtype::Bfloat16 | KvDtype::Float16 | KvDtype::Int8 | KvDtype::Float8 => Self::TensorCores,
        }
    }

    /// Queries that a warp computes.
    fn queries_of_a_warp(self) -> usize {
        match self {
            Self::Plain => 4,
            Self::TensorCores => 16,
        }
    }

    /// Queries of a tile, at most.
    fn most_queries(self) -> usize {
        self.queries_of_a_warp() * WARPS
    }

    /// Warps of a block for so many queries: without tensor cores they are dealt out in turn, with them in sixteens.
    fn warps(self, queries: usize) -> usize {
        match self {
            Self::Plain => queries.clamp(1, WARPS),
            Self::TensorCores => queries.div_ceil(self.queries_of_a_warp()).max(1),
        }
    }
}

/// A batch's rows as kernels find them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HostRows {
    /// (rows): of each row its position.
    pub(crate) positions: Vec<u32>,
    /// (rows): block and slot of each row, as one number.
    pub(crate) slots: Vec<u32>,
    /// The block tables, one after the other.
    pub(crate) tables: Vec<u32>,
    /// Of sequences with one row, and of those with more.
    pub(crate) tiles: [Vec<Tile>; 2],
}

impl HostRows {
    /// Tiles have as many rows as their warps have queries for, where each KV head has `group` query heads and keys and
    /// values are held so.
    pub(crate) fn new(sequences: &[BatchSequence], group: usize, held: KvDtype) -> Self {
        let most = (Units::of(held).most_queries() / group.max(1)).max(1);
        let mut rows = Self::default();
        for sequence in sequences {
            let table = rows.tables.len() as u32;
            let size = BLOCK_SIZE.len();
            for (row, (block, slot)) in sequence.slots().enumerate() {
                rows.positions.push((sequence.first_position.index() + row) as u32);
                rows.slots.push((block * size + slot) as u32);
            }
            let end = sequence.first_position.index() + sequence.rows;
            rows.tables.extend(sequence.blocks.iter().take(end.div_ceil(size)).map(|block| block.0));
            let tiles = &mut rows.tiles[usize::from(sequence.rows > 1)];
            // Those with the longest contexts are begun first, so that none is left to be waited for alone.
            for first in (0..sequence.rows).step_by(most).rev() {
                tiles.push(Tile {
                    first_row: (sequence.first_row + first) as u32,
                    rows: most.min(sequence.rows - first) as u32,
                    first_position: (sequence.first_position.index() + first) as u32,
                    table,
                });
            }
        }
        rows
    }

    /// Everything, as [`DeviceRows::at`] looks for it.
    pub(crate) fn words(&self) -> Vec<u32> {
        let Self { positions, slots, tables, tiles } = self;
        let tiles = tiles.iter().flatten().flat_map(|tile| {
            let Tile { first_row, rows, first_position, table } = *tile;
            [first_row, rows, first_position, table]
        });
        positions.iter().chain(slots).copied().chain(tiles).chain(tables.iter().copied()).collect()
    }
}

/// Which rows of a pass are there for nobody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Padding {
    /// (rows): block and slot of each row, as one number.
    pub(crate) slots: Address,
    /// That of rows of padding.
    pub(crate) slot: u32,
}

/// The same on a device, one after the other in its memory.
pub(crate) struct DeviceRows {
    pub(crate) count: usize,
    pub(crate) positions: Address,
    pub(crate) slots: Address,
    /// Where the rows' tokens are, where they are there as well.
    pub(crate) tokens: Option<Address>,
    /// The slot of rows of padding, where there may be some.
    padding: Option<u32>,
    tables: Address,
    /// Where tiles are, and what is known of them when they are computed.
    tiles: [(Vec<Tile>, Address); 2],
    /// Kept for as long as the rows are.
    _memory: Option<CudaSlice<u32>>,
}

impl DeviceRows {
    pub(crate) fn new(
        device: &CudaDevice,
        sequences: &[BatchSequence],
        (shape, held): (AttentionShape, KvDtype),
    ) -> Result<Self> {
        let rows = HostRows::new(sequences, shape.query_heads / shape.kv.kv_heads.max(1), held);
        let memory = copy_of(device, &rows.words())?;
        let placed = Self::at(of_slice(&memory), rows.positions.len(), rows.tiles);
        Ok(Self { _memory: Some(memory), ..placed })
    }

    /// Rows whose [`HostRows::words`] are there. `tiles` are as many as there are: they tell how they are cut, which holds for
    /// all that see no more positions.
    pub(crate) fn at(first: Address, count: usize, tiles: [Vec<Tile>; 2]) -> Self {
        let word = size_of::<u32>();
        let slots = first.plus(count * word);
        let single_tiles = slots.plus(count * word);
        let [single, several] = tiles;
        let several_tiles = single_tiles.plus(size_of_val(single.as_slice()));
        let tables = several_tiles.plus(size_of_val(several.as_slice()));
        Self {
            count,
            positions: first,
            slots,
            tokens: None,
            padding: None,
            tables,
            tiles: [(single, single_tiles), (several, several_tiles)],
            _memory: None,
        }
    }

    /// The same, whose tokens are there as well.
    pub(crate) fn with_tokens(self, tokens: Address) -> Self {
        Self { tokens: Some(tokens), ..self }
    }

    /// The same, of which those in this slot are there for nobody.
    pub(crate) fn with_padding(self, slot: u32) -> Self {
        Self { padding: Some(slot), ..self }
    }

    /// Which rows are there for nobody, where some may be.
    pub(crate) fn padding(&self) -> Option<Padding> {
        self.padding.map(|slot| Padding { slots: self.slots, slot })
    }
}

/// How tiles are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Queries of the largest tile.
    pub(crate) tile_queries: usize,
    /// 0: a tile's splits one after the other; else how many the longest has, each by a block.
    pub(crate) splits: usize,
}

impl Cut {
    /// Apart where a device would not be full otherwise and memory allows: the bits are the same.
    pub(crate) fn of(shape: AttentionShape, held: KvDtype, tiles: &[Tile]) -> Self {
        let splits = tiles.iter().map(|tile| splits_of(shape, tile)).max().unwrap_or(0);
        let mut cut = Self { splits, ..Self::one_by_one(shape, tiles) };
        let warps = tiles.len() * shape.kv.kv_heads * Units::of(held).warps(cut.tile_queries);
        if splits < 2
            || warps >= FEW_WARPS
            || cut.partial_elements(shape, tiles) * size_of::<f32>() > SCRATCH
        {
            cut.splits = 0;
        }
        cut
    }

    /// No split apart.
    pub(crate) fn one_by_one(shape: AttentionShape, tiles: &[Tile]) -> Self {
        let rows = tiles.iter().map(|tile| tile.rows as usize).max().unwrap_or(0);
        Self { tile_queries: rows * shape.query_heads / shape.kv.kv_heads.max(1), splits: 0 }
    }

    /// Elements that splits computed apart take.
    pub(crate) fn partial_elements(self, shape: AttentionShape, tiles: &[Tile]) -> usize {
        let walks = tiles.len() * shape.kv.kv_heads * self.splits * self.tile_queries;
        walks * (shape.kv.head_width + 2)
    }
}

fn splits_of(shape: AttentionShape, tile: &Tile) -> usize {
    let position = tile.first_position as usize;
    let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
    (position + tile.rows as usize).div_ceil(SPLIT) - first / SPLIT
}

/// Has the rows of `tiles` attend; those of other tiles are left alone.
pub(crate) fn attend(
    on: &dyn Executor,
    held: KvDtype,
    parameters: &AttentionParameters,
    tiles: usize,
) -> Result<()> {
    let AttentionParameters { query_heads, kv_heads, width, tile_queries, splits, .. } = *parameters;
    let (width, queries, units) = (width as usize, tile_queries as usize, Units::of(held));
    let most = units.most_queries();
    if width > WIDEST || queries > most || !query_heads.is_multiple_of(kv_heads) {
        bail!(
            "attend on a device with {query_heads} query heads, {kv_heads} KV heads and heads of {width} \
             elements: at most {most} query heads for a KV head and {WIDEST} elements work"
        );
    }
    let shared = match held {
        KvDtype::Float32 => (queries * width + WARP * (width + 1)) * size_of::<f32>(),
        KvDtype::Bfloat16 | KvDtype::Float16 => STEPS,
        KvDtype::Int8 | KvDtype::Float8 => SCALED_STEPS,
    };
    let grid = Grid {
        blocks: [tiles as u32, kv_heads, splits.max(1)],
        threads: (units.warps(queries) * WARP) as u32,
        shared_bytes: shared as u32,
    };
    launch(on, kernel(held, width), parameters, grid)?;
    if splits == 0 {
        return Ok(());
    }
    let threads = width.next_multiple_of(WARP) as u32;
    let grid = Grid { blocks: [tiles as u32, kv_heads, tile_queries], threads, shared_bytes: 0 };
    launch(on, Kernel::FoldSplits, parameters, grid)
}

fn kernel(held: KvDtype, width: usize) -> Kernel {
    match (held, width) {
        (KvDtype::Float32, ..=64) => Kernel::AttendF32Of64,
        (KvDtype::Float32, ..=128) => Kernel::AttendF32Of128,
        (KvDtype::Float32, _) => Kernel::AttendF32Of256,
        (KvDtype::Bfloat16, ..=64) => Kernel::AttendBf16Of64,
        (KvDtype::Bfloat16, ..=96) => Kernel::AttendBf16Of96,
        (KvDtype::Bfloat16, ..=128) => Kernel::AttendBf16Of128,
        (KvDtype::Bfloat16, _) => Kernel::AttendBf16Of256,
        (KvDtype::Float16, ..=64) => Kernel::AttendF16Of64,
        (KvDtype::Float16, ..=96) => Kernel::AttendF16Of96,
        (KvDtype::Float16, ..=128) => Kernel::AttendF16Of128,
        (KvDtype::Float16, _) => Kernel::AttendF16Of256,
        (KvDtype::Int8, ..=64) => Kernel::AttendInt8Of64,
        (KvDtype::Int8, ..=96) => Kernel::AttendInt8Of96,
        (KvDtype::Int8, ..=128) => Kernel::AttendInt8Of128,
        (KvDtype::Int8, _) => Kernel::AttendInt8Of256,
        (KvDtype::Float8, ..=64) => Kernel::AttendFp8Of64,
        (KvDtype::Float8, ..=96) => Kernel::AttendFp8Of96,
        (KvDtype::Float8, ..=128) => Kernel::AttendFp8Of128,
        (KvDtype::Float8, _) => Kernel::AttendFp8Of256,
    }
}

pub(crate) fn forward(
    (shape, rows): (AttentionShape, &DeviceRows),
    (qkv, qkv_layout): (&CudaStorage, &Layout),
    (keys, keys_layout): (&CudaStorage, &Layout),
    (values, values_layout): (&CudaStorage, &Layout),
) -> Result<(CudaStorage, Shape)> {
    let device = &qkv.device;
    let output = room::<f32>(device, rows.count * shape.query_elements())?;
    let (held, keys) = pool(keys, keys_layout)?;
    let (_, values) = pool(values, values_layout)?;
    for (tiles, on_device) in &rows.tiles {
        let cut = Cut::of(shape, held, tiles);
        let partial = room::<f32>(device, cut.partial_elements(shape, tiles))?;
        let call = AttentionParameters {
            qkv: address::<f32>(qkv, qkv_layout)?,
            keys,
            values,
            tiles: *on_device,
            tables: rows.tables,
            output: of_slice(&output),
            partial: of_slice(&partial),
            ..AttentionParameters::of(shape, cut)
        };
        attend(&Gpu(device), held, &call, tiles.len())?;
    }
    Ok((wrapped(output, device), Shape::from((rows.count, shape.query_elements()))))
}

impl AttentionParameters {
    /// Without addresses.
    pub(crate) fn of(shape: AttentionShape, cut: Cut) -> Self {
        let none = Address::NULL;
        Self {
            qkv: none,
            keys: none,
            values: none,
            tiles: none,
            tables: none,
            output: none,
            partial: none,
            row_elements: shape.row_elements() as u32,
            query_heads: shape.query_heads as u32,
            kv_heads: shape.kv.kv_heads as u32,
            width: shape.kv.head_width as u32,
            padded_width: shape.kv.padded_width() as u32,
            tile_queries: cut.tile_queries as u32,
            splits: cut.splits as u32,
            window: shape.window.map_or(0, |window| u32::try_from(window).unwrap_or(u32::MAX)),
            scale: shape.scale,
            softcap: shape.softcap.unwrap_or(0.0),
        }
    }
}
