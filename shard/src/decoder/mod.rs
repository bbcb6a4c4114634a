//! The one decoder of all families: embed, layers, norm, head.
//!
//! What a row of logits is depends on its sequence's tokens alone: not on what else is in the batch, how a
//! prompt is cut into chunks, or how many ranks there are.

#[cfg(feature = "cuda")]
mod asking;
mod check;
pub(crate) mod choices;
#[cfg(feature = "cuda")]
mod device_logits;
mod embedding;
mod families;
#[cfg(feature = "cuda")]
mod fed;
mod forward;
mod layer;
mod load;
pub(crate) mod logits;
mod mlp;
mod names;
#[cfg(feature = "cuda")]
mod replay;
pub(crate) mod rope;
pub(crate) mod spec;
pub(crate) mod split;
pub(crate) mod stacks;
mod stream;
mod wanted;

use std::ops::Range;
use std::sync::Arc;

use lockstep_models::ModelFiles;
use lockstep_process::reports::Progress;
use lockstep_proto::{Blocks, Bytes};
use thiserror::Error;

use crate::batch::{Batch, BatchSequence};
use crate::comm::{CommError, Communicator};
use crate::device::{DeviceError, DeviceKind, Target};
use crate::kv::{KvCacheDtype, KvPool};
use crate::ops::attention::AttentionShape;
use crate::ops::cpu::isa::Isa;
use crate::ops::linear::Linear;
use crate::ops::placed::Placed;
use crate::ops::{GPU_REVISION, REVISION};
use crate::plan::MemoryPlan;

#[cfg(feature = "cuda")]
pub(crate) use asking::Asking;
#[cfg(feature = "cuda")]
pub use asking::DeviceAsked;

pub use crate::dtype::{Dtype, Overflow};
pub use crate::kv::AllocateError;
pub use crate::ops::activation::Activation;
pub use crate::precision::{Precision, Quantize};
pub use crate::weights::WeightsError;
pub use check::BatchError;
pub use choices::{
    AttentionChoices, Bias, Choices, ExpertChoices, ExpertNames, Head, LayerChoices, LayerMlp, LayerRope,
    MlpChoices, MlpKind, NormChoices, NormKind, NormPlacement, NormWeight, QkNorm, QkvProjection,
    RoutingWeights, Scales, ScoreScale,
};
pub use load::check_weights;
pub use logits::{Hidden, Logits};
#[cfg(feature = "cuda")]
pub(crate) use replay::{MOST_ROWS, Recordings};
pub use rope::{RampEnds, Rope, RopeScaling, Yarn};
pub use spec::{ExpertShape, ModelSpec, Shape, SpecError};
pub use split::{Split, SplitError};

/// One rank's part of a model, ready to run.
pub struct Decoder {
    spec: ModelSpec,
    plan: MemoryPlan,
    precision: Precision,
    isa: Isa,
    target: Target,
    communicator: Arc<dyn Communicator>,
    embedding: embedding::Embedding,
    layers: Vec<layer::Layer>,
    final_norm: stream::Norm,
    head: Linear,
    /// Of any layer's attention, without what differs between layers.
    shape: AttentionShape,
    kv_cache: KvCacheDtype,
}

/// Where a device has the tokens that a step chooses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChosenOnDevice {
    /// The address of the step's answers.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "it is an address on a device"))]
    pub(crate) answers: u64,
    /// How many there are.
    pub(crate) rows: usize,
}

/// A model that cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Its tensors are not what its config.json promises.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// It cannot be split over so many ranks.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// There is no memory for its weights.
    #[error("take memory for weights: {0}")]
    Memory(#[from] std::io::Error),
    /// Its weights cannot be held as they should.
    #[error("hold the weights of {modules}: {reason}")]
    Held {
        /// Of which modules.
        modules: String,
        /// Why not.
        reason: Overflow,
    },
    /// The device cannot be had, or cannot do what is asked.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A tensor cannot be made.
    #[error("make a tensor: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// A forward pass that did not come to its end.
#[derive(Debug, Error)]
pub enum ForwardError {
    /// The batch makes no sense for this model and pool. Nothing was computed, on any rank.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The other ranks cannot be reached; the group is lost.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// An operator failed.
    #[error("compute: {0}")]
    Compute(#[from] candle_core::Error),
}

impl Decoder {
    /// Reads and packs this rank's part of the weights; which part follows from the communicator.
    ///
    /// # Errors
    /// When the ranks do not divide the model, a tensor is missing, mis-shaped or unused, or memory is short.
    pub fn load(
        files: &ModelFiles,
        spec: &ModelSpec,
        precision: impl Into<Precision>,
        communicator: Arc<dyn Communicator>,
    ) -> Result<Self, LoadError> {
        Self::load_telling(files, spec, precision, communicator, Progress::default())
    }

    /// As [`Self::load`]; each piece of the weights advances `progress`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_telling(
        files: &ModelFiles,
        spec: &ModelSpec,
        precision: impl Into<Precision>,
        communicator: Arc<dyn Communicator>,
        progress: Progress,
    ) -> Result<Self, LoadError> {
        Self::load_onto((&Target::cpu(), communicator), files, (spec, precision.into()), progress)
    }

    /// As [`Self::load_telling`], onto a device.
    ///
    /// # Errors
    /// As [`Self::load`], and when the device cannot hold weights as they are asked for.
    pub fn load_onto(
        (target, communicator): (&Target, Arc<dyn Communicator>),
        files: &ModelFiles,
        (spec, precision): (&ModelSpec, Precision),
        progress: Progress,
    ) -> Result<Self, LoadError> {
        load::load((target, communicator), files, (spec, precision), progress)
    }

    /// The same with keys and values held so; as the weights are where nothing is said.
    #[must_use]
    pub fn with_kv_cache(self, held: KvCacheDtype) -> Self {
        Self { plan: self.plan.with_kv_cache(held), kv_cache: held, ..self }
    }

    /// Has every step started kernel by kernel.
    #[cfg(feature = "cuda")]
    pub(crate) fn record_nothing(&mut self) {
        self.target.records = false;
    }

    /// KV blocks for this rank, in memory that is taken as they are first written.
    ///
    /// # Errors
    /// When there is not so much address space.
    pub fn allocate_kv(&self, blocks: Blocks) -> Result<KvPool, AllocateError> {
        let held = self.kv_cache.beside(self.precision.dtype);
        KvPool::allocate((self.shape.kv, self.layers.len()), held, blocks, &self.target.device)
    }

    /// Rows of the sequences, for every layer: where they stand does not depend on what differs between layers.
    fn place<'a>(&self, sequences: &'a [BatchSequence]) -> candle_core::Result<Placed<'a>> {
        let held = self.kv_cache.beside(self.precision.dtype);
        Placed::new(sequences, (self.shape, held), &self.target.device)
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Bytes one KV block takes on this rank, over all layers.
    pub fn block_bytes(&self) -> Bytes {
        self.plan.block
    }

    /// Bytes of weights in this rank's memory.
    pub fn weight_bytes(&self) -> Bytes {
        self.plan.weights
    }

    /// Names the arithmetic: ranks and hosts with equal names compute equal bits.
    pub fn arithmetic(&self) -> String {
        let Precision { dtype, quantize } = self.precision;
        let weights = match quantize {
            Quantize::None => String::new(),
            Quantize::AsStored if dtype == Dtype::Float32 || self.spec.stored.is_empty() => String::new(),
            Quantize::AsStored | Quantize::Int8 | Quantize::Int4 | Quantize::Fp8 => format!("/{quantize}"),
        };
        let kv = self.kv_cache.arithmetic(dtype);
        let virtual_shards = self.spec.virtual_shards();
        match self.target.kind() {
            DeviceKind::Cpu => format!("{dtype}{weights}{kv}/{}/v{virtual_shards}/r{REVISION}", self.isa),
            DeviceKind::Cuda => {
                let order =
                    if self.target.exact { format!("exact/v{virtual_shards}") } else { "fast".to_owned() };
                format!("{dtype}{weights}{kv}/cuda-{}/{order}/r{GPU_REVISION}", self.target.architecture)
            }
        }
    }

    /// Whether something that is computed is held in f16, which has no numbers beyond 65504: keys and values, or, on GPUs, what
    /// is multiplied by weights of f16.
    pub fn may_overflow(&self) -> bool {
        let of_weights = self.target.kind() == DeviceKind::Cuda && self.precision.dtype == Dtype::Float16;
        of_weights || self.kv_cache.beside(self.precision.dtype) == crate::kv::KvDtype::Float16
    }

    /// How many rows of logits are worth computing at once. It follows from the vocabulary alone.
    pub fn logit_rows_at_once(&self) -> usize {
        logits::rows_at_once(self.spec.shape.vocabulary)
    }

    /// Computes the batch's rows, writes their keys and values to their sequences' blocks, and returns what
    /// the logits of the rows that ask for them are computed from. Every rank calls it with the same batch.
    ///
    /// # Errors
    /// When the batch makes no sense, the group is lost or an operator fails.
    pub fn forward(&self, batch: &Batch, kv: &mut KvPool) -> Result<Hidden, ForwardError> {
        self.forward_fed((batch, None), kv)
    }

    /// The same of a batch that may be fed by the step before.
    pub(crate) fn forward_fed(
        &self,
        (batch, chosen): (&Batch, Option<ChosenOnDevice>),
        kv: &mut KvPool,
    ) -> Result<Hidden, ForwardError> {
        check::check(self, batch, kv)?;
        check::check_fed(batch, chosen)?;
        forward::forward(self, (batch, chosen), kv)
    }

    /// Whether all of a step is done on a device, so that the host has only to start it. To experts that are computed one by
    /// one the host sends rows in the middle of a pass, and sums over ranks that have no NCCL are made there.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_all_on_device(&self) -> bool {
        let needs_no_host = |mlp: &mlp::Mlp| match mlp {
            mlp::Mlp::Dense(_) => true,
            mlp::Mlp::Experts(experts) => match experts.held {
                mlp::HeldExperts::Grouped(_) => true,
                mlp::HeldExperts::OneByOne(_) => false,
            },
        };
        let communicator = self.communicator.as_ref();
        let sums_on_device = communicator.world_size() == 1 || communicator.nccl().is_some();
        let is_on_device = self.target.kind() == DeviceKind::Cuda;
        is_on_device && sums_on_device && self.layers.iter().all(|layer| needs_no_host(&layer.mlp))
    }

    /// The logits of some of the rows that asked for them, counted in the order they were asked for. Every rank
    /// calls it with the same rows; [`Self::logit_rows_at_once`] says how many are good.
    ///
    /// # Errors
    /// When there are not so many rows, the group is lost or an operator fails.
    pub fn logits(&self, hidden: &Hidden, rows: Range<usize>) -> Result<Logits, ForwardError> {
        check::check_slice(hidden, &rows)?;
        forward::logits(self, hidden, rows)
    }
}
