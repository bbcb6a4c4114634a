//! The tiles queries visit, a group of neighbouring ones at a time.

use std::ops::Range;

use super::super::kv_element::{KvElement, KvStep};
use super::super::simd::Simd;
use super::{AttentionInput, Unit};
use crate::kv::layout::{KvLayout, Pool};

/// Tiles of a group, which begins at a multiple of them.
pub(super) const GROUP_TILES: usize = 4;

/// Neighbouring tiles of one KV head.
pub(super) struct Group<'a, P> {
    /// The group's first tile, counted from position 0, whether it is present or not.
    pub(super) first: usize,
    /// Keys as steps; empty where a tile is not present.
    pub(super) keys: [&'a [P]; GROUP_TILES],
    pub(super) values: [&'a [P]; GROUP_TILES],
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

    /// The tiles of `present`, all of one group, of the unit's KV head.
    #[inline(always)]
    pub(super) fn group<'a, S: Simd, K: KvElement<Step = P>>(
        &'a mut self,
        simd: S,
        input: &AttentionInput<'a, K>,
        unit: &Unit<'_>,
        present: Range<usize>,
    ) -> Group<'a, P> {
        let layout = input.shape.kv;
        let kv_head = unit.head / (input.shape.query_heads / layout.kv_heads);
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
        }
        group
    }
}
