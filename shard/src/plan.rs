//! What a model takes of a rank's memory, known before any weight is read.

mod activations;

use lockstep_proto::{Blocks, Bytes, Rank, Tokens};

use self::activations::Activations;
use crate::batch::BLOCK_SIZE;
use crate::decoder::spec::{ExpertShape, ModelSpec};
use crate::decoder::split::{Slice, Split, SplitError};
use crate::decoder::stacks::Stacks;
use crate::device::DeviceKind;
use crate::dtype::Dtype;
use crate::kv::KvCacheDtype;
use crate::kv::layout::KvLayout;
use crate::ops::cpu::panels::PanelShape;
use crate::precision::Precision;

/// The memory of one rank. On the CPU the embedding table is not counted: it stays in the model's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Bytes of weights, packed, and of the tables computed beside them.
    pub weights: Bytes,
    /// Bytes of one KV block, over all layers.
    pub block: Bytes,
    /// What [`Self::block`] is counted from.
    kv: PlannedKv,
    /// What [`Self::activations`] is counted from.
    activations: Activations,
}

/// What KV blocks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PlannedKv {
    layout: KvLayout,
    layers: usize,
    weights: Dtype,
}

impl PlannedKv {
    fn block(self, held: KvCacheDtype) -> Bytes {
        self.layout.block_bytes(self.layers, held.beside(self.weights))
    }
}

impl MemoryPlan {
    /// The largest rank's memory, where a group of `world_size` serves the model.
    ///
    /// # Errors
    /// When the model cannot be split over so many ranks.
    pub fn new(
        spec: &ModelSpec,
        precision: impl Into<Precision>,
        world_size: u32,
    ) -> Result<Self, SplitError> {
        Self::on(spec, (precision.into(), DeviceKind::Cpu), world_size)
    }

    /// As [`Self::new`], on a device.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn on(
        spec: &ModelSpec,
        (precision, on): (Precision, DeviceKind),
        world_size: u32,
    ) -> Result<Self, SplitError> {
        Self::of(spec, (precision, on), Split { rank: Rank(0), world_size })
    }

    /// With the weights as they are on a device. On GPUs the embedding table is beside them, where it is not the head.
    pub(crate) fn of(
        spec: &ModelSpec,
        (precision, on): (Precision, DeviceKind),
        split: Split,
    ) -> Result<Self, SplitError> {
        let slice = Slice::of(spec, split)?;
        let products = Products::of(spec, &slice);
        let stacks = Stacks::new(spec, &slice);
        let packed: u64 = stacks.runs(precision).map(|run| run.packing.bytes(run.shape, on) as u64).sum();
        let table = match on {
            DeviceKind::Cpu => 0,
            DeviceKind::Cuda if stacks.head_is_table(precision) => 0,
            DeviceKind::Cuda => spec.shape.vocabulary * spec.shape.hidden * precision.dtype.bytes(),
        };
        let kv =
            PlannedKv { layout: slice.kv_layout(), layers: spec.shape.layers, weights: precision.dtype };
        Ok(Self {
            weights: Bytes(packed + (table + 4 * spec.unpacked_elements()) as u64),
            block: kv.block(KvCacheDtype::Auto),
            kv,
            activations: Activations::of(spec, &slice, split.world_size as usize, &products),
        })
    }

    /// The same with keys and values held so.
    #[must_use]
    pub fn with_kv_cache(self, held: KvCacheDtype) -> Self {
        Self { block: self.kv.block(held), ..self }
    }

    /// Bytes that computing a step of `rows` takes beside weights and KV, at most: the values between its
    /// tokens and its results, all of whose rows may ask for logits. Scratch space of single threads is not
    /// counted.
    pub fn activations(&self, rows: Tokens) -> Bytes {
        self.activations.bytes(rows)
    }

    /// KV blocks that fit beside the weights in `memory`.
    pub fn blocks_in(&self, memory: Bytes) -> Blocks {
        let blocks = memory.saturating_sub(self.weights).0.checked_div(self.block.0).unwrap_or(0);
        Blocks(u32::try_from(blocks).unwrap_or(u32::MAX))
    }

    /// Tokens of context that fit beside the weights in `memory`, over all sequences.
    pub fn tokens_in(&self, memory: Bytes) -> Tokens {
        self.blocks_in(memory).tokens(BLOCK_SIZE)
    }

    /// Whether the weights and one context of `tokens` fit in `memory`.
    pub fn fits(&self, memory: Bytes, tokens: Tokens) -> bool {
        self.needed(tokens) <= memory
    }

    /// Bytes the weights and one context of `tokens` take.
    pub fn needed(&self, tokens: Tokens) -> Bytes {
        self.weights + self.kv_for(tokens.blocks_ceil(BLOCK_SIZE))
    }

    /// Bytes `blocks` KV blocks take.
    pub fn kv_for(&self, blocks: Blocks) -> Bytes {
        Bytes(self.block.0.saturating_mul(u64::from(blocks.0)))
    }
}

/// The sizes of a rank's packed matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Products {
    pub(crate) qkv: PanelShape,
    pub(crate) output: PanelShape,
    /// What comes before the activation.
    pub(crate) inner: PanelShape,
    pub(crate) down: PanelShape,
    pub(crate) router: PanelShape,
    pub(crate) expert_gate_up: PanelShape,
    pub(crate) expert_down: PanelShape,
    pub(crate) head: PanelShape,
}

impl Products {
    pub(crate) fn of(spec: &ModelSpec, slice: &Slice) -> Self {
        let hidden = spec.shape.hidden;
        let queries = slice.query_heads.len() * slice.head_width;
        let keys = slice.kv_heads.len() * slice.head_width;
        let intermediate = slice.intermediate.len();
        let experts = spec.shape.experts.unwrap_or(ExpertShape { count: 0, chosen: 0, intermediate: 0 });
        let whole = |outputs, inputs| PanelShape { outputs, inputs, segments: 1 };
        let summed = |outputs, inputs| PanelShape { outputs, inputs, segments: slice.segments };
        Self {
            qkv: whole(queries + 2 * keys, hidden),
            output: summed(hidden, queries),
            inner: whole(spec.choices.mlp.kind.inner_products() * intermediate, hidden),
            down: summed(hidden, intermediate),
            router: whole(experts.count, hidden),
            expert_gate_up: whole(2 * experts.intermediate, hidden),
            expert_down: whole(hidden, experts.intermediate),
            head: whole(slice.vocabulary_padded, hidden),
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_models::ModelFiles;

    use super::*;
    use crate::dtype::Dtype;
    use crate::precision::Quantize;
    use crate::testing::TinyLlama;

    /// The spec of a model without weights.
    pub(super) fn spec(model: &TinyLlama) -> ModelSpec {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), model.config().to_string()).unwrap();
        ModelSpec::read(&ModelFiles::Folder(folder.path().to_owned())).unwrap()
    }

    #[test]
    fn a_gpu_holds_the_table_beside_a_head_that_is_not_it() {
        let spec = spec(&TinyLlama::new(0));
        let shape = spec.shape();
        let table = (shape.vocabulary * shape.hidden * 2) as u64;
        let weights = |quantize, on, ranks| {
            let precision = Precision { dtype: Dtype::Bfloat16, quantize };
            MemoryPlan::on(&spec, (precision, on), ranks).unwrap().weights.0
        };
        let [none, int8, fp8] = [Quantize::None, Quantize::Int8, Quantize::Fp8]
            .map(|quantize| weights(quantize, DeviceKind::Cuda, 1));
        // One bf16 for each element of every matrix, of which the head is the table, and f32 for the rest.
        let vectors = 4 * spec.unpacked_elements() as u64;
        let matrices = spec.parameters() - vector_elements(&spec);
        // The head's rows are padded to whole vectors.
        let padding = (shape.vocabulary.next_multiple_of(16) - shape.vocabulary) * shape.hidden;
        assert_eq!(none, 2 * (matrices + padding as u64) + vectors);
        assert!(fp8 < int8 && int8 < none + table, "{fp8} {int8} {none}");
        assert!(fp8 > table + vectors + matrices && int8 > table + vectors + matrices * 17 / 16);
        // With two ranks nobody has all of the head.
        assert!(weights(Quantize::None, DeviceKind::Cuda, 2) > table + none / 2 - vectors);
    }

    /// Elements of norms and biases.
    fn vector_elements(spec: &ModelSpec) -> u64 {
        let tables = spec.shape().max_positions * spec.choices.rope.width;
        (spec.unpacked_elements() - tables) as u64
    }

    #[test]
    fn what_fits_is_what_is_needed() {
        let plan = MemoryPlan::new(&spec(&TinyLlama::new(0)), Dtype::Bfloat16, 1).unwrap();
        let plan = MemoryPlan { weights: Bytes(1000), block: Bytes(64), ..plan };
        for (memory, blocks) in [(0, 0), (999, 0), (1063, 0), (1064, 1), (1128, 2), (1191, 2)] {
            assert_eq!(plan.blocks_in(Bytes(memory)), Blocks(blocks), "{memory}");
            let tokens = plan.tokens_in(Bytes(memory));
            assert_eq!(tokens, Tokens(blocks * 16));
            if blocks > 0 {
                assert!(plan.fits(Bytes(memory), tokens));
            }
            assert!(!plan.fits(Bytes(memory), tokens + Tokens(1)));
        }
    }
}
