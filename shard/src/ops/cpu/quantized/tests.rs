//! Quantized products against plain sums of what their weights and activations stand for, and against themselves.

use half::f16;

use super::integers::IntegerIsa;
use super::product::multiply_on;
use super::*;
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::panels::{PanelShape, RowSource};
use crate::ops::cpu::unwritten::Unwritten;
use crate::ops::reference::{Random, hash_of_bits};

const FORMATS: [Format; 7] = [
    Format::Bytes,
    Format::BytesMinimum,
    Format::BytesNested,
    Format::BytesNestedMinimum,
    Format::Nibbles,
    Format::NibblesMinimum,
    Format::NibblesNestedMinimum,
];

/// Any weights a format can hold.
struct Stored {
    format: Format,
    shape: PanelShape,
    /// Where the first column lies in a wider matrix, and its width.
    within: (usize, usize),
    seed: u64,
}

impl Stored {
    fn new(format: Format, shape: PanelShape, seed: u64) -> Self {
        Self { format, shape, within: (0, shape.inputs), seed }
    }

    /// A number that follows from the place in the whole matrix.
    fn number(&self, output: usize, place: usize, salt: u64) -> u64 {
        let mixed = (output * 65_536 + place) as u64 ^ self.seed << 40 ^ salt << 32;
        let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
    }

    fn element(&self, output: usize, column: usize) -> u8 {
        let most = if self.format.layout().bits == 4 { 15 } else { 255 };
        (self.number(output, column, 1) % (most + 1)) as u8
    }

    /// A group's scale or minimum.
    fn term(&self, output: usize, group: usize, term: u64) -> u16 {
        let number = self.number(output, group, 2 + term);
        match self.format.layout().scales {
            super::format::Scales::Plain => f16::from_f32((number % 2000) as f32 / 9000.0 - 0.1).to_bits(),
            super::format::Scales::Nested => u16::from((number % 256) as u8),
        }
    }

    fn factor(&self, output: usize, block: usize, term: u64) -> u16 {
        f16::from_f32((self.number(output, block, 5 + term) % 1000) as f32 / 200_000.0).to_bits()
    }

    /// What an element stands for.
    fn value(&self, output: usize, column: usize) -> f64 {
        let layout = self.format.layout();
        let (group, block) = (column / layout.group, column / layout.block());
        let term = |at: u64| match layout.scales {
            super::format::Scales::Plain => f16::from_bits(self.term(output, group, at)).to_f64(),
            super::format::Scales::Nested => {
                let small = self.term(output, group, at) as u8;
                f64::from(small.cast_signed()) * f16::from_bits(self.factor(output, block, at)).to_f64()
            }
        };
        let product = (f64::from(self.element(output, column)) - f64::from(layout.offset)) * term(0);
        if layout.terms == 2 { product - term(1) } else { product }
    }

    fn pack(&self) -> QuantizedPanels {
        QuantizedPanels::pack(self.shape, self.format, self).unwrap()
    }
}

impl QuantizedRows for Stored {
    fn read_groups(&self, output: usize, row: &mut PackedRow) {
        let layout = self.format.layout();
        row.for_each_group(|_, group| {
            let Group { columns, elements, terms, factors } = group;
            if columns.is_empty() {
                return;
            }
            let first = self.within.0 + columns.start;
            for (element, column) in elements.iter_mut().zip(columns) {
                *element = self.element(output, self.within.0 + column);
            }
            for at in 0..2 {
                terms[at as usize] = self.term(output, first / layout.group, at);
                factors[at as usize] = self.factor(output, first / layout.block(), at);
            }
        });
    }
}

fn sets() -> Vec<(Isa, IntegerIsa)> {
    let isa = Isa::of_this_machine();
    IntegerIsa::all_of_this_machine().into_iter().map(|integers| (isa, integers)).collect()
}

fn product(isa: (Isa, IntegerIsa), panels: &QuantizedPanels, input: &[f32]) -> Vec<f32> {
    let (inputs, width) = (panels.shape().inputs, panels.shape().outputs);
    let mut values = vec![f32::NAN; input.len() / inputs * width];
    multiply_on(isa, panels, input, Columns { values: Unwritten::over(&mut values), width, first: 0 });
    values
}

/// Activations as the product sees them: rounded to 127ths of the largest of 32 that share a scale.
fn rounded(input: &[f32], segment: usize) -> Vec<f64> {
    let group = |group: &[f32]| {
        let scale = f64::from(group.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0);
        let rounded = |x: &f32| if scale == 0.0 { 0.0 } else { (f64::from(*x) / scale).round() * scale };
        group.iter().map(rounded).collect::<Vec<f64>>()
    };
    input.chunks(segment).flat_map(|segment| segment.chunks(32).flat_map(group)).collect()
}

fn check_against_plain(format: Format, shape: PanelShape, rows: usize) {
    let weights = Stored::new(format, shape, 3);
    let panels = weights.pack();
    let input = Random::new(7).values(rows * shape.inputs);
    let exact = rounded(&input, shape.inputs / shape.segments);
    let found: Vec<Vec<f32>> = sets().into_iter().map(|isa| product(isa, &panels, &input)).collect();
    for (row, activations) in exact.chunks(shape.inputs).enumerate() {
        for output in 0..shape.outputs {
            let products = (0..shape.inputs).map(|k| activations[k] * weights.value(output, k));
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            let one = found[0][row * shape.outputs + output];
            let right = (f64::from(one) - sum).abs() <= 1e-5 * size + 1e-9;
            assert!(right, "{format:?} {shape:?} row {row} of {rows}, column {output}: {one}, not {sum}");
        }
    }
    for (isa, other) in sets().iter().zip(&found) {
        assert_eq!(*other, found[0], "{format:?} {shape:?} {rows} rows on {:?}", isa.1);
    }
}

#[test]
fn products_of_any_shape_are_the_plain_ones_on_every_set_alike() {
    for format in FORMATS {
        for (outputs, inputs) in [(1, 1), (16, 32), (17, 33), (15, 64), (64, 31), (40, 257), (48, 128)] {
            for rows in [1, 2, 5, 13, 21] {
                check_against_plain(format, PanelShape { outputs, inputs, segments: 1 }, rows);
            }
        }
    }
}

#[test]
fn products_in_segments_are_the_plain_ones() {
    for format in FORMATS {
        let block = format.layout().block();
        for segments in [2, 4, 8] {
            check_against_plain(format, PanelShape { outputs: 37, inputs: block * segments, segments }, 9);
        }
    }
}

/// Segments that are not whole groups are padded, so that none has a group of two.
#[test]
fn segments_of_any_length_are_quantized_each_by_itself() {
    for (inputs, segments) in [(160, 4), (192, 4), (72, 2), (8, 8)] {
        let shape = PanelShape { outputs: 19, inputs, segments };
        let weights = Values { values: Random::new(5).values(19 * inputs), inputs };
        for (format, tolerance) in [(Format::Bytes, 0.01), (Format::Nibbles, 0.15)] {
            let panels =
                QuantizedPanels::pack(shape, format, &Quantizing::of_this_machine(&weights, format))
                    .unwrap();
            let input = Random::new(8).values(3 * inputs);
            for isa in sets() {
                check_close(&product(isa, &panels, &input), &weights, &input, tolerance);
            }
        }
    }
}

/// Weights in single precision.
struct Values {
    values: Vec<f32>,
    inputs: usize,
}

impl RowSource for Values {
    fn read_row(&self, output: usize, into: &mut [f32]) {
        into.copy_from_slice(&self.values[output * self.inputs..][..self.inputs]);
    }
}

/// The error of all results together is at most `tolerance` times their size.
fn check_close(found: &[f32], weights: &Values, input: &[f32], tolerance: f64) {
    let exact = crate::ops::reference::matrix_product(input, &weights.values, weights.inputs);
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let error = square(&mut found.iter().zip(&exact).map(|(a, b)| f64::from(a - b)));
    let size = square(&mut exact.iter().map(|x| f64::from(*x)));
    assert!(error <= tolerance * size, "an error of {error}, a size of {size}");
}

#[test]
fn a_row_is_the_same_to_the_bit_in_any_batch() {
    for format in FORMATS {
        for segments in [1, 4] {
            let shape = PanelShape { outputs: 83, inputs: 4 * format.layout().block(), segments };
            let panels = Stored::new(format, shape, 11).pack();
            let input = Random::new(2).values(40 * shape.inputs);
            for isa in sets() {
                let alone: Vec<Vec<f32>> =
                    input.chunks(shape.inputs).map(|row| product(isa, &panels, row)).collect();
                for rows in 1..=40 {
                    let together = product(isa, &panels, &input[..rows * shape.inputs]);
                    assert_eq!(together, alone[..rows].concat(), "{isa:?} {format:?} {rows} rows");
                }
            }
        }
    }
}

#[test]
fn segments_over_ranks_complete_the_tree_of_one_rank() {
    for format in FORMATS {
        let inputs = 8 * format.layout().block();
        let whole = Stored::new(format, PanelShape { outputs: 33, inputs, segments: 8 }, 9);
        let input = Random::new(4).values(3 * inputs);
        let expected = product(sets()[0], &whole.pack(), &input);
        let halves: Vec<Vec<f32>> = (0..2)
            .map(|rank| {
                let columns = rank * inputs / 2..(rank + 1) * inputs / 2;
                let shape = PanelShape { outputs: 33, inputs: inputs / 2, segments: 4 };
                let half =
                    Stored { shape, within: (columns.start, inputs), ..Stored::new(format, shape, 9) };
                let mine: Vec<f32> =
                    input.chunks(inputs).flat_map(|row| row[columns.clone()].to_vec()).collect();
                product(sets()[0], &half.pack(), &mine)
            })
            .collect();
        let sum: Vec<f32> = halves[0].iter().zip(&halves[1]).map(|(a, b)| a + b).collect();
        assert_eq!(sum, expected, "{format:?}");
    }
}

#[test]
fn a_product_writes_its_own_columns_only() {
    let shape = PanelShape { outputs: 21, inputs: 64, segments: 1 };
    let panels = Stored::new(Format::Bytes, shape, 1).pack();
    let input = Random::new(1).values(18 * 64);
    for isa in sets() {
        let alone = product(isa, &panels, &input);
        let mut values = vec![5.0; 18 * 40];
        multiply_on(
            isa,
            &panels,
            &input,
            Columns { values: Unwritten::over(&mut values), width: 40, first: 7 },
        );
        for (row, alone) in values.chunks(40).zip(alone.chunks(21)) {
            assert_eq!(row[7..28], *alone);
            assert!(row[..7].iter().chain(&row[28..]).all(|x| *x == 5.0));
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so_and_nothing_else_becomes_it() {
    let shape = PanelShape { outputs: 3, inputs: 64, segments: 1 };
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for format in [Format::Bytes, Format::Nibbles] {
            let mut weights = Values { values: Random::new(5).values(3 * 64), inputs: 64 };
            let pack = |weights: &Values| {
                QuantizedPanels::pack(shape, format, &Quantizing::of_this_machine(weights, format)).unwrap()
            };
            for isa in sets() {
                let mut input = Random::new(6).values(2 * 64);
                input[70] = broken;
                let found = product(isa, &pack(&weights), &input);
                assert!(found[..3].iter().all(|x| x.is_finite()), "{found:?}");
                assert!(found[3..].iter().all(|x| !x.is_finite()), "{broken} {found:?}");
            }
            weights.values[64 + 40] = broken;
            let found = product(sets()[0], &pack(&weights), &Random::new(6).values(64));
            assert!(found[0].is_finite() && !found[1].is_finite() && found[2].is_finite(), "{found:?}");
        }
    }
}

#[test]
fn activations_and_weights_of_any_size_are_finite() {
    let shape = PanelShape { outputs: 2, inputs: 32, segments: 1 };
    for size in [0.0, 1e-45, 1e-38, 1e-30, 1e-6, 1.0, 1e6, 1e30] {
        let weights = Values { values: vec![size; 64], inputs: 32 };
        for format in [Format::Bytes, Format::Nibbles] {
            let panels =
                QuantizedPanels::pack(shape, format, &Quantizing::of_this_machine(&weights, format))
                    .unwrap();
            for x in [0.0, 1e-45, 1e-38, 1e-20, 1.0, 1e5] {
                let found = product(sets()[0], &panels, &[x; 32]);
                assert!(found.iter().all(|x| x.is_finite()), "{format:?} {size} {x}: {found:?}");
            }
        }
    }
}

#[test]
fn a_bit_that_changes_counts_the_revision_up() {
    let shape = PanelShape { outputs: 40, inputs: 160, segments: 2 };
    let weights = Values { values: Random::new(5).values(40 * 160), inputs: 160 };
    let input = Random::new(8).values(3 * 160);
    let found = [Format::Bytes, Format::Nibbles].map(|format| {
        let rows = Quantizing::of_this_machine(&weights, format);
        let panels = QuantizedPanels::pack(shape, format, &rows).unwrap();
        hash_of_bits(&product(sets()[0], &panels, &input))
    });
    assert_eq!(
        (crate::ops::REVISION, found),
        (2, [0xf103_e528_6649_f5fb, 0x6e3e_8b5d_2bc6_888b]),
        "count it up where bits are others, {found:x?}"
    );
}
