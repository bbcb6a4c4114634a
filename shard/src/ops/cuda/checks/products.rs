//! Products in one order of sums, with weights of f32, bf16 and f16.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use half::{bf16, f16};

use super::{Checks, EXACT, Error, F32, Machine, Numbers};
use crate::dtype::Dtype;
use crate::ops::activation::Activation;
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::panels::{PanelShape, Panels, RowSource};
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::product::kernels::{
    ArrangeParameters, Coding, FEW_ROWS, ProductParameters, arrange_inputs, arranged_elements, few, many,
    product_f32, waiting_elements,
};
use crate::ops::cuda::rows::{ActivationParameters, activation, number_of};
use crate::ops::linear::Linear;
use crate::ops::matrix::{Matrix, Packed};

/// What tensor cores multiply by as it is.
const OF_16_BITS: [Dtype; 2] = [Dtype::Bfloat16, Dtype::Float16];

/// Largest error of sums of products of 16 bits, relative to the largest number: tensor cores round sums in a way of their
/// own.
pub(super) const TENSOR_CORES: f32 = 1e-4;

/// Rows of weights in main memory.
pub(super) struct Weights {
    pub(super) values: Vec<f32>,
    pub(super) inputs: usize,
}

impl RowSource for Weights {
    fn read_row(&self, output: usize, into: &mut [f32]) {
        into.copy_from_slice(&self.values[output * self.inputs..][..self.inputs]);
    }
}

/// Weights as they are held.
pub(super) fn put_weights(machine: &mut Machine, values: &[f32], held: Dtype) -> Result<Address> {
    match held {
        Dtype::Bfloat16 => machine.put(&values.iter().copied().map(bf16::from_f32).collect::<Vec<bf16>>()),
        Dtype::Float16 => machine.put(&values.iter().copied().map(f16::from_f32).collect::<Vec<f16>>()),
        Dtype::Float32 => machine.put(values),
    }
}

/// The CPU's product.
pub(super) fn twin(input: &[f32], weights: Weights, shape: PanelShape, held: Dtype) -> Result<Vec<f32>> {
    // Beside weights of f16 the CPU does not round.
    let rounded: Vec<f32> = match held {
        Dtype::Float16 => input.iter().map(|value| f16::from_f32(*value).to_f32()).collect(),
        Dtype::Bfloat16 | Dtype::Float32 => input.to_vec(),
    };
    packed_twin(&rounded, Packed::Elements(Panels::pack(shape, held, &weights)?))
}

/// The CPU's product with any weights.
pub(super) fn packed_twin(input: &[f32], packed: Packed) -> Result<Vec<f32>> {
    let inputs = packed.shape().inputs;
    let matrix = Matrix::new(std::iter::once(Ok::<_, candle_core::Error>(packed)))?;
    let linear = Linear { matrix: Arc::new(matrix), isa: Isa::of_this_machine() };
    Tensor::from_slice(input, (input.len() / inputs, inputs), &Device::Cpu)?
        .apply_op1_no_bwd(&linear)?
        .flatten_all()?
        .to_vec1()
}

/// Weights in a machine's memory.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) shape: PanelShape,
    pub(super) reading: Reading,
    pub(super) weights: Address,
    pub(super) scales: Address,
}

/// How a kernel reads weights.
#[derive(Clone, Copy)]
pub(super) enum Reading {
    F32,
    TensorCores(Coding),
}

/// Which kernel multiplies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows {
    Few,
    Many,
}

impl Rows {
    /// What multiplies so many rows.
    pub(super) fn of(count: usize) -> Self {
        if count <= FEW_ROWS { Self::Few } else { Self::Many }
    }
}

impl Held {
    /// Rows of f32, bf16 or f16.
    pub(super) fn rows(
        machine: &mut Machine,
        (values, held): (&[f32], Dtype),
        shape: PanelShape,
    ) -> Result<Self> {
        let weights = put_weights(machine, values, held)?;
        let reading = match held {
            Dtype::Bfloat16 => Reading::TensorCores(Coding::Bf16),
            Dtype::Float16 => Reading::TensorCores(Coding::F16),
            Dtype::Float32 => Reading::F32,
        };
        Ok(Self { shape, reading, weights, scales: Address::NULL })
    }

    /// (rows, inputs) → (rows, outputs), or half as many where a function gates.
    pub(super) fn multiply(
        &self,
        machine: &mut Machine,
        (input, with): (&[f32], Rows),
        function: Option<Activation>,
    ) -> Result<Vec<f32>> {
        let PanelShape { outputs, inputs, segments } = self.shape;
        let rows = input.len() / inputs;
        let width = if function.is_some() { outputs / 2 } else { outputs };
        // Between the rows of the result there is something else's place.
        let stride = width + 3;
        let output = machine.room::<f32>(rows * stride)?;
        let call = ProductParameters {
            input: machine.put(input)?,
            weights: self.weights,
            scales: self.scales,
            output,
            waiting: machine.room::<f32>(waiting_elements((rows, outputs), segments))?,
            rows: rows as u32,
            inputs: inputs as u32,
            outputs: outputs as u32,
            segments: segments as u32,
            stride: stride as u32,
            function: function.map_or(0, |function| 1 + number_of(function)),
            parts: 0,
        };
        match (self.reading, with) {
            (Reading::F32, _) => machine.run(|on| product_f32(on, &call))?,
            (Reading::TensorCores(coding), Rows::Few) => machine.run(|on| few(on, coding, &call))?,
            (Reading::TensorCores(coding), Rows::Many) => multiply_many(machine, coding, call)?,
        }
        let found = machine.get::<f32>(output, rows * stride)?;
        let (mut values, mut between) = (Vec::new(), true);
        for row in found.chunks_exact(stride) {
            values.extend_from_slice(&row[..width]);
            between &= row[width..].iter().all(|value| value.is_nan());
        }
        if !between {
            candle_core::bail!("a product wrote beside its columns");
        }
        Ok(values)
    }
}

fn multiply_many(machine: &mut Machine, coding: Coding, call: ProductParameters) -> Result<()> {
    let elements = call.rows as usize * arranged_elements(call.inputs as usize, call.segments as usize);
    let arranged = machine.room::<bf16>(elements)?;
    let arrange = ArrangeParameters {
        input: call.input,
        output: arranged,
        pieces: (elements / 4) as u64,
        inputs: call.inputs,
        segments: call.segments,
        is_spread: coding.is_spread(),
        is_f16: coding.is_f16(),
    };
    machine.run(|on| {
        arrange_inputs(on, &arrange)?;
        many(on, coding, &ProductParameters { input: arranged, ..call })
    })
}

pub(super) fn check(machine: &mut Machine, checks: &mut Checks<'_>) {
    shapes(machine, checks);
    for held in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
        let name = format!("product of a row alone and among others, {}", held);
        checks.check(name, || {
            let shape = PanelShape { outputs: 75, inputs: 120, segments: 4 };
            let weights = Numbers::new(77).values(shape.outputs * shape.inputs);
            let held = Held::rows(machine, (&weights, held), shape)?;
            alone(machine, &held)
        });
        machine.clear();
        let name = format!("product on one rank and on two, {}", held);
        checks.check(name, || on_two_ranks(machine, held));
        machine.clear();
    }
    for (width, function) in [(37, Activation::Silu), (16, Activation::GeluTanh)] {
        checks.check(format!("product and {function:?} of {width} gates at once and apart, bf16"), || {
            let shape = PanelShape { outputs: 2 * width, inputs: 72, segments: 1 };
            let weights = Numbers::new(5).values(shape.outputs * shape.inputs);
            let held = Held::rows(machine, (&weights, Dtype::Bfloat16), shape)?;
            gated(machine, (&held, &held), function)
        });
        machine.clear();
    }
}

fn name(rows: usize, PanelShape { outputs, inputs, segments }: PanelShape, held: Dtype) -> String {
    format!("product, {rows} x {inputs} by {inputs} x {outputs} in {segments}, {held}")
}

fn product(
    machine: &mut Machine,
    (rows, with): (usize, Rows),
    shape: PanelShape,
    held: Dtype,
) -> Result<Error> {
    let mut numbers = Numbers::new((rows * shape.outputs) as u64);
    let input = numbers.values(rows * shape.inputs);
    let weights = numbers.values(shape.outputs * shape.inputs);
    let found = Held::rows(machine, (&weights, held), shape)?.multiply(machine, (&input, with), None)?;
    let expected = twin(&input, Weights { values: weights, inputs: shape.inputs }, shape, held)?;
    Ok(Error::of(&found, &expected, if held == Dtype::Float32 { F32 } else { TENSOR_CORES }))
}

/// Every kernel's bits, with rows among as many as each takes, against those of the row alone. What hardware makes of
/// one column of an instruction must not depend on the others, nor on which it is.
pub(super) fn alone(machine: &mut Machine, held: &Held) -> Result<Error> {
    let PanelShape { inputs, outputs, .. } = held.shape;
    let input = Numbers::new(78).values(67 * inputs);
    let mut error = Error::unless(true);
    for rows in [7, 13, 29, 64, 67] {
        let all = held.multiply(machine, (&input[..rows * inputs], Rows::of(rows)), None)?;
        for row in [0, rows / 2, rows - 1] {
            let one = held.multiply(machine, (&input[row * inputs..][..inputs], Rows::Few), None)?;
            error = error.max(Error::of(&one, &all[row * outputs..][..outputs], EXACT));
        }
    }
    let many = held.multiply(machine, (&input[..9 * inputs], Rows::Many), None)?;
    let few = held.multiply(machine, (&input[..9 * inputs], Rows::Few), None)?;
    Ok(error.max(Error::of(&many, &few, EXACT)))
}

/// A rank has half of the segments, and so half of each row of inputs and of weights.
fn on_two_ranks(machine: &mut Machine, held: Dtype) -> Result<Error> {
    let shape = PanelShape { outputs: 35, inputs: 320, segments: 4 };
    let half = PanelShape { inputs: 160, segments: 2, ..shape };
    let mut numbers = Numbers::new(79);
    let (input, weights) = (numbers.values(66 * 320), numbers.values(35 * 320));
    let mut error = Error::unless(true);
    for rows in [3, 66] {
        let input = &input[..rows * 320];
        let whole = Held::rows(machine, (&weights, held), shape)?.multiply(
            machine,
            (input, Rows::of(rows)),
            None,
        )?;
        let mut parts = Vec::new();
        for rank in [0, 1] {
            let of_rank = |values: &[f32]| -> Vec<f32> {
                values.chunks_exact(160).skip(rank).step_by(2).flatten().copied().collect()
            };
            let part = Held::rows(machine, (&of_rank(&weights), held), half)?;
            parts.push(part.multiply(machine, (&of_rank(input), Rows::of(rows)), None)?);
        }
        let sums: Vec<f32> = parts[0].iter().zip(&parts[1]).map(|(left, right)| left + right).collect();
        error = error.max(Error::of(&sums, &whole, EXACT));
    }
    Ok(error)
}

/// What is gated as it is written, against a product and an activation one after the other.
pub(super) fn gated(
    machine: &mut Machine,
    (gate, plain): (&Held, &Held),
    function: Activation,
) -> Result<Error> {
    let PanelShape { inputs, outputs, .. } = gate.shape;
    let mut error = Error::unless(true);
    for rows in [5, 70] {
        let input = Numbers::new(80).values(rows * inputs);
        let found = gate.multiply(machine, (&input, Rows::of(rows)), Some(function))?;
        let both = plain.multiply(machine, (&input, Rows::of(rows)), None)?;
        let output = machine.room::<f32>(found.len())?;
        let call = ActivationParameters {
            input: machine.put(&both)?,
            output,
            elements: found.len() as u64,
            width: (outputs / 2) as u32,
            function: number_of(function),
            is_gated: 1,
        };
        machine.run(|on| activation(on, &call))?;
        error = error.max(Error::of(&found, &machine.get(output, found.len())?, EXACT));
    }
    Ok(error)
}

/// Rows that fill groups and not, segments that fill blocks and not, and lengths that no 16 bytes divide.
fn shapes(machine: &mut Machine, checks: &mut Checks<'_>) {
    for (rows, inputs, outputs, segments) in
        [(1, 1, 1, 1), (3, 96, 70, 2), (65, 40, 129, 1), (130, 128, 33, 8)]
    {
        let shape = PanelShape { outputs, inputs, segments };
        checks.check(name(rows, shape, Dtype::Float32), || {
            product(machine, (rows, Rows::Many), shape, Dtype::Float32)
        });
        machine.clear();
    }
    let few = [
        (1, 1, 1, 1),
        (3, 96, 70, 2),
        (8, 1152, 40, 2),
        (9, 136, 16, 1),
        (16, 1024, 33, 8),
        (23, 40, 129, 1),
    ];
    let few_more = [(33, 264, 20, 4), (64, 320, 24, 8), (5, 33, 17, 1), (2, 4224, 16, 4)];
    for (rows, inputs, outputs, segments) in few.into_iter().chain(few_more) {
        let shape = PanelShape { outputs, inputs, segments };
        for held in OF_16_BITS {
            checks.check(name(rows, shape, held), || product(machine, (rows, Rows::Few), shape, held));
            machine.clear();
        }
    }
    for (rows, inputs, outputs, segments) in
        [(65, 40, 129, 1), (130, 128, 33, 8), (67, 33, 20, 1), (129, 608, 70, 2)]
    {
        let shape = PanelShape { outputs, inputs, segments };
        for held in OF_16_BITS {
            checks.check(name(rows, shape, held), || product(machine, (rows, Rows::Many), shape, held));
            machine.clear();
        }
    }
}
