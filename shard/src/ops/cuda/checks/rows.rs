//! What is done to rows element by element.

use candle_core::{Device, Result, Tensor};
use half::{bf16, f16};

use super::machine::Plain;
use super::{Checks, EXACT, Error, F32, Machine, Numbers};
use crate::dtype::Dtype;
use crate::ops::activation::{Activation, GatedActivation, PlainActivation};
use crate::ops::add_bias::AddBias;
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::logit_transform::transform;
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::rows::{
    ActivationParameters, BiasParameters, LogitParameters, PickParameters, RoundParameters,
    SpreadParameters, TreeParameters, VocabularyParameters, activation, add_bias, add_rows,
    join_vocabulary, logit_transform, number_of, pick_rows, round_rows, sum_parts,
};
use crate::ops::experts::AddRows;

pub(super) fn check(machine: &mut Machine, checks: &mut Checks<'_>) {
    for held in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
        checks.check(format!("rows picked, {}", held), || pick(machine, held));
    }
    for function in [Activation::Silu, Activation::GeluTanh] {
        checks.check(format!("{function:?} with a gate"), || gate(machine, function));
        checks.check(format!("{function:?}"), || activate(machine, function));
    }
    checks.check("bias", || bias(machine));
    for cap in [None, Some(30.0)] {
        checks.check(format!("logits divided, cap {cap:?}"), || logits(machine, cap));
    }
    checks.check("rounding to bf16", || {
        round(machine, Dtype::Bfloat16, (bf16::from_f32, bf16::to_bits, bf16::is_nan))
    });
    checks.check("rounding to f16", || {
        round(machine, Dtype::Float16, (f16::from_f32, f16::to_bits, f16::is_nan))
    });
    checks.check("experts' rows added", || spread(machine));
    for count in [1, 2, 8, 64] {
        checks.check(format!("{count} parts summed in a tree"), || tree(machine, count));
    }
    checks.check("slices of the vocabulary joined", || vocabulary(machine));
    machine.clear();
}

fn pick(machine: &mut Machine, held: Dtype) -> Result<Error> {
    let (source, wanted) = (Numbers::new(4).values(11 * 37), [10_u32, 0, 3, 3, 7]);
    let (place, read): (Address, Vec<f32>) = match held {
        Dtype::Bfloat16 => {
            let rounded: Vec<bf16> = source.iter().copied().map(bf16::from_f32).collect();
            (machine.put(&rounded)?, rounded.into_iter().map(bf16::to_f32).collect())
        }
        Dtype::Float16 => {
            let rounded: Vec<f16> = source.iter().copied().map(f16::from_f32).collect();
            (machine.put(&rounded)?, rounded.into_iter().map(f16::to_f32).collect())
        }
        Dtype::Float32 => (machine.put(&source)?, source),
    };
    let output = machine.room::<f32>(5 * 37)?;
    let call = PickParameters {
        source: place,
        rows: machine.put(&wanted)?,
        output,
        elements: 5 * 37,
        width: 37,
        scale: 1.5,
    };
    machine.run(|on| pick_rows(on, held, &call))?;
    let row = |row: &u32| &read[*row as usize * 37..][..37];
    let expected: Vec<f32> = wanted.iter().flat_map(row).map(|value| value * 1.5).collect();
    Ok(Error::of(&machine.get(output, 5 * 37)?, &expected, EXACT))
}

fn gate(machine: &mut Machine, function: Activation) -> Result<Error> {
    let (rows, width) = (5, 67);
    let gate_up: Vec<f32> = Numbers::new(5).values(rows * 2 * width).iter().map(|x| 6.0 * x).collect();
    let output = machine.room::<f32>(rows * width)?;
    let call = ActivationParameters {
        input: machine.put(&gate_up)?,
        output,
        elements: (rows * width) as u64,
        width: width as u32,
        function: number_of(function),
        is_gated: 1,
    };
    machine.run(|on| activation(on, &call))?;
    let gate_up = Tensor::from_vec(gate_up, (rows, 2 * width), &Device::Cpu)?;
    let op = GatedActivation { activation: function, isa: Isa::of_this_machine() };
    let expected = gate_up.apply_op1_no_bwd(&op)?.flatten_all()?.to_vec1()?;
    Ok(Error::of(&machine.get(output, rows * width)?, &expected, F32))
}

fn activate(machine: &mut Machine, function: Activation) -> Result<Error> {
    let values: Vec<f32> = Numbers::new(6).values(3 * 45).iter().map(|x| 6.0 * x).collect();
    let place = machine.put(&values)?;
    let call = ActivationParameters {
        input: place,
        output: place,
        elements: 3 * 45,
        width: 45,
        function: number_of(function),
        is_gated: 0,
    };
    machine.run(|on| activation(on, &call))?;
    let expected = Tensor::from_vec(values, (3, 45), &Device::Cpu)?;
    expected.inplace_op1(&PlainActivation { activation: function, isa: Isa::of_this_machine() })?;
    Ok(Error::of(&machine.get(place, 3 * 45)?, &expected.flatten_all()?.to_vec1()?, F32))
}

fn bias(machine: &mut Machine) -> Result<Error> {
    let mut numbers = Numbers::new(7);
    let (values, bias) = (numbers.values(4 * 99), numbers.values(99));
    let place = machine.put(&values)?;
    let call = BiasParameters { values: place, bias: machine.put(&bias)?, elements: 4 * 99, width: 99 };
    machine.run(|on| add_bias(on, &call))?;
    let expected = Tensor::from_vec(values, (4, 99), &Device::Cpu)?;
    expected.inplace_op2(&Tensor::from_vec(bias, 99, &Device::Cpu)?, &AddBias)?;
    Ok(Error::of(&machine.get(place, 4 * 99)?, &expected.flatten_all()?.to_vec1()?, EXACT))
}

fn logits(machine: &mut Machine, cap: Option<f32>) -> Result<Error> {
    let mut values: Vec<f32> = Numbers::new(8).values(331).iter().map(|x| 90.0 * x).collect();
    let place = machine.put(&values)?;
    let call = LogitParameters { logits: place, elements: 331, divide_by: 1.3, cap: cap.unwrap_or(0.0) };
    machine.run(|on| logit_transform(on, &call))?;
    transform(Isa::of_this_machine(), 1.3, cap, &mut values);
    Ok(Error::of(&machine.get(place, 331)?, &values, F32))
}

/// A type of 16 bits: the nearest number of it, its bits, and whether it is no number.
type Rounding<T> = (fn(f32) -> T, fn(T) -> u16, fn(T) -> bool);

/// Halves between two numbers of either type, the largest that are not infinity and what is, subnormal numbers, the smallest,
/// infinities, and what is none.
fn round<T: Plain>(
    machine: &mut Machine,
    to: Dtype,
    (nearest, bits, is_none): Rounding<T>,
) -> Result<Error> {
    let mut values = Numbers::new(10).values(1000);
    values.extend(
        [0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x0000_0001, 0x8000_8000, 0x7f80_0000].map(f32::from_bits),
    );
    values.extend([65_519.0, -65_520.0, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 3e-6, -4e-8, 2e-8]);
    values.extend([f32::NEG_INFINITY, -0.0, f32::NAN]);
    let count = values.len();
    let output = machine.room::<T>(count)?;
    let call = RoundParameters { input: machine.put(&values)?, output, elements: count as u64 };
    machine.run(|on| round_rows(on, to, &call))?;
    let found = machine.get::<T>(output, count)?;
    let is_right = |(found, value): (&T, &f32)| {
        let expected = nearest(*value);
        bits(*found) == bits(expected) || is_none(*found) && is_none(expected)
    };
    Ok(Error::unless(found.iter().zip(&values).all(is_right)))
}

fn spread(machine: &mut Machine) -> Result<Error> {
    let mut numbers = Numbers::new(11);
    let (target, source) = (numbers.values(6 * 23), numbers.values(3 * 23));
    let rows = [(4, 0.25), (0, -1.5), (5, 0.7)];
    let place = machine.put(&target)?;
    let call = SpreadParameters {
        target: place,
        source: machine.put(&source)?,
        rows: machine.put(&rows.map(|(row, _)| row as u32))?,
        weights: machine.put(&rows.map(|(_, weight)| weight))?,
        elements: 3 * 23,
        width: 23,
    };
    machine.run(|on| add_rows(on, &call))?;
    let expected = Tensor::from_vec(target, (6, 23), &Device::Cpu)?;
    expected.inplace_op2(&Tensor::from_vec(source, (3, 23), &Device::Cpu)?, &AddRows { rows: &rows })?;
    Ok(Error::of(&machine.get(place, 6 * 23)?, &expected.flatten_all()?.to_vec1()?, F32))
}

fn tree(machine: &mut Machine, count: usize) -> Result<Error> {
    fn plain(values: &[f32]) -> f32 {
        if let [only] = values {
            return *only;
        }
        let (left, right) = values.split_at(values.len() / 2);
        plain(left) + plain(right)
    }
    let parts = Numbers::new(count as u64).values(count * 301);
    let sum = machine.room::<f32>(301)?;
    let call = TreeParameters { parts: machine.put(&parts)?, sum, elements: 301, count: count as u32 };
    machine.run(|on| sum_parts(on, &call))?;
    let column = |at: usize| (0..count).map(|part| parts[part * 301 + at]).collect::<Vec<_>>();
    let expected: Vec<f32> = (0..301).map(|at| plain(&column(at))).collect();
    Ok(Error::of(&machine.get(sum, 301)?, &expected, EXACT))
}

fn vocabulary(machine: &mut Machine) -> Result<Error> {
    let (ranks, rows, width, vocabulary) = (4, 3, 32, 101);
    let parts = Numbers::new(13).values(ranks * rows * width);
    let output: Address = machine.room::<f32>(rows * vocabulary)?;
    let call = VocabularyParameters {
        parts: machine.put(&parts)?,
        output,
        elements: (rows * vocabulary) as u64,
        rows: rows as u32,
        width: width as u32,
        vocabulary: vocabulary as u32,
    };
    machine.run(|on| join_vocabulary(on, &call))?;
    let entry = |row: usize, at: usize| parts[(at / width * rows + row) * width + at % width];
    let expected: Vec<f32> =
        (0..rows).flat_map(|row| (0..vocabulary).map(move |at| entry(row, at))).collect();
    Ok(Error::of(&machine.get(output, rows * vocabulary)?, &expected, EXACT))
}
