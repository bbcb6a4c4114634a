//! How quantized weights lie in memory.
//!
//! A panel holds sixteen output columns, cut along the inner dimension into blocks. A block holds, one after
//! the other, the elements of its groups, the scales of all its groups, their minima where the format has
//! them, and what scales and minima are multiplied by where the format has that; its end is padded to a whole
//! cache line. Elements come in steps of four for each of the sixteen columns, what one integer dot product
//! reads: 64 bytes of eight bits, or 64 bytes of which the lower halves are one step and the upper ones another.
//!
//! An element stands for `scale * (stored - offset)`, or for `scale * stored - minimum`.

use super::super::panels::PanelShape;
use super::super::simd::LANES;

/// Elements of four a column that one dot product takes.
pub(super) const STEP: usize = 4;

/// A way to hold quantized weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// 8 bits, and a scale for 32 elements.
    Bytes,
    /// 8 bits, and a scale and a minimum for 32 elements.
    BytesMinimum,
    /// 8 bits, and a small scale for 16 elements with one for 128.
    BytesNested,
    /// 8 bits, and a small scale and minimum for 32 elements with those for 128.
    BytesNestedMinimum,
    /// 4 bits, and a scale for 32 elements.
    Nibbles,
    /// 4 bits, and a scale and a minimum for 32 elements.
    NibblesMinimum,
    /// 4 bits, and a small scale and minimum for 32 elements with those for 128.
    NibblesNestedMinimum,
}

/// How a format's scales are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// Each as f16.
    Plain,
    /// Each as a signed byte, multiplied by the block's f16.
    Nested,
}

/// The sizes of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bits of an element: 8 or 4.
    pub(crate) bits: usize,
    /// Elements of a group: 32 or 16.
    pub(crate) group: usize,
    /// Groups of a block.
    pub(crate) groups: usize,
    /// What is subtracted of each stored element.
    pub(crate) offset: u8,
    pub(crate) scales: Scales,
    /// How many numbers a group has: a scale, or a scale and a minimum.
    pub(crate) terms: usize,
}

impl Format {
    pub(crate) const fn layout(self) -> Layout {
        let bytes = Layout { bits: 8, group: 32, groups: 2, offset: 128, scales: Scales::Plain, terms: 1 };
        let nibbles = Layout { bits: 4, offset: 8, ..bytes };
        let nested = Layout { groups: 4, scales: Scales::Nested, ..bytes };
        match self {
            Self::Bytes => bytes,
            Self::BytesMinimum => Layout { offset: 0, terms: 2, ..bytes },
            Self::BytesNested => Layout { group: 16, groups: 8, ..nested },
            Self::BytesNestedMinimum => Layout { offset: 0, terms: 2, ..nested },
            Self::Nibbles => nibbles,
            Self::NibblesMinimum => Layout { offset: 0, terms: 2, ..nibbles },
            Self::NibblesNestedMinimum => Layout { bits: 4, offset: 0, terms: 2, ..nested },
        }
    }

    /// Elements that share all of their scales: where segments are multiples of it, rows that are stored in this
    /// format can be cut.
    pub(crate) fn unit(self) -> usize {
        let layout = self.layout();
        match layout.scales {
            Scales::Plain => layout.group,
            Scales::Nested => layout.block(),
        }
    }

    /// Bytes a matrix takes.
    pub(crate) fn bytes(self, shape: PanelShape) -> usize {
        shape.outputs.div_ceil(LANES) * self.layout().panel_blocks(shape) * self.layout().block_bytes()
    }
}

impl Layout {
    /// Elements of a column in a block.
    pub(crate) const fn block(self) -> usize {
        self.group * self.groups
    }

    /// Bytes of a group's elements.
    pub(crate) const fn group_bytes(self) -> usize {
        self.group * LANES * self.bits / 8
    }

    /// Bytes of one number of sixteen columns.
    pub(crate) const fn term_bytes(self) -> usize {
        match self.scales {
            Scales::Plain => LANES * 2,
            Scales::Nested => LANES,
        }
    }

    /// Where a group's number begins in its block.
    pub(crate) const fn term_at(self, group: usize, term: usize) -> usize {
        self.groups * self.group_bytes() + (term * self.groups + group) * self.term_bytes()
    }

    /// Where a nested format's f16 begin in their block.
    pub(crate) const fn factor_at(self, term: usize) -> usize {
        self.term_at(0, self.terms) + term * LANES * 2
    }

    pub(crate) const fn block_bytes(self) -> usize {
        let end = match self.scales {
            Scales::Plain => self.term_at(0, self.terms),
            Scales::Nested => self.factor_at(self.terms),
        };
        end.next_multiple_of(64)
    }

    /// Blocks of one segment of a panel. No block is in two segments.
    pub(crate) fn segment_blocks(self, shape: PanelShape) -> usize {
        (shape.inputs / shape.segments).div_ceil(self.block())
    }

    pub(crate) fn panel_blocks(self, shape: PanelShape) -> usize {
        self.segment_blocks(shape) * shape.segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_cache_lines_and_little_larger_than_what_they_hold() {
        let bits = |format: Format| {
            let layout = format.layout();
            assert_eq!(layout.block_bytes() % 64, 0);
            layout.block_bytes() as f64 * 8.0 / (layout.block() * LANES) as f64
        };
        let formats = [
            (Format::Bytes, 8.5),
            (Format::BytesMinimum, 9.0),
            (Format::BytesNested, 8.75),
            (Format::BytesNestedMinimum, 8.75),
            (Format::Nibbles, 4.5),
            (Format::NibblesMinimum, 5.0),
            (Format::NibblesNestedMinimum, 4.75),
        ];
        for (format, expected) in formats {
            assert_eq!(bits(format), expected, "{format:?}");
        }
    }

    #[test]
    fn segments_begin_with_a_block() {
        let shape = PanelShape { outputs: 17, inputs: 160, segments: 4 };
        assert_eq!(Format::Bytes.layout().segment_blocks(shape), 1);
        assert_eq!(Format::Bytes.bytes(shape), 2 * 4 * 1088);
        let whole = PanelShape { outputs: 16, inputs: 2048, segments: 8 };
        assert_eq!(Format::Nibbles.bytes(whole), 2048 * 16 * 9 / 16);
    }
}
