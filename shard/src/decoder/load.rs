//! Reads and packs a rank's part of the weights.

mod layers;
#[cfg(feature = "cuda")]
mod on_device;
mod progress;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Shape, Tensor};
use lockstep_models::ModelFiles;
use lockstep_process::reports;
use tracing::info;

use super::choices::{Bias, Head, NormKind, NormWeight};
use super::embedding::{Embedding, Table};
use super::layer::Projection;
use super::spec::ModelSpec;
use super::split::{Slice, Split};
use super::stacks::{Part, Run, Stack, Stacks};
use super::stream::Norm;
use super::{Decoder, LoadError, Overflow, Precision, Quantize, names, rope};
use crate::comm::Communicator;
#[cfg(not(feature = "cuda"))]
use crate::decoder::mlp::HeldExperts;
use crate::device::{DeviceError, DeviceKind, Target};
use crate::kv::KvCacheDtype;
use crate::ops::activation::Activation;
use crate::ops::attention::AttentionShape;
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::panels::{COLUMNS, Panels};
use crate::ops::cpu::quantized::{QuantizedPanels, Quantizing};
#[cfg(not(feature = "cuda"))]
use crate::ops::experts::Routing;
use crate::ops::gated_linear::GatedLinear;
use crate::ops::linear::Linear;
use crate::ops::matrix::{Matrix, Packed, Packing};
use crate::plan::MemoryPlan;
#[cfg(not(feature = "cuda"))]
use crate::weights::StoredTensor;
use crate::weights::{Checkpoint, GateBesideUp, StackedRows, WeightsError};
use progress::Progress;

pub(super) fn load(
    (target, communicator): (&Target, Arc<dyn Communicator>),
    files: &ModelFiles,
    (spec, precision): (&ModelSpec, Precision),
    told: reports::Progress,
) -> Result<Decoder, LoadError> {
    precision.check(target.kind())?;
    let split = Split { rank: communicator.rank(), world_size: communicator.world_size() };
    let slice = Slice::of(spec, split)?;
    let plan = MemoryPlan::of(spec, (precision, target.kind()), split)?;
    let checkpoint = open(files, spec)?;
    let loader = Loader {
        checkpoint: &checkpoint,
        spec,
        stacks: Stacks::new(spec, &slice),
        slice: &slice,
        precision,
        isa: Isa::of_this_machine(),
        target,
        progress: Progress::new(split.rank, plan.weights, told),
    };
    say_what_is_widened(&loader);
    let head = loader.linear(&loader.stacks.head())?;
    Ok(Decoder {
        spec: spec.clone(),
        plan,
        precision,
        isa: loader.isa,
        target: target.clone(),
        communicator,
        embedding: loader.embedding(&head)?,
        layers: loader.layers()?,
        final_norm: loader.norm(names::FINAL_NORM)?,
        head,
        shape: AttentionShape {
            query_heads: loader.slice.query_heads.len(),
            kv: loader.slice.kv_layout(),
            scale: 1.0,
            window: None,
            softcap: None,
        },
        kv_cache: KvCacheDtype::Auto,
    })
}

/// Blocks of types that have no format here, or that end within a virtual shard, are held element by element.
fn say_what_is_widened(loader: &Loader<'_>) {
    let (stored, precision) = (&loader.spec.stored, loader.precision);
    if precision.quantize == Quantize::AsStored && !stored.is_empty() {
        let widened = |run: &Run| matches!(run.packing, Packing::Elements(_));
        let (widened, kept): (Vec<Run>, Vec<Run>) = loader.stacks.runs(precision).partition(widened);
        let (widened, kept) = (widened.len(), kept.len());
        info!(
            kept,
            widened, "matrices that are multiplied as the file holds them, and as {}", precision.dtype
        );
    }
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

/// Of weights that [`Precision::check`] refuses.
fn not_on_the_cpu() -> LoadError {
    DeviceError::GpusOnly { option: "weights of fp8", instead: "give --quantize int8" }.into()
}

/// Why a stack's matrix was not packed.
fn unpacked(stack: &Stack, error: io::Error) -> LoadError {
    if error.kind() == io::ErrorKind::InvalidData {
        return LoadError::Held { modules: modules(stack), reason: Overflow };
    }
    LoadError::Memory(error)
}

/// The names of a stack's modules.
fn modules(stack: &Stack) -> String {
    stack.parts.iter().map(|part| part.module.as_str()).collect::<Vec<_>>().join(", ")
}

/// What loading reads from and how it cuts.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    spec: &'a ModelSpec,
    slice: &'a Slice,
    stacks: Stacks<'a>,
    precision: Precision,
    isa: Isa,
    target: &'a Target,
    progress: Progress,
}

impl Loader<'_> {
    fn embedding(&self, head: &Linear) -> Result<Embedding, LoadError> {
        let table = self.checkpoint.tensor(&names::weight(names::EMBEDDING))?;
        let table = match self.target.kind() {
            DeviceKind::Cpu => Table::InFile(table),
            DeviceKind::Cuda => self.table_on_device(&table, head)?,
        };
        let scale = self.spec.choices.scales.embedding as f32;
        Ok(Embedding { table, hidden: self.spec.shape.hidden, scale })
    }

    /// Values on this rank's device; no values in main memory, since a device's memory is not given out in nothing.
    fn tensor(&self, values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor, LoadError> {
        let device = if values.is_empty() { &Device::Cpu } else { &self.target.device };
        Ok(Tensor::from_vec(values, shape.into(), device)?)
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
        let parameters = self.tensor(values, (rows, self.spec.shape.hidden))?;
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

    /// What rows are sent to experts by. Each rank decides for itself, so that none may round in a way of its own.
    fn router(&self, stack: &Stack) -> Result<Linear, LoadError> {
        match self.target.kind() {
            DeviceKind::Cpu => self.linear(stack),
            DeviceKind::Cuda => self.exact_linear_on_device(stack),
        }
    }

    /// The rows of several modules, one below the other, and the columns this rank has of them.
    fn linear(&self, stack: &Stack) -> Result<Linear, LoadError> {
        if self.target.kind() == DeviceKind::Cuda {
            return self.linear_on_device(stack);
        }
        let runs = stack.runs(self.spec, self.precision);
        let packed = runs.iter().map(|run| self.pack(stack, run));
        Ok(Linear { matrix: Arc::new(Matrix::new(packed)?), isa: self.isa })
    }

    /// A gate's rows and the same of what it gates, where they are held element by element and fill whole panels.
    fn gated(&self, stack: &Stack, activation: Activation) -> Result<Option<GatedLinear>, LoadError> {
        let runs = stack.runs(self.spec, self.precision);
        if self.target.kind() == DeviceKind::Cuda {
            return self.gate_on_device(stack, &runs, activation);
        }
        let [Run { packing: Packing::Elements(dtype), shape, parts }] = runs.as_slice() else {
            return Ok(None);
        };
        if !shape.outputs.is_multiple_of(COLUMNS) {
            return Ok(None);
        }
        let rows = GateBesideUp::new(self.rows(stack, parts.clone())?, shape.outputs / 2);
        let panels = Panels::pack(*shape, *dtype, &rows).map_err(|error| unpacked(stack, error))?;
        self.progress.add(shape.bytes(*dtype));
        Ok(Some(GatedLinear::new(panels, activation, self.isa)))
    }

    fn rows(&self, stack: &Stack, parts: Range<usize>) -> Result<StackedRows, WeightsError> {
        let part =
            |part: &Part| Ok((self.checkpoint.tensor(&names::weight(&part.module))?, part.rows.clone()));
        let parts = stack.parts[parts].iter().map(part).collect::<Result<_, WeightsError>>()?;
        let rows = StackedRows::new(parts, stack.columns.clone());
        rows.prefetch();
        Ok(rows)
    }

    fn pack(&self, stack: &Stack, run: &Run) -> Result<Packed, LoadError> {
        let rows = self.rows(stack, run.parts.clone())?;
        let packed = match (run.packing, self.precision.quantize) {
            (Packing::Elements(dtype), _) => {
                let panels =
                    Panels::pack(run.shape, dtype, &rows).map_err(|error| unpacked(stack, error))?;
                Packed::Elements(panels)
            }
            (Packing::Float8, _) => return Err(not_on_the_cpu()),
            (Packing::Quantized(format), Quantize::AsStored) => {
                Packed::Quantized(QuantizedPanels::pack(run.shape, format, &rows)?)
            }
            (
                Packing::Quantized(format),
                Quantize::None | Quantize::Int8 | Quantize::Int4 | Quantize::Fp8,
            ) => {
                let rows = Quantizing::of_this_machine(&rows, format);
                Packed::Quantized(QuantizedPanels::pack(run.shape, format, &rows)?)
            }
        };
        self.progress.add(run.packing.bytes(run.shape, DeviceKind::Cpu));
        Ok(packed)
    }

    /// As [`Self::linear`], with the same rows of the modules' biases.
    fn projection(&self, stack: &Stack, with: Bias) -> Result<Projection, LoadError> {
        let bias = match with {
            Bias::Absent => None,
            Bias::Present => {
                let mut values = Vec::new();
                for part in &stack.parts {
                    let whole = self.checkpoint.tensor(&names::bias(&part.module))?.row(0);
                    values.extend_from_slice(&whole[part.rows.clone()]);
                }
                let width = values.len();
                Some(self.tensor(values, width)?)
            }
        };
        Ok(Projection { linear: self.linear(stack)?, bias })
    }
}

#[cfg(not(feature = "cuda"))]
impl Loader<'_> {
    fn linear_on_device(&self, _: &Stack) -> Result<Linear, LoadError> {
        Err(LoadError::Device(DeviceError::NotBuilt))
    }

    fn exact_linear_on_device(&self, _: &Stack) -> Result<Linear, LoadError> {
        Err(LoadError::Device(DeviceError::NotBuilt))
    }

    fn gate_on_device(
        &self,
        _: &Stack,
        _: &[Run],
        _: Activation,
    ) -> Result<Option<GatedLinear>, LoadError> {
        Err(LoadError::Device(DeviceError::NotBuilt))
    }

    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "its twin of binaries that know GPUs reads from it"
    )]
    fn grouped_experts(
        &self,
        _: usize,
        _: (Routing, Activation),
    ) -> Result<Option<HeldExperts>, LoadError> {
        Ok(None)
    }

    #[expect(clippy::unused_self, reason = "its twin of binaries that know GPUs reads from it")]
    fn table_on_device(&self, _: &StoredTensor, _: &Linear) -> Result<Table, LoadError> {
        Err(LoadError::Device(DeviceError::NotBuilt))
    }
}
