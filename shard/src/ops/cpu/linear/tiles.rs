//! How rows are cut into register tiles. How they are cut changes no sum.

use crate::ops::cpu::isa::Isa;

/// Rows that are multiplied by a panel together: each row's sums are registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// The first row.
    pub(super) first: usize,
    /// How many rows there are.
    pub(super) rows: usize,
    /// How many rows are computed: one of the sizes there is code for.
    pub(super) size: usize,
    /// How many rows are computed before this tile.
    pub(super) start: usize,
}

/// The sizes there is code for, where there are 32 registers of 64 bytes.
const WIDE: [usize; 8] = [1, 2, 3, 4, 6, 8, 10, 12];
/// The sizes there is code for elsewhere.
const NARROW: [usize; 2] = [1, 2];

/// Cuts so many rows into as few tiles as there can be, of much the same sizes.
pub(super) fn tiles(isa: Isa, rows: usize) -> Vec<Tile> {
    let sizes: &[usize] = if isa.is_wide() { &WIDE } else { &NARROW };
    let largest = sizes[sizes.len() - 1];
    let count = rows.div_ceil(largest);
    let mut tiles = Vec::with_capacity(count);
    let (mut first, mut start) = (0, 0);
    for tile in 0..count {
        let rows = (rows - first).div_ceil(count - tile);
        let size = sizes.iter().copied().find(|size| *size >= rows).unwrap_or(largest);
        tiles.push(Tile { first, rows, size, start });
        first += rows;
        start += size;
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_one_tile_that_has_room_for_it() {
        for (isa, rows) in
            Isa::all_of_this_machine().into_iter().flat_map(|isa| (0..300).map(move |rows| (isa, rows)))
        {
            let tiles = tiles(isa, rows);
            let (mut first, mut start) = (0, 0);
            for tile in tiles {
                assert_eq!((tile.first, tile.start), (first, start), "{isa} {rows}");
                assert!((1..=tile.size).contains(&tile.rows), "{isa} {rows}: {tile:?}");
                first += tile.rows;
                start += tile.size;
            }
            assert_eq!(first, rows, "{isa}");
        }
    }
}
