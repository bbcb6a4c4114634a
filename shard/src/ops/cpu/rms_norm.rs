//! Root mean square norm of rows, with or without a residual added first.

use super::isa::{Isa, Kernel};
use super::parallel::{SharedSlice, for_each_range};
use super::simd::{LANES, Simd};

/// Scalar operations an element costs, about.
const OPERATIONS: usize = 4;

/// What a norm multiplies by: `weight` (width) over the root of the mean square plus `epsilon`.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) epsilon: f32,
}

/// Writes the norm of `input` (rows, width) to `normed` (rows, width).
pub(crate) fn rms_norm(isa: Isa, norm: Norm<'_>, input: &[f32], normed: &mut [f32]) {
    let width = norm.weight.len();
    let normed = SharedSlice::new(normed);
    for_each_range(input.len() / width, input.len() * OPERATIONS, |rows| {
        for row in rows {
            // SAFETY: each row is one item, worked on by one thread.
            let normed = unsafe { normed.part(row * width, width) };
            isa.run(NormRow { norm, input: &input[row * width..][..width], normed });
        }
    });
}

/// Writes `residual + delta` (rows, width) to the first half of `output` (2, rows, width) and the norm of
/// that to the second.
pub(crate) fn add_rms_norm(isa: Isa, norm: Norm<'_>, residual: &[f32], delta: &[f32], output: &mut [f32]) {
    let width = norm.weight.len();
    let (sums, normed) = output.split_at_mut(residual.len());
    let (sums, normed) = (SharedSlice::new(sums), SharedSlice::new(normed));
    for_each_range(residual.len() / width, residual.len() * OPERATIONS, |rows| {
        for row in rows {
            // SAFETY: each row is one item, worked on by one thread.
            let (sum, normed) = unsafe { (sums.part(row * width, width), normed.part(row * width, width)) };
            let inputs = residual[row * width..][..width].iter().zip(&delta[row * width..][..width]);
            for (sum, (residual, delta)) in sum.iter_mut().zip(inputs) {
                *sum = residual + delta;
            }
            isa.run(NormRow { norm, input: sum, normed });
        }
    });
}

struct NormRow<'a> {
    norm: Norm<'a>,
    input: &'a [f32],
    normed: &'a mut [f32],
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (whole, rest) = self.input.as_chunks::<LANES>();
        let mut squares = simd.splat(0.0);
        for values in whole {
            let values = simd.load(values);
            squares = simd.mul_add(values, values, squares);
        }
        let values = simd.load_first(rest);
        squares = simd.mul_add(values, values, squares);
        let mean = simd.reduce_add(squares) / self.input.len() as f32;
        let factor = 1.0 / (mean + self.norm.epsilon).sqrt();
        for (normed, (value, weight)) in self.normed.iter_mut().zip(self.input.iter().zip(self.norm.weight))
        {
            *normed = value * factor * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reference::{Random, assert_close, rms_norm as plain};

    #[test]
    fn norms_of_any_width_are_the_plain_ones() {
        let mut random = Random::new(5);
        for width in [1, 15, 16, 17, 64, 250] {
            let (input, delta) = (random.values(3 * width), random.values(3 * width));
            let weight = random.values(width);
            let norm = Norm { weight: &weight, epsilon: 1e-5 };
            let sum: Vec<f32> = input.iter().zip(&delta).map(|(a, b)| a + b).collect();
            for isa in Isa::all_of_this_machine() {
                let mut normed = vec![0.0; input.len()];
                rms_norm(isa, norm, &input, &mut normed);
                assert_close(&normed, &plain(&input, &weight, 1e-5), 1e-5, &format!("{isa} {width}"));
                let mut both = vec![0.0; 2 * input.len()];
                add_rms_norm(isa, norm, &input, &delta, &mut both);
                assert_eq!(both[..input.len()], sum);
                assert_close(
                    &both[input.len()..],
                    &plain(&sum, &weight, 1e-5),
                    1e-5,
                    &format!("{isa} {width}"),
                );
            }
        }
    }
}
