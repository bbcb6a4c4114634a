//! Amounts, each in its own unit. Conversions between units are named methods.

use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// Nothing of it.
            pub const ZERO: Self = Self(0);

            /// The difference, or zero where `other` is larger.
            #[must_use]
            pub fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                self.0 += other.0;
            }
        }

        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }

        impl SubAssign for $name {
            fn sub_assign(&mut self, other: Self) {
                self.0 -= other.0;
            }
        }
    };
}

unit!(
    /// A number of tokens.
    Tokens(u32)
);
unit!(
    /// A number of KV blocks.
    Blocks(u32)
);
unit!(
    /// A number of bytes.
    Bytes(u64)
);

/// Where a token stands in its sequence, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u32);

impl Tokens {
    /// Of a length in memory. Longer than `u32::MAX` saturates; no context comes near it.
    pub fn of_len(len: usize) -> Self {
        Self(u32::try_from(len).unwrap_or(u32::MAX))
    }

    /// As an index or a length in memory.
    pub fn len(self) -> usize {
        self.0 as usize
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Blocks needed to hold this many tokens.
    #[must_use]
    pub fn blocks_ceil(self, block_size: Tokens) -> Blocks {
        Blocks(self.0.div_ceil(block_size.0))
    }

    /// Whole blocks these tokens fill.
    #[must_use]
    pub fn blocks_floor(self, block_size: Tokens) -> Blocks {
        Blocks(self.0 / block_size.0)
    }
}

impl Blocks {
    /// Of a length in memory.
    pub fn of_len(len: usize) -> Self {
        Self(u32::try_from(len).unwrap_or(u32::MAX))
    }

    /// As an index or a length in memory.
    pub fn len(self) -> usize {
        self.0 as usize
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Tokens these blocks hold.
    #[must_use]
    pub fn tokens(self, block_size: Tokens) -> Tokens {
        Tokens(self.0.saturating_mul(block_size.0))
    }
}

impl Position {
    /// The position `count` tokens further on.
    #[must_use]
    pub fn advance(self, count: Tokens) -> Self {
        Self(self.0 + count.0)
    }

    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Bytes {
    /// Binary units with three significant digits: `14.1 MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let decimals = if unit == 0 || value >= 100.0 { 0 } else { 1 };
        write!(f, "{value:.decimals$} {}", UNITS[unit])
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_to_blocks_rounds_as_named() {
        let size = Tokens(16);
        let cases = [(0, 0, 0), (1, 1, 0), (15, 1, 0), (16, 1, 1), (17, 2, 1), (32, 2, 2)];
        for (tokens, ceil, floor) in cases {
            assert_eq!(Tokens(tokens).blocks_ceil(size), Blocks(ceil), "{tokens}");
            assert_eq!(Tokens(tokens).blocks_floor(size), Blocks(floor), "{tokens}");
        }
    }

    #[test]
    fn bytes_read_as_a_person_would_write_them() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (14_784_512, "14.1 MiB"),
            (200 << 30, "200 GiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
