//! Matrix products over packed panels. A row's result is the same to the bit however many rows there are:
//! every output element is one chain of accumulation along the inner dimension, front to back.

use std::ops::Range;

use half::bf16;

use super::isa::{Isa, Kernel};
use super::panels::{Bf16Step, F32Step, MAX_SEGMENTS, PanelShape, Panels};
use super::parallel::{SharedSlice, for_each_range};
use super::simd::{LANES, Simd, round_to_bf16};
use crate::dtype::Dtype;

/// Panels of a register tile.
const TILE_PANELS: usize = 2;

/// Multiplies `input` (rows, inputs) by the packed matrix into `output` (rows, outputs).
pub(crate) fn multiply(isa: Isa, panels: &Panels, input: &[f32], output: &mut [f32]) {
    let shape = panels.shape();
    if shape.outputs == 0 || output.is_empty() {
        return;
    }
    let rows = output.len() / shape.outputs;
    assert_eq!(input.len(), rows * shape.inputs, "the input has the matrix's inner dimension");
    match panels.dtype() {
        Dtype::Bfloat16 => {
            let rounded = isa.run(RoundRows { input, inputs: shape.inputs, rows });
            run(isa, &Product::<Bf16> { shape, steps: panels.bf16_steps(), activations: &rounded }, output);
        }
        Dtype::Float32 => {
            run(isa, &Product::<F32> { shape, steps: panels.f32_steps(), activations: input }, output);
        }
    }
}

/// Two ways to hold an element, and how a step of it is accumulated.
trait Element: Copy + Send + Sync + 'static {
    /// The weights of sixteen columns in one step.
    type Step: Sync + Send + 'static;
    /// The activations of one row in one step.
    type Activation: Copy + Sync + Send + 'static;
    type Vector<S: Simd>: Copy;

    fn load<S: Simd>(simd: S, step: &Self::Step) -> Self::Vector<S>;
    fn splat<S: Simd>(simd: S, activation: Self::Activation) -> Self::Vector<S>;
    fn accumulate<S: Simd>(simd: S, sum: S::Lanes, a: Self::Vector<S>, w: Self::Vector<S>) -> S::Lanes;
    /// Runs a kernel over these elements.
    fn run_kernel<K: Kernel>(isa: Isa, kernel: K) -> K::Output;
}

#[derive(Clone, Copy)]
struct Bf16;

#[derive(Clone, Copy)]
struct F32;

impl Element for Bf16 {
    type Step = Bf16Step;
    type Activation = [bf16; 2];
    type Vector<S: Simd> = S::Pairs;

    #[inline(always)]
    fn load<S: Simd>(simd: S, step: &Bf16Step) -> S::Pairs {
        simd.load_pairs(step)
    }

    #[inline(always)]
    fn splat<S: Simd>(simd: S, activation: [bf16; 2]) -> S::Pairs {
        simd.splat_pair(activation)
    }

    #[inline(always)]
    fn accumulate<S: Simd>(simd: S, sum: S::Lanes, a: S::Pairs, w: S::Pairs) -> S::Lanes {
        simd.dot_pairs(sum, a, w)
    }

    fn run_kernel<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        isa.run_pairs(kernel)
    }
}

impl Element for F32 {
    type Step = F32Step;
    type Activation = f32;
    type Vector<S: Simd> = S::Lanes;

    #[inline(always)]
    fn load<S: Simd>(simd: S, step: &F32Step) -> S::Lanes {
        simd.load(step)
    }

    #[inline(always)]
    fn splat<S: Simd>(simd: S, activation: f32) -> S::Lanes {
        simd.splat(activation)
    }

    #[inline(always)]
    fn accumulate<S: Simd>(simd: S, sum: S::Lanes, a: S::Lanes, w: S::Lanes) -> S::Lanes {
        simd.mul_add(a, w, sum)
    }

    fn run_kernel<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        isa.run(kernel)
    }
}

/// One product: `steps` (panels, steps of the inner dimension), `activations` (rows, steps).
struct Product<'a, E: Element> {
    shape: PanelShape,
    steps: &'a [E::Step],
    activations: &'a [E::Activation],
}

fn run<E: Element>(isa: Isa, product: &Product<'_, E>, output: &mut [f32]) {
    let shape = product.shape;
    let rows = output.len() / shape.outputs;
    let operations = rows * shape.inputs * shape.outputs;
    let output = SharedSlice::new(output);
    for_each_range(shape.panels().div_ceil(TILE_PANELS), operations, |groups| {
        E::run_kernel(isa, PanelGroups { product, rows, groups, output });
    });
}

/// All rows of some groups of [`TILE_PANELS`] panels.
struct PanelGroups<'a, E: Element> {
    product: &'a Product<'a, E>,
    rows: usize,
    groups: Range<usize>,
    output: SharedSlice<'a, f32>,
}

/// Sums of `R` rows and a group of panels.
type Tile<S, const R: usize> = [[<S as Simd>::Lanes; TILE_PANELS]; R];

impl<E: Element> Kernel for PanelGroups<'_, E> {
    type Output = ();

    /// Cuts the rows into tiles that fill the registers. How they are cut changes no sum.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for group in self.groups.clone() {
            let mut row = 0;
            while row < self.rows {
                row += match self.rows - row {
                    8.. if S::WIDE => self.tile::<S, 8>(simd, group, row),
                    4.. if S::WIDE => self.tile::<S, 4>(simd, group, row),
                    2.. => self.tile::<S, 2>(simd, group, row),
                    _ => self.tile::<S, 1>(simd, group, row),
                };
            }
        }
    }
}

impl<E: Element> PanelGroups<'_, E> {
    /// Computes one tile and returns how many rows it had.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&self, simd: S, group: usize, row: usize) -> usize {
        const LEVELS: usize = MAX_SEGMENTS.ilog2() as usize + 1;
        let segments = self.product.shape.segments;
        let length = self.row_steps() / segments;
        // A binary counter: level `l` holds the sum of 2^l segments until its sibling is there.
        let mut pending: [Tile<S, R>; LEVELS] = [[[simd.splat(0.0); TILE_PANELS]; R]; LEVELS];
        for segment in 0..segments {
            let mut sum =
                self.segment::<S, R>(simd, (group, row), segment * length..(segment + 1) * length);
            let mut level = 0;
            while segment >> level & 1 == 1 {
                sum = add_tiles::<S, R>(simd, &pending[level], &sum);
                level += 1;
            }
            pending[level] = sum;
        }
        self.write(simd, (group, row), &pending[segments.ilog2() as usize]);
        R
    }

    #[inline(always)]
    fn row_steps(&self) -> usize {
        self.product.steps.len() / self.product.shape.panels()
    }

    /// The group's panels. Where the matrix ends within it, its last panel stands in for those after it.
    #[inline(always)]
    fn panels(&self, group: usize) -> [usize; TILE_PANELS] {
        std::array::from_fn(|panel| (group * TILE_PANELS + panel).min(self.product.shape.panels() - 1))
    }

    /// The sums over some steps, from zero, front to back.
    #[inline(always)]
    fn segment<S: Simd, const R: usize>(
        &self,
        simd: S,
        (group, row): (usize, usize),
        range: Range<usize>,
    ) -> Tile<S, R> {
        let steps = self.row_steps();
        let weights: [&[E::Step]; TILE_PANELS] =
            self.panels(group).map(|panel| &self.product.steps[panel * steps..][range.clone()]);
        let activations: [&[E::Activation]; R] = std::array::from_fn(|tile_row| {
            &self.product.activations[(row + tile_row) * steps..][range.clone()]
        });
        let mut sums = [[simd.splat(0.0); TILE_PANELS]; R];
        for step in 0..range.len() {
            // SAFETY: each of the slices was cut to the range.
            let weight = weights.map(|steps| E::load(simd, unsafe { steps.get_unchecked(step) }));
            for tile_row in 0..R {
                // SAFETY: each of the slices was cut to the range.
                let activation = E::splat(simd, unsafe { *activations[tile_row].get_unchecked(step) });
                for panel in 0..TILE_PANELS {
                    sums[tile_row][panel] =
                        E::accumulate(simd, sums[tile_row][panel], activation, weight[panel]);
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn write<S: Simd, const R: usize>(&self, simd: S, (group, row): (usize, usize), sums: &Tile<S, R>) {
        let outputs = self.product.shape.outputs;
        for (tile_row, sums) in sums.iter().enumerate() {
            for (panel, sum) in sums.iter().enumerate() {
                let column = (group * TILE_PANELS + panel) * LANES;
                let count = LANES.min(outputs.saturating_sub(column));
                // SAFETY: only the thread that has this group of panels writes its columns.
                let part =
                    unsafe { self.output.part((row + tile_row) * outputs + column.min(outputs), count) };
                simd.store_first(*sum, part);
            }
        }
    }
}

#[inline(always)]
fn add_tiles<S: Simd, const R: usize>(simd: S, a: &Tile<S, R>, b: &Tile<S, R>) -> Tile<S, R> {
    let mut sums = *a;
    for row in 0..R {
        for panel in 0..TILE_PANELS {
            sums[row][panel] = simd.add(a[row][panel], b[row][panel]);
        }
    }
    sums
}

/// Rounds activations (rows, inputs) to bf16 pairs (rows, steps), zero-padded.
struct RoundRows<'a> {
    input: &'a [f32],
    inputs: usize,
    rows: usize,
}

impl Kernel for RoundRows<'_> {
    type Output = Vec<[bf16; 2]>;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> Vec<[bf16; 2]> {
        let steps = self.inputs.div_ceil(2);
        let mut rounded = vec![[bf16::ZERO; 2]; self.rows * steps];
        let rows = self.input.chunks_exact(self.inputs.max(1)).zip(rounded.chunks_exact_mut(steps.max(1)));
        for (input, rounded) in rows {
            for (rounded, value) in rounded.as_flattened_mut().iter_mut().zip(input) {
                *rounded = round_to_bf16(*value);
            }
        }
        rounded
    }
}

#[cfg(test)]
mod tests;
