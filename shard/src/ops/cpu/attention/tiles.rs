//! The tiles queries visit, a group of neighbouring ones at a time.

use std::ops::Range;

use super::super::kv_element::KvElement;
use super::super::kv_step::KvStep;
use super::super::simd::Simd;
use super::{AttentionInput, Unit};

/// Tiles of a group, which begins at a multiple of them.
pub(super) const GROUP_TILES: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

/// The keys, or the values, of one KV head in one block.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a, P: KvStep> {
    /// None where the tile is not present.
    pub(super) rows: &'a [P::Row],
    /// One, where elements have scales and the tile is present.
    pub(super) scales: &'a [P::Scales],
}

impl<'a, P: KvStep> Tile<'a, P> {
    fn absent() -> Self {
        Self { rows: &[], scales: &[] }
    }

    #[inline(always)]
    fn of<K: KvElement<Step = P>>(elements: &'a [K]) -> Self {
        Self { rows: K::rows(elements), scales: K::scales(elements) }
    }
}

/// Neighbouring tiles of one KV head.
pub(super) struct Group<'a, P: KvStep> {
    /// The group's first tile, counted from position 0, whether it is present or not.
    pub(super) first: usize,
    pub(super) keys: [Tile<'a, P>; GROUP_TILES],
    pub(super) values: [Tile<'a, P>; GROUP_TILES],
    /// What is asked for while its keys are read.
    pub(super) during_keys: Ahead,
    /// What is asked for while its values are read.
    pub(super) during_values: Ahead,
}

impl<'a, P: KvStep> Group<'a, P> {
    /// The tiles of `present`, all of one group and at least one, of the unit's KV head. `then` are those that are
    /// visited next, where any are.
    #[inline(always)]
    pub(super) fn new<K: KvElement<Step = P>>(
        input: &AttentionInput<'a, K>,
        (unit, present): (&Unit<'_>, Range<usize>),
        then: Option<(&Unit<'_>, Range<usize>)>,
    ) -> Self {
        let first = present.start / GROUP_TILES * GROUP_TILES;
        let mut keys = [Tile::absent(); GROUP_TILES];
        let mut values = [Tile::absent(); GROUP_TILES];
        for tile in present.clone() {
            let place =
                K::tile(input.shape.kv, unit.sequence.blocks[tile].index(), unit.kv_head(input.shape));
            keys[tile - first] = Tile::of(&input.keys[place.clone()]);
            values[tile - first] = Tile::of(&input.values[place]);
        }
        let here = (unit, present);
        let next = then.unwrap_or_else(|| here.clone());
        // Tiles of 8 bits are small enough for a whole group to wait in the nearest cache.
        let (during_keys, during_values) = if P::SCALED {
            (Ahead::new(input, next.clone(), input.keys), Ahead::new(input, next, input.values))
        } else {
            (Ahead::new(input, here, input.values), Ahead::new(input, next, input.keys))
        };
        Self { first, keys, values, during_keys, during_values }
    }
}

/// Tiles that are read soon, a cache line of which is asked for whenever one of those before them is read: a core reads
/// memory no faster than it asks for it.
pub(super) struct Ahead {
    /// Where the tiles begin; that of the last where there are fewer.
    tiles: [*const u8; GROUP_TILES],
    /// Where in a tile its scales lie.
    scales: usize,
}

impl Ahead {
    /// Of the unit's KV head and the pool, the tiles of `range`, which are one at least.
    #[inline(always)]
    fn new<K: KvElement>(
        input: &AttentionInput<'_, K>,
        (unit, range): (&Unit<'_>, Range<usize>),
        pool: &[K],
    ) -> Self {
        let mut tiles = [std::ptr::null(); GROUP_TILES];
        for (at, tile) in tiles.iter_mut().enumerate() {
            let block = unit.sequence.blocks[(range.start + at).min(range.end - 1)].index();
            *tile = pool[K::tile(input.shape.kv, block, unit.kv_head(input.shape))].as_ptr().cast();
        }
        let bytes = K::tile_elements(input.shape.kv) * size_of::<K>();
        Self { tiles, scales: bytes.saturating_sub(size_of::<<K::Step as KvStep>::Scales>()) }
    }

    /// Asks for where the `row`-th row of the group's `tile`-th tile is.
    #[inline(always)]
    pub(super) fn ask<S: Simd, P: KvStep>(&self, simd: S, tile: usize, row: usize) {
        let at = row * size_of::<P::Row>();
        if at.is_multiple_of(LINE) {
            simd.prefetch(self.tiles[tile].wrapping_add(at));
        }
    }

    /// Asks for where the scales of the group's `tile`-th tile are.
    #[inline(always)]
    pub(super) fn ask_scales<S: Simd, P: KvStep>(&self, simd: S, tile: usize) {
        if P::SCALED {
            simd.prefetch(self.tiles[tile].wrapping_add(self.scales));
        }
    }
}
