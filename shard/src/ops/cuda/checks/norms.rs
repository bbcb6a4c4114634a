//! Norms.

use candle_core::{Device, Result, Tensor};

use super::{Checks, Error, F32, Machine, Numbers};
use crate::kv::layout::KvLayout;
use crate::ops::add_norm::AddNorm;
use crate::ops::attention::AttentionShape;
use crate::ops::cpu::isa::Isa;
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::norm::{
    NormParameters, ProjectionNormParameters, ProjectionSquaresParameters, norm, projection_norm,
    projection_squares,
};
use crate::ops::norm::{Norm, NormKind};
use crate::ops::projection_norm::{ProjectionNorm, ProjectionSquares};

const EPSILON: f32 = 1e-5;

const KINDS: [(NormKind, usize, &str); 3] = [
    (NormKind::RootMeanSquare, 1, "RMS norm"),
    (NormKind::Layer, 1, "layer norm"),
    (NormKind::Layer, 2, "layer norm with bias"),
];

const SHAPE: AttentionShape = AttentionShape {
    query_heads: 8,
    kv: KvLayout { kv_heads: 4, head_width: 20 },
    scale: 1.0,
    window: None,
    softcap: None,
};

pub(super) fn check(machine: &mut Machine, checks: &mut Checks<'_>) {
    for (kind, count, name) in KINDS {
        for (rows, width) in [(1, 1), (5, 72), (3, 257), (2, 4099)] {
            checks.check(format!("{name}, {rows} x {width}"), || {
                row_norm(machine, (kind, count), (rows, width))
            });
            checks.check(format!("sum and {name}, {rows} x {width}"), || {
                add_norm(machine, (kind, count), (rows, width))
            });
            machine.clear();
        }
    }
    for rows in [1, 7] {
        for segments in [1, 4] {
            checks.check(format!("projection norm, {rows} rows in {segments} segments"), || {
                projections(machine, rows, segments)
            });
        }
        machine.clear();
    }
}

fn cpu(values: &[f32], shape: (usize, usize)) -> Result<Tensor> {
    Tensor::from_slice(values, shape, &Device::Cpu)
}

fn row_norm(
    machine: &mut Machine,
    (kind, count): (NormKind, usize),
    (rows, width): (usize, usize),
) -> Result<Error> {
    let mut numbers = Numbers::new(width as u64);
    let (input, parameters) = (numbers.values(rows * width), numbers.values(count * width));
    let output = machine.room::<f32>(rows * width)?;
    let call = NormParameters {
        input: machine.put(&input)?,
        delta: Address::NULL,
        parameters: machine.put(&parameters)?,
        sum: Address::NULL,
        output,
        width: width as u32,
        takes_mean: (kind == NormKind::Layer).into(),
        has_bias: (count == 2).into(),
        epsilon: EPSILON,
        delta_scale: 1.0,
    };
    machine.run(|on| norm(on, &call, rows))?;
    let op = Norm { kind, epsilon: EPSILON, isa: Isa::of_this_machine() };
    let expected = cpu(&input, (rows, width))?.apply_op2_no_bwd(&cpu(&parameters, (count, width))?, &op)?;
    Ok(Error::of(&machine.get(output, rows * width)?, &expected.flatten_all()?.to_vec1()?, F32))
}

fn add_norm(
    machine: &mut Machine,
    (kind, count): (NormKind, usize),
    (rows, width): (usize, usize),
) -> Result<Error> {
    let mut numbers = Numbers::new(width as u64 + 1);
    let (residual, delta) = (numbers.values(rows * width), numbers.values(rows * width));
    let parameters = numbers.values(count * width);
    let elements = rows * width;
    let sum = machine.room::<f32>(2 * elements)?;
    let call = NormParameters {
        input: machine.put(&residual)?,
        delta: machine.put(&delta)?,
        parameters: machine.put(&parameters)?,
        sum,
        output: sum.plus(elements * size_of::<f32>()),
        width: width as u32,
        takes_mean: (kind == NormKind::Layer).into(),
        has_bias: (count == 2).into(),
        epsilon: EPSILON,
        delta_scale: 0.22,
    };
    machine.run(|on| norm(on, &call, rows))?;
    let op = AddNorm { kind, epsilon: EPSILON, delta_scale: 0.22, isa: Isa::of_this_machine() };
    let (residual, delta) = (cpu(&residual, (rows, width))?, cpu(&delta, (rows, width))?);
    let expected = residual.apply_op3_no_bwd(&delta, &cpu(&parameters, (count, width))?, &op)?;
    let (found, expected) = (machine.get(sum, 2 * elements)?, expected.flatten_all()?.to_vec1::<f32>()?);
    // Each half by its own size.
    let half = |part: std::ops::Range<usize>| Error::of(&found[part.clone()], &expected[part], F32);
    Ok(half(0..elements).max(half(elements..2 * elements)))
}

fn projections(machine: &mut Machine, rows: usize, segments: usize) -> Result<Error> {
    let mut numbers = Numbers::new(rows as u64 + 9);
    let (elements, queries, keys) = (SHAPE.row_elements(), SHAPE.query_elements(), SHAPE.kv_elements());
    let (qkv, weights) = (numbers.values(rows * elements), numbers.values(queries + keys));
    let (place, squares) = (machine.put(&qkv)?, machine.room::<f32>(rows * 2)?);
    let (row_elements, query_elements, key_elements) = (elements as u32, queries as u32, keys as u32);
    let sums = ProjectionSquaresParameters {
        qkv: place,
        squares,
        row_elements,
        query_elements,
        key_elements,
        segments: segments as u32,
    };
    let call = ProjectionNormParameters {
        qkv: place,
        squares,
        weights: machine.put(&weights)?,
        row_elements,
        query_elements,
        key_elements,
        query_width: query_elements,
        key_width: key_elements,
        epsilon: EPSILON,
    };
    machine.run(|on| {
        projection_squares(on, &sums, rows)?;
        projection_norm(on, &call, rows)
    })?;
    let isa = Isa::of_this_machine();
    let expected = cpu(&qkv, (rows, elements))?;
    let summed = expected.apply_op1_no_bwd(&ProjectionSquares { shape: SHAPE, segments, isa })?;
    let op = ProjectionNorm { shape: SHAPE, epsilon: EPSILON, query_width: queries, key_width: keys, isa };
    let weights = Tensor::from_slice(&weights, queries + keys, &Device::Cpu)?;
    expected.inplace_op3(&summed, &weights, &op)?;
    let sums = Error::of(&machine.get(squares, rows * 2)?, &summed.flatten_all()?.to_vec1()?, F32);
    let normed = machine.get(place, rows * elements)?;
    Ok(sums.max(Error::of(&normed, &expected.flatten_all()?.to_vec1()?, F32)))
}
