//! Rows of activations, laid out as the register tiles read them.

use std::mem::MaybeUninit;

use super::element::Element;
use super::tiles::{Tile, tiles};
use crate::ops::cpu::isa::{Isa, Kernel};
use crate::ops::cpu::parallel::for_each_range;
use crate::ops::cpu::simd::Simd;
use crate::ops::cpu::unwritten::{Unwritten, written};

/// Scalar operations an element takes to be rounded and put in its place.
const OPERATIONS: usize = 8;

/// Rows of activations, tile after tile. Within a tile, each step's elements of all its rows lie together, so
/// that a tile is read front to back.
pub(super) struct Activations<E: Element> {
    pub(super) tiles: Vec<Tile>,
    /// Of each tile (steps, rows of the tile), those beyond the last row zero.
    elements: Vec<E::Activation>,
    /// Steps of the inner dimension.
    steps: usize,
}

impl<E: Element> Activations<E> {
    /// Lays out `input` (rows, inputs).
    pub(super) fn of(isa: Isa, input: &[f32], (rows, inputs): (usize, usize)) -> Self {
        let steps = inputs.div_ceil(E::INPUTS);
        let tiles = tiles(isa, rows);
        let padded = tiles.last().map_or(0, |tile| tile.start + tile.size);
        let lay_out = |elements: Unwritten<'_, E::Activation>| {
            for_each_range(tiles.len(), rows * inputs * OPERATIONS, |range| {
                for tile in &tiles[range] {
                    // SAFETY: tiles do not overlap, and each is laid out by one thread.
                    let into = unsafe { elements.part(tile.start * steps, tile.size * steps) };
                    let rows = &input[tile.first * inputs..][..tile.rows * inputs];
                    E::run_kernel(isa, LayOut::<E> { rows, inputs, size: tile.size, into });
                }
            });
        };
        // SAFETY: each row of each tile is laid out, and where there are fewer than are computed the others are cleared.
        let elements = unsafe { written(padded * steps, lay_out) };
        Self { tiles, elements, steps }
    }

    /// One tile's elements (steps, rows of the tile).
    #[inline(always)]
    pub(super) fn of_tile(&self, tile: &Tile) -> &[E::Activation] {
        &self.elements[tile.start * self.steps..][..tile.size * self.steps]
    }

    /// Bytes of one row.
    pub(super) fn row_bytes(&self) -> usize {
        self.steps * size_of::<E::Activation>()
    }
}

/// Lays out the rows of one tile. Those that are computed and not there are zero.
struct LayOut<'a, E: Element> {
    /// (rows, inputs)
    rows: &'a [f32],
    inputs: usize,
    size: usize,
    /// (steps, size)
    into: &'a mut [MaybeUninit<E::Activation>],
}

impl<E: Element> Kernel for LayOut<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        /// Steps whose elements are converted before they are spread: both ends stay in the first cache.
        const TOGETHER: usize = 32;

        if self.rows.len() < self.size * self.inputs {
            self.into.fill(MaybeUninit::new(E::ZERO));
        }
        let mut converted = [E::ZERO; TOGETHER];
        for (row, values) in self.rows.chunks_exact(self.inputs.max(1)).enumerate() {
            let values = values.chunks(TOGETHER * E::INPUTS);
            for (values, into) in values.zip(self.into.chunks_mut(TOGETHER * self.size)) {
                let converted = &mut converted[..values.len().div_ceil(E::INPUTS)];
                E::activations(simd, values, converted);
                for (into, converted) in into.chunks_exact_mut(self.size).zip(converted) {
                    into[row].write(*converted);
                }
            }
        }
    }
}
