//! What a forward pass returns, and what becomes of it.

use std::ops::Range;

#[cfg(feature = "cuda")]
use std::sync::Arc;

use candle_core::Tensor;
use lockstep_proto::Bytes;

#[cfg(feature = "cuda")]
use super::ForwardError;
#[cfg(feature = "cuda")]
use super::device_logits::DeviceLogits;
#[cfg(feature = "cuda")]
use crate::comm::Communicator;
#[cfg(feature = "cuda")]
use crate::ops::cuda::copies::Copy;

/// Most bytes of logits that exist at once, for one row at least. A row of the largest vocabularies in use,
/// 2^18 entries of four bytes, takes 1 MiB: 16 rows of it are one slice, or 32 rows of 2^17 entries, or 128 of
/// 2^15. From some 16 rows on a product takes longer to compute than its weights take to read, so that smaller
/// slices would cost time and larger ones gain none; and ordinary decode steps are one slice or two.
const AT_ONCE: Bytes = Bytes(16 << 20);

/// How many rows of logits are computed at once, for a vocabulary of so many entries.
pub(crate) fn rows_at_once(vocabulary: usize) -> usize {
    let row = size_of::<f32>() * vocabulary.max(1);
    usize::try_from(AT_ONCE.0).map_or(1, |bytes| bytes / row).max(1)
}

/// The rows of a batch whose logits are wanted, after the last layer and its norm.
pub struct Hidden {
    /// (rows asked for, hidden), where any were
    rows: Option<Tensor>,
}

impl Hidden {
    pub(super) fn none() -> Self {
        Self { rows: None }
    }

    pub(super) fn new(rows: Tensor) -> Self {
        Self { rows: Some(rows) }
    }

    /// The first rows.
    #[cfg(feature = "cuda")]
    pub(super) fn first(self, count: usize) -> candle_core::Result<Self> {
        Ok(Self { rows: self.slice(0..count)? })
    }

    /// Copies all of them over the first rows of a tensor on their device.
    #[cfg(feature = "cuda")]
    pub(super) fn copy_into(&self, target: &Tensor) -> candle_core::Result<()> {
        self.rows.as_ref().map_or(Ok(()), |rows| target.inplace_op2(rows, &Copy))
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.as_ref().map_or(0, |rows| rows.dims()[0])
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// (rows of the range, hidden), where it has any.
    pub(super) fn slice(&self, range: Range<usize>) -> candle_core::Result<Option<Tensor>> {
        let rows = self.rows.as_ref().filter(|_| !range.is_empty());
        rows.map(|rows| rows.narrow(0, range.start, range.len())).transpose()
    }
}

/// Rows of logits: (rows of a slice, vocabulary).
pub struct Logits {
    values: Vec<f32>,
    vocabulary: usize,
    #[cfg(feature = "cuda")]
    on_device: Option<DeviceLogits>,
}

impl Logits {
    /// `values` are whole rows.
    pub(super) fn new(values: Vec<f32>, vocabulary: usize) -> Self {
        Self {
            values,
            vocabulary,
            #[cfg(feature = "cuda")]
            on_device: None,
        }
    }

    /// `rows` (rows, vocabulary) stay on their device until somebody asks for them.
    #[cfg(feature = "cuda")]
    pub(super) fn on_device(rows: Tensor, communicator: Arc<dyn Communicator>) -> Self {
        let vocabulary = rows.dims().last().copied().unwrap_or_default();
        let on_device = Some(DeviceLogits { rows, communicator });
        Self { values: Vec::new(), vocabulary, on_device }
    }

    /// The rows where they are, unless that is main memory.
    #[cfg(feature = "cuda")]
    pub(super) fn device_rows(&self) -> Option<&DeviceLogits> {
        self.on_device.as_ref()
    }

    /// With the rows in main memory.
    ///
    /// # Errors
    /// When the device or the group fails.
    #[cfg(feature = "cuda")]
    pub fn on_host(mut self) -> Result<Self, ForwardError> {
        if let Some(on_device) = self.on_device.take() {
            self.values = on_device.on_host()?;
        }
        Ok(self)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.values.len() / self.vocabulary
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The logits of the slice's `index`-th row: (vocabulary). There are [`Self::len`] rows.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocabulary..][..self.vocabulary]
    }

    /// The rows in the order they were asked for.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocabulary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_stays_within_its_bytes_and_has_a_row() {
        let cases =
            [(331, 12_671), (4096, 1024), (32_000, 131), (128_256, 32), (262_144, 16), (1 << 26, 1)];
        for (vocabulary, rows) in cases {
            assert_eq!(rows_at_once(vocabulary), rows, "{vocabulary}");
            assert!(rows == 1 || (rows * vocabulary * 4) as u64 <= AT_ONCE.0);
        }
    }
}
