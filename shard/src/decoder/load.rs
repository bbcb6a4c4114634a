//! Reads and packs a rank's part of the weights.

mod layers;
mod progress;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use lockstep_models::ModelFiles;
use lockstep_process::reports;

use super::choices::{Bias, Head, NormKind, NormWeight};
use super::embedding::Embedding;
use super::layer::Projection;
use super::spec::ModelSpec;
use super::split::{Slice, Split};
use super::stream::Norm;
use super::{Decoder, Dtype, LoadError, names, rope};
use crate::comm::Communicator;
use crate::kv::KvCacheDtype;
use crate::ops::activation::Activation;
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::panels::{PanelShape, Panels, RowSource};
use crate::ops::gated_linear::GatedLinear;
use crate::ops::linear::Linear;
use crate::plan::{MemoryPlan, Products};
use crate::weights::{Checkpoint, GateBesideUp, StackedRows, WeightsError};
use progress::Progress;

pub(super) fn load(
    files: &ModelFiles,
    spec: &ModelSpec,
    dtype: Dtype,
    communicator: Arc<dyn Communicator>,
    told: reports::Progress,
) -> Result<Decoder, LoadError> {
    let split = Split { rank: communicator.rank(), world_size: communicator.world_size() };
    let slice = Slice::of(spec, split)?;
    let plan = MemoryPlan::of(spec, dtype, split)?;
    let checkpoint = open(files, spec)?;
    let products = Products::of(spec, &slice);
    let loader = Loader {
        checkpoint: &checkpoint,
        spec,
        slice,
        products,
        dtype,
        isa: Isa::of_this_machine(),
        progress: Progress::new(split.rank, plan.weights, told),
    };
    Ok(Decoder {
        spec: spec.clone(),
        plan,
        dtype,
        isa: loader.isa,
        communicator,
        embedding: loader.embedding()?,
        layers: loader.layers()?,
        final_norm: loader.norm(names::FINAL_NORM)?,
        head: loader.head()?,
        kv: loader.slice.kv_layout(),
        kv_cache: KvCacheDtype::Auto,
    })
}

/// The checkpoint, with the tensors the model has and no others.
fn open(files: &ModelFiles, spec: &ModelSpec) -> Result<Checkpoint, WeightsError> {
    let checkpoint = Checkpoint::open(files)?;
    let head = names::weight(names::HEAD);
    let tolerated: &[&str] = match spec.choices.head {
        // Some writers store the head again although it is the embedding.
        Head::Tied => &[&head],
        Head::Separate => &[],
    };
    checkpoint.check(&names::expected(spec), tolerated)?;
    Ok(checkpoint)
}

/// Whether the weight files have the model's tensors in their shapes. No weight is read.
///
/// # Errors
/// When there are no weight files, one is damaged, or a tensor is missing, mis-shaped or unused.
pub fn check_weights(files: &ModelFiles, spec: &ModelSpec) -> Result<(), WeightsError> {
    open(files, spec).map(|_| ())
}

/// What loading reads from and how it cuts.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    spec: &'a ModelSpec,
    slice: Slice,
    products: Products,
    dtype: Dtype,
    isa: Isa,
    progress: Progress,
}

/// Rows of a module's weight, and of its bias.
struct Part {
    module: String,
    rows: Range<usize>,
}

impl Loader<'_> {
    fn embedding(&self) -> Result<Embedding, LoadError> {
        let table = self.checkpoint.tensor(&names::weight(names::EMBEDDING))?;
        let scale = self.spec.choices.scales.embedding as f32;
        Ok(Embedding { table, hidden: self.spec.shape.hidden, scale })
    }

    fn head(&self) -> Result<Linear, LoadError> {
        let module = match self.spec.choices.head {
            Head::Tied => names::EMBEDDING,
            Head::Separate => names::HEAD,
        };
        let parts = [Part { module: module.to_owned(), rows: self.slice.vocabulary.clone() }];
        self.linear(self.products.head, &parts, 0..self.spec.shape.hidden)
    }

    fn norm(&self, module: &str) -> Result<Norm, LoadError> {
        let kind = self.spec.choices.norms.kind;
        let mut values = self.norm_weight(module, 0..self.spec.shape.hidden)?;
        let rows = match kind {
            NormKind::RootMeanSquare => 1,
            NormKind::Layer => {
                values.extend(self.checkpoint.tensor(&names::bias(module))?.row(0));
                2
            }
        };
        let parameters = Tensor::from_vec(values, (rows, self.spec.shape.hidden), &Device::Cpu)?;
        Ok(Norm { parameters, kind, epsilon: self.epsilon() })
    }

    /// Some of what a norm multiplies by.
    fn norm_weight(&self, module: &str, elements: Range<usize>) -> Result<Vec<f32>, LoadError> {
        let mut weight = self.checkpoint.tensor(&names::weight(module))?.row(0)[elements].to_vec();
        match self.spec.choices.norms.weight {
            NormWeight::Plain => {}
            NormWeight::OnePlus => weight.iter_mut().for_each(|weight| *weight += 1.0),
        }
        Ok(weight)
    }

    fn epsilon(&self) -> f32 {
        self.spec.shape.norm_epsilon as f32
    }

    /// The rows of several modules, one below the other, and the columns this rank has of them.
    fn linear(
        &self,
        shape: PanelShape,
        parts: &[Part],
        columns: Range<usize>,
    ) -> Result<Linear, LoadError> {
        let rows = self.rows(parts, columns)?;
        Ok(Linear { panels: self.pack(shape, &rows)?, isa: self.isa })
    }

    /// As [`Self::linear`], of a gate's rows and the same of what it gates.
    fn gated(
        &self,
        shape: PanelShape,
        (parts, columns): (&[Part], Range<usize>),
        activation: Activation,
    ) -> Result<GatedLinear, LoadError> {
        let rows = GateBesideUp::new(self.rows(parts, columns)?, shape.outputs / 2);
        Ok(GatedLinear { panels: self.pack(shape, &rows)?, activation, isa: self.isa })
    }

    fn rows(&self, parts: &[Part], columns: Range<usize>) -> Result<StackedRows, WeightsError> {
        let part =
            |part: &Part| Ok((self.checkpoint.tensor(&names::weight(&part.module))?, part.rows.clone()));
        let rows = StackedRows::new(parts.iter().map(part).collect::<Result<_, WeightsError>>()?, columns);
        rows.prefetch();
        Ok(rows)
    }

    fn pack(&self, shape: PanelShape, rows: &dyn RowSource) -> Result<Arc<Panels>, LoadError> {
        let panels = Panels::pack(shape, self.dtype, rows)?;
        self.progress.add(shape.bytes(self.dtype));
        Ok(Arc::new(panels))
    }

    /// As [`Self::linear`], with the same rows of the modules' biases.
    fn projection(
        &self,
        shape: PanelShape,
        (parts, columns): (&[Part], Range<usize>),
        with: Bias,
    ) -> Result<Projection, LoadError> {
        let bias = match with {
            Bias::Absent => None,
            Bias::Present => {
                let mut values = Vec::new();
                for part in parts {
                    let whole = self.checkpoint.tensor(&names::bias(&part.module))?.row(0);
                    values.extend_from_slice(&whole[part.rows.clone()]);
                }
                let width = values.len();
                Some(Tensor::from_vec(values, width, &Device::Cpu)?)
            }
        };
        Ok(Projection { linear: self.linear(shape, parts, columns)?, bias })
    }
}
