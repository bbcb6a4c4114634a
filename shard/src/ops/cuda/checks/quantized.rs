//! Products with quantized weights, in one order of sums.

use candle_core::Result;
use half::{bf16, f16};

use super::products::{Held, Reading, Rows, TENSOR_CORES, Weights, alone, gated, packed_twin};
use super::{Checks, EXACT, Error, Machine, Numbers};
use crate::ops::activation::Activation;
use crate::ops::cpu::panels::{PanelShape, RowSource};
use crate::ops::cpu::quantized::{
    Format, Group, PackedRow, QuantizedPanels, QuantizedRows, Quantizing, Scales,
};
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::product::float8::{quantize, widen};
use crate::ops::cuda::product::kernels::Coding;
use crate::ops::cuda::product::tiles::{TileRows, TileSource, Tiling, by_segment};
use crate::ops::matrix::Packed;
use crate::ops::tiles::{TileFormat, tiles};

/// Largest error relative to the largest number where the CPU rounds activations to 8 bits: half a step of each of 32
/// is at most 1/254 of the largest of them, and of a sum far less.
const EIGHT_BITS: f32 = 2e-2;

/// Of scales that are multiplied out and rounded to f16: 2^-11 each.
const ROUNDED_SCALES: f32 = 1e-3;

/// Of numbers with 3 bits of mantissa: 2^-4 each at most, and of a sum less.
const THREE_BITS: f32 = 4e-2;

const FORMATS: [Format; 7] = [
    Format::Bytes,
    Format::BytesMinimum,
    Format::BytesNested,
    Format::BytesNestedMinimum,
    Format::Nibbles,
    Format::NibblesMinimum,
    Format::NibblesNestedMinimum,
];

pub(super) fn check(machine: &mut Machine, checks: &mut Checks<'_>) {
    for format in FORMATS {
        check_format(machine, checks, format);
    }
    for format in [Format::Bytes, Format::Nibbles] {
        for (rows, inputs, outputs, segments) in [(4, 136, 35, 1), (67, 328, 18, 2)] {
            let shape = PanelShape { outputs, inputs, segments };
            let name =
                format!("product, {rows} x {inputs} by {inputs} x {outputs}, quantized to {format:?}");
            checks.check(name, || as_on_the_cpu(machine, (rows, shape), format));
            machine.clear();
        }
    }
    check_float8(machine, checks);
    for quantize in [TileFormat::Int8, TileFormat::Int4, TileFormat::Float8] {
        checks.check(format!("product on one rank and on two, {quantize:?}"), || {
            on_two_ranks(machine, quantize)
        });
        machine.clear();
    }
}

fn check_format(machine: &mut Machine, checks: &mut Checks<'_>, format: Format) {
    for (rows, inputs, outputs, segments) in
        [(1, 64, 16, 1), (11, 320, 35, 2), (3, 1024, 17, 8), (66, 416, 40, 1), (65, 640, 20, 4)]
    {
        let stored = Stored { format, shape: PanelShape { outputs, inputs, segments } };
        let name = format!("product, {rows} x {inputs} by {inputs} x {outputs} in {segments}, {format:?}");
        checks.check(name, || stored_product(machine, &stored, rows));
        machine.clear();
    }
    checks.check(format!("product of a row alone and among others, {format:?}"), || {
        let stored = Stored { format, shape: PanelShape { outputs: 35, inputs: 320, segments: 2 } };
        let held = stored.held(machine, TileRows::InOrder)?;
        alone(machine, &held)
    });
    machine.clear();
    checks.check(format!("product and Silu of 21 gates at once and apart, {format:?}"), || {
        let stored = Stored { format, shape: PanelShape { outputs: 42, inputs: 128, segments: 1 } };
        let gate = stored.held(machine, TileRows::GateBesideUp)?;
        let plain = stored.held(machine, TileRows::InOrder)?;
        gated(machine, (&gate, &plain), Activation::Silu)
    });
    machine.clear();
}

fn check_float8(machine: &mut Machine, checks: &mut Checks<'_>) {
    for (rows, inputs, outputs, segments) in [(4, 136, 35, 1), (67, 328, 18, 2), (9, 1030, 33, 1)] {
        let shape = PanelShape { outputs, inputs, segments };
        for against in [Against::Original, Against::Quantized] {
            let name = format!(
                "product, {rows} x {inputs} by {inputs} x {outputs} in {segments}, fp8, {against:?}"
            );
            checks.check(name, || float8(machine, (rows, shape), against));
            machine.clear();
        }
    }
    checks.check("product of a row alone and among others, fp8", || {
        let shape = PanelShape { outputs: 35, inputs: 320, segments: 2 };
        let weights = Weights { values: Numbers::new(9).values(35 * 320), inputs: 320 };
        let source = TileSource::Float8(&weights);
        let held = held(machine, &Tiling { source, shape, rows: TileRows::InOrder })?;
        alone(machine, &held)
    });
    machine.clear();
    checks.check("product and GeluTanh of 21 gates at once and apart, fp8", || {
        let shape = PanelShape { outputs: 42, inputs: 128, segments: 1 };
        let weights = Weights { values: Numbers::new(9).values(42 * 128), inputs: 128 };
        let tiling = |rows| Tiling { source: TileSource::Float8(&weights), shape, rows };
        let (gate, plain) =
            (held(machine, &tiling(TileRows::GateBesideUp))?, held(machine, &tiling(TileRows::InOrder))?);
        gated(machine, (&gate, &plain), Activation::GeluTanh)
    });
    machine.clear();
}

/// What a product with weights of fp8 is compared with.
#[derive(Clone, Copy, Debug)]
enum Against {
    Original,
    Quantized,
}

/// Any weights a format can hold.
struct Stored {
    format: Format,
    shape: PanelShape,
}

impl Stored {
    fn held(&self, machine: &mut Machine, rows: TileRows) -> Result<Held> {
        let source = TileSource::Groups { rows: self, format: self.format };
        held(machine, &Tiling { source, shape: self.shape, rows })
    }

    /// What a row stands for.
    fn row(&self, output: usize) -> Vec<f64> {
        let layout = self.format.layout();
        let float = |bits: u16| f16::from_bits(bits).to_f64();
        let mut values = vec![0.0; self.shape.inputs];
        let mut row = PackedRow::new(self.shape, layout);
        self.read_groups(output, &mut row);
        row.for_each_group(|_, group| {
            let term = |at: usize| match layout.scales {
                Scales::Plain => float(group.terms[at]),
                Scales::Nested => {
                    f64::from(group.terms[at].to_le_bytes()[0].cast_signed()) * float(group.factors[at])
                }
            };
            let minimum = if layout.terms == 2 { term(1) } else { 0.0 };
            for (column, element) in group.columns.zip(group.elements.iter()) {
                values[column] = (f64::from(*element) - f64::from(layout.offset)) * term(0) - minimum;
            }
        });
        values
    }
}

impl QuantizedRows for Stored {
    fn read_groups(&self, output: usize, row: &mut PackedRow) {
        let layout = self.format.layout();
        let mut numbers = Numbers::new(output as u64 + 1);
        // Five bits are what formats have whose elements begin at zero.
        let most = if layout.bits == 4 { 16 } else { if layout.offset == 0 { 32 } else { 256 } };
        row.for_each_group(|_, Group { columns, elements, terms, factors }| {
            for element in elements.iter_mut() {
                *element = numbers.below(most).to_le_bytes()[0];
            }
            // Elements beyond a segment's end stand for nothing.
            if layout.terms == 1 {
                elements[columns.len()..].fill(layout.offset);
            }
            *terms = match layout.scales {
                Scales::Plain => [0, 1].map(|_| f16::from_f32(numbers.values(1)[0]).to_bits()),
                Scales::Nested => [numbers.below(64) as u16, numbers.below(64) as u16],
            };
            *factors = [0x2a1b, 0x2c77];
        });
    }
}

/// A plain sum of rounded inputs and of what weights stand for.
fn plain(input: &[f32], rows: &[Vec<f64>], inputs: usize) -> Vec<f32> {
    let rounded = |value: &f32| f64::from(bf16::from_f32(*value).to_f32());
    let dot = |input: &[f32], row: &Vec<f64>| -> f64 {
        input.iter().map(rounded).zip(row).map(|(input, weight)| input * weight).sum()
    };
    input
        .chunks_exact(inputs)
        .flat_map(|input| rows.iter().map(move |row| dot(input, row) as f32))
        .collect()
}

fn held(machine: &mut Machine, tiling: &Tiling<'_>) -> Result<Held> {
    let (bytes, scales) = tiling.pack(0..tiles(tiling.shape));
    let scales = by_segment(&scales, tiling.shape.segments);
    Ok(Held {
        shape: tiling.shape,
        reading: Reading::TensorCores(Coding::Quantized(tiling.format())),
        weights: machine.put(&bytes)?,
        scales: if scales.is_empty() { Address::NULL } else { machine.put(&scales)? },
    })
}

fn stored_product(machine: &mut Machine, stored: &Stored, rows: usize) -> Result<Error> {
    let PanelShape { inputs, outputs, .. } = stored.shape;
    let input = Numbers::new(11).values(rows * inputs);
    let held = stored.held(machine, TileRows::InOrder)?;
    let found = held.multiply(machine, (&input, Rows::of(rows)), None)?;
    let weights: Vec<Vec<f64>> = (0..outputs).map(|output| stored.row(output)).collect();
    let allowed = match stored.format.layout().scales {
        Scales::Plain => TENSOR_CORES,
        Scales::Nested => ROUNDED_SCALES,
    };
    Ok(Error::of(&found, &plain(&input, &weights, inputs), allowed))
}

/// Weights that are quantized as they are loaded, against the CPU's operator.
fn as_on_the_cpu(
    machine: &mut Machine,
    (rows, shape): (usize, PanelShape),
    format: Format,
) -> Result<Error> {
    let PanelShape { inputs, outputs, .. } = shape;
    let mut numbers = Numbers::new(12);
    let input = numbers.values(rows * inputs);
    let weights = Weights { values: numbers.values(outputs * inputs), inputs };
    let quantizing = Quantizing::of_this_machine(&weights, format);
    let source = TileSource::Groups { rows: &quantizing, format };
    let held = held(machine, &Tiling { source, shape, rows: TileRows::InOrder })?;
    let found = held.multiply(machine, (&input, Rows::of(rows)), None)?;
    let packed = Packed::Quantized(QuantizedPanels::pack(shape, format, &quantizing)?);
    Ok(Error::of(&found, &packed_twin(&input, packed)?, EIGHT_BITS))
}

/// Against weights as they were, or as they are once they are quantized.
fn float8(machine: &mut Machine, (rows, shape): (usize, PanelShape), against: Against) -> Result<Error> {
    let PanelShape { inputs, outputs, .. } = shape;
    let mut numbers = Numbers::new(13);
    let input = numbers.values(rows * inputs);
    let weights = Weights { values: numbers.values(outputs * inputs), inputs };
    let held =
        held(machine, &Tiling { source: TileSource::Float8(&weights), shape, rows: TileRows::InOrder })?;
    let found = held.multiply(machine, (&input, Rows::of(rows)), None)?;
    let mut values = vec![0.0; inputs];
    let row = |output| {
        weights.read_row(output, &mut values);
        match against {
            Against::Original => {}
            Against::Quantized => {
                values.chunks_exact_mut(inputs / shape.segments).for_each(round_to_float8)
            }
        }
        values.iter().map(|value| f64::from(*value)).collect()
    };
    let weights: Vec<Vec<f64>> = (0..outputs).map(row).collect();
    let allowed = match against {
        Against::Original => THREE_BITS,
        Against::Quantized => TENSOR_CORES,
    };
    Ok(Error::of(&found, &plain(&input, &weights, inputs), allowed))
}

/// A rank quantizes its own half of each row.
fn on_two_ranks(machine: &mut Machine, format: TileFormat) -> Result<Error> {
    let shape = PanelShape { outputs: 35, inputs: 320, segments: 4 };
    let mut numbers = Numbers::new(14);
    let (input, weights) = (numbers.values(66 * 320), numbers.values(35 * 320));
    let halves = |values: &[f32], rank: usize| -> Vec<f32> {
        values.chunks_exact(160).skip(rank).step_by(2).flatten().copied().collect()
    };
    let mut error = Error::unless(true);
    for rows in [3, 66] {
        let input = &input[..rows * 320];
        let held = quantized(machine, (&weights, TileRows::InOrder), (shape, format))?;
        let whole = held.multiply(machine, (input, Rows::of(rows)), None)?;
        let mut parts = Vec::new();
        for rank in [0, 1] {
            let shape = PanelShape { inputs: 160, segments: 2, ..shape };
            let held = quantized(machine, (&halves(&weights, rank), TileRows::InOrder), (shape, format))?;
            parts.push(held.multiply(machine, (&halves(input, rank), Rows::of(rows)), None)?);
        }
        let sums: Vec<f32> = parts[0].iter().zip(&parts[1]).map(|(left, right)| left + right).collect();
        error = error.max(Error::of(&sums, &whole, EXACT));
    }
    Ok(error)
}

/// Weights as a rank quantizes them when it loads them.
pub(super) fn quantized(
    machine: &mut Machine,
    (values, rows): (&[f32], TileRows),
    (shape, format): (PanelShape, TileFormat),
) -> Result<Held> {
    let weights = Weights { values: values.to_vec(), inputs: shape.inputs };
    let format = match format {
        TileFormat::Float8 => None,
        TileFormat::Int4 | TileFormat::Int4Minimum => Some(Format::Nibbles),
        TileFormat::Int8 | TileFormat::Int8Minimum | TileFormat::Int8Short => Some(Format::Bytes),
    };
    let Some(format) = format else {
        return held(machine, &Tiling { source: TileSource::Float8(&weights), shape, rows });
    };
    let quantizing = Quantizing::of_this_machine(&weights, format);
    held(machine, &Tiling { source: TileSource::Groups { rows: &quantizing, format }, shape, rows })
}

fn round_to_float8(values: &mut [f32]) {
    let mut codes = vec![0; values.len()];
    let scale = quantize(values, &mut codes);
    for (value, code) in values.iter_mut().zip(codes) {
        *value = widen(code) * scale;
    }
}
