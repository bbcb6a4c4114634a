//! Tokens to rows of the residual stream. On the CPU the table stays in its file: a row is read when its token is.

#[cfg(feature = "cuda")]
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Shape, bail};
use candle_core::{Device, Result, Tensor};
use lockstep_proto::TokenId;

#[cfg(feature = "cuda")]
use crate::ops::cuda::kernel::Address;
#[cfg(feature = "cuda")]
use crate::ops::cuda::rows::{pick_at, pick_forward};
use crate::ops::placed::Placed;
use crate::weights::StoredTensor;

/// Where the table is.
pub(super) enum Table {
    InFile(StoredTensor),
    #[cfg(feature = "cuda")]
    OnDevice(Tensor),
}

/// The embedding table.
pub(super) struct Embedding {
    /// (vocabulary, hidden)
    pub(super) table: Table,
    pub(super) hidden: usize,
    /// What rows are multiplied by.
    pub(super) scale: f32,
}

impl Embedding {
    /// (rows) → (rows, hidden). The tokens are in the vocabulary, and those of the placed rows where these have any.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "rows are placed on devices"))]
    pub(super) fn rows(&self, tokens: &[TokenId], placed: &Placed<'_>) -> Result<Tensor> {
        match &self.table {
            Table::InFile(table) => self.read(table, tokens),
            #[cfg(feature = "cuda")]
            Table::OnDevice(table) => {
                let gather = Gather { tokens, at: placed.on_device()?.tokens, scale: self.scale };
                table.apply_op1_no_bwd(&gather)
            }
        }
    }

    fn read(&self, table: &StoredTensor, tokens: &[TokenId]) -> Result<Tensor> {
        let mut values = vec![0.0; tokens.len() * self.hidden];
        for (token, row) in tokens.iter().zip(values.chunks_exact_mut(self.hidden)) {
            table.read(token.index(), 0..self.hidden, row);
        }
        if self.scale != 1.0 {
            values.iter_mut().for_each(|value| *value *= self.scale);
        }
        Tensor::from_vec(values, (tokens.len(), self.hidden), &Device::Cpu)
    }
}

/// (vocabulary, hidden) → (tokens, hidden)
#[cfg(feature = "cuda")]
struct Gather<'a> {
    tokens: &'a [TokenId],
    /// Where they are on the device, where they are there already.
    at: Option<Address>,
    scale: f32,
}

#[cfg(feature = "cuda")]
impl CustomOp1 for Gather<'_> {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("gather embeddings in main memory: they are read from their file there")
    }

    fn cuda_fwd(&self, table: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        if let Some(at) = self.at {
            return pick_at((at, self.tokens.len(), self.scale), table, layout);
        }
        let tokens: Vec<u32> = self.tokens.iter().map(|token| token.0).collect();
        pick_forward((&tokens, self.scale), table, layout)
    }
}
