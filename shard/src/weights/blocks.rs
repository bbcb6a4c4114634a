//! Elements that are packed into blocks, widened one row at a time.
//!
//! Rows of the embedding table are, and weights whose blocks are not multiplied as they are stored, see
//! `packed_blocks`.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;

/// Widens some columns of `row`, the blocks of a whole row at an even address, into `into`, which is as long as
/// the columns are many. Columns that begin or end within a block are read with all of it.
pub(super) fn read(dtype: GgmlDType, row: &[u8], columns: Range<usize>, into: &mut [f32]) {
    let (elements, bytes) = (dtype.block_size(), dtype.type_size());
    let blocks = columns.start / elements..columns.end.div_ceil(elements);
    let packed = &row[blocks.start * bytes..blocks.end * bytes];
    let widened = dtype.from_data(Cow::Borrowed(packed)).dequantize(blocks.len() * elements);
    let Ok(CpuStorage::F32(widened)) = widened else {
        unreachable!("blocks on the CPU are widened to single precision");
    };
    into.copy_from_slice(&widened[columns.start - blocks.start * elements..][..columns.len()]);
}
