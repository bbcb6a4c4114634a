//! Exponentials and their sums: single multiplications and additions in a fixed order, which the compiler may
//! vectorise and must not fuse, so that they have the same bits with every instruction set and number of threads.
//! What builds on them and takes a logarithm of the mass has the bits of the platform's `ln`.

use super::scan;
use crate::ops::cpu::isa::{Isa, Kernel};
use crate::ops::cpu::simd::Simd;

/// `e` to the power of `x`, for `x` at most 0, within two units in the last place; 0 below -87.
///
/// Multiplications and additions only, so that it is vectorised without changing a bit.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding this rounds to an integer and leaves it in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has few enough bits that multiples of it are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.max(-87.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    // Minimax polynomial of Cephes expf over [-ln 2 / 2, ln 2 / 2].
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let mantissa = (p * r * r + r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let value = mantissa * power;
    if x < -87.0 { 0.0 } else { value }
}

/// The exponential of each of the logits, which are at most 0.
pub(super) fn exp_of(logits: &[f32]) -> Vec<f32> {
    let mut weights = logits.to_vec();
    scan::change(&mut weights, exp);
    weights
}

/// The sum of the exponentials of `logits` less `largest`, in f64, added in eight interleaved lanes.
pub(super) fn sum_exp_of(logits: &[f32], largest: f32) -> f64 {
    let [a, b, c, d, e, f, g, h] = Isa::of_this_machine().run(SumExp { logits, largest });
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

struct SumExp<'a> {
    logits: &'a [f32],
    largest: f32,
}

impl Kernel for SumExp<'_> {
    type Output = [f64; 8];

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> [f64; 8] {
        let mut lanes = [0.0_f64; 8];
        let (whole, rest) = self.logits.as_chunks::<8>();
        for chunk in whole {
            for (lane, logit) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(exp(logit - self.largest));
            }
        }
        for (lane, logit) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(exp(logit - self.largest));
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_two_units_in_the_last_place() {
        for step in 0..870_000 {
            let x = step as f32 * -1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "{x}: {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn sums_and_exponentials_have_the_same_bits_with_every_instruction_set() {
        let logits: Vec<f32> = (0..1003).map(|index| ((index * 7919) % 1009) as f32 * 0.1).collect();
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        let mut expected = [0.0; 8];
        for (index, logit) in logits.iter().enumerate() {
            expected[index % 8] += f64::from(exp(logit - largest));
        }
        for isa in Isa::all_of_this_machine() {
            assert_eq!(isa.run(SumExp { logits: &logits, largest }), expected, "{isa}");
        }
        let relative: Vec<f32> = logits.iter().map(|logit| logit - largest).collect();
        let one_by_one: Vec<f32> = relative.iter().map(|logit| exp(*logit)).collect();
        assert_eq!(exp_of(&relative), one_by_one);
    }
}
