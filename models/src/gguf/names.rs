//! What GGUF and Hugging Face checkpoints call the same tensors, and how their rows differ.

/// The frequency factors of scaled rotary embeddings: part of config.json, not a weight.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// In what order a tensor's rows lie, seen from a Hugging Face checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// The same.
    Same,
    /// Within each head, the rows that rotary embeddings turn together lie next to each other; in a Hugging
    /// Face checkpoint they lie half a head apart.
    AdjacentPairs {
        /// Rows of a head; even and not 0.
        head_width: usize,
    },
}

impl RowOrder {
    /// Where the row lies that a Hugging Face checkpoint has at `row`.
    pub fn stored(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::AdjacentPairs { head_width } => {
                let (head, within, half) = (row / head_width, row % head_width, head_width / 2);
                head * head_width + 2 * (within % half) + within / half
            }
        }
    }
}

const OUTSIDE: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const IN_LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The Hugging Face name of a tensor; one that is not known keeps its own.
pub(super) fn hugging_face(name: &str) -> String {
    renamed(name).unwrap_or_else(|| name.to_owned())
}

/// Whether a tensor holds queries or keys.
pub(super) fn is_rotated(name: &str) -> bool {
    in_layer(name).is_some_and(|(_, module, _)| matches!(module, "attn_q" | "attn_k"))
}

fn renamed(name: &str) -> Option<String> {
    let known = |modules: &[(&str, &'static str)], module: &str| {
        modules.iter().find(|(found, _)| *found == module).map(|(_, name)| *name)
    };
    if let Some((layer, module, end)) = in_layer(name) {
        return Some(format!("model.layers.{layer}.{}.{end}", known(IN_LAYER, module)?));
    }
    let (module, end) = name.rsplit_once('.')?;
    Some(format!("{}.{end}", known(OUTSIDE, module)?))
}

/// Layer, module and what of it: `blk.3.attn_q.weight` is (3, attn_q, weight).
fn in_layer(name: &str) -> Option<(&str, &str, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (module, end) = rest.rsplit_once('.')?;
    Some((layer, module, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_checkpoints() {
        let cases = [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
            ("blk.11.attn_k.bias", "model.layers.11.self_attn.k_proj.bias"),
            ("blk.2.attn_k_norm.weight", "model.layers.2.self_attn.k_norm.weight"),
            ("blk.2.ffn_norm.weight", "model.layers.2.post_attention_layernorm.weight"),
            ("blk.2.ffn_gate_exps.weight", "blk.2.ffn_gate_exps.weight"),
            ("v.patch_embd", "v.patch_embd"),
        ];
        for (name, expected) in cases {
            assert_eq!(hugging_face(name), expected);
        }
        assert!(is_rotated("blk.2.attn_k.bias") && is_rotated("blk.0.attn_q.weight"));
        assert!(!is_rotated("blk.2.attn_k_norm.weight") && !is_rotated("blk.2.attn_v.weight"));
    }

    #[test]
    fn pairs_half_a_head_apart_are_found_next_to_each_other() {
        let order = RowOrder::AdjacentPairs { head_width: 6 };
        let stored: Vec<usize> = (0..12).map(|row| order.stored(row)).collect();
        assert_eq!(stored, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert_eq!(RowOrder::Same.stored(7), 7);
    }
}
