//! Attention over scattered blocks: against the CPU, and against itself cut in other ways.

use candle_core::{DType, Device, Result, Tensor};
use lockstep_proto::{BlockId, Blocks, Position};

use super::{BF16, Checks, EXACT, Error, F32, Machine, Numbers};
use crate::batch::BatchSequence;
use crate::kv::layout::{KvLayout, Pool};
use crate::kv::{KvDtype, KvPool};
use crate::ops::attention::{Attention, AttentionShape};
use crate::ops::cpu::isa::Isa;
use crate::ops::cuda::attention::{AttentionParameters, Cut, HostRows, Tile, attend};
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::rows::{WriteKvParameters, write_kv};
use crate::ops::placed::Placed;
use crate::ops::write_kv::WriteKv;

const BLOCKS: u32 = 101;

/// One model's attention, what its KV is held in, and the lengths of its sequences with how many of the last rows
/// attend.
struct Case {
    shape: AttentionShape,
    held: DType,
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

pub(super) fn check(machine: &mut Machine, checks: &mut Checks<'_>) {
    let heads = [
        ((4, 2, 20), MIXED),
        ((8, 1, 64), SHORT),
        ((2, 2, 80), SHORT),
        ((4, 1, 128), MIXED),
        ((2, 1, 256), SHORT),
    ];
    for held in [DType::F32, DType::BF16] {
        for (sizes, sequences) in heads {
            let case = Case { shape: shape(sizes), held, sequences };
            let name =
                format!("attention, {}/{} heads of {}, {}", sizes.0, sizes.1, sizes.2, held.as_str());
            checks.check(name, || agrees(machine, &case));
            machine.clear();
        }
        let plain = shape((4, 2, 20));
        let variants = [
            ("a window of 17", AttentionShape { window: Some(17), ..plain }),
            ("a window of 260", AttentionShape { window: Some(260), ..plain }),
            ("scores capped", AttentionShape { softcap: Some(2.0), ..plain }),
        ];
        for (what, shape) in variants {
            let case = Case { shape, held, sequences: MIXED };
            checks.check(format!("attention, {what}, {}", held.as_str()), || agrees(machine, &case));
            machine.clear();
            let name = format!("attention cut in other ways, {what}, {}", held.as_str());
            checks.check(name, || cut_in_other_ways(machine, &case));
            machine.clear();
        }
    }
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
        let room = BLOCKS as usize * case.shape.kv.kv_heads * KvLayout::SLOTS * case.shape.kv.head_width;
        // What nobody wrote is no number, and must not be read.
        let (keys, values) = (machine.room::<f32>(room)?, machine.room::<f32>(room)?);
        let rows = HostRows::new(&history, 1);
        let (source, slots) = (machine.put(&all)?, machine.put(&rows.slots)?);
        for (pool, first) in [
            (keys, case.shape.query_elements()),
            (values, case.shape.query_elements() + case.shape.kv_elements()),
        ] {
            let call = WriteKvParameters {
                pool,
                qkv: source,
                slots,
                rows: total as u32,
                row_elements: elements as u32,
                first_element: first as u32,
                heads: case.shape.kv.kv_heads as u32,
                width: case.shape.kv.head_width as u32,
            };
            machine.run(|on| write_kv(on, case.held, &call))?;
        }
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
        let rows = HostRows::new(sequences, shape.query_heads / shape.kv.kv_heads);
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
    let found = setup.attend(machine, case, &setup.batch, |tiles| Cut::of(case.shape, tiles))?;
    let (shape, elements) = (case.shape, case.shape.row_elements());
    let held = if case.held == DType::BF16 { KvDtype::Bfloat16 } else { KvDtype::Float32 };
    let pool = KvPool::allocate((shape.kv, 1), held, Blocks(BLOCKS), &Device::Cpu);
    let pool = pool.map_err(candle_core::Error::wrap)?;
    let all = Tensor::from_slice(&setup.all, (setup.all.len() / elements, elements), &Device::Cpu)?;
    let history = Placed::on_cpu(&setup.history);
    let kv = &pool.layers[0];
    kv.keys.inplace_op2(&all, &WriteKv { pool: Pool::Keys, shape, rows: &history })?;
    kv.values.inplace_op2(&all, &WriteKv { pool: Pool::Values, shape, rows: &history })?;
    let qkv = Tensor::from_slice(&setup.qkv, (setup.rows(), elements), &Device::Cpu)?;
    let placed = Placed::on_cpu(&setup.batch);
    let op = Attention { shape, rows: &placed, isa: Isa::of_this_machine() };
    let expected = qkv.apply_op3_no_bwd(&kv.keys, &kv.values, &op)?.flatten_all()?.to_vec1()?;
    Ok(Error::of(&found, &expected, if case.held == DType::BF16 { BF16 } else { F32 }))
}

/// The same bits with splits apart and one by one, and row by row instead of in chunks.
fn cut_in_other_ways(machine: &mut Machine, case: &Case) -> Result<Error> {
    let setup = Setup::new(machine, case)?;
    let serial = setup.attend(machine, case, &setup.batch, |tiles| Cut::one_by_one(case.shape, tiles))?;
    let apart = setup.attend(machine, case, &setup.batch, |tiles| Cut::of(case.shape, tiles))?;
    let rows: Vec<BatchSequence> = setup.batch.iter().flat_map(row_by_row).collect();
    let single = setup.attend(machine, case, &rows, |tiles| Cut::of(case.shape, tiles))?;
    Ok(Error::of(&apart, &serial, EXACT).max(Error::of(&single, &serial, EXACT)))
}

fn row_by_row(sequence: &BatchSequence) -> Vec<BatchSequence> {
    let row = |row: usize| BatchSequence {
        first_row: sequence.first_row + row,
        rows: 1,
        first_position: Position(sequence.first_position.0 + row as u32),
        blocks: sequence.blocks.clone(),
    };
    (0..sequence.rows).map(row).collect()
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
        let rows = HostRows::new(&batch, 8);
        assert_eq!(rows.positions, [16, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(rows.slots[..3], [64, 35, 36]);
        // A block that is not reached yet is left out.
        assert_eq!(rows.tables, [9, 4, 2]);
        let tile = |first_row, rows, first_position, table| Tile { first_row, rows, first_position, table };
        assert_eq!(rows.tiles[0], [tile(0, 1, 16, 0)]);
        assert_eq!(rows.tiles[1], [tile(1, 4, 3, 2), tile(5, 4, 7, 2), tile(9, 2, 11, 2)]);
    }

    #[test]
    fn splits_are_apart_where_the_device_would_be_idle() {
        let shape = shape((8, 2, 64));
        let tile = |first_position| Tile { first_row: 0, rows: 1, first_position, table: 0 };
        assert_eq!(Cut::of(shape, &[tile(255)]), Cut { tile_queries: 4, splits: 0 });
        assert_eq!(Cut::of(shape, &[tile(256), tile(1000)]), Cut { tile_queries: 4, splits: 4 });
        let windowed = AttentionShape { window: Some(100), ..shape };
        assert_eq!(Cut::of(windowed, &[tile(600)]).splits, 2);
        assert_eq!(Cut::of(shape, &[tile(1000); 132]).splits, 0);
        assert_eq!(Cut::of(shape, &[]), Cut { tile_queries: 0, splits: 0 });
    }
}
