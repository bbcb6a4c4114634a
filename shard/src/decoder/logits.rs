//! What a forward pass returns.

/// Rows of logits: (rows asked for, vocabulary).
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    values: Vec<f32>,
    vocabulary: usize,
}

impl Logits {
    /// `values` are whole rows.
    pub(super) fn new(values: Vec<f32>, vocabulary: usize) -> Self {
        Self { values, vocabulary }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.values.len() / self.vocabulary
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The logits of the `index`-th row asked for: (vocabulary). There are [`Self::len`] rows.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocabulary..][..self.vocabulary]
    }

    /// The rows in the order they were asked for.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocabulary)
    }
}
