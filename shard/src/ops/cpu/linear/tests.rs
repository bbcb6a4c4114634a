//! The packed products against plain sums, and against themselves at other batch sizes.

use clap::ValueEnum;
use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::ops::cpu::activation::gate;
use crate::ops::cpu::panels::RowSource;
use crate::ops::cpu::simd::round_to_bf16;
use crate::ops::reference::{Random, assert_close, matrix_product};

struct Weights {
    values: Vec<f32>,
    inputs: usize,
}

impl RowSource for Weights {
    fn read_row(&self, output: usize, into: &mut [f32]) {
        into.copy_from_slice(&self.values[output * self.inputs..][..self.inputs]);
    }
}

fn packed(shape: PanelShape, dtype: Dtype, random: &mut Random) -> (Weights, Panels) {
    let weights = Weights { values: random.values(shape.outputs * shape.inputs), inputs: shape.inputs };
    let panels = Panels::pack(shape, dtype, &weights).unwrap();
    (weights, panels)
}

fn product(isa: Isa, panels: &Panels, input: &[f32]) -> Vec<f32> {
    let rows = input.len() / panels.shape().inputs;
    let mut output = vec![f32::NAN; rows * panels.shape().outputs];
    multiply(isa, panels, input, Unwritten::over(&mut output));
    output
}

fn rounded(values: &[f32], dtype: Dtype) -> Vec<f32> {
    values
        .iter()
        .map(|value| match dtype {
            Dtype::Bfloat16 => round_to_bf16(*value).to_f32(),
            Dtype::Float16 => f16::from_f32(*value).to_f32(),
            Dtype::Float32 => *value,
        })
        .collect()
}

/// What activations are rounded to beside weights of this type.
fn beside(weights: Dtype) -> Dtype {
    match weights {
        Dtype::Bfloat16 => Dtype::Bfloat16,
        Dtype::Float16 | Dtype::Float32 => Dtype::Float32,
    }
}

fn check_against_plain(shape: PanelShape, dtype: Dtype, rows: usize) {
    let mut random = Random::new(7);
    let (weights, panels) = packed(shape, dtype, &mut random);
    let input = random.values(rows * shape.inputs);
    let (input_read, weights_read) = (rounded(&input, beside(dtype)), rounded(&weights.values, dtype));
    let expected = matrix_product(&input_read, &weights_read, shape.inputs);
    for isa in Isa::all_of_this_machine() {
        let found = product(isa, &panels, &input);
        assert_close(&found, &expected, 1e-4, &format!("{isa} {dtype} {shape:?} rows {rows}"));
    }
}

#[test]
fn products_of_any_shape_are_the_plain_ones() {
    for dtype in Dtype::value_variants().iter().copied() {
        for (outputs, inputs) in [(1, 1), (16, 2), (17, 3), (15, 33), (64, 31), (100, 257), (48, 128)] {
            for rows in [1, 2, 5, 13, 21] {
                check_against_plain(PanelShape { outputs, inputs, segments: 1 }, dtype, rows);
            }
        }
    }
}

#[test]
fn products_in_segments_are_the_plain_ones() {
    for dtype in Dtype::value_variants().iter().copied() {
        for segments in [2, 4, 8] {
            check_against_plain(PanelShape { outputs: 37, inputs: 96, segments }, dtype, 9);
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_in_any_batch() {
    let mut random = Random::new(11);
    for dtype in Dtype::value_variants().iter().copied() {
        for segments in [1, 4] {
            let shape = PanelShape { outputs: 83, inputs: 72, segments };
            let (_, panels) = packed(shape, dtype, &mut random);
            let input = random.values(40 * shape.inputs);
            for isa in Isa::all_of_this_machine() {
                let alone: Vec<Vec<f32>> =
                    input.chunks(shape.inputs).map(|row| product(isa, &panels, row)).collect();
                for rows in 1..=40 {
                    let together = product(isa, &panels, &input[..rows * shape.inputs]);
                    assert_eq!(together, alone[..rows].concat(), "{isa} {dtype} {rows} rows");
                }
            }
        }
    }
}

/// Gate and up by turns, a vector of each.
struct ByTurns<'a> {
    weights: &'a Weights,
    width: usize,
}

impl RowSource for ByTurns<'_> {
    fn read_row(&self, output: usize, into: &mut [f32]) {
        let (turn, lane) = (output / LANES, output % LANES);
        self.weights.read_row(turn / 2 * LANES + lane + turn % 2 * self.width, into);
    }
}

#[test]
fn gated_products_are_the_product_and_then_the_activation() {
    let mut random = Random::new(17);
    let width = 48;
    for dtype in Dtype::value_variants().iter().copied() {
        let shape = PanelShape { outputs: 2 * width, inputs: 72, segments: 1 };
        let (weights, panels) = packed(shape, dtype, &mut random);
        let gated = Panels::pack(shape, dtype, &ByTurns { weights: &weights, width }).unwrap();
        for (isa, activation) in Isa::all_of_this_machine()
            .iter()
            .flat_map(|isa| [Activation::Silu, Activation::GeluTanh].map(|a| (*isa, a)))
        {
            for rows in [1, 3, 14, 40] {
                let input = random.values(rows * shape.inputs);
                let mut expected = vec![0.0; rows * width];
                gate(
                    isa,
                    activation,
                    width,
                    &product(isa, &panels, &input),
                    Unwritten::over(&mut expected),
                );
                let mut found = vec![0.0; rows * width];
                multiply_gated(isa, &gated, activation, &input, Unwritten::over(&mut found));
                assert_eq!(found, expected, "{isa} {dtype} {activation:?} {rows} rows");
            }
        }
    }
}

#[test]
fn segments_over_ranks_complete_the_tree_of_one_rank() {
    let mut random = Random::new(3);
    let shape = PanelShape { outputs: 33, inputs: 64, segments: 8 };
    for dtype in Dtype::value_variants().iter().copied() {
        let (weights, whole) = packed(shape, dtype, &mut random);
        let input = random.values(3 * shape.inputs);
        for isa in Isa::all_of_this_machine() {
            let halves: Vec<Vec<f32>> = (0..2)
                .map(|rank| {
                    let columns = |values: &[f32]| -> Vec<f32> {
                        values.chunks(64).flat_map(|row| row[rank * 32..][..32].to_vec()).collect()
                    };
                    let half = Weights { values: columns(&weights.values), inputs: 32 };
                    let half_shape = PanelShape { outputs: 33, inputs: 32, segments: 4 };
                    product(isa, &Panels::pack(half_shape, dtype, &half).unwrap(), &columns(&input))
                })
                .collect();
            let sum: Vec<f32> = halves[0].iter().zip(&halves[1]).map(|(a, b)| a + b).collect();
            assert_eq!(sum, product(isa, &whole, &input), "{isa} {dtype}");
        }
    }
}

proptest! {
    #[test]
    fn rounding_is_that_of_the_half_crate(bits: u32) {
        let value = f32::from_bits(bits);
        prop_assert_eq!(round_to_bf16(value).to_bits(), bf16::from_f32(value).to_bits());
    }
}
