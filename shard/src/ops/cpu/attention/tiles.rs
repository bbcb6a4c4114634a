//! The tiles queries visit, a group of neighbouring ones at a time.

use std::ops::Range;

use super::super::kv_element::{KvElement, KvStep};
use super::super::simd::Simd;
use super::{AttentionInput, Unit};
use crate::kv::layout::{KvLayout, Pool};

/// Tiles of a group, which begins at a multiple of them.
pub(super) const GROUP_TILES: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Neighbouring tiles of one KV head.
pub(super) struct Group<'a, P> {
    /// The group's first tile, counted from position 0, whether it is present or not.
    pub(super) first: usize,
    /// Keys as steps; empty where a tile is not present.
    pub(super) keys: [&'a [P]; GROUP_TILES],
    pub(super) values: [&'a [P]; GROUP_TILES],
}

/// The tiles that come after a group, a few cache lines of which are asked for at each step of computing it: a
/// core reads memory no faster than it asks for it.
pub(super) struct Ahead {
    /// Where they begin: keys and values in turn.
    tiles: [*const u8; 2 * GROUP_TILES],
    count: usize,
    /// How many times lines of one tile are asked for.
    times: usize,
    /// The tile after the one whose lines are asked for, where in that the next ones are, and how many times are left.
    next: (usize, *const u8, usize),
}

impl Ahead {
    /// Bytes that are asked for at a time.
    const BYTES: usize = 4 * LINE;

    /// Of the unit's KV head, the tiles of `range`, of which there are a group's at most.
    #[inline(always)]
    pub(super) fn new<K: KvElement>(
        input: &AttentionInput<'_, K>,
        unit: &Unit<'_>,
        range: Range<usize>,
    ) -> Self {
        let mut tiles = [std::ptr::null(); 2 * GROUP_TILES];
        let blocks = unit.sequence.blocks.get(range).unwrap_or_default();
        for (tiles, block) in tiles.chunks_exact_mut(2).zip(blocks) {
            let place = K::tile(input.shape.kv, block.index(), unit.kv_head(input.shape));
            tiles[0] = input.keys[place.clone()].as_ptr().cast();
            tiles[1] = input.values[place].as_ptr().cast();
        }
        let bytes = K::tile_elements(input.shape.kv) * size_of::<K>();
        let count = 2 * blocks.len().min(GROUP_TILES);
        Self { tiles, count, times: bytes.div_ceil(Self::BYTES), next: (0, std::ptr::null(), 0) }
    }

    /// Asks for the next lines, as long as there are any.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(&mut self, simd: S) {
        let (tile, at, left) = &mut self.next;
        if *left == 0 {
            if *tile == self.count {
                return;
            }
            (*at, *left) = (self.tiles[*tile], self.times);
            *tile += 1;
        }
        for line in 0..Self::BYTES / LINE {
            simd.prefetch(at.wrapping_add(line * LINE));
        }
        *at = at.wrapping_add(Self::BYTES);
        *left -= 1;
    }
}

/// Room for a group's tiles where a pool holds them otherwise than they are read.
pub(super) struct Scratch<P> {
    keys: [Vec<P>; GROUP_TILES],
    values: [Vec<P>; GROUP_TILES],
}

impl<P: KvStep> Scratch<P> {
    pub(super) fn new<K: KvElement<Step = P>>(layout: KvLayout) -> Self {
        let tile = || vec![P::ZERO; K::scratch_steps(layout)];
        let tiles = || std::array::from_fn(|_| tile());
        Self { keys: tiles(), values: tiles() }
    }

    /// The tiles of `present`, all of one group, of the unit's KV head. Where they have to be made, those that come
    /// `ahead` are asked for meanwhile.
    #[inline(always)]
    pub(super) fn group<'a, S: Simd, K: KvElement<Step = P>>(
        &'a mut self,
        simd: S,
        input: &AttentionInput<'a, K>,
        (unit, ahead): (&Unit<'_>, &mut Ahead),
        present: Range<usize>,
    ) -> Group<'a, P> {
        let layout = input.shape.kv;
        let kv_head = unit.kv_head(input.shape);
        let asked = if K::scratch_steps(layout) == 0 { 0 } else { 2 * ahead.times };
        let first = present.start / GROUP_TILES * GROUP_TILES;
        let mut group = Group { first, keys: [&[]; GROUP_TILES], values: [&[]; GROUP_TILES] };
        let scratch = self.keys.iter_mut().zip(&mut self.values);
        let tiles = group.keys.iter_mut().zip(&mut group.values).zip(scratch);
        for (tile, ((keys, values), (keys_scratch, values_scratch))) in (first..).zip(tiles) {
            if !present.contains(&tile) {
                continue;
            }
            let place = K::tile(layout, unit.sequence.blocks[tile].index(), kv_head);
            *keys = K::steps(simd, &input.keys[place.clone()], Pool::Keys, keys_scratch);
            *values = K::steps(simd, &input.values[place], Pool::Values, values_scratch);
            for _ in 0..asked {
                ahead.ask(simd);
            }
        }
        group
    }
}
