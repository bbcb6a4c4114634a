//! Products by the exact kernel.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;

use super::{BF16, Checks, EXACT, Error, F32, Machine, Numbers};
use crate::dtype::Dtype;
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::panels::{PanelShape, Panels, RowSource};
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::product::{ProductParameters, product_parts};
use crate::ops::cuda::rows::{TreeParameters, sum_parts};
use crate::ops::linear::Linear;
use crate::ops::matrix::{Matrix, Packed};

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

/// The CPU's product.
pub(super) fn twin(input: &[f32], weights: Weights, shape: PanelShape, held: DType) -> Result<Vec<f32>> {
    let dtype = if held == DType::BF16 { Dtype::Bfloat16 } else { Dtype::Float32 };
    let packed = Panels::pack(shape, dtype, &weights).map(Packed::Elements);
    let matrix = Matrix::new(std::iter::once(packed)).map_err(candle_core::Error::wrap)?;
    let linear = Linear { matrix: Arc::new(matrix), isa: Isa::of_this_machine() };
    let rows = input.len() / shape.inputs;
    Tensor::from_slice(input, (rows, shape.inputs), &Device::Cpu)?
        .apply_op1_no_bwd(&linear)?
        .flatten_all()?
        .to_vec1()
}

pub(super) fn check(machine: &mut Machine, checks: &mut Checks<'_>) {
    let shapes = [(1, 1, 1, 1), (3, 96, 70, 2), (65, 40, 129, 1), (130, 128, 33, 8)];
    for held in [DType::F32, DType::BF16] {
        for (rows, inputs, outputs, segments) in shapes {
            let shape = PanelShape { outputs, inputs, segments };
            let name = format!(
                "exact product, {rows} x {inputs} by {inputs} x {outputs} in {segments}, {}",
                held.as_str()
            );
            checks.check(name, || product(machine, rows, shape, held));
            machine.clear();
        }
        let name = format!("exact product of a row alone and among others, {}", held.as_str());
        checks.check(name, || alone(machine, held));
        machine.clear();
    }
}

fn product(machine: &mut Machine, rows: usize, shape: PanelShape, held: DType) -> Result<Error> {
    let mut numbers = Numbers::new((rows * shape.outputs) as u64);
    let input = numbers.values(rows * shape.inputs);
    let weights = numbers.values(shape.outputs * shape.inputs);
    let found = on_machine(machine, &input, (&weights, held), shape)?;
    let expected = twin(&input, Weights { values: weights, inputs: shape.inputs }, shape, held)?;
    let allowed = if held == DType::BF16 { BF16 } else { F32 };
    Ok(Error::of(&found, &expected, allowed))
}

fn alone(machine: &mut Machine, held: DType) -> Result<Error> {
    let shape = PanelShape { outputs: 75, inputs: 120, segments: 4 };
    let mut numbers = Numbers::new(77);
    let (input, weights) =
        (numbers.values(67 * shape.inputs), numbers.values(shape.outputs * shape.inputs));
    let all = on_machine(machine, &input, (&weights, held), shape)?;
    let mut error = Error::unless(true);
    for row in [0, 13, 66] {
        let one =
            on_machine(machine, &input[row * shape.inputs..][..shape.inputs], (&weights, held), shape)?;
        error = error.max(Error::of(&one, &all[row * shape.outputs..][..shape.outputs], EXACT));
    }
    Ok(error)
}

fn on_machine(
    machine: &mut Machine,
    input: &[f32],
    (weights, held): (&[f32], DType),
    shape: PanelShape,
) -> Result<Vec<f32>> {
    let PanelShape { outputs, inputs, segments } = shape;
    let rows = input.len() / inputs;
    let rounded: Vec<bf16> = weights.iter().copied().map(bf16::from_f32).collect();
    let parts: Address = machine.room::<f32>(segments * rows * outputs)?;
    let output = machine.room::<f32>(rows * outputs)?;
    let call = ProductParameters {
        input: machine.put(input)?,
        weights: if held == DType::BF16 { machine.put(&rounded)? } else { machine.put(weights)? },
        parts,
        rows: rows as u32,
        inputs: inputs as u32,
        outputs: outputs as u32,
        segments: segments as u32,
    };
    let sum =
        TreeParameters { parts, sum: output, elements: (rows * outputs) as u64, count: segments as u32 };
    machine.run(|on| {
        product_parts(on, held, &call)?;
        sum_parts(on, &sum)
    })?;
    machine.get(output, rows * outputs)
}
