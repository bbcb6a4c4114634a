//! The types of a GGUF file's elements, by the numbers ggml gives them.

/// A type of elements that is read. Types beyond floats pack a fixed number of elements into a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// 32 elements of 4 bits and a scale.
    Q4_0,
    /// 32 elements of 4 bits, a scale and a minimum.
    Q4_1,
    /// 32 elements of 5 bits and a scale.
    Q5_0,
    /// 32 elements of 5 bits, a scale and a minimum.
    Q5_1,
    /// 32 elements of 8 bits and a scale.
    Q8_0,
    /// 256 elements of 2 bits with scales of scales.
    Q2K,
    /// 256 elements of 3 bits with scales of scales.
    Q3K,
    /// 256 elements of 4 bits with scales of scales.
    Q4K,
    /// 256 elements of 5 bits with scales of scales.
    Q5K,
    /// 256 elements of 6 bits with scales of scales.
    Q6K,
}

/// The types that are read, with the numbers and names ggml gives them.
const READ: &[(ElementType, u32, &str)] = &[
    (ElementType::F32, 0, "F32"),
    (ElementType::F16, 1, "F16"),
    (ElementType::Q4_0, 2, "Q4_0"),
    (ElementType::Q4_1, 3, "Q4_1"),
    (ElementType::Q5_0, 6, "Q5_0"),
    (ElementType::Q5_1, 7, "Q5_1"),
    (ElementType::Q8_0, 8, "Q8_0"),
    (ElementType::Q2K, 10, "Q2_K"),
    (ElementType::Q3K, 11, "Q3_K"),
    (ElementType::Q4K, 12, "Q4_K"),
    (ElementType::Q5K, 13, "Q5_K"),
    (ElementType::Q6K, 14, "Q6_K"),
    (ElementType::Bf16, 30, "BF16"),
];

/// Types that files have and nothing here reads, by number: an error should say their names.
const NOT_READ: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl ElementType {
    /// The type ggml gives this number.
    pub(super) fn of(number: u32) -> Option<Self> {
        READ.iter().find(|(_, known, _)| *known == number).map(|(element, ..)| *element)
    }

    /// What ggml calls the type of this number, whether it is read or not.
    pub(super) fn name_of(number: u32) -> String {
        let read = READ.iter().map(|(_, known, name)| (*known, *name));
        let found = read.chain(NOT_READ.iter().copied()).find(|(known, _)| *known == number);
        found.map_or_else(|| format!("type {number}"), |(_, name)| name.to_owned())
    }

    /// The names of all types that are read.
    pub(super) fn names() -> String {
        READ.iter().map(|(.., name)| *name).collect::<Vec<_>>().join(", ")
    }

    /// Elements in a block; rows are whole blocks.
    pub fn block_elements(self) -> usize {
        self.size().0
    }

    /// Bytes of a block; even.
    pub fn block_bytes(self) -> usize {
        self.size().1
    }

    fn size(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }
}
