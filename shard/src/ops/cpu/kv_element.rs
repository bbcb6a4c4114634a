//! What a KV block's elements may be.

use std::ops::Range;

use candle_core::{CpuStorage, WithDType};
use half::{bf16, f16};

use super::kv_step::{BesideF16, KvStep, largest, scale};
use super::simd::{LANES, round_to_bf16};
use crate::kv::layout::{KvLayout, Pool};

/// An element of a KV block.
pub(crate) trait KvElement: WithDType {
    /// What products read.
    type Step: KvStep;

    /// The pool's elements, where it is a pool of these.
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;

    /// Elements of a tile, with what stands beside its keys or values.
    fn tile_elements(layout: KvLayout) -> usize;

    /// Writes one slot of a tile.
    fn write(tile: &mut [Self], place: (KvLayout, Pool, usize), elements: &[f32]);

    /// The rows of a tile.
    fn rows(tile: &[Self]) -> &[<Self::Step as KvStep>::Row];

    /// The scales of a tile's slots, where they have some.
    fn scales(tile: &[Self]) -> &[<Self::Step as KvStep>::Scales];

    /// The tile of one head in one block.
    #[inline(always)]
    fn tile(layout: KvLayout, block: usize, kv_head: usize) -> Range<usize> {
        let elements = Self::tile_elements(layout);
        let start = layout.tile(block, kv_head) * elements;
        start..start + elements
    }
}

/// Where in its tile each of a slot's elements belongs.
#[inline(always)]
fn places(place: (KvLayout, Pool, usize), step: usize) -> impl Fn(usize) -> usize {
    let (layout, pool, slot) = place;
    move |element| match pool {
        Pool::Keys => layout.key(slot, element, step),
        Pool::Values => layout.value(slot, element, step),
    }
}

impl KvElement for f32 {
    type Step = f32;

    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F32(elements) = storage { Some(elements) } else { None }
    }

    #[inline(always)]
    fn tile_elements(layout: KvLayout) -> usize {
        layout.tile_elements()
    }

    fn write(tile: &mut [Self], place: (KvLayout, Pool, usize), elements: &[f32]) {
        let at = places(place, f32::ELEMENTS);
        for (element, value) in elements.iter().enumerate() {
            tile[at(element)] = *value;
        }
    }

    #[inline(always)]
    fn rows(tile: &[f32]) -> &[[f32; LANES]] {
        tile.as_chunks().0
    }

    #[inline(always)]
    fn scales(_: &[f32]) -> &[()] {
        &[]
    }
}

impl KvElement for bf16 {
    type Step = [bf16; 2];

    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::BF16(elements) = storage { Some(elements) } else { None }
    }

    #[inline(always)]
    fn tile_elements(layout: KvLayout) -> usize {
        layout.tile_elements()
    }

    fn write(tile: &mut [Self], place: (KvLayout, Pool, usize), elements: &[f32]) {
        let at = places(place, <[bf16; 2]>::ELEMENTS);
        for (element, value) in elements.iter().enumerate() {
            tile[at(element)] = round_to_bf16(*value);
        }
    }

    #[inline(always)]
    fn rows(tile: &[bf16]) -> &[[[bf16; 2]; LANES]] {
        tile.as_chunks().0.as_chunks().0
    }

    #[inline(always)]
    fn scales(_: &[bf16]) -> &[()] {
        &[]
    }
}

impl KvElement for f16 {
    type Step = BesideF16;

    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F16(elements) = storage { Some(elements) } else { None }
    }

    #[inline(always)]
    fn tile_elements(layout: KvLayout) -> usize {
        layout.tile_elements()
    }

    fn write(tile: &mut [Self], place: (KvLayout, Pool, usize), elements: &[f32]) {
        let at = places(place, BesideF16::ELEMENTS);
        for (element, value) in elements.iter().enumerate() {
            tile[at(element)] = f16::from_f32(*value);
        }
    }

    #[inline(always)]
    fn rows(tile: &[f16]) -> &[[f16; LANES]] {
        tile.as_chunks().0
    }

    #[inline(always)]
    fn scales(_: &[f16]) -> &[()] {
        &[]
    }
}

/// Bytes of a tile's scales, an f32 a slot, after its elements.
const SCALE_BYTES: usize = size_of::<f32>();

/// Eight bits of each element, signed, and a scale for each slot, which follows from its own slot's elements alone.
impl KvElement for u8 {
    type Step = [i16; 2];

    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::U8(elements) = storage { Some(elements) } else { None }
    }

    #[inline(always)]
    fn tile_elements(layout: KvLayout) -> usize {
        layout.tile_elements() + KvLayout::SLOTS * SCALE_BYTES
    }

    fn write(tile: &mut [Self], place: (KvLayout, Pool, usize), elements: &[f32]) {
        let (layout, _, slot) = place;
        let (elements_of, scales) = tile.split_at_mut(layout.tile_elements());
        let (scale, factor) = scale(largest(elements), f32::from(i8::MAX));
        if let Some(to) = scales.as_chunks_mut::<SCALE_BYTES>().0.get_mut(slot) {
            *to = scale.to_le_bytes();
        }
        let at = places(place, <[i16; 2]>::ELEMENTS);
        for (element, value) in elements.iter().enumerate() {
            // From -127 to 127; what is no number becomes 0, and the scale is none.
            elements_of[at(element)] = (value * factor).round_ties_even() as i8 as u8;
        }
    }

    #[inline(always)]
    fn rows(tile: &[u8]) -> &[[[u8; 2]; LANES]] {
        let elements = tile.len() - LANES * SCALE_BYTES;
        tile[..elements].as_chunks().0.as_chunks().0
    }

    #[inline(always)]
    fn scales(tile: &[u8]) -> &[[[u8; SCALE_BYTES]; LANES]] {
        let elements = tile.len() - LANES * SCALE_BYTES;
        tile[elements..].as_chunks().0.as_chunks().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reference::{Random, assert_close};

    #[test]
    fn eight_bits_are_read_where_they_were_written_to_half_a_step() {
        for head_width in [8, 20, 33, 64] {
            let layout = KvLayout { kv_heads: 1, head_width };
            let rows = Random::new(5).values(KvLayout::SLOTS * head_width);
            for pool in [Pool::Keys, Pool::Values] {
                let mut tile = vec![0xff; u8::tile_elements(layout)];
                for (slot, elements) in rows.chunks(head_width).enumerate() {
                    u8::write(&mut tile, (layout, pool, slot), elements);
                }
                let steps = u8::rows(&tile).as_flattened();
                let scales = u8::scales(&tile)[0].map(f32::from_le_bytes);
                let element = |at| {
                    let (slot, place) = (at / head_width, places((layout, pool, at / head_width), 2));
                    let byte = steps.as_flattened()[place(at % head_width)];
                    f32::from(byte.cast_signed()) * scales[slot]
                };
                let found: Vec<f32> = (0..rows.len()).map(element).collect();
                assert_close(&found, &rows, 0.5 / 127.0 + 1e-6, &format!("{pool:?} {head_width}"));
            }
        }
    }
}
