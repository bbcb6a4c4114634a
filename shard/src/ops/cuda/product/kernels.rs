//! The kernels of products, and the shapes of their launches.

use candle_core::{Result, bail};
use half::bf16;

use crate::ops::cuda::kernel::{Address, Executor, Grid, Kernel, Parameters, THREADS, launch};
use crate::ops::tiles::{CHUNK, TILE, TileFormat};

/// The most rows the kernel of few rows takes. Up to here its tiles of eight rows cost less than the 128 rows of the
/// other's.
pub(crate) const FEW_ROWS: usize = 64;

/// Warps of a block of the kernel of few rows: what 96 KiB, the memory of a block of the smallest devices, have room
/// for beside the inputs.
const WARPS: usize = 4;

/// Multiprocessors that should have something to do: those of an H100 or H200. Tiles of a block are fewer rather than
/// that any is idle; no bit depends on it. To be tuned on a card.
const MULTIPROCESSORS: usize = 132;

/// Chunks of inputs of eight rows that a block of the kernel of few rows has in its memory, and bytes of one.
const INPUT_CHUNKS: usize = 64;
const INPUT_CHUNK_BYTES: usize = 512;

/// Rows and tiles of a block of the kernel of many rows, and how many chunks its ring has.
const MANY_ROWS: usize = 128;
const MANY_TILES: usize = 8;
const MANY_STAGES: usize = 4;

/// Sums of a block of the kernel of many rows.
const MANY_SUMS: usize = MANY_ROWS * MANY_TILES * TILE;

/// Chunks of a block of the inner dimension: segments are padded to whole ones.
const CHUNKS: usize = 4;

/// Rows and columns of the result one block of the kernel for f32 computes.
const SIDE: usize = 64;

/// How a kernel on tensor cores reads weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Rows of bf16.
    Bf16,
    /// Rows of f16.
    F16,
    /// Tiles.
    Quantized(TileFormat),
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ProductParameters {
    pub(crate) input: Address,
    pub(crate) weights: Address,
    pub(crate) scales: Address,
    pub(crate) output: Address,
    pub(crate) waiting: Address,
    pub(crate) rows: u32,
    pub(crate) inputs: u32,
    pub(crate) outputs: u32,
    pub(crate) segments: u32,
    pub(crate) stride: u32,
    /// 0, or 1 + the number of the activation of what is gated.
    pub(crate) function: u32,
    /// Set by [`few`].
    pub(crate) parts: u32,
}

// SAFETY: as in product.cuh.
unsafe impl Parameters for ProductParameters {}

/// As [`few`] for all experts of a layer at once.
#[repr(C)]
pub(crate) struct ExpertProductParameters {
    /// Of one expert and all places.
    pub(crate) product: ProductParameters,
    /// Of [`Bundle`](crate::ops::cuda::experts::Bundle)
    pub(crate) bundles: Address,
    pub(crate) rows: Address,
    pub(crate) weights: Address,
    pub(crate) scales: Address,
}

// SAFETY: as in expert_products.cu.
unsafe impl Parameters for ExpertProductParameters {}

#[repr(C)]
pub(crate) struct ArrangeParameters {
    pub(crate) input: Address,
    pub(crate) output: Address,
    pub(crate) pieces: u64,
    pub(crate) inputs: u32,
    pub(crate) segments: u32,
    pub(crate) is_spread: u32,
    /// Else bf16.
    pub(crate) is_f16: u32,
}

// SAFETY: as in product.cu.
unsafe impl Parameters for ArrangeParameters {}

impl Coding {
    /// Whether neighbouring inputs go to different lanes.
    pub(crate) fn is_spread(self) -> u32 {
        match self {
            Self::Bf16 | Self::F16 => 0,
            Self::Quantized(_) => 1,
        }
    }

    /// Whether inputs are rounded to f16, else to bf16.
    pub(crate) fn is_f16(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Bf16 | Self::Quantized(_) => 0,
        }
    }

    /// Bytes of a chunk of a tile in a block's memory.
    fn chunk_bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 1024,
            Self::Quantized(format) => format.chunk_bytes(),
        }
    }

    /// Blocks of 128 elements a warp's ring has.
    fn stages(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 4,
            Self::Quantized(format) if format.bits() == 4 => 8,
            Self::Quantized(_) => 7,
        }
    }

    /// For up to 8, 16, 32 and 64 rows.
    fn few(self) -> [Kernel; 4] {
        match self {
            Self::Bf16 => {
                [Kernel::FewBf16Of8, Kernel::FewBf16Of16, Kernel::FewBf16Of32, Kernel::FewBf16Of64]
            }
            Self::F16 => [Kernel::FewF16Of8, Kernel::FewF16Of16, Kernel::FewF16Of32, Kernel::FewF16Of64],
            Self::Quantized(TileFormat::Int8) => {
                [Kernel::FewInt8Of8, Kernel::FewInt8Of16, Kernel::FewInt8Of32, Kernel::FewInt8Of64]
            }
            Self::Quantized(TileFormat::Int8Minimum) => [
                Kernel::FewInt8MinimumOf8,
                Kernel::FewInt8MinimumOf16,
                Kernel::FewInt8MinimumOf32,
                Kernel::FewInt8MinimumOf64,
            ],
            Self::Quantized(TileFormat::Int8Short) => [
                Kernel::FewInt8ShortOf8,
                Kernel::FewInt8ShortOf16,
                Kernel::FewInt8ShortOf32,
                Kernel::FewInt8ShortOf64,
            ],
            Self::Quantized(TileFormat::Int4) => {
                [Kernel::FewInt4Of8, Kernel::FewInt4Of16, Kernel::FewInt4Of32, Kernel::FewInt4Of64]
            }
            Self::Quantized(TileFormat::Int4Minimum) => [
                Kernel::FewInt4MinimumOf8,
                Kernel::FewInt4MinimumOf16,
                Kernel::FewInt4MinimumOf32,
                Kernel::FewInt4MinimumOf64,
            ],
            Self::Quantized(TileFormat::Float8) => {
                [Kernel::FewFloat8Of8, Kernel::FewFloat8Of16, Kernel::FewFloat8Of32, Kernel::FewFloat8Of64]
            }
        }
    }

    /// For all experts of a layer; nothing of what GGUF files alone hold, of which none with experts is served.
    pub(crate) fn experts(self) -> Option<Kernel> {
        match self {
            Self::Bf16 => Some(Kernel::ExpertsBf16),
            Self::F16 => Some(Kernel::ExpertsF16),
            Self::Quantized(TileFormat::Int8) => Some(Kernel::ExpertsInt8),
            Self::Quantized(TileFormat::Int4) => Some(Kernel::ExpertsInt4),
            Self::Quantized(TileFormat::Float8) => Some(Kernel::ExpertsFloat8),
            Self::Quantized(TileFormat::Int8Minimum | TileFormat::Int8Short | TileFormat::Int4Minimum) => {
                None
            }
        }
    }

    fn many(self) -> Kernel {
        match self {
            Self::Bf16 => Kernel::ManyBf16,
            Self::F16 => Kernel::ManyF16,
            Self::Quantized(TileFormat::Int8) => Kernel::ManyInt8,
            Self::Quantized(TileFormat::Int8Minimum) => Kernel::ManyInt8Minimum,
            Self::Quantized(TileFormat::Int8Short) => Kernel::ManyInt8Short,
            Self::Quantized(TileFormat::Int4) => Kernel::ManyInt4,
            Self::Quantized(TileFormat::Int4Minimum) => Kernel::ManyInt4Minimum,
            Self::Quantized(TileFormat::Float8) => Kernel::ManyFloat8,
        }
    }
}

impl ProductParameters {
    fn tiles(&self) -> usize {
        // As many where rows are gated: half the columns in halves of tiles.
        (self.outputs as usize).div_ceil(TILE)
    }
}

/// How the warps of a block of the kernel of few rows share its work.
#[derive(Clone, Copy)]
struct Cut {
    /// Tiles of a block.
    together: usize,
    /// Warps that share a tile.
    parts: usize,
}

impl Cut {
    /// For up to so many rows.
    fn of(parameters: &ProductParameters, rows: usize) -> Self {
        // A part has inputs of a whole block at least.
        let most_parts = WARPS.min(INPUT_CHUNKS / CHUNKS / groups_of(rows));
        let parts = (parameters.segments as usize).clamp(1, most_parts);
        Self { together: WARPS / parts, parts }
    }

    /// With fewer tiles together where there would be fewer blocks than multiprocessors.
    fn filling(self, blocks: impl Fn(usize) -> usize) -> Self {
        let mut together = self.together;
        while together > 1 && blocks(together) < MULTIPROCESSORS {
            together /= 2;
        }
        Self { together, ..self }
    }

    /// Blocks for tiles, and so many times along y.
    fn grid(self, coding: Coding, [tiles, times]: [usize; 2]) -> Grid {
        let warps = self.together * self.parts;
        let ring = coding.stages() * CHUNKS * coding.chunk_bytes();
        Grid {
            blocks: [tiles.div_ceil(self.together) as u32, times as u32, 1],
            threads: (warps * 32) as u32,
            shared_bytes: (warps * ring + INPUT_CHUNKS * INPUT_CHUNK_BYTES) as u32,
        }
    }
}

/// Groups of eight rows that a kernel of few rows is for.
fn groups_of(rows: usize) -> usize {
    rows.div_ceil(8).next_power_of_two().clamp(1, 8)
}

/// Up to [`FEW_ROWS`] rows.
pub(crate) fn few(on: &dyn Executor, coding: Coding, parameters: &ProductParameters) -> Result<()> {
    let (tiles, rows) = (parameters.tiles(), parameters.rows as usize);
    let cut = Cut::of(parameters, rows).filling(|together| tiles.div_ceil(together));
    let grid = cut.grid(coding, [tiles, rows.min(1)]);
    let kernel = coding.few()[groups_of(rows).ilog2() as usize];
    launch(on, kernel, &ProductParameters { parts: cut.parts as u32, ..*parameters }, grid)
}

/// So many bundles of rows of one expert each, every one of up to [`FEW_ROWS`].
pub(crate) fn experts(
    on: &dyn Executor,
    coding: Coding,
    parameters: &ExpertProductParameters,
    bundles: usize,
) -> Result<()> {
    let tiles = parameters.product.tiles();
    let cut = Cut::of(&parameters.product, FEW_ROWS);
    let cut = cut.filling(|together| tiles.div_ceil(together) * bundles);
    let product = ProductParameters { parts: cut.parts as u32, ..parameters.product };
    let call = ExpertProductParameters { product, ..*parameters };
    let Some(kernel) = coding.experts() else {
        bail!("multiply by all experts of a layer at once: there is no kernel for weights of {coding:?}")
    };
    launch(on, kernel, &call, cut.grid(coding, [tiles, bundles]))
}

/// Any number of rows, which [`arrange_inputs`] has prepared.
pub(crate) fn many(on: &dyn Executor, coding: Coding, parameters: &ProductParameters) -> Result<()> {
    let blocks = many_blocks(parameters.rows as usize, parameters.outputs as usize);
    let stage = MANY_TILES * coding.chunk_bytes() + MANY_ROWS * CHUNK * size_of::<bf16>();
    let grid = Grid {
        blocks: [blocks[0] as u32, blocks[1] as u32, 1],
        threads: THREADS,
        shared_bytes: (MANY_STAGES * stage) as u32,
    };
    launch(on, coding.many(), parameters, grid)
}

fn many_blocks(rows: usize, outputs: usize) -> [usize; 2] {
    [outputs.div_ceil(TILE).div_ceil(MANY_TILES), rows.div_ceil(MANY_ROWS)]
}

/// Elements of [`ProductParameters::waiting`] that [`many`] needs.
pub(crate) fn waiting_elements((rows, outputs): (usize, usize), segments: usize) -> usize {
    let [columns, rows] = many_blocks(rows, outputs);
    segments.max(1).ilog2() as usize * columns * rows * MANY_SUMS
}

/// Elements of a row that [`arrange_inputs`] has prepared.
pub(crate) fn arranged_elements(inputs: usize, segments: usize) -> usize {
    segments * (inputs / segments.max(1)).next_multiple_of(CHUNKS * CHUNK)
}

/// Rounds inputs to 16 bits and lays them out as [`many`] reads them.
pub(crate) fn arrange_inputs(on: &dyn Executor, parameters: &ArrangeParameters) -> Result<()> {
    launch(on, Kernel::ArrangeInputs, parameters, Grid::of_elements(parameters.pieces as usize))
}

/// Weights of f32.
pub(crate) fn product_f32(on: &dyn Executor, parameters: &ProductParameters) -> Result<()> {
    let ProductParameters { rows, outputs, .. } = *parameters;
    let blocks = [(outputs as usize).div_ceil(SIDE) as u32, (rows as usize).div_ceil(SIDE) as u32, 1];
    launch(on, Kernel::ProductF32, parameters, Grid { blocks, threads: THREADS, shared_bytes: 0 })
}
