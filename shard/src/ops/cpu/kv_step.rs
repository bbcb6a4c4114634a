//! What one step of attention's products reads of a query, a key, a value or a weight.

use std::ops::Range;

use half::{bf16, f16};

use super::simd::{LANES, Simd};

/// The elements that one step of a product reads of one query, or of one slot's weight; of keys and values a row
/// of sixteen such.
pub(crate) trait KvStep: Copy + Send + Sync + 'static {
    const ELEMENTS: usize;
    const ZERO: Self;
    /// Whether elements are numbers of a scale: of their own for each query and slot. The products of such are
    /// integers, of which a weight of zero hides whatever it is multiplied by.
    const SCALED: bool;

    /// Sixteen steps as a tile holds them.
    type Row: Copy;
    /// The scales of a tile's slots.
    type Scales: Copy;
    /// Sixteen steps.
    type Vector<S: Simd>: Copy;
    /// Sixteen sums of products.
    type Sums<S: Simd>: Copy;

    fn splat<S: Simd>(self, simd: S) -> Self::Vector<S>;
    fn load<S: Simd>(simd: S, from: &Self::Row) -> Self::Vector<S>;
    fn zero<S: Simd>(simd: S) -> Self::Sums<S>;
    /// `sums` and the products of `a` and `b`, in every lane.
    fn dot<S: Simd>(simd: S, sums: Self::Sums<S>, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Sums<S>;
    /// Sixteen elements as steps, and what they became: `to` has as many steps as those fill.
    fn write<S: Simd>(simd: S, elements: S::Lanes, to: &mut [Self]) -> S::Lanes;
    /// The row with zero outside of these of each step's elements, which may be no numbers. Where a weight of zero hides
    /// them it is the row as it is.
    fn keep(row: Self::Row, kept: Range<usize>) -> Self::Row;

    /// The scale of one query's elements, and what makes numbers of that scale of them. Both are no number where
    /// an element is none.
    fn query_scale<S: Simd>(simd: S, elements: &[f32]) -> (f32, f32);
    /// The scale of each slot of a tile that is there.
    fn scales<S: Simd>(simd: S, scales: &[Self::Scales]) -> S::Lanes;
    /// What the products of a query and the keys of sixteen slots amount to, by their scales.
    fn scores<S: Simd>(simd: S, sums: Self::Sums<S>, scales: (f32, S::Lanes)) -> S::Lanes;
    /// The sums that products of weights and values are to be added to, where `sums` are those so far.
    fn open<S: Simd>(simd: S, sums: &[f32; LANES]) -> Self::Sums<S>;
    /// The sums so far, when products of this unit were added to what [`Self::open`] returned.
    fn close<S: Simd>(simd: S, added: Self::Sums<S>, unit: f32, sums: &mut [f32; LANES]);
}

/// What floats have in common: no scales, and sums in f32.
macro_rules! floats {
    () => {
        const SCALED: bool = false;

        type Scales = ();
        type Sums<S: Simd> = S::Lanes;

        #[inline(always)]
        fn zero<S: Simd>(simd: S) -> S::Lanes {
            simd.splat(0.0)
        }

        #[inline(always)]
        fn query_scale<S: Simd>(_: S, _: &[f32]) -> (f32, f32) {
            (1.0, 1.0)
        }

        #[inline(always)]
        fn scales<S: Simd>(simd: S, _: &[()]) -> S::Lanes {
            simd.splat(1.0)
        }

        #[inline(always)]
        fn scores<S: Simd>(_: S, sums: S::Lanes, _: (f32, S::Lanes)) -> S::Lanes {
            sums
        }

        #[inline(always)]
        fn open<S: Simd>(simd: S, sums: &[f32; LANES]) -> S::Lanes {
            simd.load(sums)
        }

        #[inline(always)]
        fn close<S: Simd>(simd: S, added: S::Lanes, _: f32, sums: &mut [f32; LANES]) {
            simd.store(added, sums);
        }
    };
}

impl KvStep for f32 {
    const ELEMENTS: usize = 1;
    const ZERO: Self = 0.0;

    type Row = [f32; LANES];
    type Vector<S: Simd> = S::Lanes;

    floats!();

    #[inline(always)]
    fn splat<S: Simd>(self, simd: S) -> S::Lanes {
        simd.splat(self)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[f32; LANES]) -> S::Lanes {
        simd.load(from)
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sums: S::Lanes, a: S::Lanes, b: S::Lanes) -> S::Lanes {
        simd.mul_add(a, b, sums)
    }

    #[inline(always)]
    fn write<S: Simd>(simd: S, elements: S::Lanes, to: &mut [f32]) -> S::Lanes {
        simd.store_first(elements, to);
        elements
    }

    #[inline(always)]
    fn keep(row: [f32; LANES], kept: Range<usize>) -> [f32; LANES] {
        if kept.contains(&0) { row } else { [0.0; LANES] }
    }
}

impl KvStep for [bf16; 2] {
    const ELEMENTS: usize = 2;
    const ZERO: Self = [bf16::ZERO; 2];

    type Row = [[bf16; 2]; LANES];
    type Vector<S: Simd> = S::Pairs;

    floats!();

    #[inline(always)]
    fn splat<S: Simd>(self, simd: S) -> S::Pairs {
        simd.splat_pair(self)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[[bf16; 2]; LANES]) -> S::Pairs {
        simd.load_pairs(from)
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sums: S::Lanes, a: S::Pairs, b: S::Pairs) -> S::Lanes {
        simd.dot_pairs(sums, a, b)
    }

    #[inline(always)]
    fn write<S: Simd>(simd: S, elements: S::Lanes, to: &mut [[bf16; 2]]) -> S::Lanes {
        match to.as_flattened_mut().as_mut_array() {
            Some(to) => simd.store_bf16(elements, to),
            None => elements,
        }
    }

    #[inline(always)]
    fn keep(row: [[bf16; 2]; LANES], kept: Range<usize>) -> [[bf16; 2]; LANES] {
        let element = |pair: [bf16; 2], at: usize| if kept.contains(&at) { pair[at] } else { bf16::ZERO };
        row.map(|pair| [element(pair, 0), element(pair, 1)])
    }
}

/// An element of a query, or a weight, that multiplies keys or values of f16, which are widened for it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct BesideF16(f32);

impl KvStep for BesideF16 {
    const ELEMENTS: usize = 1;
    const ZERO: Self = Self(0.0);

    type Row = [f16; LANES];
    type Vector<S: Simd> = S::Lanes;

    floats!();

    #[inline(always)]
    fn splat<S: Simd>(self, simd: S) -> S::Lanes {
        simd.splat(self.0)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[f16; LANES]) -> S::Lanes {
        simd.load_f16(from)
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sums: S::Lanes, a: S::Lanes, b: S::Lanes) -> S::Lanes {
        simd.mul_add(a, b, sums)
    }

    #[inline(always)]
    fn write<S: Simd>(simd: S, elements: S::Lanes, to: &mut [Self]) -> S::Lanes {
        for (to, element) in to.iter_mut().zip(simd.to_array(elements)) {
            *to = Self(element);
        }
        elements
    }

    #[inline(always)]
    fn keep(row: [f16; LANES], kept: Range<usize>) -> [f16; LANES] {
        if kept.contains(&0) { row } else { [f16::ZERO; LANES] }
    }
}

/// Pairs of 16-bit integers, for keys and values of eight bits: their products add up exactly, in any order.
/// Queries are rounded to a scale of their own, and weights, by the scales of the values they are of, to one for
/// each query and group of tiles.
impl KvStep for [i16; 2] {
    const ELEMENTS: usize = 2;
    const ZERO: Self = [0; 2];
    const SCALED: bool = true;

    type Row = [[u8; 2]; LANES];
    type Scales = [[u8; 4]; LANES];
    type Vector<S: Simd> = S::Shorts;
    type Sums<S: Simd> = S::Integers;

    #[inline(always)]
    fn splat<S: Simd>(self, simd: S) -> S::Shorts {
        simd.splat_shorts(self)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[[u8; 2]; LANES]) -> S::Shorts {
        simd.load_shorts(from)
    }

    #[inline(always)]
    fn zero<S: Simd>(simd: S) -> S::Integers {
        simd.no_integers()
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sums: S::Integers, a: S::Shorts, b: S::Shorts) -> S::Integers {
        simd.dot_shorts(sums, a, b)
    }

    #[inline(always)]
    fn write<S: Simd>(simd: S, elements: S::Lanes, to: &mut [[i16; 2]]) -> S::Lanes {
        if let Some(to) = to.as_flattened_mut().as_mut_array() {
            simd.store_i16(elements, to);
        }
        elements
    }

    #[inline(always)]
    fn keep(row: [[u8; 2]; LANES], _: Range<usize>) -> [[u8; 2]; LANES] {
        row
    }

    #[inline(always)]
    fn query_scale<S: Simd>(simd: S, elements: &[f32]) -> (f32, f32) {
        // Their products with keys of the largest eight bits must add up to no more than 31 bits hold.
        let most = i32::MAX / (i32::from(i8::MAX) * elements.len().max(1) as i32);
        let mut largest = simd.splat(0.0);
        let mut nothing = simd.splat(0.0);
        for elements in elements.chunks(LANES) {
            let elements = simd.load_first(elements);
            largest = simd.max(simd.max(elements, simd.sub(simd.splat(0.0), elements)), largest);
            nothing = simd.mul_add(elements, simd.splat(0.0), nothing);
        }
        // The largest of what is not a number may be any; nothing times it is none.
        let largest = simd.reduce_max(largest) + simd.reduce_add(nothing);
        scale(largest, most.min(i32::from(i16::MAX)) as f32)
    }

    #[inline(always)]
    fn scales<S: Simd>(simd: S, scales: &[[[u8; 4]; LANES]]) -> S::Lanes {
        let Some(scales) = scales.first() else { return simd.splat(0.0) };
        simd.load(&scales.map(f32::from_le_bytes))
    }

    #[inline(always)]
    fn scores<S: Simd>(simd: S, sums: S::Integers, (of_query, of_slots): (f32, S::Lanes)) -> S::Lanes {
        let sums = simd.mul(simd.to_lanes(sums), of_slots);
        simd.mul(sums, simd.splat(of_query))
    }

    #[inline(always)]
    fn open<S: Simd>(simd: S, _: &[f32; LANES]) -> S::Integers {
        simd.no_integers()
    }

    #[inline(always)]
    fn close<S: Simd>(simd: S, added: S::Integers, unit: f32, sums: &mut [f32; LANES]) {
        let sum = simd.mul_add(simd.to_lanes(added), simd.splat(unit), simd.load(sums));
        simd.store(sum, sums);
    }
}

/// The largest magnitude of some elements; no number where one of them is none.
pub(super) fn largest(elements: &[f32]) -> f32 {
    let mut largest = 0.0_f32;
    for element in elements {
        // In this order what is not a number stays so.
        largest = if element.abs() <= largest { largest } else { element.abs() };
        if largest.is_nan() {
            return largest;
        }
    }
    largest
}

/// What the integers of elements of which this is the largest magnitude are multiplied by, so that `most` is the largest
/// integer, and what makes those of elements. Both are no number where the largest is none, or not finite.
pub(super) fn scale(largest: f32, most: f32) -> (f32, f32) {
    match largest / most {
        scale if !scale.is_finite() => (f32::NAN, f32::NAN),
        // Its inverse is not finite: what is so small counts as nothing.
        scale if scale < f32::MIN_POSITIVE => (0.0, 0.0),
        scale => (scale, 1.0 / scale),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::isa::{Isa, Kernel};

    #[test]
    fn a_scale_is_right_for_every_size_and_no_number_is_not_hidden() {
        let scale = |elements: &[f32]| scale(largest(elements), 127.0);
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

    struct QueryScale<'a>(&'a [f32]);

    impl Kernel for QueryScale<'_> {
        type Output = (f32, f32);

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> (f32, f32) {
            <[i16; 2]>::query_scale(simd, self.0)
        }
    }

    #[test]
    fn a_query_of_any_width_takes_no_more_than_its_products_have_room_for() {
        for isa in Isa::all_of_this_machine() {
            for width in [1, 64, 512, 513, 1 << 14] {
                let (_, factor) = isa.run(QueryScale(&vec![-1.0; width]));
                assert!((1.0..=32767.0).contains(&factor), "{isa} {width}: {factor}");
                let most = f64::from(factor.round()) * 127.0 * width as f64;
                assert!(most <= f64::from(i32::MAX), "{isa} {width}: {most}");
            }
        }
    }

    #[test]
    fn the_scale_of_a_query_is_that_of_its_largest_element_and_no_number_is_not_hidden() {
        for isa in Isa::all_of_this_machine() {
            for place in [0, 15, 16, 19] {
                let mut query = [0.25; 20];
                query[place] = -3.0;
                assert_eq!(isa.run(QueryScale(&query)), scale(3.0, 32767.0), "{isa} {place}");
                for broken in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    query[place] = broken;
                    assert!(isa.run(QueryScale(&query)).0.is_nan(), "{isa} {place} {broken}");
                }
            }
        }
    }
}
