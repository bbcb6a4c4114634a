//! Products with weights of 8 and 4 bits: weights as unsigned bytes or halves of bytes with a scale for each
//! group, activations as signed bytes with a scale for each group of a row, sums of their products as integers.
//!
//! Every output element is one chain of additions over the groups, front to back, of each segment, and segments
//! are added in a binary tree, as in [`super::linear`]. A row's activations are quantized from that row alone. So a
//! row's result is the same to the bit in any batch, on any number of threads and ranks, and, since the sums
//! within a group are exact, on every instruction set.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod format;
mod integers;
mod pack;
mod portable;
mod product;
mod quantize;

pub(crate) use format::Format;
#[cfg(any(test, feature = "cuda"))]
pub(crate) use format::Scales;
pub(crate) use pack::{Group, PackedRow, QuantizedPanels, QuantizedRows};
pub(crate) use product::{Columns, multiply};
pub(crate) use quantize::Quantizing;

#[cfg(test)]
mod tests;
