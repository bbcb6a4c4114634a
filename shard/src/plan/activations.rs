//! What the values between a step's tokens and its results take of a rank's memory.

use lockstep_proto::{Bytes, Tokens};

use super::Products;
use crate::decoder::choices::LayerMlp;
use crate::decoder::logits;
use crate::decoder::spec::ModelSpec;
use crate::decoder::split::Slice;

/// A rank's activations, by row.
///
/// A step of R rows takes at most R times the row of its widest layer, and one slice of logits. Layers follow each
/// other in the same memory, so their number does not matter. All elements are f32, 4 bytes; an input is held once
/// more as bf16, half as large, or quantized, smaller still, while a product reads it; beside weights of f16 it is as it was. Exchanges over TCP hold the parts of all ranks of one
/// sum beside that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Activations {
    /// Elements of a row at the widest point of a step.
    row: usize,
    /// Elements of a row of logits, from the head's product to where they are read.
    logit_row: usize,
    /// Rows of logits that exist at once.
    logit_rows: usize,
}

/// Elements that attention notes of a row and query head: at most one unit of work, of 40 bytes, and a walk over
/// what it sees, of 56.
const ATTENTION_UNIT: usize = 24;

/// Elements that routing notes of a row and expert it goes to: a row's number and a weight, 16 bytes, in a list
/// that grows by doubling, and the row's number once more.
const ROUTED: usize = 10;

impl Activations {
    pub(super) fn of(spec: &ModelSpec, slice: &Slice, ranks: usize, products: &Products) -> Self {
        let hidden = spec.shape.hidden;
        // The residual stream and its norm.
        let stream = 2 * hidden;
        // Beside the stream while a product is added to it: the product, what a norm makes of it, the new stream.
        let addition = 4 * hidden;
        let in_layer = |mlp: LayerMlp| match mlp {
            LayerMlp::Dense => attention(slice, products).max(dense(products)).max(addition),
            LayerMlp::Experts => {
                attention(slice, products).max(experts(spec, slice, products)).max(addition)
            }
        };
        let widest = spec.layers.iter().map(|layer| in_layer(layer.mlp)).max().unwrap_or(0);
        let vocabulary = spec.shape.vocabulary;
        // The rounded input, this rank's part, all ranks' parts, and whole rows made of them.
        let logit_row = hidden.div_ceil(2) + products.head.outputs * (1 + ranks) + vocabulary;
        Self { row: stream + widest, logit_row, logit_rows: logits::rows_at_once(vocabulary) }
    }

    /// Of a step of `rows`, all of whose logits may be wanted.
    pub(super) fn bytes(&self, rows: Tokens) -> Bytes {
        let slice = self.logit_row.saturating_mul(self.logit_rows.min(rows.len()));
        let elements = self.row.saturating_mul(rows.len()).saturating_add(slice);
        Bytes((elements as u64).saturating_mul(size_of::<f32>() as u64))
    }
}

/// The rounded input; queries, keys and values; what attention notes; what queries attend to, and that rounded;
/// the output.
fn attention(slice: &Slice, products: &Products) -> usize {
    let (qkv, output) = (products.qkv, products.output);
    let noted = ATTENTION_UNIT * slice.query_heads.len();
    qkv.inputs.div_ceil(2)
        + qkv.outputs
        + noted
        + output.inputs
        + output.inputs.div_ceil(2)
        + output.outputs
}

/// The rounded input; what comes before the activation; what comes after, and that rounded; the output.
fn dense(products: &Products) -> usize {
    let (inner, down) = (products.inner, products.down);
    inner.inputs.div_ceil(2) + inner.outputs + down.inputs + down.inputs.div_ceil(2) + down.outputs
}

/// The scores twice; where a row goes; a sum for each group of experts, and those of the tree's first level; and,
/// where every row goes to one expert, its input with all that a dense MLP holds.
fn experts(spec: &ModelSpec, slice: &Slice, products: &Products) -> usize {
    let (gate_up, down) = (products.expert_gate_up, products.expert_down);
    let chosen = spec.shape.experts.map_or(0, |experts| experts.chosen);
    let routing = 2 * products.router.outputs + ROUTED * chosen;
    let sums = (slice.segments + slice.segments.div_ceil(2)) * down.outputs;
    let inner = gate_up.inputs + gate_up.inputs.div_ceil(2) + gate_up.outputs;
    routing + sums + inner + down.inputs + down.inputs.div_ceil(2) + down.outputs
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Rank;

    use super::*;
    use crate::decoder::split::Split;
    use crate::dtype::Dtype;
    use crate::plan::MemoryPlan;
    use crate::plan::tests::spec;
    use crate::testing::TinyLlama;

    /// A model as wide as an 8B Llama: per row 8,192 elements of stream, and for the MLP 2,048 of rounded input,
    /// 28,672 before and 14,336 after the activation, 7,168 rounded and 4,096 of output: 64,512 elements.
    #[test]
    fn the_widest_point_of_a_wide_model_is_its_mlp() {
        let spec = spec(&TinyLlama {
            hidden: 4096,
            query_heads: 32,
            kv_heads: 8,
            head_width: 128,
            intermediate: 14_336,
            vocabulary: 128_256,
            ..TinyLlama::new(0)
        });
        let plan = |world_size| MemoryPlan::new(&spec, Dtype::Bfloat16, world_size).unwrap();
        // 32 rows of logits at once, three times over, with 2,048 elements of rounded input.
        let logits = |rows: u64| 4 * rows * (2048 + 3 * 128_256);
        assert_eq!(plan(1).activations(Tokens(0)), Bytes(0));
        assert_eq!(plan(1).activations(Tokens(1)), Bytes(4 * 64_512 + logits(1)));
        assert_eq!(plan(1).activations(Tokens(4096)), Bytes(4 * 64_512 * 4096 + logits(32)));
        // Half of the MLP is on each of two ranks; the logits are gathered whole on both.
        let halved = 8192 + 2048 + 14_336 + 7168 + 3584 + 4096;
        let logits = 4 * 32 * (2048 + 64_128 + 2 * 128_256);
        assert_eq!(plan(2).activations(Tokens(4096)), Bytes(4 * halved * 4096 + logits));
    }

    #[test]
    fn more_ranks_never_take_more_a_row() {
        let spec = spec(&TinyLlama::new(0));
        let row = |world_size| {
            let split = Split { rank: Rank(0), world_size };
            let slice = Slice::of(&spec, split).unwrap();
            let products = Products::of(&spec, &slice);
            Activations::of(&spec, &slice, world_size as usize, &products).row
        };
        assert!(row(2) <= row(1));
        assert!(row(2) >= 3 * spec.shape.hidden);
    }
}
