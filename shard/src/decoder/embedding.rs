//! Tokens to rows of the residual stream. The table stays in its file: a row is read when its token is.

use candle_core::{Device, Result, Tensor};
use lockstep_proto::TokenId;

use crate::weights::StoredTensor;

/// The embedding table.
pub(super) struct Embedding {
    /// (vocabulary, hidden)
    pub(super) table: StoredTensor,
    pub(super) hidden: usize,
    /// What rows are multiplied by.
    pub(super) scale: f32,
}

impl Embedding {
    /// (rows) → (rows, hidden). The tokens are in the vocabulary.
    pub(super) fn rows(&self, tokens: &[TokenId]) -> Result<Tensor> {
        let mut values = vec![0.0; tokens.len() * self.hidden];
        for (token, row) in tokens.iter().zip(values.chunks_exact_mut(self.hidden)) {
            self.table.read(token.index(), 0..self.hidden, row);
        }
        if self.scale != 1.0 {
            values.iter_mut().for_each(|value| *value *= self.scale);
        }
        Tensor::from_vec(values, (tokens.len(), self.hidden), &Device::Cpu)
    }
}
