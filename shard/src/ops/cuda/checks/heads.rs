//! Heads on their way to attention: against the CPU's operators, and in their blocks against plain numbers.

use candle_core::{Device, Result, Tensor};
use half::{bf16, f16};
use lockstep_proto::{BlockId, Position};

use super::{Checks, Error, F32, Machine, Numbers};
use crate::batch::BatchSequence;
use crate::kv::KvDtype;
use crate::kv::layout::KvLayout;
use crate::ops::attention::AttentionShape;
use crate::ops::cpu::isa::Isa;
use crate::ops::cuda::attention::HostRows;
use crate::ops::cuda::heads::{WriteHeadsParameters, write_heads};
use crate::ops::cuda::kernel::Address;
use crate::ops::head_norm::HeadNorm;
use crate::ops::placed::Placed;
use crate::ops::rope::Rope;

const EPSILON: f32 = 1e-5;
const BLOCKS: usize = 7;
const ROWS: usize = 9;
/// Positions of a table of angles.
const POSITIONS: usize = 40;

fn shape((query_heads, kv_heads, head_width): (usize, usize, usize)) -> AttentionShape {
    let kv = KvLayout { kv_heads, head_width };
    AttentionShape { query_heads, kv, scale: 1.0, window: None, softcap: None }
}

/// How a pool is called.
pub(super) fn name(held: KvDtype) -> &'static str {
    match held {
        KvDtype::Float32 => "f32",
        KvDtype::Bfloat16 => "bf16",
        KvDtype::Float16 => "f16",
        KvDtype::Int8 => "int8",
        KvDtype::Float8 => "fp8",
    }
}

pub(super) fn check(machine: &mut Machine, checks: &mut Checks<'_>) {
    for held in super::attention::ALL {
        checks.check(format!("keys and values into their blocks, {}", name(held)), || {
            write(machine, shape((6, 2, 20)), held)
        });
        machine.clear();
    }
    for (is_normed, rotary, sizes) in [
        (false, 20, (6, 2, 20)),
        (false, 12, (6, 2, 20)),
        (true, 0, (8, 4, 20)),
        (true, 12, (6, 2, 20)),
        (true, 160, (2, 1, 160)),
    ] {
        let norm = if is_normed { "normed, " } else { "" };
        let name = format!("heads {norm}turned by {rotary} of {} elements, and written", sizes.2);
        checks.check(name, || norm_and_turn(machine, shape(sizes), (is_normed, rotary)));
        machine.clear();
    }
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

/// A batch's heads on the machine, with pools that hold no numbers yet.
struct Setup {
    qkv: Vec<f32>,
    call: WriteHeadsParameters,
}

impl Setup {
    fn new(machine: &mut Machine, shape: AttentionShape, held: KvDtype) -> Result<Self> {
        let qkv = Numbers::new(shape.row_elements() as u64).values(ROWS * shape.row_elements());
        let sequences = sequences();
        let rows = HostRows::new(&sequences, 3, held);
        let room = BLOCKS * shape.kv.kv_heads * held.tile_bytes(shape.kv);
        let call = WriteHeadsParameters {
            positions: machine.put(&rows.positions)?,
            slots: machine.put(&rows.slots)?,
            keys: machine.room::<u8>(room)?,
            values: machine.room::<u8>(room)?,
            ..WriteHeadsParameters::of(shape, ROWS)
        };
        Ok(Self { qkv, call })
    }

    fn run(&mut self, machine: &mut Machine, held: KvDtype) -> Result<()> {
        self.call.qkv = machine.put(&self.qkv)?;
        machine.run(|on| write_heads(on, held, &self.call))
    }
}

/// Every byte of both pools: what no row belongs to stays as it was.
fn write(machine: &mut Machine, shape: AttentionShape, held: KvDtype) -> Result<Error> {
    let mut setup = Setup::new(machine, shape, held)?;
    let (elements, width) = (shape.row_elements(), shape.kv.head_width);
    let of_row = |row: usize| row * elements + shape.query_elements();
    // A head with something that is no number, one of zeros, one that is too small for a scale.
    setup.qkv[of_row(2) + 3] = f32::NAN;
    setup.qkv[of_row(4)..][..width].fill(0.0);
    setup.qkv[of_row(5)..][..width].fill(1e-40);
    setup.run(machine, held)?;
    let mut error = Error::unless(true);
    let pools = [setup.call.keys, setup.call.values];
    for (pool, first) in pools.into_iter().zip([0, shape.kv_elements()]) {
        let mut expected = vec![0xff; BLOCKS * shape.kv.kv_heads * held.tile_bytes(shape.kv)];
        let slots = sequences().into_iter().flat_map(|sequence| sequence.slots().collect::<Vec<_>>());
        for (row, (block, slot)) in slots.enumerate() {
            for head in 0..shape.kv.kv_heads {
                let values = &setup.qkv[of_row(row) + first + head * width..][..width];
                let bytes = held.tile_bytes(shape.kv);
                let tile = &mut expected[(block * shape.kv.kv_heads + head) * bytes..][..bytes];
                put_head(tile, (shape.kv, held, slot), values);
            }
        }
        let found = machine.get::<u8>(pool, expected.len())?;
        error = error.max(Error::unless(found == expected));
    }
    Ok(error)
}

/// Writes a head's elements to its slot of a tile as a device has it.
fn put_head(tile: &mut [u8], (layout, held, slot): (KvLayout, KvDtype, usize), values: &[f32]) {
    let mut padded = values.to_vec();
    padded.resize(layout.padded_width(), 0.0);
    let bytes = match held {
        KvDtype::Float32 => padded.iter().flat_map(|value| value.to_le_bytes()).collect(),
        KvDtype::Bfloat16 => padded.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        KvDtype::Float16 => padded.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        KvDtype::Int8 | KvDtype::Float8 => {
            let (scale, elements) = eight_bits(held, &padded);
            let place = KvLayout::SLOTS * padded.len() + slot * size_of::<f32>();
            tile[place..][..size_of::<f32>()].copy_from_slice(&scale.to_le_bytes());
            elements
        }
    };
    let bytes: Vec<u8> = bytes;
    tile[slot * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
}

/// The scale of some numbers, and their elements of eight bits.
fn eight_bits(held: KvDtype, values: &[f32]) -> (f32, Vec<u8>) {
    let most = if held == KvDtype::Float8 { 448.0 } else { 127.0 };
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = largest / most;
    if values.iter().any(|value| !value.is_finite()) {
        return (f32::NAN, vec![0; values.len()]);
    }
    if scale < f32::MIN_POSITIVE {
        return (0.0, vec![0; values.len()]);
    }
    let element = |value: &f32| {
        let value = value * (1.0 / scale);
        match held {
            KvDtype::Float8 => nearest_float(value),
            KvDtype::Float32 | KvDtype::Bfloat16 | KvDtype::Float16 | KvDtype::Int8 => {
                value.round_ties_even() as i8 as u8
            }
        }
    };
    (scale, values.iter().map(element).collect())
}

/// The e4m3 nearest to a number, by looking at all of them; in the middle the even one.
fn nearest_float(value: f32) -> u8 {
    let distance = |element: u8| (f64::from(float_of(element)) - f64::from(value.abs())).abs();
    let nearest =
        (0..=0x7e_u8).reduce(|best, element| match distance(element).total_cmp(&distance(best)) {
            std::cmp::Ordering::Less => element,
            std::cmp::Ordering::Equal if element % 2 == 0 => element,
            std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => best,
        });
    nearest.unwrap_or(0) | if value.is_sign_negative() { 0x80 } else { 0 }
}

/// What an e4m3 is, by its definition.
pub(super) fn float_of(element: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(element >> 3 & 15), f32::from(element & 7));
    let size = match exponent {
        0 => mantissa / 8.0 * 2.0_f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
    };
    if element & 0x80 == 0 { size } else { -size }
}

/// What numbers become by being held so.
pub(super) fn rounded(held: KvDtype, values: &[f32]) -> Vec<f32> {
    match held {
        KvDtype::Float32 => values.to_vec(),
        KvDtype::Bfloat16 => values.iter().map(|value| bf16::from_f32(*value).to_f32()).collect(),
        KvDtype::Float16 => values.iter().map(|value| f16::from_f32(*value).to_f32()).collect(),
        KvDtype::Int8 | KvDtype::Float8 => {
            let (scale, elements) = eight_bits(held, values);
            let integer = |element: u8| f32::from(element.cast_signed());
            let number =
                |element| if held == KvDtype::Float8 { float_of(element) } else { integer(element) };
            elements.into_iter().map(|element| number(element) * scale).collect()
        }
    }
}

/// Queries where they were, keys and values in pools of f32.
fn norm_and_turn(
    machine: &mut Machine,
    shape: AttentionShape,
    (is_normed, rotary): (bool, usize),
) -> Result<Error> {
    let held = KvDtype::Float32;
    let mut setup = Setup::new(machine, shape, held)?;
    let (elements, width) = (shape.row_elements(), shape.kv.head_width);
    let mut numbers = Numbers::new(rotary as u64);
    let (weights, table) = (numbers.values(2 * width), numbers.values(POSITIONS * rotary));
    if is_normed {
        setup.call.weights = machine.put(&weights)?;
        setup.call.epsilon = EPSILON;
    }
    if rotary > 0 {
        setup.call.table = machine.put(&table)?;
        setup.call.rotary = rotary as u32;
    }
    setup.run(machine, held)?;
    let isa = Isa::of_this_machine();
    let expected = Tensor::from_slice(&setup.qkv, (ROWS, elements), &Device::Cpu)?;
    if is_normed {
        let weights = Tensor::from_vec(weights, (2, width), &Device::Cpu)?;
        expected.inplace_op2(&weights, &HeadNorm { shape, epsilon: EPSILON, isa })?;
    }
    let sequences = sequences();
    if rotary > 0 {
        let table = Tensor::from_vec(table, (POSITIONS, rotary), &Device::Cpu)?;
        expected.inplace_op2(&table, &Rope { shape, rows: &Placed::on_cpu(&sequences), isa })?;
    }
    let expected: Vec<Vec<f32>> = expected.to_vec2()?;
    let queries = machine.get::<f32>(setup.call.qkv, ROWS * elements)?;
    let keys = slots_of(machine, setup.call.keys, shape.kv)?;
    let values = slots_of(machine, setup.call.values, shape.kv)?;
    let mut error = Error::unless(true);
    for (row, expected) in expected.iter().enumerate() {
        let (of_queries, of_kv) = expected.split_at(shape.query_elements());
        let (of_keys, of_values) = of_kv.split_at(shape.kv_elements());
        let queries = &queries[row * elements..][..shape.query_elements()];
        error = error.max(Error::of(queries, of_queries, F32)).max(Error::of(&keys[row], of_keys, F32));
        if values[row] != of_values {
            return Ok(Error::unless(false));
        }
    }
    Ok(error)
}

/// Of each row what is in its slots of a pool of f32, head by head.
fn slots_of(machine: &Machine, pool: Address, layout: KvLayout) -> Result<Vec<Vec<f32>>> {
    let (heads, width) = (layout.kv_heads, layout.padded_width());
    let found = machine.get::<f32>(pool, BLOCKS * heads * KvLayout::SLOTS * width)?;
    let row = |(block, slot): (usize, usize)| {
        let head = |head| ((block * heads + head) * KvLayout::SLOTS + slot) * width;
        (0..heads).flat_map(|at| found[head(at)..][..layout.head_width].to_vec()).collect()
    };
    Ok(sequences().iter().flat_map(|sequence| sequence.slots().map(row).collect::<Vec<_>>()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_of_eight_bits_are_as_they_are_defined() {
        let numbers = [(0x00, 0.0), (0x01, 0.001_953_125), (0x08, 0.015_625), (0x38, 1.0), (0x7e, 448.0)];
        for (element, number) in numbers {
            assert_eq!(float_of(element), number, "{element:#x}");
            assert_eq!(nearest_float(number), element, "{number}");
        }
        assert_eq!(float_of(0xb8), -1.0);
        // Halfway between two.
        assert_eq!(
            (nearest_float(1.0625), nearest_float(1.1875), nearest_float(-1.06)),
            (0x38, 0x3a, 0xb8)
        );
    }
}
