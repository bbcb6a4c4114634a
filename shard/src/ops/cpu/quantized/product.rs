//! The product of quantized rows and packed panels.

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::{Activations, GROUP_TERMS, TileRows, group_words};
use super::format::{Layout, STEP, Scales};
use super::integers::{IntegerIsa, IntegerKernel, Integers};
use super::pack::QuantizedPanels;
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::panels::{MAX_SEGMENTS, PanelShape};
use crate::ops::cpu::parallel::for_each_range;
use crate::ops::cpu::simd::LANES;
use crate::ops::cpu::unwritten::Unwritten;

/// Rows from which on tiles are two panels wide: reading two streams of weights at once is slower where reading
/// them is what takes the time.
const WIDE_FROM: usize = 16;

/// How far ahead of its use a panel is fetched: while a tile of many rows is computed, the machine looks too few
/// instructions ahead to do so by itself.
const AHEAD_BYTES: usize = 8192;

/// Columns of a row-major matrix, to be written.
pub(crate) struct Columns<'a> {
    pub(crate) values: Unwritten<'a>,
    /// Elements of a row.
    pub(crate) width: usize,
    /// The first of the product's columns.
    pub(crate) first: usize,
}

/// Multiplies `input` (rows, inputs) by the packed matrix into some columns, all of which are written.
pub(crate) fn multiply(isa: Isa, panels: &QuantizedPanels, input: &[f32], output: Columns<'_>) {
    multiply_on((isa, IntegerIsa::of(isa)), panels, input, output);
}

/// As [`multiply`], with sums on the second of the sets.
pub(super) fn multiply_on(
    (isa, integers): (Isa, IntegerIsa),
    panels: &QuantizedPanels,
    input: &[f32],
    output: Columns<'_>,
) {
    let (shape, layout) = (panels.shape(), panels.format().layout());
    if shape.outputs == 0 || output.values.is_empty() {
        return;
    }
    let rows = output.values.len() / output.width;
    assert_eq!(input.len(), rows * shape.inputs, "the input has the matrix's inner dimension");
    assert!(output.first + shape.outputs <= output.width, "the columns are within the output");
    let tiles = if integers.is_wide() { TileRows::Many } else { TileRows::Few };
    let activations = Activations::new(isa, (shape, layout), tiles, input);
    let product = Product {
        shape,
        layout,
        weights: panels.bytes(),
        activations: &activations,
        width: output.width,
        first: output.first,
        output: output.values,
    };
    match (layout.bits, layout.group) {
        (8, 32) => run::<Bytes>(integers, &product),
        (8, _) => run::<ShortBytes>(integers, &product),
        _ => run::<Nibbles>(integers, &product),
    }
}

/// What of a format the kernel is compiled for.
trait Coded: Copy + Send + Sync + 'static {
    /// Bits of an element.
    const BITS: usize;
    /// Elements of a group.
    const GROUP: usize;
}

#[derive(Clone, Copy)]
struct Bytes;

#[derive(Clone, Copy)]
struct ShortBytes;

#[derive(Clone, Copy)]
struct Nibbles;

impl Coded for Bytes {
    const BITS: usize = 8;
    const GROUP: usize = 32;
}

impl Coded for ShortBytes {
    const BITS: usize = 8;
    const GROUP: usize = 16;
}

impl Coded for Nibbles {
    const BITS: usize = 4;
    const GROUP: usize = 32;
}

/// One product.
struct Product<'a> {
    shape: PanelShape,
    layout: Layout,
    weights: &'a [u8],
    activations: &'a Activations,
    width: usize,
    first: usize,
    output: Unwritten<'a>,
}

fn run<F: Coded>(isa: IntegerIsa, product: &Product<'_>) {
    let shape = product.shape;
    // A dot product of bytes does the work of four multiplications.
    let operations = product.activations.rows() * shape.inputs * shape.outputs / 2;
    let panels = shape.outputs.div_ceil(LANES);
    // In twos, as they are multiplied where there are many rows.
    for_each_range(panels.div_ceil(2), operations, |pairs| {
        let panels = pairs.start * 2..panels.min(pairs.end * 2);
        isa.run(SomePanels::<F> { product, panels, format: PhantomData });
    });
}

/// All rows of some panels.
struct SomePanels<'a, F> {
    product: &'a Product<'a>,
    panels: Range<usize>,
    format: PhantomData<F>,
}

/// Sums of `R` rows and `P` panels.
type Tile<S, const R: usize, const P: usize> = [[<S as Integers>::Lanes; P]; R];

impl<F: Coded> IntegerKernel for SomePanels<'_, F> {
    /// Cuts rows and panels into tiles that fill the registers. How they are cut changes no sum.
    #[inline(always)]
    fn run<S: Integers>(self, simd: S) {
        let rows = self.product.activations.rows();
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            let together = if S::WIDE && rows >= WIDE_FROM { 2.min(self.panels.end - panel) } else { 1 };
            let mut row = 0;
            while row < rows {
                row += self.tiles(simd, (panel, together), row);
            }
            panel += together;
        }
    }
}

impl<F: Coded> SomePanels<'_, F> {
    /// Computes a tile of rows of one panel or two, and returns how many rows it had.
    #[inline(always)]
    fn tiles<S: Integers>(&self, simd: S, (panel, panels): (usize, usize), row: usize) -> usize {
        let activations = self.product.activations;
        let count = activations.tiles().of(activations.rows() - row);
        match count {
            8 if S::WIDE && panels == 2 => self.tile::<S, 8, 2>(simd, panel, row),
            8 if S::WIDE => self.tile::<S, 8, 1>(simd, panel, row),
            _ => {
                for panel in panel..panel + panels {
                    match count {
                        4 => self.tile::<S, 4, 1>(simd, panel, row),
                        2 if S::WIDE => self.tile::<S, 2, 1>(simd, panel, row),
                        _ => self.tile::<S, 1, 1>(simd, panel, row),
                    }
                }
            }
        }
        count
    }

    /// Computes one tile.
    #[inline(always)]
    fn tile<S: Integers, const R: usize, const P: usize>(&self, simd: S, panel: usize, row: usize) {
        const LEVELS: usize = MAX_SEGMENTS.ilog2() as usize + 1;
        let segments = self.product.shape.segments;
        if segments == 1 {
            let sums = self.segment::<S, R, P>(simd, (panel, row), 0);
            return self.write(simd, (panel, row), &sums);
        }
        // A binary counter: level `l` holds the sum of 2^l segments until its sibling is there.
        let mut pending: [Tile<S, R, P>; LEVELS] = [[[simd.splat(0.0); P]; R]; LEVELS];
        for segment in 0..segments {
            let mut sum = self.segment::<S, R, P>(simd, (panel, row), segment);
            let mut level = 0;
            while segment >> level & 1 == 1 {
                for (sum, other) in sum.as_flattened_mut().iter_mut().zip(pending[level].as_flattened()) {
                    *sum = simd.add(*other, *sum);
                }
                level += 1;
            }
            pending[level] = sum;
        }
        self.write(simd, (panel, row), &pending[segments.ilog2() as usize]);
    }

    /// The sums over one segment, from zero, front to back.
    #[inline(always)]
    fn segment<S: Integers, const R: usize, const P: usize>(
        &self,
        simd: S,
        (panel, row): (usize, usize),
        segment: usize,
    ) -> Tile<S, R, P> {
        let (shape, layout) = (self.product.shape, self.product.layout);
        let (blocks, block_bytes) = (layout.segment_blocks(shape), layout.block_bytes());
        let mut weights = [std::ptr::null(); P];
        for (at, weights) in weights.iter_mut().enumerate() {
            let first = ((panel + at) * shape.segments + segment) * blocks;
            *weights = self.product.weights[first * block_bytes..][..blocks * block_bytes].as_ptr();
        }
        let words = group_words(F::GROUP) * R;
        let first = segment * blocks * layout.groups * words;
        let activations = &self.product.activations.tile(row, R)[first..][..blocks * layout.groups * words];
        let mut activations = activations.as_ptr();
        let mut sums = [[simd.splat(0.0); P]; R];
        let panel_bytes = layout.panel_blocks(shape) * block_bytes;
        for block in segment * blocks..(segment + 1) * blocks {
            let ahead = ahead(block * block_bytes, panel_bytes, P);
            for group in 0..layout.groups {
                // SAFETY: the weights were cut to so many blocks, the activations to all of their groups.
                unsafe {
                    add_group::<S, F, R, P>(
                        simd,
                        &mut sums,
                        (layout, group),
                        (weights, activations, ahead),
                    );
                    activations = activations.add(words);
                }
            }
            for weights in &weights {
                for line in (layout.groups * layout.group_bytes()..block_bytes).step_by(64) {
                    simd.prefetch(weights.wrapping_add(line + ahead));
                }
            }
            for weights in &mut weights {
                // Past the last block they are not read.
                *weights = weights.wrapping_add(block_bytes);
            }
        }
        sums
    }

    #[inline(always)]
    fn write<S: Integers, const R: usize, const P: usize>(
        &self,
        simd: S,
        (panel, row): (usize, usize),
        sums: &Tile<S, R, P>,
    ) {
        let Product { shape, width, first, output, .. } = self.product;
        for (tile_row, sums) in sums.iter().enumerate() {
            for (tile_panel, sum) in sums.iter().enumerate() {
                let column = (panel + tile_panel) * LANES;
                let count = LANES.min(shape.outputs - column);
                // SAFETY: only the thread that has this panel writes its columns.
                let part = unsafe { output.part((row + tile_row) * width + first + column, count) };
                part.write_copy_of_slice(&simd.to_array(*sum)[..count]);
            }
        }
    }
}

/// How far from `at` in a panel that is one of `panels` in a tile the bytes are that are fetched meanwhile: at its
/// end, those of the next tile's.
#[inline(always)]
fn ahead(at: usize, panel_bytes: usize, panels: usize) -> usize {
    if at + AHEAD_BYTES < panel_bytes { AHEAD_BYTES } else { AHEAD_BYTES + (panels - 1) * panel_bytes }
}

/// Adds one group's products to the sums, and has what is `ahead` of its weights fetched.
///
/// # Safety
/// `weights` are whole blocks of the layout, and `activations` a whole group of a tile of `R` rows.
#[expect(
    clippy::needless_range_loop,
    reason = "what is indexed stays in registers; iterators put it into memory"
)]
#[inline(always)]
unsafe fn add_group<S: Integers, F: Coded, const R: usize, const P: usize>(
    simd: S,
    sums: &mut Tile<S, R, P>,
    (layout, group): (Layout, usize),
    (weights, activations, ahead): ([*const u8; P], *const u32, usize),
) {
    let (steps, group_bytes) = (F::GROUP / STEP, F::GROUP * LANES * F::BITS / 8);
    let loads = group_bytes / 64;
    // SAFETY: a group has a word for each row and step, and then of each term.
    let word = |step: usize, row: usize| unsafe { *activations.add(step * R + row) };
    let mut products = [[simd.splat_sum(0); P]; R];
    for row in 0..R {
        products[row] = [simd.splat_sum(word(steps, row).cast_signed()); P];
    }
    for load in 0..loads {
        let at = group * group_bytes + load * 64;
        // SAFETY: a block holds all of its groups' elements.
        let mut stored = [simd.load(unsafe { bytes(weights[0], at) }); P];
        for panel in 1..P {
            // SAFETY: as above.
            stored[panel] = simd.load(unsafe { bytes(weights[panel], at) });
        }
        for panel in 0..P {
            simd.prefetch(weights[panel].wrapping_add(at + ahead));
        }
        if F::BITS == 8 {
            add_step(simd, &mut products, (stored, S::bytes), |row| word(load, row));
        } else {
            add_step(simd, &mut products, (stored, S::lower), |row| word(load, row));
            add_step(simd, &mut products, (stored, S::upper), |row| word(load + loads, row));
        }
    }
    // SAFETY: a block holds all of its groups' scales.
    let scales = unsafe { terms(simd, weights, layout, (group, 0)) };
    for row in 0..R {
        let scale = simd.splat(f32::from_bits(word(steps + 1, row)));
        for panel in 0..P {
            let scale = simd.mul(scales[panel], scale);
            sums[row][panel] = simd.mul_add(simd.to_lanes(products[row][panel]), scale, sums[row][panel]);
        }
    }
    if layout.terms == 2 {
        // SAFETY: a block holds all of its groups' minima.
        let minima = unsafe { terms(simd, weights, layout, (group, 1)) };
        for row in 0..R {
            let minus_sum = simd.splat(f32::from_bits(word(steps + GROUP_TERMS - 1, row)));
            for panel in 0..P {
                sums[row][panel] = simd.mul_add(minima[panel], minus_sum, sums[row][panel]);
            }
        }
    }
}

/// Adds the products of one step.
#[expect(
    clippy::needless_range_loop,
    reason = "what is indexed stays in registers; iterators put it into memory"
)]
#[inline(always)]
fn add_step<S: Integers, const R: usize, const P: usize>(
    simd: S,
    products: &mut [[S::Sums; P]; R],
    (stored, weights): ([S::Stored; P], impl Fn(S, S::Stored) -> S::Weights),
    fours: impl Fn(usize) -> u32,
) {
    let mut all = [weights(simd, stored[0]); P];
    for panel in 1..P {
        all[panel] = weights(simd, stored[panel]);
    }
    for row in 0..R {
        let activations = simd.splat_activations(fours(row));
        for panel in 0..P {
            products[row][panel] = simd.dot(products[row][panel], all[panel], activations);
        }
    }
}

/// Scales or minima of a group.
///
/// # Safety
/// The blocks are whole ones of this layout.
#[inline(always)]
unsafe fn terms<S: Integers, const P: usize>(
    simd: S,
    blocks: [*const u8; P],
    layout: Layout,
    place: (usize, usize),
) -> [S::Lanes; P] {
    let mut terms = [simd.splat(0.0); P];
    for panel in 0..P {
        // SAFETY: by this function's contract.
        terms[panel] = unsafe { term(simd, blocks[panel], layout, place) };
    }
    terms
}

/// Scale or minimum of a group.
///
/// # Safety
/// `block` is a whole one of this layout.
#[inline(always)]
unsafe fn term<S: Integers>(
    simd: S,
    block: *const u8,
    layout: Layout,
    (group, term): (usize, usize),
) -> S::Lanes {
    // SAFETY: what the layout has lies within the block.
    unsafe {
        match layout.scales {
            Scales::Plain => simd.load_f16(bytes(block, layout.term_at(group, term))),
            Scales::Nested => {
                let factor = simd.load_f16(bytes(block, layout.factor_at(term)));
                simd.mul(simd.load_i8(bytes(block, layout.term_at(group, term))), factor)
            }
        }
    }
}

/// Some bytes of a block.
///
/// # Safety
/// The block has so many from `at` on, and lives as long as the result.
#[inline(always)]
unsafe fn bytes<'a, const N: usize>(block: *const u8, at: usize) -> &'a [u8; N] {
    // SAFETY: by this function's contract.
    unsafe { &*block.add(at).cast() }
}
