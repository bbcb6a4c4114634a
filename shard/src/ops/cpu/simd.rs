//! Sixteen f32 lanes, whatever registers the machine has for them. A kernel is written once against
//! [`Simd`] and compiled once for each instruction set.
//!
//! A value of a type that implements [`Simd`] is a witness that the machine has the set: it is made only
//! where the set was detected, so every method is safe.

use std::mem::MaybeUninit;

use half::{bf16, f16};

/// Lanes of one vector.
pub(crate) const LANES: usize = 16;

/// Arithmetic on vectors of sixteen f32 lanes.
///
/// Lanes never mix except in `reduce_*`, whose order is fixed, so a lane's result depends on that lane's
/// inputs alone.
pub(crate) trait Simd: Copy + Send + Sync {
    /// One vector of sixteen f32 lanes.
    type Lanes: Copy;
    /// Sixteen pairs of bf16: what one fused dot product step reads.
    type Pairs: Copy;
    /// Sixteen 32-bit integers.
    type Integers: Copy;
    /// Sixteen pairs of 16-bit integers.
    type Shorts: Copy;

    /// Whether there are 32 registers of 64 bytes, which decides how large a register tile may be.
    const WIDE: bool;

    fn splat(self, value: f32) -> Self::Lanes;
    fn load(self, from: &[f32; LANES]) -> Self::Lanes;
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]);

    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn sub(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn div(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// The larger; `b` where either is not a number.
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// The smaller; `b` where either is not a number.
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// `a * b + c`, with one rounding where the set has it and two where it has not.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    /// `2^n` for lanes holding `n + 1.5 * 2^23`, that is for an integer `n` in the low bits of the mantissa.
    fn power_of_two(self, biased: Self::Lanes) -> Self::Lanes;

    /// Asks for a cache line that is read soon. Any address will do.
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}

    /// Asks for a cache line that is read soon, and not again before it would have left the caches: it is kept in
    /// none but the nearest. Any address will do.
    #[inline(always)]
    fn prefetch_once<T>(self, _at: *const T) {}

    /// The first in the even lanes and the second in the odd ones.
    #[inline(always)]
    fn alternate(self, first: f32, second: f32) -> Self::Lanes {
        self.load(&std::array::from_fn(|lane| if lane % 2 == 0 { first } else { second }))
    }

    fn load_pairs(self, from: &[[bf16; 2]; LANES]) -> Self::Pairs;
    /// The same pair in every lane.
    fn splat_pair(self, pair: [bf16; 2]) -> Self::Pairs;
    /// `sum + a[0] * b[0] + a[1] * b[1]` in every lane, in the set's own fixed order.
    fn dot_pairs(self, sum: Self::Lanes, a: Self::Pairs, b: Self::Pairs) -> Self::Lanes;

    /// Sixteen numbers, widened.
    fn load_f16(self, from: &[f16; LANES]) -> Self::Lanes;

    /// Zero in every lane.
    fn no_integers(self) -> Self::Integers;
    /// The nearest f32 of every lane.
    fn to_lanes(self, integers: Self::Integers) -> Self::Lanes;
    /// Pairs of signed bytes, widened.
    fn load_shorts(self, from: &[[u8; 2]; LANES]) -> Self::Shorts;
    /// The same pair in every lane.
    fn splat_shorts(self, pair: [i16; 2]) -> Self::Shorts;
    /// `sums + a[0] * b[0] + a[1] * b[1]` in every lane, exactly where 32 bits hold it.
    fn dot_shorts(self, sums: Self::Integers, a: Self::Shorts, b: Self::Shorts) -> Self::Integers;
    /// Writes the nearest 16-bit integer of every lane, ties to even; any where the lane is not a number.
    fn store_i16(self, lanes: Self::Lanes, to: &mut [i16; LANES]);

    /// The lanes as an array.
    #[inline(always)]
    fn to_array(self, lanes: Self::Lanes) -> [f32; LANES] {
        let mut array = [0.0; LANES];
        self.store(lanes, &mut array);
        array
    }

    /// Writes the nearest bf16 of every lane, ties to even, and returns them.
    #[inline(always)]
    fn store_bf16(self, lanes: Self::Lanes, to: &mut [bf16; LANES]) -> Self::Lanes {
        *to = self.to_array(lanes).map(round_to_bf16);
        self.load(&to.map(widen))
    }

    /// The first `from.len()` lanes from memory, zero in the others.
    #[inline(always)]
    fn load_first(self, from: &[f32]) -> Self::Lanes {
        if let Some(whole) = from.as_array() {
            return self.load(whole);
        }
        let mut array = [0.0; LANES];
        let count = from.len().min(LANES);
        array[..count].copy_from_slice(&from[..count]);
        self.load(&array)
    }

    /// Writes the first `to.len()` lanes.
    #[inline(always)]
    fn store_first(self, lanes: Self::Lanes, to: &mut [f32]) {
        if let Some(whole) = to.as_mut_array() {
            return self.store(lanes, whole);
        }
        let array = self.to_array(lanes);
        let count = to.len().min(LANES);
        to[..count].copy_from_slice(&array[..count]);
    }

    /// Writes the first `to.len()` lanes to where there is no number yet.
    #[inline(always)]
    fn write_first(self, lanes: Self::Lanes, to: &mut [MaybeUninit<f32>]) {
        let array = self.to_array(lanes).map(MaybeUninit::new);
        match to.as_mut_array() {
            Some(whole) => *whole = array,
            None => to.iter_mut().zip(array).for_each(|(to, lane)| *to = lane),
        }
    }

    /// The lanes from `first` to before `end`, and `other` elsewhere.
    #[inline(always)]
    fn keep(self, lanes: Self::Lanes, (first, end): (usize, usize), other: f32) -> Self::Lanes {
        let mut array = self.to_array(lanes);
        for (lane, value) in array.iter_mut().enumerate() {
            if lane < first || lane >= end {
                *value = other;
            }
        }
        self.load(&array)
    }

    /// The sum of all lanes: halves are added until one lane is left.
    #[inline(always)]
    fn reduce_add(self, lanes: Self::Lanes) -> f32 {
        fold(self.to_array(lanes), |a, b| a + b)
    }

    /// The largest lane; any lane or none where one is not a number.
    #[inline(always)]
    fn reduce_max(self, lanes: Self::Lanes) -> f32 {
        fold(self.to_array(lanes), |a, b| if a > b { a } else { b })
    }
}

#[inline(always)]
fn fold(mut array: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            array[lane] = combine(array[lane], array[lane + width]);
        }
        width /= 2;
    }
    array[0]
}

/// `e^x` in every lane to within two units in the last place; below -87 it is `e^-87`, above 88 it is
/// `e^88`, and of what is not a number it is none. The one exponential of every kernel, so that prefill and
/// decode agree to the bit.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::Lanes) -> S::Lanes {
    // In this order what is not a number stays so: a broken model must not look well.
    let x = simd.min(simd.splat(88.0), simd.max(simd.splat(-87.0), x));
    let Reduced { rest, series, power } = reduce(simd, x);
    let one_plus = simd.add(rest, simd.splat(1.0));
    simd.mul(simd.mul_add(series, simd.mul(rest, rest), one_plus), power)
}

/// The hyperbolic tangent in every lane to within four units in the last place; one, with its sign, where it
/// rounds to one, and none of what is not a number.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::Lanes) -> S::Lanes {
    /// From here on the result rounds to one.
    const LIMIT: f32 = 10.0;

    // In this order what is not a number stays so.
    let x = simd.min(simd.splat(LIMIT), simd.max(simd.splat(-LIMIT), x));
    let Reduced { rest, series, power } = reduce(simd, simd.add(x, x));
    // e^2x - 1, without the cancellation near zero: 2^n (e^rest - 1) + (2^n - 1).
    let rest_minus_one = simd.mul_add(series, simd.mul(rest, rest), rest);
    let minus_one = simd.mul_add(power, rest_minus_one, simd.sub(power, simd.splat(1.0)));
    simd.div(minus_one, simd.add(minus_one, simd.splat(2.0)))
}

/// An exponential in parts: `e^x` is `power` times `e^rest`, which is `1 + rest + series * rest^2`.
struct Reduced<S: Simd> {
    rest: S::Lanes,
    series: S::Lanes,
    power: S::Lanes,
}

/// For lanes from -87 to 88, or not a number.
#[inline(always)]
fn reduce<S: Simd>(simd: S, x: S::Lanes) -> Reduced<S> {
    /// Adding it rounds to an integer held in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts: the first has so few bits that its product with an integer is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Of the series around zero, highest power first.
    const COEFFICIENTS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

    let round = simd.splat(ROUND);
    let biased = simd.mul_add(x, simd.splat(std::f32::consts::LOG2_E), round);
    let n = simd.sub(biased, round);
    let rest = simd.mul_add(n, simd.splat(-LN_2_HIGH), x);
    let rest = simd.mul_add(n, simd.splat(-LN_2_LOW), rest);
    let mut series = simd.splat(COEFFICIENTS[0]);
    for coefficient in &COEFFICIENTS[1..] {
        series = simd.mul_add(series, rest, simd.splat(*coefficient));
    }
    Reduced { rest, series, power: simd.power_of_two(biased) }
}

/// The same number in single precision. Without the branch of the conversion that quietens what is not a number.
#[inline(always)]
pub(super) fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// The nearest bf16, ties to even. Not-a-numbers stay so.
#[inline(always)]
pub(crate) fn round_to_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    bf16::from_bits(if value.is_nan() { quiet as u16 } else { rounded as u16 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::isa::{Isa, Kernel};

    struct Exp([f32; LANES]);

    impl Kernel for Exp {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
            simd.to_array(exp(simd, simd.load(&self.0)))
        }
    }

    struct Tanh([f32; LANES]);

    impl Kernel for Tanh {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
            simd.to_array(tanh(simd, simd.load(&self.0)))
        }
    }

    fn check(isa: Isa, input: [f32; LANES]) {
        for (lane, (found, x)) in isa.run(Exp(input)).into_iter().zip(input).enumerate() {
            let exact = f64::from(x.clamp(-87.0, 88.0)).exp();
            let right = (f64::from(found) - exact).abs() / exact < 3e-7;
            assert!(right || x.is_nan() && found.is_nan(), "{isa} lane {lane}: {found} of {x}");
        }
    }

    #[test]
    fn the_exponential_of_no_number_is_none_and_of_others_is_right() {
        let mut lanes: [f32; LANES] = std::array::from_fn(|lane| lane as f32 * 5.0 - 40.0);
        lanes[4..8].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN]);
        for broken in 0..LANES {
            let mut input = lanes;
            input[broken] = if broken % 2 == 0 { f32::NAN } else { -f32::NAN };
            for isa in Isa::all_of_this_machine() {
                check(isa, input);
            }
        }
    }

    /// The sums of products of pairs, and what they become as floats, rounded to 16 bits.
    struct Dots([[u8; 2]; LANES], [i16; 2]);

    impl Kernel for Dots {
        type Output = ([f32; LANES], [i16; LANES], [f32; LANES]);

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let pairs = simd.load_shorts(&self.0);
            let once = simd.dot_shorts(simd.no_integers(), simd.splat_shorts(self.1), pairs);
            let sums = simd.to_lanes(simd.dot_shorts(once, simd.splat_shorts(self.1), pairs));
            let mut rounded = [0; LANES];
            simd.store_i16(simd.mul(sums, simd.splat(0.0625)), &mut rounded);
            (simd.to_array(sums), rounded, simd.to_array(simd.alternate(-0.0, 7.5)))
        }
    }

    #[test]
    fn integers_are_exact_and_rounded_to_even() {
        let bytes: [[u8; 2]; LANES] = std::array::from_fn(|lane| [lane as u8 * 17, 255 - lane as u8 * 9]);
        for pair in [[3, -2], [i16::MAX, -i16::MAX], [0, 1], [-4, 4]] {
            let exact: [i32; LANES] = bytes.map(|both| {
                let product = |at: usize| i32::from(both[at].cast_signed()) * i32::from(pair[at]);
                2 * (product(0) + product(1))
            });
            for isa in Isa::all_of_this_machine() {
                let (sums, rounded, alternating) = isa.run(Dots(bytes, pair));
                assert_eq!(sums, exact.map(|sum| sum as f32), "{isa} {pair:?}");
                let nearest = exact.map(|sum| (sum as f32 * 0.0625).round_ties_even() as i16);
                assert_eq!(rounded, nearest, "{isa} {pair:?}");
                let expected: [f32; LANES] = [[-0.0, 7.5]; LANES / 2].as_flattened().try_into().unwrap();
                assert_eq!(alternating.map(f32::to_bits), expected.map(f32::to_bits), "{isa} {pair:?}");
            }
        }
    }

    /// How far `found` is from the hyperbolic tangent of `x`, in units of the last place of the right one.
    fn tanh_error(found: f32, x: f32) -> f64 {
        let exact = f64::from(x).tanh();
        let right = exact as f32;
        let unit = f64::from(right.abs().next_up()) - f64::from(right.abs());
        (f64::from(found) - exact).abs() / unit
    }

    #[test]
    fn the_hyperbolic_tangent_is_right_to_four_units_of_every_size_and_sign() {
        let sizes = (0..40_000).map(|step| 1e-38_f32 * 1.005_f32.powi(step)).take_while(|x| x.is_finite());
        let steps = (0..20_000).map(|step| step as f32 * 6e-4);
        let inputs: Vec<f32> = sizes.chain(steps).flat_map(|x| [x, -x]).collect();
        for isa in Isa::all_of_this_machine() {
            for input in inputs.as_chunks::<LANES>().0 {
                for (found, x) in isa.run(Tanh(*input)).into_iter().zip(input) {
                    assert!(tanh_error(found, *x) <= 4.0 && found.abs() <= 1.0, "{isa}: {found} of {x}");
                }
            }
        }
    }

    #[test]
    fn the_hyperbolic_tangent_of_no_number_is_none_and_of_the_infinite_is_one() {
        let mut input = [0.0; LANES];
        input[..6].copy_from_slice(&[f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30]);
        for isa in Isa::all_of_this_machine() {
            let found = isa.run(Tanh(input));
            assert!(found[0].is_nan() && found[1].is_nan(), "{isa}: {found:?}");
            assert_eq!(found[2..7], [1.0, -1.0, 1.0, -1.0, 0.0], "{isa}");
        }
    }
}
