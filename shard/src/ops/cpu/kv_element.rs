//! What a KV block's elements may be, and what one step of attention's products reads of them.

use std::ops::Range;

use candle_core::{CpuStorage, WithDType};
use half::bf16;

use super::simd::{LANES, Simd, round_to_bf16};
use crate::kv::layout::{KvLayout, Pool};

/// An element of a KV block.
pub(crate) trait KvElement: WithDType {
    /// What products read.
    type Step: KvStep;

    /// The pool's elements, where it is a pool of these.
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;

    /// Elements of a tile, with what stands beside its keys or values.
    fn tile_elements(layout: KvLayout) -> usize;

    /// Writes one slot of a tile.
    fn write(tile: &mut [Self], place: (KvLayout, Pool, usize), elements: &[f32]);

    /// Steps of a tile that is held otherwise than it is read, and none where it is not.
    fn scratch_steps(layout: KvLayout) -> usize;

    /// A tile as steps; in `scratch`, which is as long as [`Self::scratch_steps`], where it is held otherwise.
    fn steps<'a, S: Simd>(
        simd: S,
        tile: &'a [Self],
        pool: Pool,
        scratch: &'a mut [Self::Step],
    ) -> &'a [Self::Step];

    /// The tile of one head in one block.
    #[inline(always)]
    fn tile(layout: KvLayout, block: usize, kv_head: usize) -> Range<usize> {
        let elements = Self::tile_elements(layout);
        let start = (block * layout.kv_heads + kv_head) * elements;
        start..start + elements
    }
}

/// The elements one step of a product reads of one key, value column, query or row of weights.
pub(crate) trait KvStep: Copy + Send + Sync + 'static {
    const ELEMENTS: usize;
    const ZERO: Self;
    const ONE: Self;

    /// Sixteen steps.
    type Vector<S: Simd>: Copy;

    fn splat<S: Simd>(self, simd: S) -> Self::Vector<S>;
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> Self::Vector<S>;
    /// `sum` and the products of `a` and `b`, in every lane.
    fn dot<S: Simd>(simd: S, sum: S::Lanes, a: Self::Vector<S>, b: Self::Vector<S>) -> S::Lanes;
    /// Sixteen elements as steps: `to` has as many as those fill.
    fn round<S: Simd>(simd: S, elements: S::Lanes, to: &mut [Self]);
    /// The elements of the range, and zero elsewhere.
    fn keep(self, range: Range<usize>) -> Self;
}

impl KvStep for f32 {
    const ELEMENTS: usize = 1;
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    type Vector<S: Simd> = S::Lanes;

    #[inline(always)]
    fn splat<S: Simd>(self, simd: S) -> S::Lanes {
        simd.splat(self)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[f32; LANES]) -> S::Lanes {
        simd.load(from)
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::Lanes, a: S::Lanes, b: S::Lanes) -> S::Lanes {
        simd.mul_add(a, b, sum)
    }

    #[inline(always)]
    fn round<S: Simd>(simd: S, elements: S::Lanes, to: &mut [f32]) {
        simd.store_first(elements, to);
    }

    #[inline(always)]
    fn keep(self, range: Range<usize>) -> f32 {
        if range.contains(&0) { self } else { 0.0 }
    }
}

impl KvStep for [bf16; 2] {
    const ELEMENTS: usize = 2;
    const ZERO: Self = [bf16::ZERO; 2];
    const ONE: Self = [bf16::ONE; 2];

    type Vector<S: Simd> = S::Pairs;

    #[inline(always)]
    fn splat<S: Simd>(self, simd: S) -> S::Pairs {
        simd.splat_pair(self)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[[bf16; 2]; LANES]) -> S::Pairs {
        simd.load_pairs(from)
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::Lanes, a: S::Pairs, b: S::Pairs) -> S::Lanes {
        simd.dot_pairs(sum, a, b)
    }

    #[inline(always)]
    fn round<S: Simd>(simd: S, elements: S::Lanes, to: &mut [[bf16; 2]]) {
        if let Some(to) = to.as_flattened_mut().as_mut_array() {
            simd.store_bf16(elements, to);
        }
    }

    #[inline(always)]
    fn keep(self, range: Range<usize>) -> [bf16; 2] {
        let kept = |at: usize| if range.contains(&at) { self[at] } else { bf16::ZERO };
        [kept(0), kept(1)]
    }
}

/// Where in its tile each of a slot's elements belongs.
#[inline(always)]
fn places(place: (KvLayout, Pool, usize), step: usize) -> impl Fn(usize) -> usize {
    let (layout, pool, slot) = place;
    move |element| match pool {
        Pool::Keys => layout.key(slot, element, step),
        Pool::Values => layout.value(slot, element, step),
    }
}

impl KvElement for f32 {
    type Step = f32;

    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F32(elements) = storage { Some(elements) } else { None }
    }

    #[inline(always)]
    fn tile_elements(layout: KvLayout) -> usize {
        layout.tile_elements()
    }

    fn write(tile: &mut [Self], place: (KvLayout, Pool, usize), elements: &[f32]) {
        let at = places(place, f32::ELEMENTS);
        for (element, value) in elements.iter().enumerate() {
            tile[at(element)] = *value;
        }
    }

    fn scratch_steps(_: KvLayout) -> usize {
        0
    }

    #[inline(always)]
    fn steps<'a, S: Simd>(_: S, tile: &'a [f32], _: Pool, _: &'a mut [f32]) -> &'a [f32] {
        tile
    }
}

impl KvElement for bf16 {
    type Step = [bf16; 2];

    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::BF16(elements) = storage { Some(elements) } else { None }
    }

    #[inline(always)]
    fn tile_elements(layout: KvLayout) -> usize {
        layout.tile_elements()
    }

    fn write(tile: &mut [Self], place: (KvLayout, Pool, usize), elements: &[f32]) {
        let at = places(place, <[bf16; 2]>::ELEMENTS);
        for (element, value) in elements.iter().enumerate() {
            tile[at(element)] = round_to_bf16(*value);
        }
    }

    fn scratch_steps(_: KvLayout) -> usize {
        0
    }

    #[inline(always)]
    fn steps<'a, S: Simd>(_: S, tile: &'a [bf16], _: Pool, _: &'a mut [[bf16; 2]]) -> &'a [[bf16; 2]] {
        tile.as_chunks().0
    }
}

/// Bytes of a tile's scales, an f32 a slot, after its elements.
const SCALE_BYTES: usize = size_of::<f32>();

/// Eight bits of each element, signed, and a scale for each slot: what products read is element times scale, as
/// bf16. A scale follows from its own slot's elements alone.
impl KvElement for u8 {
    type Step = [bf16; 2];

    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::U8(elements) = storage { Some(elements) } else { None }
    }

    #[inline(always)]
    fn tile_elements(layout: KvLayout) -> usize {
        layout.tile_elements() + KvLayout::SLOTS * SCALE_BYTES
    }

    fn write(tile: &mut [Self], place: (KvLayout, Pool, usize), elements: &[f32]) {
        let (layout, _, slot) = place;
        let (elements_of, scales) = tile.split_at_mut(layout.tile_elements());
        let (scale, factor) = scale(elements);
        if let Some(to) = scales.as_chunks_mut::<SCALE_BYTES>().0.get_mut(slot) {
            *to = scale.to_le_bytes();
        }
        let at = places(place, <[bf16; 2]>::ELEMENTS);
        for (element, value) in elements.iter().enumerate() {
            // From -127 to 127; what is no number becomes 0, and the scale is none.
            elements_of[at(element)] = (value * factor).round_ties_even() as i8 as u8;
        }
    }

    fn scratch_steps(layout: KvLayout) -> usize {
        layout.tile_elements() / <[bf16; 2]>::ELEMENTS
    }

    #[inline(always)]
    fn steps<'a, S: Simd>(
        simd: S,
        tile: &'a [u8],
        pool: Pool,
        scratch: &'a mut [[bf16; 2]],
    ) -> &'a [[bf16; 2]] {
        let (elements, scales) = tile.split_at(2 * scratch.len());
        let mut of_slot = [0.0; LANES];
        for (scale, bytes) in of_slot.iter_mut().zip(scales.as_chunks::<SCALE_BYTES>().0) {
            *scale = f32::from_le_bytes(*bytes);
        }
        // Each lane of a step's row is of one slot: of keys of the same in every row, of values of two in turn.
        let of_keys = simd.twice(simd.load(&of_slot));
        let row = match pool {
            Pool::Keys => 2 * LANES,
            Pool::Values => elements.len() / (LANES / 2),
        };
        let rows = elements.chunks_exact(row).zip(scratch.as_flattened_mut().chunks_exact_mut(row));
        for ((elements, to), of_pair) in rows.zip(of_slot.as_chunks::<2>().0.iter().cycle()) {
            let scales = match pool {
                Pool::Keys => of_keys,
                Pool::Values => [simd.alternate(of_pair[0], of_pair[1]); 2],
            };
            let both = elements
                .as_chunks::<{ 2 * LANES }>()
                .0
                .iter()
                .zip(to.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0);
            for (elements, to) in both {
                let halves = elements.as_chunks::<LANES>().0;
                for half in 0..2 {
                    simd.store_bf16(simd.mul(simd.load_i8(&halves[half]), scales[half]), &mut to[half]);
                }
            }
        }
        scratch
    }
}

/// What eight signed bits of elements are multiplied by, and what makes those of elements. Both are no number
/// where an element is none.
fn scale(elements: &[f32]) -> (f32, f32) {
    /// The largest eight bits.
    const LARGEST: f32 = 127.0;

    let mut largest = 0.0_f32;
    for element in elements {
        // In this order what is not a number stays so.
        largest = if element.abs() <= largest { largest } else { element.abs() };
        if largest.is_nan() {
            return (largest, largest);
        }
    }
    match largest / LARGEST {
        scale if scale.is_infinite() => (f32::NAN, f32::NAN),
        // Its inverse is not finite: what is so small counts as nothing.
        scale if scale < f32::MIN_POSITIVE => (0.0, 0.0),
        scale => (scale, 1.0 / scale),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::isa::{Isa, Kernel};
    use crate::ops::reference::{Random, assert_close};

    struct Expand<'a>(&'a [u8], Pool, &'a mut [[bf16; 2]]);

    impl Kernel for Expand<'_> {
        type Output = Vec<[bf16; 2]>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<[bf16; 2]> {
            u8::steps(simd, self.0, self.1, self.2).to_vec()
        }
    }

    #[test]
    fn eight_bits_are_read_where_they_were_written_to_half_a_step() {
        for head_width in [8, 20, 33, 64] {
            let layout = KvLayout { kv_heads: 1, head_width };
            let rows = Random::new(5).values(KvLayout::SLOTS * head_width);
            for pool in [Pool::Keys, Pool::Values] {
                let mut tile = vec![0xff; u8::tile_elements(layout)];
                for (slot, elements) in rows.chunks(head_width).enumerate() {
                    u8::write(&mut tile, (layout, pool, slot), elements);
                }
                for isa in Isa::all_of_this_machine() {
                    let mut scratch = vec![[bf16::NAN; 2]; u8::scratch_steps(layout)];
                    let steps = isa.run_pairs(Expand(&tile, pool, &mut scratch));
                    let place = |at| places((layout, pool, at / head_width), 2)(at % head_width);
                    let element = |at| steps.as_flattened()[place(at)].to_f32();
                    let found: Vec<f32> = (0..rows.len()).map(element).collect();
                    // Half a step, and half a unit of bf16.
                    let what = format!("{isa} {pool:?} {head_width}");
                    assert_close(&found, &rows, 0.5 / 127.0 + 1.0 / 512.0, &what);
                }
            }
        }
    }

    #[test]
    fn a_scale_is_right_for_every_size_and_no_number_is_not_hidden() {
        assert_eq!(scale(&[0.0, -254.0, 1.0]), (2.0, 0.5));
        assert_eq!(scale(&[]), (0.0, 0.0));
        assert_eq!(scale(&[0.0, -0.0]), (0.0, 0.0));
        assert_eq!(scale(&[1e-40]), (0.0, 0.0));
        let (largest, factor) = scale(&[f32::MAX]);
        assert!(largest.is_finite() && (f32::MAX * factor).round_ties_even() == 127.0);
        for broken in [[f32::NAN, 1.0], [1.0, f32::NAN], [-f32::NAN, 0.0], [f32::INFINITY, 1.0]] {
            assert!(scale(&broken).0.is_nan(), "{broken:?}");
        }
    }
}
