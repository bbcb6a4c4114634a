//! Attention over scattered blocks against the plain one, and against itself in other batches.

use half::bf16;
use lockstep_proto::{BlockId, Position};

use super::*;
use crate::ops::reference::{Random, assert_close, attention as plain};

const BLOCKS: usize = 24;

/// A pool of random KV and one sequence's scattered table over it.
struct Context<K> {
    shape: AttentionShape,
    keys: Vec<K>,
    values: Vec<K>,
    blocks: Vec<BlockId>,
    /// (positions, all heads, head width)
    qkv: Vec<f32>,
}

impl<K: KvElement> Context<K> {
    fn new(shape: AttentionShape, positions: usize) -> Self {
        let mut random = Random::new(9);
        let elements = BLOCKS * shape.kv.kv_heads * shape.kv.tile_elements();
        // Slots that were never written hold what must never be read.
        let mut keys = vec![K::from_f32(f32::NAN); elements];
        let mut values = vec![K::from_f32(f32::NAN); elements];
        let blocks: Vec<BlockId> =
            (0..positions.div_ceil(16)).map(|block| BlockId((block * 7 % BLOCKS) as u32)).collect();
        for position in 0..positions {
            for head in 0..shape.kv.kv_heads {
                let tile = shape.kv.tile(blocks[position / 16].index(), head);
                for element in 0..shape.kv.head_width {
                    keys[tile + shape.kv.key(position % 16, element)] = K::from_f32(random.value());
                    values[tile + shape.kv.value(position % 16, element)] = K::from_f32(random.value());
                }
            }
        }
        let width = (shape.query_heads + 2 * shape.kv.kv_heads) * shape.kv.head_width;
        Self { shape, keys, values, blocks, qkv: random.values(positions * width) }
    }

    /// (positions, width) of one head, in order.
    fn plain_kv(&self, kv_head: usize, positions: std::ops::Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let kv = self.shape.kv;
        let places: Vec<(usize, usize, usize)> = positions
            .flat_map(|position| (0..kv.head_width).map(move |element| (position, element)))
            .map(|(position, element)| {
                (kv.tile(self.blocks[position / 16].index(), kv_head), position % 16, element)
            })
            .collect();
        let keys = places
            .iter()
            .map(|(tile, slot, element)| self.keys[tile + kv.key(*slot, *element)].to_f64() as f32);
        let values = places
            .iter()
            .map(|(tile, slot, element)| self.values[tile + kv.value(*slot, *element)].to_f64() as f32);
        (keys.collect(), values.collect())
    }

    /// The rows of these chunks of the sequence, all in one call.
    fn attend(&self, isa: Isa, chunks: &[(usize, usize)]) -> Vec<f32> {
        let width = (self.shape.query_heads + 2 * self.shape.kv.kv_heads) * self.shape.kv.head_width;
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
        let mut output =
            vec![f32::NAN; qkv.len() / width * self.shape.query_heads * self.shape.kv.head_width];
        let (keys, values) = (&self.keys[..], &self.values[..]);
        attend(
            isa,
            AttentionInput { shape: self.shape, sequences: &sequences, qkv: &qkv, keys, values },
            &mut output,
        );
        output
    }

    fn plain(&self, positions: usize) -> Vec<f32> {
        let (heads, width) = (self.shape.query_heads, self.shape.kv.head_width);
        let row_width = (heads + 2 * self.shape.kv.kv_heads) * width;
        let mut output = Vec::new();
        for position in 0..positions {
            for head in 0..heads {
                let first = self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
                let kv_head = head / (heads / self.shape.kv.kv_heads);
                let (keys, values) = self.plain_kv(kv_head, first..position + 1);
                let query = &self.qkv[position * row_width + head * width..][..width];
                output.extend(plain(query, &keys, &values, (self.shape.scale, self.shape.softcap)));
            }
        }
        output
    }
}

fn shapes() -> Vec<AttentionShape> {
    [
        (1, 1, 8, None, None),
        (8, 4, 32, None, None),
        (6, 2, 20, None, Some(0.7)),
        (9, 1, 16, None, None),
        (4, 2, 32, Some(21), None),
        (4, 2, 32, Some(21), Some(50.0)),
        (2, 1, 48, None, None),
    ]
    .map(|(query_heads, kv_heads, head_width, window, softcap)| AttentionShape {
        query_heads,
        kv: KvLayout { kv_heads, head_width },
        scale: 1.7,
        window,
        softcap,
    })
    .to_vec()
}

fn check<K: KvElement>(shape: AttentionShape) {
    const POSITIONS: usize = 70;
    let context = Context::<K>::new(shape, POSITIONS);
    let expected = context.plain(POSITIONS);
    let width = shape.query_heads * shape.kv.head_width;
    for isa in Isa::all_of_this_machine() {
        let whole = context.attend(isa, &[(0, POSITIONS)]);
        assert_close(&whole, &expected, 1e-5, &format!("{isa} {shape:?}"));
        let alone: Vec<f32> = (0..POSITIONS).flat_map(|row| context.attend(isa, &[(row, 1)])).collect();
        assert_eq!(alone, whole, "{isa} {shape:?}");
        for chunk in [3, 7, 16, 33] {
            let chunks: Vec<(usize, usize)> =
                (0..POSITIONS).step_by(chunk).map(|first| (first, chunk.min(POSITIONS - first))).collect();
            assert_eq!(context.attend(isa, &chunks), whole, "{isa} {shape:?} chunks of {chunk}");
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
    }
}

/// A query, a key and a value that are no number, each in turn.
fn check_broken<K: KvElement>(shape: AttentionShape) {
    const POSITIONS: usize = 40;
    const AT: usize = 17;
    let kv = shape.kv;
    let row_width = shape.query_heads * kv.head_width;
    let sound = Context::<K>::new(shape, POSITIONS);
    for part in ["query", "key", "value"] {
        let mut context = Context::<K>::new(shape, POSITIONS);
        let tile = kv.tile(context.blocks[AT / 16].index(), 0);
        match part {
            "query" => context.qkv[AT * (shape.query_heads + 2 * kv.kv_heads) * kv.head_width] = f32::NAN,
            "key" => context.keys[tile + kv.key(AT % 16, 0)] = K::from_f32(f32::NAN),
            _ => context.values[tile + kv.value(AT % 16, 0)] = K::from_f32(f32::NAN),
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
    }
}
