//! What is done to rows element by element.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use lockstep_proto::{BlockId, Position};

use super::{Checks, EXACT, Error, F32, Machine, Numbers};
use crate::batch::BatchSequence;
use crate::kv::layout::KvLayout;
use crate::ops::activation::{Activation, GatedActivation, PlainActivation};
use crate::ops::add_bias::AddBias;
use crate::ops::attention::AttentionShape;
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::logit_transform::transform;
use crate::ops::cuda::attention::HostRows;
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::rows::{
    ActivationParameters, BiasParameters, LogitParameters, PickParameters, RopeParameters, RoundParameters,
    SpreadParameters, TreeParameters, VocabularyParameters, WriteKvParameters, activation, add_bias,
    add_rows, join_vocabulary, logit_transform, number_of, pick_rows, rope, round_rows, sum_parts,
    write_kv,
};
use crate::ops::experts::AddRows;
use crate::ops::placed::Placed;
use crate::ops::rope::Rope;

const SHAPE: AttentionShape = AttentionShape {
    query_heads: 6,
    kv: KvLayout { kv_heads: 2, head_width: 20 },
    scale: 1.0,
    window: None,
    softcap: None,
};

pub(super) fn check(machine: &mut Machine, checks: &mut Checks<'_>) {
    for rotary in [20, 12] {
        checks.check(format!("rope, {rotary} of 20 elements"), || turn(machine, rotary));
    }
    for held in [DType::F32, DType::BF16] {
        checks.check(format!("keys and values into their blocks, {}", held.as_str()), || {
            write(machine, held)
        });
        checks.check(format!("rows picked, {}", held.as_str()), || pick(machine, held));
    }
    for function in [Activation::Silu, Activation::GeluTanh] {
        checks.check(format!("{function:?} with a gate"), || gate(machine, function));
        checks.check(format!("{function:?}"), || activate(machine, function));
    }
    checks.check("bias", || bias(machine));
    for cap in [None, Some(30.0)] {
        checks.check(format!("logits divided, cap {cap:?}"), || logits(machine, cap));
    }
    checks.check("rounding to bf16", || round(machine));
    checks.check("experts' rows added", || spread(machine));
    for count in [1, 2, 8, 64] {
        checks.check(format!("{count} parts summed in a tree"), || tree(machine, count));
    }
    checks.check("slices of the vocabulary joined", || vocabulary(machine));
    machine.clear();
}

/// Three sequences: one at its beginning, one decoding across a block's end, one in the middle of its prompt.
fn sequences() -> [BatchSequence; 3] {
    let blocks = |ids: &[u32]| ids.iter().copied().map(BlockId).collect();
    [
        BatchSequence { first_row: 0, rows: 3, first_position: Position(0), blocks: blocks(&[6]) },
        BatchSequence { first_row: 3, rows: 1, first_position: Position(31), blocks: blocks(&[2, 5]) },
        BatchSequence { first_row: 4, rows: 5, first_position: Position(14), blocks: blocks(&[0, 3]) },
    ]
}

const ROWS: usize = 9;

fn turn(machine: &mut Machine, rotary: usize) -> Result<Error> {
    let mut numbers = Numbers::new(rotary as u64);
    let elements = SHAPE.row_elements();
    let (qkv, table) = (numbers.values(ROWS * elements), numbers.values(40 * rotary));
    let sequences = sequences();
    let rows = HostRows::new(&sequences, 3);
    let place = machine.put(&qkv)?;
    let call = RopeParameters {
        qkv: place,
        table: machine.put(&table)?,
        positions: machine.put(&rows.positions)?,
        rows: ROWS as u32,
        row_elements: elements as u32,
        heads: (SHAPE.query_heads + SHAPE.kv.kv_heads) as u32,
        width: SHAPE.kv.head_width as u32,
        rotary: rotary as u32,
    };
    machine.run(|on| rope(on, &call))?;
    let expected = Tensor::from_vec(qkv, (ROWS, elements), &Device::Cpu)?;
    let table = Tensor::from_vec(table, (40, rotary), &Device::Cpu)?;
    let placed = Placed::on_cpu(&sequences);
    expected.inplace_op2(&table, &Rope { shape: SHAPE, rows: &placed, isa: Isa::of_this_machine() })?;
    Ok(Error::of(&machine.get(place, ROWS * elements)?, &expected.flatten_all()?.to_vec1()?, F32))
}

/// Against plain indices: the CPU's blocks lie in an order of their own.
fn write(machine: &mut Machine, held: DType) -> Result<Error> {
    const BLOCKS: usize = 7;
    let elements = SHAPE.row_elements();
    let qkv = Numbers::new(3).values(ROWS * elements);
    let (heads, width) = (SHAPE.kv.kv_heads, SHAPE.kv.head_width);
    let pool = BLOCKS * heads * KvLayout::SLOTS * width;
    let place = machine.put(&vec![bf16::from_f32(0.5); 2 * pool])?;
    let sequences = sequences();
    let rows = HostRows::new(&sequences, 3);
    let first = SHAPE.query_elements() + SHAPE.kv_elements();
    let call = WriteKvParameters {
        pool: place,
        qkv: machine.put(&qkv)?,
        slots: machine.put(&rows.slots)?,
        rows: ROWS as u32,
        row_elements: elements as u32,
        first_element: first as u32,
        heads: heads as u32,
        width: width as u32,
    };
    machine.run(|on| write_kv(on, held, &call))?;
    let is_bf16 = held == DType::BF16;
    let found: Vec<f32> = if is_bf16 {
        machine.get::<bf16>(place, pool)?.into_iter().map(bf16::to_f32).collect()
    } else {
        machine.get(place, pool)?
    };
    let untouched = if is_bf16 { 0.5 } else { f32::from_bits(0x3f00_3f00) };
    let mut expected = vec![untouched; pool];
    let mut row = 0;
    for sequence in &sequences {
        for position in sequence.first_position.index()..sequence.first_position.index() + sequence.rows {
            let block = sequence.blocks[position / 16].index();
            for (at, value) in qkv[row * elements + first..][..heads * width].iter().enumerate() {
                let place = ((block * heads + at / width) * 16 + position % 16) * width + at % width;
                expected[place] = if is_bf16 { bf16::from_f32(*value).to_f32() } else { *value };
            }
            row += 1;
        }
    }
    Ok(Error::of(&found, &expected, EXACT))
}

fn pick(machine: &mut Machine, held: DType) -> Result<Error> {
    let (source, wanted) = (Numbers::new(4).values(11 * 37), [10_u32, 0, 3, 3, 7]);
    let rounded: Vec<bf16> = source.iter().copied().map(bf16::from_f32).collect();
    let is_bf16 = held == DType::BF16;
    let output = machine.room::<f32>(5 * 37)?;
    let call = PickParameters {
        source: if is_bf16 { machine.put(&rounded)? } else { machine.put(&source)? },
        rows: machine.put(&wanted)?,
        output,
        elements: 5 * 37,
        width: 37,
        scale: 1.5,
    };
    machine.run(|on| pick_rows(on, held, &call))?;
    let value = |at: usize| if is_bf16 { rounded[at].to_f32() } else { source[at] };
    let expected: Vec<f32> =
        wanted.iter().flat_map(|row| (0..37).map(move |at| value(*row as usize * 37 + at) * 1.5)).collect();
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

/// Halves between two numbers, the largest that is rounded to infinity, the smallest, infinities, and what is none.
fn round(machine: &mut Machine) -> Result<Error> {
    let mut values = Numbers::new(10).values(1000);
    values.extend(
        [0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x0000_0001, 0x8000_8000, 0x7f80_0000].map(f32::from_bits),
    );
    values.extend([f32::NEG_INFINITY, -0.0, f32::NAN]);
    let count = values.len();
    let output = machine.room::<bf16>(count)?;
    let call = RoundParameters { input: machine.put(&values)?, output, elements: count as u64 };
    machine.run(|on| round_rows(on, &call))?;
    let found: Vec<u16> = machine.get::<bf16>(output, count)?.iter().map(|value| value.to_bits()).collect();
    let expected: Vec<u16> = values.iter().map(|value| bf16::from_f32(*value).to_bits()).collect();
    Ok(Error::unless(found == expected))
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
