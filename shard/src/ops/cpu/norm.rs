//! Norms of rows, with or without a residual added first.

use super::isa::{Isa, Kernel};
use super::parallel::{SharedSlice, for_each_range};
use super::simd::{LANES, Simd};
use super::unwritten::Unwritten;
use crate::ops::norm::NormKind;

/// Scalar operations an element costs, about.
const OPERATIONS: usize = 4;

/// How a row is normed.
#[derive(Clone, Copy)]
pub(crate) struct RowNorm<'a> {
    pub(crate) kind: NormKind,
    /// Added to the mean square.
    pub(crate) epsilon: f32,
    /// (width)
    pub(crate) weight: &'a [f32],
    /// (width), added last.
    pub(crate) bias: Option<&'a [f32]>,
}

/// What is normed where a residual is added first: `residual + delta_scale * delta`, each (rows, width).
#[derive(Clone, Copy)]
pub(crate) struct Sum<'a> {
    pub(crate) residual: &'a [f32],
    pub(crate) delta: &'a [f32],
    pub(crate) delta_scale: f32,
}

/// Writes the norm of `input` (rows, width) to `normed` (rows, width).
pub(crate) fn norm_rows(isa: Isa, norm: RowNorm<'_>, input: &[f32], normed: &mut [f32]) {
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

/// Writes the sum (rows, width) to the first half of `output` (2, rows, width) and its norm to the second.
pub(crate) fn add_norm_rows(isa: Isa, norm: RowNorm<'_>, sum: Sum<'_>, output: Unwritten<'_>) {
    let width = norm.weight.len();
    let elements = sum.residual.len();
    for_each_range(elements / width, elements * OPERATIONS, |rows| {
        for row in rows {
            let start = row * width;
            // SAFETY: each row is one item, worked on by one thread.
            let (added, normed) =
                unsafe { (output.cleared(start, width), output.cleared(elements + start, width)) };
            let (residual, delta) = (&sum.residual[start..][..width], &sum.delta[start..][..width]);
            let sum = Sum { residual, delta, ..sum };
            isa.run(AddNormRow { norm, sum, added, normed });
        }
    });
}

struct AddNormRow<'a> {
    norm: RowNorm<'a>,
    /// Of one row.
    sum: Sum<'a>,
    added: &'a mut [f32],
    normed: &'a mut [f32],
}

impl Kernel for AddNormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { norm, sum, added, normed } = self;
        for (added, (residual, delta)) in added.iter_mut().zip(sum.residual.iter().zip(sum.delta)) {
            *added = residual + sum.delta_scale * delta;
        }
        NormRow { norm, input: added, normed }.run(simd);
    }
}

struct NormRow<'a> {
    norm: RowNorm<'a>,
    input: &'a [f32],
    normed: &'a mut [f32],
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { norm, input, normed } = self;
        // Taking off a zero changes no bit.
        let center = match norm.kind {
            NormKind::RootMeanSquare => 0.0,
            NormKind::Layer => total(simd, input) / input.len() as f32,
        };
        let factor = inverse_root(squares(simd, input, center), input.len(), norm.epsilon);
        for (normed, (value, weight)) in normed.iter_mut().zip(input.iter().zip(norm.weight)) {
            *normed = (value - center) * factor * weight;
        }
        if let Some(bias) = norm.bias {
            for (normed, bias) in normed.iter_mut().zip(bias) {
                *normed += bias;
            }
        }
    }
}

/// One over the root of the mean square plus `epsilon`, of `count` elements with this sum of squares.
#[inline(always)]
pub(super) fn inverse_root(squares: f32, count: usize, epsilon: f32) -> f32 {
    1.0 / (squares / count as f32 + epsilon).sqrt()
}

#[inline(always)]
fn total<S: Simd>(simd: S, values: &[f32]) -> f32 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut total = simd.splat(0.0);
    for values in whole {
        total = simd.add(total, simd.load(values));
    }
    simd.reduce_add(simd.add(total, simd.load_first(rest)))
}

/// The sum of the squares of what the values differ from `center` by.
#[inline(always)]
pub(super) fn squares<S: Simd>(simd: S, values: &[f32], center: f32) -> f32 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let centers = simd.splat(center);
    let mut squares = simd.splat(0.0);
    for values in whole {
        let differences = simd.sub(simd.load(values), centers);
        squares = simd.mul_add(differences, differences, squares);
    }
    let differences = simd.keep(simd.sub(simd.load_first(rest), centers), (0, rest.len()), 0.0);
    simd.reduce_add(simd.mul_add(differences, differences, squares))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::ops::add_norm::AddNorm;
    use crate::ops::norm::Norm;
    use crate::ops::reference::{Random, assert_close, layer_norm, rms_norm};

    const EPSILON: f32 = 1e-5;

    fn plain(kind: NormKind, input: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let mut normed = match kind {
            NormKind::RootMeanSquare => rms_norm(input, weight, f64::from(EPSILON)),
            NormKind::Layer => layer_norm(input, weight, f64::from(EPSILON)),
        };
        if let Some(bias) = bias {
            normed
                .chunks_mut(bias.len())
                .for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
        }
        normed
    }

    fn check(norm: RowNorm<'_>, random: &mut Random) {
        let width = norm.weight.len();
        // Far from zero, so that a variance from sums of squares would be none.
        let input: Vec<f32> = random.values(3 * width).iter().map(|value| value + 50.0).collect();
        let delta = random.values(3 * width);
        let expected = plain(norm.kind, &input, norm.weight, norm.bias);
        for isa in Isa::all_of_this_machine() {
            let what = format!("{isa} {:?} {width}", norm.kind);
            let mut normed = vec![0.0; input.len()];
            norm_rows(isa, norm, &input, &mut normed);
            assert_close(&normed, &expected, 2e-5, &what);
            let mut last = vec![0.0; width];
            norm_rows(isa, norm, &input[2 * width..], &mut last);
            assert_eq!(last, normed[2 * width..], "{what}: a row alone");
            for delta_scale in [1.0, 0.22] {
                let sum: Vec<f32> = input.iter().zip(&delta).map(|(a, b)| a + delta_scale * b).collect();
                let mut both = vec![0.0; 2 * input.len()];
                add_norm_rows(
                    isa,
                    norm,
                    Sum { residual: &input, delta: &delta, delta_scale },
                    Unwritten::over(&mut both),
                );
                assert_eq!(both[..input.len()], sum, "{what}");
                let expected = plain(norm.kind, &sum, norm.weight, norm.bias);
                assert_close(&both[input.len()..], &expected, 2e-5, &what);
            }
        }
    }

    #[test]
    fn norms_of_any_width_are_the_plain_ones() {
        let mut random = Random::new(5);
        for kind in [NormKind::RootMeanSquare, NormKind::Layer] {
            for width in [1, 15, 16, 17, 64, 250] {
                let (weight, bias) = (random.values(width), random.values(width));
                for bias in [None, Some(bias.as_slice())] {
                    check(RowNorm { kind, epsilon: EPSILON, weight: &weight, bias }, &mut random);
                }
            }
        }
    }

    #[test]
    fn a_scale_of_one_adds_to_the_bit() {
        let mut random = Random::new(15);
        let (residual, delta, weight) = (random.values(99), random.values(99), random.values(33));
        let norm =
            RowNorm { kind: NormKind::RootMeanSquare, epsilon: EPSILON, weight: &weight, bias: None };
        for isa in Isa::all_of_this_machine() {
            let mut both = vec![0.0; 2 * 99];
            add_norm_rows(
                isa,
                norm,
                Sum { residual: &residual, delta: &delta, delta_scale: 1.0 },
                Unwritten::over(&mut both),
            );
            let bits = both[..99].iter().map(|sum| sum.to_bits());
            assert!(bits.eq(residual.iter().zip(&delta).map(|(a, b)| (a + b).to_bits())), "{isa}");
        }
    }

    #[test]
    fn parameters_and_additions_of_another_shape_are_refused() {
        let (kind, epsilon, isa) = (NormKind::Layer, EPSILON, Isa::of_this_machine());
        let ones = |shape| Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let norm =
            |parameters| ones((3, 8)).apply_op2_no_bwd(&ones(parameters), &Norm { kind, epsilon, isa });
        assert!(norm((1, 8)).is_ok());
        // Of equal elements nothing is left but the bias.
        assert_eq!(norm((2, 8)).unwrap().to_vec2::<f32>().unwrap(), [[1.0; 8]; 3]);
        for shape in [(3, 8), (1, 7), (2, 4)] {
            let message = norm(shape).unwrap_err().to_string();
            assert!(message.contains("norm rows of 8 elements"), "{message}");
        }
        let add = AddNorm { kind, epsilon, delta_scale: 1.0, isa };
        let failed = ones((3, 8)).apply_op3_no_bwd(&ones((2, 8)), &ones((1, 8)), &add).unwrap_err();
        assert!(failed.to_string().contains("of shape [2, 8] to a residual stream of shape [3, 8]"));
    }
}
