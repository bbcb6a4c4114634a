//! Matrix products over packed panels. A row's result is the same to the bit however many rows there are:
//! every output element is one chain of accumulation along the inner dimension, front to back.

use std::ops::Range;

use self::activations::Activations;
use self::element::{Bf16, Element, F16, F32};
use self::tiles::Tile;
use super::activation::gated;
use super::isa::{Isa, Kernel};
use super::panels::{COLUMNS, PanelShape, Panels, VECTORS};
use super::parallel::for_each_range;
use super::simd::{LANES, Simd};
use super::unwritten::Unwritten;
use crate::dtype::Dtype;
use crate::ops::activation::Activation;

mod activations;
mod element;
mod tiles;

/// Bytes of activations that stay in a core's second cache, beside a part of a panel and the next.
const CACHED_BYTES: usize = 512 << 10;

/// Fewest rows for whose sake a matrix is read from memory once more.
const WORTH_A_READING: usize = 96;

/// How far ahead of its use a panel is asked for, in cache lines.
const LINES_AHEAD: usize = 64;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Multiplies `input` (rows, inputs) by the packed matrix into `output` (rows, outputs), all of which is written.
pub(crate) fn multiply(isa: Isa, panels: &Panels, input: &[f32], output: Unwritten<'_>) {
    let shape = panels.shape();
    if shape.outputs == 0 || output.is_empty() {
        return;
    }
    let rows = output.len() / shape.outputs;
    assert_eq!(input.len(), rows * shape.inputs, "the input has the matrix's inner dimension");
    run_any(isa, (panels, Finish::Plain), input, output);
}

/// Multiplies `input` (rows, inputs) by the packed matrix, and writes `activation(gate) * up` to `output`
/// (rows, width), all of which is written. Of each panel's columns the first half is some of the gate's and the second the same of the
/// other's, so that neither is ever written.
pub(crate) fn multiply_gated(
    isa: Isa,
    panels: &Panels,
    activation: Activation,
    input: &[f32],
    output: Unwritten<'_>,
) {
    let shape = panels.shape();
    let width = shape.outputs / VECTORS;
    assert!(shape.outputs.is_multiple_of(COLUMNS), "gates and what they gate fill whole panels");
    if width == 0 || output.is_empty() {
        return;
    }
    assert_eq!(
        input.len(),
        output.len() / width * shape.inputs,
        "the input has the matrix's inner dimension"
    );
    run_any(isa, (panels, Finish::Gated(activation)), input, output);
}

/// What becomes of a product before it is written.
#[derive(Clone, Copy)]
enum Finish {
    Plain,
    Gated(Activation),
}

fn run_any(isa: Isa, (panels, finish): (&Panels, Finish), input: &[f32], output: Unwritten<'_>) {
    let shape = panels.shape();
    match panels.dtype() {
        Dtype::Bfloat16 => run::<Bf16>(isa, (shape, finish, panels.bf16_steps()), input, output),
        Dtype::Float16 => run::<F16>(isa, (shape, finish, panels.f16_steps()), input, output),
        Dtype::Float32 => run::<F32>(isa, (shape, finish, panels.f32_steps()), input, output),
    }
}

/// One product.
struct Product<'a, E: Element> {
    shape: PanelShape,
    finish: Finish,
    /// (panels, steps of the inner dimension)
    steps: &'a [E::Step],
    activations: &'a Activations<E>,
}

fn run<E: Element>(
    isa: Isa,
    (shape, finish, steps): (PanelShape, Finish, &[E::Step]),
    input: &[f32],
    output: Unwritten<'_>,
) {
    let rows = match finish {
        Finish::Plain => output.len() / shape.outputs,
        Finish::Gated(_) => output.len() / (shape.outputs / VECTORS),
    };
    let activations = Activations::of(isa, input, (rows, shape.inputs));
    let product = Product::<E> { shape, finish, steps, activations: &activations };
    let operations = rows * shape.inputs * shape.outputs;
    for_each_range(shape.panels(), operations, |panels| {
        E::run_kernel(isa, PanelRange { product: &product, panels, output });
    });
}

/// All rows of some panels.
struct PanelRange<'a, E: Element> {
    product: &'a Product<'a, E>,
    panels: Range<usize>,
    output: Unwritten<'a>,
}

/// Sums of a row and a panel.
type RowSums = [[f32; LANES]; VECTORS];

impl<E: Element> Kernel for PanelRange<'_, E> {
    type Output = ();

    /// Multiplies as many rows as fit the cache by one panel after the other.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let activations = self.product.activations;
        let mut pending = Pending::default();
        for tiles in activations.tiles.chunks(tiles_together(activations)) {
            pending.make_room(tiles, self.product.shape.segments);
            let segments = 0..self.product.shape.segments;
            let parts = self.panels.clone().flat_map(|panel| segments.clone().map(move |s| (panel, s)));
            for (panel, segment) in parts {
                for (index, tile) in tiles.iter().enumerate() {
                    let part = Part { panel, segment, turn: (index, tiles.len()) };
                    self.tile_of_any_size(simd, part, tile, &mut pending);
                }
            }
        }
    }
}

/// How many tiles are multiplied by a panel before the next panel's turn comes: those whose rows stay in the
/// cache, or all where these are too few.
fn tiles_together<E: Element>(activations: &Activations<E>) -> usize {
    let rows = CACHED_BYTES / activations.row_bytes().max(1);
    let size = activations.tiles.first().map_or(1, |tile| tile.size);
    if rows < WORTH_A_READING { usize::MAX } else { rows / size }
}

/// A segment of a panel, and which of some tiles multiplies it.
#[derive(Clone, Copy)]
struct Part {
    panel: usize,
    segment: usize,
    /// Which of how many, in turn.
    turn: (usize, usize),
}

/// Sums that wait for others: a binary counter, of which level `l` holds the sum of 2^l segments until its
/// sibling is there.
#[derive(Default)]
struct Pending {
    /// (levels, rows of the tiles)
    sums: Vec<RowSums>,
    /// The first tile's start, and rows of all.
    rows: (usize, usize),
}

impl Pending {
    fn make_room(&mut self, tiles: &[Tile], segments: usize) {
        let start = tiles.first().map_or(0, |tile| tile.start);
        let end = tiles.last().map_or(0, |tile| tile.start + tile.size);
        self.rows = (start, end - start);
        self.sums.resize(segments.ilog2() as usize * (end - start), [[0.0; LANES]; VECTORS]);
    }

    /// The sums of one level and some rows.
    #[inline(always)]
    fn of_tile(&mut self, level: usize, tile: &Tile) -> &mut [RowSums] {
        &mut self.sums[level * self.rows.1 + tile.start - self.rows.0..][..tile.size]
    }

    /// Adds to `sums` the siblings that wait for them, on so many levels.
    #[inline(always)]
    fn complete<S: Simd>(&mut self, simd: S, levels: usize, (tile, sums): (&Tile, &mut [RowSums])) {
        for level in 0..levels {
            for (sums, sibling) in sums.iter_mut().zip(self.of_tile(level, tile)) {
                for (sum, sibling) in sums.iter_mut().zip(sibling) {
                    simd.store(simd.add(simd.load(sibling), simd.load(sum)), sum);
                }
            }
        }
    }
}

/// What is asked for while a tile is computed: at each step a cache line, or two.
#[derive(Clone, Copy)]
struct Ahead {
    lines: [*const u8; 2],
    /// From a step's lines to the next step's.
    stride: usize,
    /// Whether each line is read by this tile and no other.
    once: bool,
}

impl Ahead {
    /// For one of some tiles that multiply some steps in turn. One tile alone reads them as they come from
    /// memory, past the further caches: filling those takes of the time that reading takes. Of several, the first two ask for a half each of the steps that follow, so that memory is read
    /// while all of them compute, and the others move these steps closer.
    #[inline(always)]
    fn new<T>(steps: &[T], (tile, tiles): (usize, usize)) -> Self {
        let bytes = steps.as_ptr_range();
        let (start, end) = (bytes.start.cast::<u8>(), bytes.end.cast::<u8>());
        let line = |start: *const u8, lines: usize| start.wrapping_add(lines * LINE);
        match (tile, tiles) {
            (0, 2..) => Self { lines: [end; 2], stride: LINE, once: false },
            (1, 2..) => Self { lines: [line(end, steps.len()); 2], stride: LINE, once: false },
            (_, tiles) => Self {
                lines: [line(start, LINES_AHEAD), line(start, LINES_AHEAD + 1)],
                stride: 2 * LINE,
                once: tiles == 1,
            },
        }
    }
}

impl<E: Element> PanelRange<'_, E> {
    #[inline(always)]
    fn tile_of_any_size<S: Simd>(&self, simd: S, part: Part, tile: &Tile, pending: &mut Pending) {
        match tile.size {
            12.. if S::WIDE => self.tile::<S, 12>(simd, part, tile, pending),
            10.. if S::WIDE => self.tile::<S, 10>(simd, part, tile, pending),
            8.. if S::WIDE => self.tile::<S, 8>(simd, part, tile, pending),
            6.. if S::WIDE => self.tile::<S, 6>(simd, part, tile, pending),
            4.. if S::WIDE => self.tile::<S, 4>(simd, part, tile, pending),
            3.. if S::WIDE => self.tile::<S, 3>(simd, part, tile, pending),
            2.. => self.tile::<S, 2>(simd, part, tile, pending),
            _ => self.tile::<S, 1>(simd, part, tile, pending),
        }
    }

    /// Computes one tile's sums over a segment, completes what waited for it, and writes what is complete.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&self, simd: S, part: Part, tile: &Tile, pending: &mut Pending) {
        let Part { panel, segment, turn } = part;
        let weights = self.panel(panel);
        let length = weights.len() / self.product.shape.segments;
        let range = segment * length..(segment + 1) * length;
        let activations = &self.product.activations.of_tile(tile)[range.start * R..range.end * R];
        let weights = &weights[range];
        let mut sums = [[[0.0; LANES]; VECTORS]; R];
        let ahead = Ahead::new(weights, turn);
        if ahead.once {
            accumulate::<E, S, R, true>(simd, (weights, activations), ahead, &mut sums);
        } else {
            accumulate::<E, S, R, false>(simd, (weights, activations), ahead, &mut sums);
        }
        let complete = segment.trailing_ones() as usize;
        pending.complete(simd, complete, (tile, &mut sums));
        if segment + 1 == self.product.shape.segments {
            self.write(simd, (panel, tile), &sums);
        } else {
            pending.of_tile(complete, tile).copy_from_slice(&sums);
        }
    }

    /// A panel's steps.
    #[inline(always)]
    fn panel(&self, panel: usize) -> &[E::Step] {
        let steps = self.product.steps.len() / self.product.shape.panels();
        &self.product.steps[panel * steps..][..steps]
    }

    #[inline(always)]
    fn write<S: Simd>(&self, simd: S, (panel, tile): (usize, &Tile), sums: &[RowSums]) {
        for (row, sums) in (tile.first..tile.first + tile.rows).zip(sums) {
            match self.product.finish {
                Finish::Plain => {
                    for (vector, sum) in sums.iter().enumerate() {
                        self.write_vector(simd, (row, panel * VECTORS + vector), simd.load(sum));
                    }
                }
                Finish::Gated(activation) => {
                    let [gate, up] = sums;
                    let gated = gated(simd, activation, (simd.load(gate), simd.load(up)));
                    self.write_vector(simd, (row, panel), gated);
                }
            }
        }
    }

    /// Writes some of a row's columns: those of the `vector`th vector, as far as there are so many.
    #[inline(always)]
    fn write_vector<S: Simd>(&self, simd: S, (row, vector): (usize, usize), values: S::Lanes) {
        let width = match self.product.finish {
            Finish::Plain => self.product.shape.outputs,
            Finish::Gated(_) => self.product.shape.outputs / VECTORS,
        };
        let column = (vector * LANES).min(width);
        // SAFETY: only the thread that has this panel writes its columns.
        let part = unsafe { self.output.part(row * width + column, LANES.min(width - column)) };
        simd.write_first(values, part);
    }
}

/// Writes the sums over some steps to `into`: from zero, front to back. `ONCE` is what `ahead` says of it.
#[inline(always)]
fn accumulate<E: Element, S: Simd, const R: usize, const ONCE: bool>(
    simd: S,
    (weights, activations): (&[E::Step], &[E::Activation]),
    mut ahead: Ahead,
    into: &mut [RowSums; R],
) {
    let mut sums = [[simd.splat(0.0); VECTORS]; R];
    for (weights, activations) in weights.iter().zip(activations.as_chunks::<R>().0) {
        for line in &mut ahead.lines {
            if ONCE {
                simd.prefetch_once(*line);
            } else {
                simd.prefetch(*line);
            }
            *line = line.wrapping_add(ahead.stride);
        }
        let weights = E::load(simd, weights);
        for row in 0..R {
            let activation = E::splat(simd, activations[row]);
            for vector in 0..VECTORS {
                sums[row][vector] = E::accumulate(simd, sums[row][vector], activation, weights[vector]);
            }
        }
    }
    for row in 0..R {
        for vector in 0..VECTORS {
            simd.store(sums[row][vector], &mut into[row][vector]);
        }
    }
}

#[cfg(test)]
mod tests;
