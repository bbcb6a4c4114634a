//! Attention over scattered blocks against the plain one, and against itself in other batches.

use half::bf16;
use lockstep_proto::{BlockId, Position};

use super::super::portable::Portable;
use super::*;
use crate::kv::layout::Pool;
use crate::ops::cpu::kv_element::KvStep;
use crate::ops::cpu::simd::round_to_bf16;
use crate::ops::reference::{Random, assert_close, attention as plain};

const BLOCKS: usize = 101;

/// What tests know of an element.
trait Tested: KvElement {
    /// How far the result may be off.
    const TOLERANCE: f32;
    /// What must never be read.
    const BROKEN: Self;
    /// A query's element that is read as it is.
    fn exact(value: f32) -> f32;
    /// The `at`-th element.
    fn read(steps: &[Self::Step], at: usize) -> f32;
}

impl Tested for f32 {
    const TOLERANCE: f32 = 1e-5;
    const BROKEN: f32 = f32::NAN;

    fn exact(value: f32) -> f32 {
        value
    }

    fn read(steps: &[f32], at: usize) -> f32 {
        steps[at]
    }
}

impl Tested for bf16 {
    /// Weights are rounded to eight bits.
    const TOLERANCE: f32 = 3e-3;
    const BROKEN: bf16 = bf16::NAN;

    fn exact(value: f32) -> f32 {
        round_to_bf16(value).to_f32()
    }

    fn read(steps: &[[bf16; 2]], at: usize) -> f32 {
        steps.as_flattened()[at].to_f32()
    }
}

impl Tested for u8 {
    const TOLERANCE: f32 = 3e-3;
    /// Scales of such bytes are no numbers.
    const BROKEN: u8 = 0xff;

    fn exact(value: f32) -> f32 {
        round_to_bf16(value).to_f32()
    }

    fn read(steps: &[[bf16; 2]], at: usize) -> f32 {
        steps.as_flattened()[at].to_f32()
    }
}

/// A pool of random KV and one sequence's scattered table over it.
struct Context<K> {
    shape: AttentionShape,
    keys: Vec<K>,
    values: Vec<K>,
    blocks: Vec<BlockId>,
    /// (positions, all heads, head width)
    qkv: Vec<f32>,
}

impl<K: Tested> Context<K> {
    fn new(shape: AttentionShape, positions: usize) -> Self {
        let mut random = Random::new(9);
        let elements = BLOCKS * shape.kv.kv_heads * K::tile_elements(shape.kv);
        let width = (shape.query_heads + 2 * shape.kv.kv_heads) * shape.kv.head_width;
        let mut context = Self {
            shape,
            // Slots that were never written hold what must never be read.
            keys: vec![K::BROKEN; elements],
            values: vec![K::BROKEN; elements],
            blocks: (0..positions.div_ceil(16)).map(|block| BlockId((block * 7 % BLOCKS) as u32)).collect(),
            qkv: (0..positions * width).map(|_| K::exact(random.value())).collect(),
        };
        for position in 0..positions {
            for head in 0..shape.kv.kv_heads {
                for pool in [Pool::Keys, Pool::Values] {
                    context.write(pool, (position, head), &random.values(shape.kv.head_width));
                }
            }
        }
        context
    }

    fn write(&mut self, pool: Pool, (position, kv_head): (usize, usize), elements: &[f32]) {
        let tile = K::tile(self.shape.kv, self.blocks[position / 16].index(), kv_head);
        let tiles = match pool {
            Pool::Keys => &mut self.keys,
            Pool::Values => &mut self.values,
        };
        K::write(&mut tiles[tile], (self.shape.kv, pool, position % 16), elements);
    }

    /// (positions, width) of one head, in order.
    fn plain_kv(&self, pool: Pool, kv_head: usize, positions: Range<usize>) -> Vec<f32> {
        let (kv, step) = (self.shape.kv, K::Step::ELEMENTS);
        let tiles = match pool {
            Pool::Keys => &self.keys,
            Pool::Values => &self.values,
        };
        let mut scratch = vec![K::Step::ZERO; K::scratch_steps(kv)];
        let mut found = Vec::new();
        for position in positions {
            let tile = K::tile(kv, self.blocks[position / 16].index(), kv_head);
            let steps = K::steps(Portable, &tiles[tile], pool, &mut scratch);
            found.extend((0..kv.head_width).map(|element| match pool {
                Pool::Keys => K::read(steps, kv.key(position % 16, element, step)),
                Pool::Values => K::read(steps, kv.value(position % 16, element, step)),
            }));
        }
        found
    }

    /// The rows of these chunks of the sequence, all in one call.
    fn attend(&self, isa: Isa, chunks: &[(usize, usize)]) -> Vec<f32> {
        let width = self.shape.row_elements();
        let mut qkv = Vec::new();
        let mut sequences = Vec::new();
        for (first, rows) in chunks {
            sequences.push(BatchSequence {
                first_row: qkv.len() / width,
                rows: *rows,
                first_position: Position(*first as u32),
                blocks: self.blocks.clone(),
            });
            qkv.extend_from_slice(&self.qkv[first * width..(first + rows) * width]);
        }
        let mut output = vec![f32::NAN; qkv.len() / width * self.shape.query_elements()];
        let (keys, values) = (&self.keys[..], &self.values[..]);
        let input = AttentionInput { shape: self.shape, sequences: &sequences, qkv: &qkv, keys, values };
        attend(isa, input, &mut output);
        output
    }

    fn plain(&self, positions: Range<usize>) -> Vec<f32> {
        let (heads, width) = (self.shape.query_heads, self.shape.kv.head_width);
        let mut output = Vec::new();
        for position in positions {
            for head in 0..heads {
                let first = self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
                let kv_head = head / (heads / self.shape.kv.kv_heads);
                let keys = self.plain_kv(Pool::Keys, kv_head, first..position + 1);
                let values = self.plain_kv(Pool::Values, kv_head, first..position + 1);
                let query = &self.qkv[position * self.shape.row_elements() + head * width..][..width];
                output.extend(plain(query, &keys, &values, (self.shape.scale, self.shape.softcap)));
            }
        }
        output
    }
}

fn shape(
    (query_heads, kv_heads, head_width): (usize, usize, usize),
    window: Option<usize>,
    softcap: Option<f32>,
) -> AttentionShape {
    AttentionShape { query_heads, kv: KvLayout { kv_heads, head_width }, scale: 1.7, window, softcap }
}

fn shapes() -> Vec<AttentionShape> {
    vec![
        shape((1, 1, 8), None, None),
        shape((8, 4, 32), None, None),
        shape((6, 2, 20), None, Some(0.7)),
        shape((9, 1, 16), None, None),
        shape((4, 2, 32), Some(21), None),
        shape((4, 2, 32), Some(21), Some(50.0)),
        shape((2, 1, 48), None, None),
        shape((7, 1, 80), None, None),
        shape((33, 1, 16), None, None),
    ]
}

/// `count` positions from `first` on in chunks of `size`.
fn chunks(first: usize, count: usize, size: usize) -> Vec<(usize, usize)> {
    (first..first + count).step_by(size).map(|at| (at, size.min(first + count - at))).collect()
}

fn check<K: Tested>(shape: AttentionShape) {
    const POSITIONS: usize = 70;
    let context = Context::<K>::new(shape, POSITIONS);
    let expected = context.plain(0..POSITIONS);
    let width = shape.query_elements();
    for isa in Isa::all_of_this_machine() {
        let whole = context.attend(isa, &[(0, POSITIONS)]);
        assert_close(&whole, &expected, K::TOLERANCE, &format!("{isa} {shape:?}"));
        let alone: Vec<f32> = (0..POSITIONS).flat_map(|row| context.attend(isa, &[(row, 1)])).collect();
        assert_eq!(alone, whole, "{isa} {shape:?}");
        for chunk in [3, 7, 16, 33] {
            let found = context.attend(isa, &chunks(0, POSITIONS, chunk));
            assert_eq!(found, whole, "{isa} {shape:?} chunks of {chunk}");
        }
        let mixed = context.attend(isa, &[(69, 1), (16, 20), (3, 1)]);
        let rows = |first: usize, count: usize| &whole[first * width..(first + count) * width];
        assert_eq!(mixed, [rows(69, 1), rows(16, 20), rows(3, 1)].concat(), "{isa} {shape:?}");
    }
}

#[test]
fn attention_is_the_plain_one_and_the_same_to_the_bit_in_any_batch() {
    for shape in shapes() {
        check::<f32>(shape);
        check::<bf16>(shape);
        check::<u8>(shape);
    }
}

/// The last of a long context's rows, around the borders of splits, alone, in chunks and as one prompt of which
/// no split is worked on alone.
fn check_long<K: Tested>(shape: AttentionShape) {
    const POSITIONS: usize = 2 * SPLIT + 9;
    let context = Context::<K>::new(shape, POSITIONS);
    let width = shape.query_elements();
    for isa in Isa::all_of_this_machine() {
        let whole = context.attend(isa, &[(0, POSITIONS)]);
        for (first, count) in [(SPLIT - 3, 6), (2 * SPLIT - 2, 11)] {
            let what = format!("{isa} {shape:?} {count} from {first}");
            let of_whole = &whole[first * width..(first + count) * width];
            let expected = context.plain(first..first + count);
            assert_close(of_whole, &expected, K::TOLERANCE, &what);
            for size in [1, 4, 11] {
                let together = context.attend(isa, &chunks(first, count, size));
                assert_eq!(together, of_whole, "{what} by {size}");
                let alone = chunks(first, count, size).into_iter();
                let alone: Vec<f32> = alone.flat_map(|chunk| context.attend(isa, &[chunk])).collect();
                assert_eq!(alone, of_whole, "{what} by {size}, alone");
            }
        }
    }
}

#[test]
fn splits_of_a_long_context_show_in_no_bit() {
    let shapes = [
        shape((4, 2, 16), None, None),
        shape((3, 1, 20), None, Some(2.0)),
        shape((2, 2, 16), Some(30), None),
        shape((2, 1, 16), Some(SPLIT + 70), None),
    ];
    for shape in shapes {
        check_long::<f32>(shape);
        check_long::<bf16>(shape);
        check_long::<u8>(shape);
    }
}

#[test]
fn the_number_of_threads_shows_in_no_bit() {
    for (shape, chunk) in
        [(shape((4, 2, 16), None, None), (700, 300)), (shape((8, 2, 32), None, None), (1000, 1))]
    {
        let context = Context::<bf16>::new(shape, 1001);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| context.attend(Isa::of_this_machine(), &[chunk]))
        };
        let alone = on(1);
        for threads in [2, 3, 7] {
            assert_eq!(on(threads), alone, "{threads} {shape:?}");
        }
    }
}

/// A query, a key and a value that are no number, each in turn.
fn check_broken<K: Tested>(shape: AttentionShape) {
    const POSITIONS: usize = 40;
    const AT: usize = 17;
    let kv = shape.kv;
    let row_width = shape.query_elements();
    let sound = Context::<K>::new(shape, POSITIONS);
    let mut broken = Random::new(3).values(kv.head_width);
    broken[0] = f32::NAN;
    for part in ["query", "key", "value"] {
        let mut context = Context::<K>::new(shape, POSITIONS);
        match part {
            "query" => context.qkv[AT * shape.row_elements()] = f32::NAN,
            "key" => context.write(Pool::Keys, (AT, 0), &broken),
            _ => context.write(Pool::Values, (AT, 0), &broken),
        }
        for isa in Isa::all_of_this_machine() {
            let expected = sound.attend(isa, &[(0, POSITIONS)]);
            let found = context.attend(isa, &[(0, POSITIONS)]);
            let (before, after) = (AT * row_width, (AT + 1) * row_width);
            assert_eq!(found[..before], expected[..before], "{isa} {shape:?} {part}: what comes before");
            assert!(found[before].is_nan(), "{isa} {shape:?} {part}: {}", found[before]);
            if part == "query" {
                assert_eq!(found[after..], expected[after..], "{isa} {shape:?}: what comes after");
            } else {
                assert!(found[after].is_nan(), "{isa} {shape:?} {part} later: {}", found[after]);
            }
        }
    }
}

#[test]
fn what_is_not_a_number_is_not_hidden() {
    for shape in shapes() {
        check_broken::<f32>(shape);
        check_broken::<bf16>(shape);
        check_broken::<u8>(shape);
    }
}
