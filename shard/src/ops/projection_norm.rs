//! Norms queries, and keys, over the whole projection: all heads of all ranks are one row.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, InplaceOp3, Layout, Result, Shape, bail};

use super::attention::AttentionShape;
use super::cpu::isa::Isa;
use super::cpu::projection_norm::{ProjectionWeights, norm_projections, sum_squares};
use super::{contiguous, contiguous_mut};

/// (rows, all heads * head width) → (rows, 2): the sums of the squares of this rank's queries and of its keys.
///
/// The rank's heads are summed in `segments` parts, and those in the tree in which ranks are, so that the sum
/// over all ranks has the same bits however many there are.
pub(crate) struct ProjectionSquares {
    pub(crate) shape: AttentionShape,
    /// Equal parts of the rank's query heads, and of its key heads: a power of two.
    pub(crate) segments: usize,
    pub(crate) isa: Isa,
}

impl ProjectionSquares {
    pub(super) fn check_segments(&self) -> Result<()> {
        let segments = self.segments;
        let (queries, keys) = (self.shape.query_heads, self.shape.kv.kv_heads);
        let divide =
            segments.is_power_of_two() && queries.is_multiple_of(segments) && keys.is_multiple_of(segments);
        if !divide {
            bail!(
                "sum the squares of {queries} query heads and {keys} key heads in {segments} equal parts"
            );
        }
        Ok(())
    }
}

impl CustomOp1 for ProjectionSquares {
    fn name(&self) -> &'static str {
        "projection_squares"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.check_segments()?;
        let segments = self.segments;
        let qkv = contiguous::<f32>(qkv, layout)?;
        let rows = qkv.len() / self.shape.row_elements();
        let mut squares = vec![0.0; rows * 2];
        sum_squares(self.isa, self.shape, segments, qkv, &mut squares);
        Ok((CpuStorage::F32(squares), Shape::from((rows, 2))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, qkv: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        super::cuda::norm::squares_forward(self, qkv, layout)
    }
}

/// (rows, all heads * head width), the sums (rows, 2) of [`ProjectionSquares`] over all ranks, weights of this
/// rank's query elements and then of its key elements: the root mean square norm of the queries, and of the
/// keys, of the whole model. Values stay.
pub(crate) struct ProjectionNorm {
    pub(crate) shape: AttentionShape,
    pub(crate) epsilon: f32,
    /// Elements of all ranks' query heads.
    pub(crate) query_width: usize,
    /// Elements of all ranks' key heads.
    pub(crate) key_width: usize,
    pub(crate) isa: Isa,
}

impl ProjectionNorm {
    pub(super) fn check_lengths(&self, rows: usize, weights: usize, squares: usize) -> Result<()> {
        let (queries, keys) = (self.shape.query_elements(), self.shape.kv_elements());
        if weights != queries + keys || squares != rows * 2 {
            bail!(
                "norm {rows} rows of {queries} query and {keys} key elements by {weights} weights and \
                 {squares} sums"
            );
        }
        Ok(())
    }
}

impl InplaceOp3 for ProjectionNorm {
    fn name(&self) -> &'static str {
        "projection_norm"
    }

    fn cpu_fwd(
        &self,
        qkv: &mut CpuStorage,
        qkv_layout: &Layout,
        squares: &CpuStorage,
        squares_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> Result<()> {
        let qkv = contiguous_mut::<f32>(qkv, qkv_layout)?;
        let squares = contiguous::<f32>(squares, squares_layout)?;
        let weights = contiguous::<f32>(weights, weights_layout)?;
        let rows = qkv.len() / self.shape.row_elements();
        self.check_lengths(rows, weights.len(), squares.len())?;
        let (query, key) = weights.split_at(self.shape.query_elements());
        let (query_width, key_width) = (self.query_width, self.key_width);
        let weights = ProjectionWeights { query, key, query_width, key_width, epsilon: self.epsilon };
        norm_projections(self.isa, weights, squares, qkv);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        qkv: &mut CudaStorage,
        qkv_layout: &Layout,
        squares: &CudaStorage,
        squares_layout: &Layout,
        weights: &CudaStorage,
        weights_layout: &Layout,
    ) -> Result<()> {
        let weights = (weights, weights_layout);
        super::cuda::norm::projection_forward(self, (qkv, qkv_layout), (squares, squares_layout), weights)
    }
}
