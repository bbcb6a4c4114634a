//! Quantized rows as the tiles that `kernels/quantized.cuh` reads.

use std::ops::Range;

use rayon::prelude::*;

use super::float8;
use crate::ops::cpu::panels::{PanelShape, RowSource};
use crate::ops::cpu::quantized::{Format, PackedRow, QuantizedRows};
use crate::ops::tiles::{CHUNK, TILE, TileFormat, chunks};

/// Which rows of the weights a tile has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TileRows {
    /// Sixteen, one after the other.
    InOrder,
    /// Eight of the first half, and the same eight of the second.
    GateBesideUp,
}

/// Where quantized rows come from.
pub(crate) enum TileSource<'a> {
    /// Groups as the CPU's product has them.
    Groups { rows: &'a dyn QuantizedRows, format: Format },
    /// Rows that are quantized to [`TileFormat::Float8`].
    Float8(&'a dyn RowSource),
}

/// Rows to be packed as tiles.
pub(crate) struct Tiling<'a> {
    pub(crate) source: TileSource<'a>,
    pub(crate) shape: PanelShape,
    pub(crate) rows: TileRows,
}

/// A row of the weights as tiles take it, every segment padded to whole chunks.
struct TileRow {
    /// A byte an element.
    codes: Vec<u8>,
    /// Of each chunk, the bits of f16.
    terms: Vec<[u16; 2]>,
    /// Of each segment, where that is what it has.
    scales: Vec<f32>,
}

/// Where one thread reads rows to.
struct Room {
    row: TileRow,
    groups: Option<PackedRow>,
    values: Vec<f32>,
}

impl Tiling<'_> {
    pub(crate) fn format(&self) -> TileFormat {
        match self.source {
            TileSource::Groups { format, .. } => format.into(),
            TileSource::Float8(_) => TileFormat::Float8,
        }
    }

    /// Some tiles, one after the other, and the scales of their rows' segments, where rows have them:
    /// (tiles, segments, 16).
    pub(crate) fn pack(&self, some: Range<usize>) -> (Vec<u8>, Vec<f32>) {
        let (shape, format) = (self.shape, self.format());
        let of_tile = if format == TileFormat::Float8 { shape.segments * TILE } else { 0 };
        let mut bytes = vec![0; some.len() * format.tile_bytes(shape)];
        let mut scales = vec![0.0; some.len() * of_tile];
        // One without scales has none to share out.
        let mut none = vec![0.0; if of_tile == 0 { some.len() } else { 0 }];
        let of_tiles = if of_tile == 0 { &mut none } else { &mut scales };
        let tiles = bytes.par_chunks_mut(format.tile_bytes(shape).max(1));
        tiles.zip(of_tiles.par_chunks_mut(of_tile.max(1))).enumerate().for_each_init(
            || self.room(),
            |room, (at, (bytes, scales))| self.pack_tile(room, some.start + at, (bytes, scales)),
        );
        (bytes, scales)
    }

    /// The rows of these tiles are not read any more.
    pub(crate) fn release(&self, some: Range<usize>) {
        let each = match self.rows {
            TileRows::InOrder => TILE,
            TileRows::GateBesideUp => TILE / 2,
        };
        let end = match self.rows {
            TileRows::InOrder => self.shape.outputs,
            TileRows::GateBesideUp => self.shape.outputs / 2,
        };
        let rows = some.start * each..end.min(some.end * each);
        let release = |rows: Range<usize>| match self.source {
            TileSource::Groups { rows: source, .. } => source.release(rows),
            TileSource::Float8(source) => source.release(rows),
        };
        if self.rows == TileRows::GateBesideUp {
            release(end + rows.start..end + rows.end);
        }
        release(rows);
    }

    fn room(&self) -> Room {
        let (shape, count) = (self.shape, self.shape.segments * chunks(self.shape));
        let row = TileRow {
            codes: vec![0; count * CHUNK],
            terms: vec![[0; 2]; count],
            scales: vec![0.0; shape.segments],
        };
        match self.source {
            TileSource::Groups { format, .. } => {
                Room { row, groups: Some(PackedRow::new(shape, format.layout())), values: Vec::new() }
            }
            TileSource::Float8(_) => Room { row, groups: None, values: vec![0.0; shape.inputs] },
        }
    }

    /// The row of the weights that is a tile's.
    fn output(&self, tile: usize, row: usize) -> Option<usize> {
        match self.rows {
            TileRows::InOrder => Some(tile * TILE + row).filter(|row| *row < self.shape.outputs),
            TileRows::GateBesideUp => {
                let (width, column) = (self.shape.outputs / 2, tile * (TILE / 2) + row % 8);
                (column < width).then_some(row / 8 * width + column)
            }
        }
    }

    fn pack_tile(&self, room: &mut Room, tile: usize, (bytes, scales): (&mut [u8], &mut [f32])) {
        let format = self.format();
        for at in 0..TILE {
            let Some(output) = self.output(tile, at) else { continue };
            self.read(output, room);
            let row = &room.row;
            let chunks = bytes.chunks_exact_mut(format.chunk_bytes());
            let codes = row.codes.as_chunks::<CHUNK>().0;
            for ((chunk, codes), terms) in chunks.zip(codes).zip(&row.terms) {
                scatter(format, at, (codes, terms), chunk);
            }
            if format == TileFormat::Float8 {
                for (of_segment, scale) in scales.chunks_exact_mut(TILE).zip(&row.scales) {
                    of_segment[at] = *scale;
                }
            }
        }
    }

    fn read(&self, output: usize, room: &mut Room) {
        let shape = self.shape;
        let of_segment = chunks(shape);
        match (&self.source, &mut room.groups) {
            (TileSource::Groups { rows, format }, Some(groups)) => {
                rows.read_groups(output, groups);
                // What begins at zero, and is less than 128, is held as what begins at -128.
                let shift = if format.layout().bits == 8 { 128 - format.layout().offset } else { 0 };
                for segment in 0..shape.segments {
                    let chunks = segment * of_segment..(segment + 1) * of_segment;
                    let codes = room.row.codes[chunks.start * CHUNK..chunks.end * CHUNK].iter_mut();
                    for (code, element) in codes.zip(groups.elements(segment)) {
                        *code = element | shift;
                    }
                    let in_chunk = CHUNK / format.layout().group;
                    for (at, terms) in room.row.terms[chunks].iter_mut().enumerate() {
                        *terms = match in_chunk {
                            1 => groups.terms(segment, at),
                            _ => [2 * at, 2 * at + 1].map(|group| groups.terms(segment, group)[0]),
                        };
                    }
                }
            }
            (TileSource::Float8(rows), _) => {
                rows.read_row(output, &mut room.values);
                let segments = room.values.chunks_exact((shape.inputs / shape.segments).max(1));
                let codes = room.row.codes.chunks_exact_mut((of_segment * CHUNK).max(1));
                for ((values, codes), scale) in segments.zip(codes).zip(&mut room.row.scales) {
                    *scale = float8::quantize(values, codes);
                }
            }
            (TileSource::Groups { .. }, None) => {}
        }
    }
}

/// (tiles, segments, 16) → (segments, tiles, 16)
pub(crate) fn by_segment(scales: &[f32], segments: usize) -> Vec<f32> {
    let rows = scales.as_chunks::<TILE>().0;
    let count = rows.len() / segments.max(1);
    (0..segments)
        .flat_map(|segment| (0..count).flat_map(move |tile| rows[tile * segments + segment]))
        .collect()
}

/// Writes one row of a chunk: the `row`-th of its tile.
fn scatter(format: TileFormat, row: usize, (codes, terms): (&[u8; CHUNK], &[u16; 2]), chunk: &mut [u8]) {
    let (group, below) = (row % 8, row / 8);
    for (at, code) in codes.iter().enumerate() {
        // Of the lane that has it, counted over a chunk: instruction, lane of four, place of four.
        let (half, lane, place) = (at / 16, group * 4 + at / 4 % 4, at % 4);
        if format.bits() == 8 {
            // The first two are the even bytes of a word.
            chunk[lane * 16 + half * 8 + below * 4 + [0, 2, 1, 3][place]] = *code;
        } else {
            // A pair is as far apart as the halves of a word.
            let nibble = half * 2 + place / 2 + place % 2 * 4;
            chunk[lane * 8 + below * 4 + nibble / 2] |= code << (nibble % 2 * 4);
        }
    }
    for (term, bits) in terms.iter().enumerate().take(format.terms()) {
        let at = format.element_bytes() + (term * 8 + group) * 4 + below * 2;
        chunk[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    }
}
