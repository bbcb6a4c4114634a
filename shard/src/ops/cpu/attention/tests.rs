//! Attention over scattered blocks against the plain one, and against itself in other batches.

use half::{bf16, f16};
use lockstep_proto::{BlockId, Position};

use super::*;
use crate::kv::layout::Pool;
use crate::ops::cpu::kv_step::KvStep;
use crate::ops::cpu::simd::round_to_bf16;
use crate::ops::reference::{Random, assert_close, attention as plain, hash_of_bits};

const BLOCKS: usize = 101;

/// What tests know of an element.
trait Tested: KvElement {
    /// How far the result may be off.
    const TOLERANCE: f32;
    /// What must never be read.
    const BROKEN: Self;
    /// A query's element that is read as it is.
    fn exact(value: f32) -> f32;
    /// What the `at`-th element of a tile is, which is of this slot.
    fn read(tile: &[Self], slot: usize, at: usize) -> f32;
}

impl Tested for f32 {
    const TOLERANCE: f32 = 1e-5;
    const BROKEN: f32 = f32::NAN;

    fn exact(value: f32) -> f32 {
        value
    }

    fn read(tile: &[f32], _: usize, at: usize) -> f32 {
        tile[at]
    }
}

impl Tested for bf16 {
    /// Weights are rounded to eight bits.
    const TOLERANCE: f32 = 3e-3;
    const BROKEN: bf16 = bf16::NAN;

    fn exact(value: f32) -> f32 {
        round_to_bf16(value).to_f32()
    }

    fn read(tile: &[bf16], _: usize, at: usize) -> f32 {
        tile[at].to_f32()
    }
}

impl Tested for f16 {
    const TOLERANCE: f32 = 1e-5;
    const BROKEN: f16 = f16::NAN;

    fn exact(value: f32) -> f32 {
        value
    }

    fn read(tile: &[f16], _: usize, at: usize) -> f32 {
        tile[at].to_f32()
    }
}

impl Tested for u8 {
    /// Queries are rounded to sixteen bits of their largest element, weights to as many of a group's largest.
    const TOLERANCE: f32 = 3e-4;
    /// Scales of such bytes are no numbers.
    const BROKEN: u8 = 0xff;

    fn exact(value: f32) -> f32 {
        value
    }

    fn read(tile: &[u8], slot: usize, at: usize) -> f32 {
        f32::from(tile[at].cast_signed()) * f32::from_le_bytes(u8::scales(tile)[0][slot])
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
        let elements = shape.kv.tiles(BLOCKS) * K::tile_elements(shape.kv);
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
        let mut found = Vec::new();
        for position in positions {
            let tile = &tiles[K::tile(kv, self.blocks[position / 16].index(), kv_head)];
            found.extend((0..kv.head_width).map(|element| match pool {
                Pool::Keys => K::read(tile, position % 16, kv.key(position % 16, element, step)),
                Pool::Values => K::read(tile, position % 16, kv.value(position % 16, element, step)),
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
        check::<f16>(shape);
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
        check_long::<f16>(shape);
        check_long::<u8>(shape);
    }
}

fn check_threads<K: Tested>(shape: AttentionShape, chunk: (usize, usize)) {
    let context = Context::<K>::new(shape, 1001);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| context.attend(Isa::of_this_machine(), &[chunk]))
    };
    let alone = on(1);
    for threads in [2, 3, 7] {
        assert_eq!(on(threads), alone, "{threads} {shape:?}");
    }
}

#[test]
fn the_number_of_threads_shows_in_no_bit() {
    for (shape, chunk) in
        [(shape((4, 2, 16), None, None), (700, 300)), (shape((8, 2, 32), None, None), (1000, 1))]
    {
        check_threads::<f32>(shape, chunk);
        check_threads::<bf16>(shape, chunk);
        check_threads::<f16>(shape, chunk);
        check_threads::<u8>(shape, chunk);
    }
}

/// A query, a key and a value that are no number, each in turn.
fn check_broken<K: Tested>(shape: AttentionShape, positions: usize) {
    const AT: usize = 17;
    let kv = shape.kv;
    let row_width = shape.query_elements();
    let sound = Context::<K>::new(shape, positions);
    let mut broken = Random::new(3).values(kv.head_width);
    broken[0] = f32::NAN;
    for part in ["query", "key", "value"] {
        let mut context = Context::<K>::new(shape, positions);
        match part {
            "query" => context.qkv[AT * shape.row_elements()] = f32::NAN,
            "key" => context.write(Pool::Keys, (AT, 0), &broken),
            _ => context.write(Pool::Values, (AT, 0), &broken),
        }
        for isa in Isa::all_of_this_machine() {
            let expected = sound.attend(isa, &[(0, positions)]);
            let found = context.attend(isa, &[(0, positions)]);
            let (before, after) = (AT * row_width, (AT + 1) * row_width);
            assert_eq!(found[..before], expected[..before], "{isa} {shape:?} {part}: what comes before");
            assert!(found[before].is_nan(), "{isa} {shape:?} {part}: {}", found[before]);
            if part == "query" {
                assert_eq!(found[after..], expected[after..], "{isa} {shape:?}: what comes after");
            } else {
                assert!(found[after].is_nan(), "{isa} {shape:?} {part} later: {}", found[after]);
                let last = (positions - 1) * row_width;
                let is_seen = shape.window.is_none_or(|window| AT + window >= positions);
                assert_eq!(
                    found[last].is_nan(),
                    is_seen,
                    "{isa} {shape:?} {part} at last: {}",
                    found[last]
                );
            }
        }
    }
}

#[test]
fn what_is_not_a_number_is_not_hidden() {
    // More than a group, so that there are rows that see one whole, and more than a split.
    for (shape, positions) in
        shapes().into_iter().map(|shape| (shape, 150)).chain([(shapes()[1], SPLIT + 70)])
    {
        check_broken::<f32>(shape, positions);
        check_broken::<bf16>(shape, positions);
        check_broken::<f16>(shape, positions);
        check_broken::<u8>(shape, positions);
    }
}

/// Products at the ends of what integers of 31 bits hold, of both signs.
#[test]
fn the_largest_elements_of_eight_bits_do_not_overflow() {
    const POSITIONS: usize = 70;
    for width in [64, 512, 700] {
        let shape = AttentionShape { scale: 1.0 / width as f32, ..shape((1, 1, width), None, None) };
        let mut context = Context::<u8>::new(shape, POSITIONS);
        context.qkv.fill(1.0);
        for position in 0..POSITIONS {
            let key = [1.0, -1.0][position % 2];
            context.write(Pool::Keys, (position, 0), &vec![key; width]);
            context.write(Pool::Values, (position, 0), &vec![key * 3.0 + 1.0; width]);
        }
        let expected = context.plain(0..POSITIONS);
        for isa in Isa::all_of_this_machine() {
            let found = context.attend(isa, &chunks(0, POSITIONS, 9));
            assert_close(&found, &expected, u8::TOLERANCE, &format!("{isa} {width}"));
        }
    }
}

/// Slots whose values are of very different sizes, and of such with large weights and small values.
#[test]
fn values_of_eight_bits_keep_their_sizes() {
    const POSITIONS: usize = 200;
    let width = 16;
    let shape = shape((1, 1, width), None, None);
    let mut context = Context::<u8>::new(shape, POSITIONS);
    let mut random = Random::new(8);
    for (position, size) in (0..POSITIONS).zip([1e-4, 1.0, 1e-2, 0.0, 1e-3].into_iter().cycle()) {
        let value: Vec<f32> = random.values(width).iter().map(|value| value * size).collect();
        context.write(Pool::Values, (position, 0), &value);
        // The smaller the values, the larger the weight.
        let query = &context.qkv[POSITIONS / 2 * shape.row_elements()..][..width].to_vec();
        let towards = 2.0 - 4.0 * (size + 1e-4_f32).log10().abs();
        let key: Vec<f32> = query.iter().map(|query| -towards * query * 0.1).collect();
        context.write(Pool::Keys, (position, 0), &key);
    }
    // What is beside values this large is next to nothing, and no reason for the sum to be no number.
    context.write(Pool::Values, (150, 0), &vec![1e9; width]);
    context.write(Pool::Keys, (150, 0), &vec![-1e3; width]);
    let of_row = |values: &[f32], row: usize| values[row * width..][..width].to_vec();
    let expected = context.plain(0..POSITIONS);
    for isa in Isa::all_of_this_machine() {
        let found = context.attend(isa, &chunks(0, POSITIONS, 9));
        assert!(found.iter().all(|value| value.is_finite()), "{isa}");
        for row in 0..150 {
            let what = format!("{isa} row {row}");
            assert_close(&of_row(&found, row), &of_row(&expected, row), u8::TOLERANCE, &what);
        }
    }
}

#[test]
fn a_bit_that_changes_counts_the_revision_up() {
    let shape = shape((6, 2, 20), Some(600), Some(7.0));
    fn bits<K: Tested>(shape: AttentionShape) -> u64 {
        hash_of_bits(&Context::<K>::new(shape, 700).attend(Isa::Portable, &[(0, 5), (60, 9), (690, 10)]))
    }
    let found = [bits::<f32>(shape), bits::<bf16>(shape), bits::<f16>(shape), bits::<u8>(shape)];
    assert_eq!(
        (crate::ops::REVISION, found),
        (2, [0x3cc2_dc03_15a5_025b, 0x7401_ca67_7bba_1406, 0xe86e_20c1_cae1_5926, 0x551b_220f_6055_1cd7]),
        "count it up where bits are others, {found:x?}"
    );
}

/// All but the integers is f32, multiplied and added with one rounding.
#[test]
fn eight_bits_agree_to_the_bit_on_all_instruction_sets_that_round_once() {
    let context = Context::<u8>::new(shape((6, 2, 64), Some(300), None), 700);
    let mut sets = Isa::all_of_this_machine().into_iter().filter(|isa| *isa != Isa::Portable);
    let Some(first) = sets.next() else { return };
    let expected = context.attend(first, &[(500, 200)]);
    for other in sets {
        assert_eq!(context.attend(other, &[(500, 200)]), expected, "{other}");
    }
}
