//! Attention over scattered blocks: against the CPU, and against itself cut in other ways.

use candle_core::{Device, Result, Tensor};
use lockstep_proto::{BlockId, Blocks, Position};

use super::heads::{name, rounded};
use super::{BF16, Checks, Error, F16, F32, Machine, Numbers};
use crate::batch::BatchSequence;
use crate::kv::layout::{KvLayout, Pool};
use crate::kv::{KvDtype, KvPool};
use crate::ops::attention::{Attention, AttentionShape};
use crate::ops::cpu::isa::Isa;
use crate::ops::cuda::attention::{AttentionParameters, Cut, HostRows, Tile, attend};
use crate::ops::cuda::heads::{WriteHeadsParameters, write_heads};
use crate::ops::cuda::kernel::Address;
use crate::ops::placed::Placed;
use crate::ops::write_kv::WriteKv;

const BLOCKS: u32 = 101;

/// One model's attention, what its KV is held in, and the lengths of its sequences with how many of the last rows
/// attend.
struct Case {
    shape: AttentionShape,
    held: KvDtype,
    sequences: &'static [(usize, usize)],
}

fn shape((query_heads, kv_heads, head_width): (usize, usize, usize)) -> AttentionShape {
    let scale = 1.0 / (head_width as f32).sqrt();
    let kv = KvLayout { kv_heads, head_width };
    AttentionShape { query_heads, kv, scale, window: None, softcap: None }
}

/// A decoding sequence of each interesting length, and prompts in one chunk and in the middle.
const MIXED: &[(usize, usize)] = &[(1, 1), (32, 1), (33, 1), (257, 1), (5, 5), (300, 7), (40, 40)];
const SHORT: &[(usize, usize)] = &[(37, 1), (20, 20)];
/// Rows that begin and end in the middle of a split, and rows on both sides of a split's end.
const LONG: &[(usize, usize)] = &[(600, 1), (519, 9)];

pub(super) const ALL: [KvDtype; 5] =
    [KvDtype::Float32, KvDtype::Bfloat16, KvDtype::Float16, KvDtype::Int8, KvDtype::Float8];

pub(super) fn check(machine: &mut Machine, checks: &mut Checks<'_>) {
    let heads = [
        ((4, 2, 20), MIXED),
        ((8, 1, 64), SHORT),
        ((2, 2, 80), SHORT),
        ((6, 2, 96), SHORT),
        ((4, 1, 128), MIXED),
        ((2, 1, 256), SHORT),
    ];
    for held in ALL {
        for (sizes, sequences) in heads {
            agree(machine, checks, &Case { shape: shape(sizes), held, sequences }, "all seen");
        }
        let plain = shape((4, 2, 20));
        let variants = [
            ("a window of 17", AttentionShape { window: Some(17), ..plain }),
            ("a window of 260", AttentionShape { window: Some(260), ..plain }),
            ("scores capped", AttentionShape { softcap: Some(2.0), ..plain }),
        ];
        for (what, shape) in variants {
            let case = Case { shape, held, sequences: MIXED };
            agree(machine, checks, &case, what);
            same(machine, checks, &case, what);
        }
        let windowed = AttentionShape { window: Some(300), ..shape((3, 1, 64)) };
        same(machine, checks, &Case { shape: windowed, held, sequences: LONG }, "a window of 300");
    }
    for held in [KvDtype::Bfloat16, KvDtype::Float16, KvDtype::Int8] {
        for sizes in [(32, 1, 32), (71, 1, 64)] {
            agree(machine, checks, &Case { shape: shape(sizes), held, sequences: SHORT }, "all seen");
        }
        for sizes in [(2, 1, 96), (4, 1, 128), (2, 1, 256)] {
            same(machine, checks, &Case { shape: shape(sizes), held, sequences: MIXED }, "all seen");
        }
    }
}

fn allowed(held: KvDtype) -> f32 {
    match held {
        KvDtype::Float32 => F32,
        KvDtype::Float16 => F16,
        KvDtype::Bfloat16 | KvDtype::Int8 | KvDtype::Float8 => BF16,
    }
}

fn called(case: &Case, what: &str) -> String {
    let AttentionShape { query_heads, kv, .. } = case.shape;
    format!("{query_heads}/{} heads of {}, {what}, {}", kv.kv_heads, kv.head_width, name(case.held))
}

fn agree(machine: &mut Machine, checks: &mut Checks<'_>, case: &Case, what: &str) {
    checks.check(format!("attention, {}", called(case, what)), || agrees(machine, case));
    machine.clear();
}

fn same(machine: &mut Machine, checks: &mut Checks<'_>, case: &Case, what: &str) {
    let name = format!("attention cut in other ways, {}", called(case, what));
    checks.check(name, || cut_in_other_ways(machine, case));
    machine.clear();
}

/// Keys and values of all positions, and the queries that attend.
struct Setup {
    /// (rows of all positions, elements): sequence after sequence.
    all: Vec<f32>,
    /// Every position of every sequence.
    history: Vec<BatchSequence>,
    /// The last rows of each.
    batch: Vec<BatchSequence>,
    /// (rows of the batch, elements)
    qkv: Vec<f32>,
    keys: Address,
    values: Address,
}

impl Setup {
    fn new(machine: &mut Machine, case: &Case) -> Result<Self> {
        let elements = case.shape.row_elements();
        let total: usize = case.sequences.iter().map(|(length, _)| length).sum();
        let all = Numbers::new(elements as u64).values(total * elements);
        let (mut history, mut batch, mut qkv) = (Vec::new(), Vec::new(), Vec::new());
        let (mut first, mut first_of_batch, mut block) = (0, 0, 0);
        for (length, rows) in case.sequences.iter().copied() {
            // Blocks are scattered: neighbours in a table are not neighbours in the pool.
            let ids = (block..block + length.div_ceil(KvLayout::SLOTS) as u32)
                .map(|at| BlockId(at * 37 % BLOCKS));
            let blocks: Vec<BlockId> = ids.collect();
            block += blocks.len() as u32;
            let at = Position((length - rows) as u32);
            history.push(BatchSequence {
                first_row: first,
                rows: length,
                first_position: Position(0),
                blocks: blocks.clone(),
            });
            batch.push(BatchSequence { first_row: first_of_batch, rows, first_position: at, blocks });
            qkv.extend_from_slice(&all[(first + length - rows) * elements..(first + length) * elements]);
            first += length;
            first_of_batch += rows;
        }
        let room = BLOCKS as usize * case.shape.kv.kv_heads * case.held.tile_bytes(case.shape.kv);
        // What nobody wrote is no number, and must not be read.
        let (keys, values) = (machine.room::<u8>(room)?, machine.room::<u8>(room)?);
        let rows = HostRows::new(&history, 1, case.held);
        let call = WriteHeadsParameters {
            qkv: machine.put(&all)?,
            slots: machine.put(&rows.slots)?,
            keys,
            values,
            ..WriteHeadsParameters::of(case.shape, total)
        };
        machine.run(|on| write_heads(on, case.held, &call))?;
        Ok(Self { all, history, batch, qkv, keys, values })
    }

    fn rows(&self) -> usize {
        self.batch.iter().map(|sequence| sequence.rows).sum()
    }

    /// Has some sequences attend, each group of tiles as `cut` says.
    fn attend(
        &self,
        machine: &mut Machine,
        case: &Case,
        sequences: &[BatchSequence],
        cut: impl Fn(&[Tile]) -> Cut,
    ) -> Result<Vec<f32>> {
        let shape = case.shape;
        let rows = HostRows::new(sequences, shape.query_heads / shape.kv.kv_heads, case.held);
        let output = machine.room::<f32>(self.rows() * shape.query_elements())?;
        let (qkv, tables) = (machine.put(&self.qkv)?, machine.put(&rows.tables)?);
        for tiles in &rows.tiles {
            let cut = cut(tiles);
            let call = AttentionParameters {
                qkv,
                keys: self.keys,
                values: self.values,
                tiles: machine.put(tiles)?,
                tables,
                output,
                partial: machine.room::<f32>(cut.partial_elements(shape, tiles))?,
                ..AttentionParameters::of(shape, cut)
            };
            machine.run(|on| attend(on, case.held, &call, tiles.len()))?;
        }
        machine.get(output, self.rows() * shape.query_elements())
    }
}

fn agrees(machine: &mut Machine, case: &Case) -> Result<Error> {
    let setup = Setup::new(machine, case)?;
    let apart = |tiles: &[Tile]| Cut::of(case.shape, case.held, tiles);
    let found = setup.attend(machine, case, &setup.batch, apart)?;
    // The CPU holds no floats of eight bits.
    let expected = if case.held == KvDtype::Float8 { plain(&setup, case) } else { on_cpu(&setup, case)? };
    Ok(Error::of(&found, &expected, allowed(case.held)))
}

fn on_cpu(setup: &Setup, case: &Case) -> Result<Vec<f32>> {
    let (shape, elements) = (case.shape, case.shape.row_elements());
    let pool = KvPool::allocate((shape.kv, 1), case.held, Blocks(BLOCKS), &Device::Cpu);
    let pool = pool.map_err(candle_core::Error::wrap)?;
    let all = Tensor::from_slice(&setup.all, (setup.all.len() / elements, elements), &Device::Cpu)?;
    let history = Placed::on_cpu(&setup.history);
    let kv = &pool.layers[0];
    kv.keys.inplace_op2(&all, &WriteKv { pool: Pool::Keys, shape, rows: &history })?;
    kv.values.inplace_op2(&all, &WriteKv { pool: Pool::Values, shape, rows: &history })?;
    let qkv = Tensor::from_slice(&setup.qkv, (setup.rows(), elements), &Device::Cpu)?;
    let placed = Placed::on_cpu(&setup.batch);
    let op = Attention { shape, rows: &placed, isa: Isa::of_this_machine() };
    qkv.apply_op3_no_bwd(&kv.keys, &kv.values, &op)?.flatten_all()?.to_vec1()
}

/// By the definition, over keys and values as they are held.
fn plain(setup: &Setup, case: &Case) -> Vec<f32> {
    let mut output = Vec::new();
    for (history, batch) in setup.history.iter().zip(&setup.batch) {
        for position in batch.first_position.index()..history.rows {
            for head in 0..case.shape.query_heads {
                output.extend(plain_head(&setup.all, case, (history.first_row, position), head));
            }
        }
    }
    output
}

/// Of the row at a position of a sequence whose first row of all this is.
fn plain_head(
    all: &[f32],
    case: &Case,
    (first_row, position): (usize, usize),
    query_head: usize,
) -> Vec<f32> {
    let (shape, width) = (case.shape, case.shape.kv.head_width);
    let head = |row: usize, at: usize| &all[row * shape.row_elements() + at * width..][..width];
    let key_head = shape.query_heads + query_head / (shape.query_heads / shape.kv.kv_heads);
    let value_head = key_head + shape.kv.kv_heads;
    let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let rows = first_row + first..=first_row + position;
    let query = head(first_row + position, query_head);
    let score = |row| {
        let key = rounded(case.held, head(row, key_head));
        let score = query.iter().zip(&key).map(|(q, k)| q * k).sum::<f32>() * shape.scale;
        shape.softcap.map_or(score, |cap| cap * (score / cap).tanh())
    };
    let scores: Vec<f32> = rows.clone().map(score).collect();
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
    let mass: f32 = weights.iter().sum();
    let mut sums = vec![0.0; width];
    for (weight, row) in weights.iter().zip(rows) {
        let values = rounded(case.held, head(row, value_head));
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight / mass * value);
    }
    sums
}

/// The same bits with splits apart and one by one, in chunks of three rows, and row by row.
fn cut_in_other_ways(machine: &mut Machine, case: &Case) -> Result<Error> {
    let setup = Setup::new(machine, case)?;
    let apart = |tiles: &[Tile]| Cut::of(case.shape, case.held, tiles);
    let one_by_one = |tiles: &[Tile]| Cut::one_by_one(case.shape, tiles);
    let in_chunks = |rows| -> Vec<BatchSequence> {
        setup.batch.iter().flat_map(|sequence| chunks_of(sequence, rows)).collect()
    };
    let serial = setup.attend(machine, case, &setup.batch, one_by_one)?;
    let mut error = Error::unless(!serial.iter().any(|value| value.is_nan()));
    for other in [
        setup.attend(machine, case, &setup.batch, apart)?,
        setup.attend(machine, case, &in_chunks(3), one_by_one)?,
        setup.attend(machine, case, &in_chunks(1), apart)?,
    ] {
        error = error.max(Error::of_bits(&other, &serial));
    }
    Ok(error)
}

fn chunks_of(sequence: &BatchSequence, rows: usize) -> Vec<BatchSequence> {
    let chunk = |first: usize| BatchSequence {
        first_row: sequence.first_row + first,
        rows: rows.min(sequence.rows - first),
        first_position: Position(sequence.first_position.0 + first as u32),
        blocks: sequence.blocks.clone(),
    };
    (0..sequence.rows).step_by(rows).map(chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_into_tiles_of_their_own_sequence() {
        let sequence = |first_row, rows, position, blocks: &[u32]| BatchSequence {
            first_row,
            rows,
            first_position: Position(position),
            blocks: blocks.iter().copied().map(BlockId).collect(),
        };
        let batch = [sequence(0, 1, 16, &[9, 4, 7]), sequence(1, 10, 3, &[2])];
        let rows = HostRows::new(&batch, 8, KvDtype::Float32);
        assert_eq!(rows.positions, [16, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(rows.slots[..3], [64, 35, 36]);
        // A block that is not reached yet is left out.
        assert_eq!(rows.tables, [9, 4, 2]);
        let tile = |first_row, rows, first_position, table| Tile { first_row, rows, first_position, table };
        assert_eq!(rows.tiles[0], [tile(0, 1, 16, 0)]);
        assert_eq!(rows.tiles[1], [tile(9, 2, 11, 2), tile(5, 4, 7, 2), tile(1, 4, 3, 2)]);
        // On tensor cores a tile has more rows, and one at least.
        let rows = HostRows::new(&batch, 8, KvDtype::Bfloat16);
        assert_eq!(rows.tiles[1], [tile(1, 10, 3, 2)]);
        assert_eq!(HostRows::new(&batch, 71, KvDtype::Int8).tiles[1].len(), 10);
    }

    #[test]
    fn splits_are_apart_where_the_device_would_be_idle() {
        let shape = shape((8, 2, 64));
        let tile = |first_position| Tile { first_row: 0, rows: 1, first_position, table: 0 };
        let of = |shape, tiles: &[Tile]| Cut::of(shape, KvDtype::Bfloat16, tiles);
        assert_eq!(of(shape, &[tile(255)]), Cut { tile_queries: 4, splits: 0 });
        assert_eq!(of(shape, &[tile(256), tile(1000)]), Cut { tile_queries: 4, splits: 4 });
        let windowed = AttentionShape { window: Some(100), ..shape };
        assert_eq!(of(windowed, &[tile(600)]).splits, 2);
        assert_eq!(of(shape, &[tile(1000); 528]).splits, 0);
        assert_eq!(of(shape, &[]), Cut { tile_queries: 0, splits: 0 });
        // Without tensor cores each of four queries has a warp.
        assert_eq!(Cut::of(shape, KvDtype::Float32, &[tile(1000); 132]).splits, 0);
    }
}
