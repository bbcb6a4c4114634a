//! How a GPU holds quantized weights, and what that takes: chunks of 32 elements of sixteen rows with their scales.

use super::cpu::panels::PanelShape;
use super::cpu::quantized::Format;

/// Rows of a tile.
pub(crate) const TILE: usize = 16;

/// Elements of a row in a chunk.
pub(crate) const CHUNK: usize = 32;

/// What elements of a tile are, and what stands beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TileFormat {
    /// 8 bits, and a scale for 32 elements.
    Int8,
    /// 8 bits, and a scale and a minimum for 32 elements.
    Int8Minimum,
    /// 8 bits, and a scale for 16 elements.
    Int8Short,
    /// 4 bits, and a scale for 32 elements.
    Int4,
    /// 4 bits, and a scale and a minimum for 32 elements.
    Int4Minimum,
    /// Floating-point numbers of 8 bits, 4 of them an exponent's, and a scale in f32 for a row of each segment.
    Float8,
}

impl From<Format> for TileFormat {
    /// Scales of scales are multiplied out, and rounded to f16.
    fn from(format: Format) -> Self {
        match format {
            Format::Bytes => Self::Int8,
            Format::BytesMinimum | Format::BytesNestedMinimum => Self::Int8Minimum,
            Format::BytesNested => Self::Int8Short,
            Format::Nibbles => Self::Int4,
            Format::NibblesMinimum | Format::NibblesNestedMinimum => Self::Int4Minimum,
        }
    }
}

impl TileFormat {
    /// Bits of an element.
    pub(crate) fn bits(self) -> usize {
        match self {
            Self::Int8 | Self::Int8Minimum | Self::Int8Short | Self::Float8 => 8,
            Self::Int4 | Self::Int4Minimum => 4,
        }
    }

    /// How many f16 a row has in a chunk.
    pub(crate) fn terms(self) -> usize {
        match self {
            Self::Float8 => 0,
            Self::Int8 | Self::Int4 => 1,
            Self::Int8Minimum | Self::Int8Short | Self::Int4Minimum => 2,
        }
    }

    /// Bytes of a chunk's elements.
    pub(crate) fn element_bytes(self) -> usize {
        TILE * CHUNK * self.bits() / 8
    }

    /// Bytes of a chunk.
    pub(crate) fn chunk_bytes(self) -> usize {
        self.element_bytes() + self.terms() * TILE * 2
    }

    /// Bytes of a tile of all segments.
    pub(crate) fn tile_bytes(self, shape: PanelShape) -> usize {
        shape.segments * chunks(shape) * self.chunk_bytes()
    }

    /// Bytes a matrix takes.
    pub(crate) fn bytes(self, shape: PanelShape) -> usize {
        let scales = match self {
            Self::Float8 => shape.segments * TILE * size_of::<f32>(),
            Self::Int8 | Self::Int8Minimum | Self::Int8Short | Self::Int4 | Self::Int4Minimum => 0,
        };
        tiles(shape) * (self.tile_bytes(shape) + scales)
    }
}

/// Chunks of a segment. No chunk is in two.
pub(crate) fn chunks(shape: PanelShape) -> usize {
    (shape.inputs / shape.segments).div_ceil(CHUNK)
}

/// Tiles of a matrix, whether its rows are in order or gates beside what they gate.
pub(crate) fn tiles(shape: PanelShape) -> usize {
    shape.outputs.div_ceil(TILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_take_as_many_bits_an_element_as_their_parts() {
        let shape = PanelShape { outputs: 4096, inputs: 4096, segments: 8 };
        let bits = |format: TileFormat| (format.bytes(shape) * 8) as f64 / (4096.0 * 4096.0);
        assert_eq!(bits(TileFormat::Int8), 8.5);
        assert_eq!(bits(TileFormat::Int8Minimum), 9.0);
        assert_eq!(bits(TileFormat::Int8Short), 9.0);
        assert_eq!(bits(TileFormat::Int4), 4.5);
        assert_eq!(bits(TileFormat::Int4Minimum), 5.0);
        assert_eq!(bits(TileFormat::Float8), 8.0625);
    }

    #[test]
    fn a_segment_begins_with_a_chunk_and_a_part_of_a_tile_takes_a_whole_one() {
        let shape = PanelShape { outputs: 17, inputs: 160, segments: 4 };
        assert_eq!((chunks(shape), tiles(shape)), (2, 2));
        assert_eq!(TileFormat::Int4.bytes(shape), 2 * 4 * 2 * 288);
    }
}
