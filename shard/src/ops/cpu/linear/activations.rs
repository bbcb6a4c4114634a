//! Rows of activations, laid out as the register tiles read them.

use super::element::Element;
use super::tiles::{Tile, tiles};
use crate::ops::cpu::isa::{Isa, Kernel};
use crate::ops::cpu::parallel::{SharedSlice, for_each_range};
use crate::ops::cpu::simd::Simd;

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
        let mut elements = vec![E::ZERO; padded * steps];
        let shared = SharedSlice::new(&mut elements);
        for_each_range(tiles.len(), rows * inputs, |range| {
            for tile in &tiles[range] {
                // SAFETY: tiles do not overlap, and each is laid out by one thread.
                let into = unsafe { shared.part(tile.start * steps, tile.size * steps) };
                let rows = &input[tile.first * inputs..][..tile.rows * inputs];
                isa.run(LayOut::<E> { rows, inputs, size: tile.size, into });
            }
        });
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

/// Lays out the rows of one tile.
struct LayOut<'a, E: Element> {
    /// (rows, inputs)
    rows: &'a [f32],
    inputs: usize,
    size: usize,
    /// (steps, size)
    into: &'a mut [E::Activation],
}

impl<E: Element> Kernel for LayOut<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        /// Steps whose elements are converted before they are spread: both ends stay in the first cache.
        const TOGETHER: usize = 32;

        let mut converted = [E::ZERO; TOGETHER];
        for (row, values) in self.rows.chunks_exact(self.inputs.max(1)).enumerate() {
            let values = values.chunks(TOGETHER * E::INPUTS);
            for (values, into) in values.zip(self.into.chunks_mut(TOGETHER * self.size)) {
                let (whole, rest) = values.split_at(values.len() / E::INPUTS * E::INPUTS);
                for (converted, elements) in converted.iter_mut().zip(whole.chunks_exact(E::INPUTS)) {
                    *converted = E::activation(elements);
                }
                if !rest.is_empty() {
                    converted[whole.len() / E::INPUTS] = E::activation(rest);
                }
                for (into, converted) in into.chunks_exact_mut(self.size).zip(&converted) {
                    into[row] = *converted;
                }
            }
        }
    }
}
