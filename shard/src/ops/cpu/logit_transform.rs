//! Division and soft bounds of logits.

use super::isa::{Isa, Kernel};
use super::parallel::{SharedSlice, for_each_range};
use super::simd::{LANES, Simd, tanh};

/// Scalar operations an element costs, about.
const OPERATIONS: usize = 24;

/// Replaces each of `logits` by `y = x / divide_by`, or `cap * tanh(y / cap)` where there is a cap.
pub(crate) fn transform(isa: Isa, divide_by: f32, softcap: Option<f32>, logits: &mut [f32]) {
    let (count, operations) = (logits.len(), logits.len() * OPERATIONS);
    let logits = SharedSlice::new(logits);
    for_each_range(count, operations, |range| {
        // SAFETY: each element is one item, worked on by one thread.
        let logits = unsafe { logits.part(range.start, range.len()) };
        match softcap {
            None => isa.run(Divide { logits, divide_by }),
            Some(cap) => isa.run(Cap { logits, divide_by, cap }),
        }
    });
}

struct Divide<'a> {
    logits: &'a mut [f32],
    divide_by: f32,
}

impl Kernel for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for logit in self.logits {
            *logit /= self.divide_by;
        }
    }
}

struct Cap<'a> {
    logits: &'a mut [f32],
    divide_by: f32,
    cap: f32,
}

impl Kernel for Cap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (divisor, cap) = (simd.splat(self.divide_by), simd.splat(self.cap));
        for logits in self.logits.chunks_mut(LANES) {
            let divided = simd.div(simd.load_first(logits), divisor);
            simd.store_first(simd.mul(cap, tanh(simd, simd.div(divided, cap))), logits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reference::{Random, assert_close};

    #[test]
    fn logits_are_divided_then_bounded() {
        let mut random = Random::new(23);
        for (rows, vocabulary) in [(1, 1), (3, 33), (2, 30_001)] {
            let before: Vec<f32> = random.values(rows * vocabulary).iter().map(|x| x * 90.0).collect();
            for (divide_by, softcap) in [(1.0, None), (8.0, None), (1.0, Some(30.0)), (0.5, Some(5.5))] {
                let exact = |x: &f32| {
                    let y = f64::from(*x) / f64::from(divide_by);
                    softcap.map_or(y, |cap: f32| f64::from(cap) * (y / f64::from(cap)).tanh()) as f32
                };
                let expected: Vec<f32> = before.iter().map(exact).collect();
                for isa in Isa::all_of_this_machine() {
                    let mut found = before.clone();
                    transform(isa, divide_by, softcap, &mut found);
                    assert_close(&found, &expected, 1e-6, &format!("{isa} {divide_by} {softcap:?}"));
                }
            }
        }
    }

    #[test]
    fn logits_that_are_no_number_stay_none() {
        for isa in Isa::all_of_this_machine() {
            let mut logits = [1.0, f32::NAN, f32::INFINITY];
            transform(isa, 2.0, Some(4.0), &mut logits);
            assert!(logits[1].is_nan() && logits[2] == 4.0 && logits[0] < 0.5, "{isa}: {logits:?}");
        }
    }
}
