//! Random checkpoints for tests, here and in other crates: a whole model folder but for the tokenizer.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use half::bf16;
use safetensors::{Dtype, View};
use serde_json::json;

/// A random Llama of any shape, the same for the same seed.
#[derive(Clone, Debug)]
pub struct TinyLlama {
    /// Width of the residual stream.
    pub hidden: usize,
    /// How many layers.
    pub layers: usize,
    /// Query heads.
    pub query_heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_width: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Experts of each layer, of which a token goes to two: a Mixtral. None: one MLP for all tokens.
    pub experts: Option<usize>,
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Positions a context may have.
    pub max_positions: usize,
    /// Where the head's weights are.
    pub head: TinyHead,
    /// What the weights follow from.
    pub seed: u64,
}

/// Where the head's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TinyHead {
    /// They are the embedding's.
    Tied,
    /// A tensor of its own.
    Separate,
}

/// A stored tensor: bf16 bits and shape.
pub struct TinyTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, little-endian bf16.
    pub bytes: Vec<u8>,
}

impl View for &TinyTensor {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.bytes.as_slice().into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

impl TinyLlama {
    /// Two layers that 1, 2 and 4 ranks divide, with sizes that fill no vector evenly.
    pub fn new(seed: u64) -> Self {
        Self {
            hidden: 72,
            layers: 2,
            query_heads: 8,
            kv_heads: 4,
            head_width: 20,
            intermediate: 192,
            experts: None,
            vocabulary: 331,
            max_positions: 512,
            head: TinyHead::Tied,
            seed,
        }
    }

    /// What config.json says.
    pub fn config(&self) -> serde_json::Value {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.query_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": null,
            "hidden_act": "silu",
            "tie_word_embeddings": self.head == TinyHead::Tied,
            "torch_dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 1
        });
        if let Some(experts) = self.experts {
            config["architectures"] = json!(["MixtralForCausalLM"]);
            config["model_type"] = json!("mixtral");
            config["num_local_experts"] = json!(experts);
            config["num_experts_per_tok"] = json!(2);
        }
        config
    }

    /// The tensors, by name.
    pub fn tensors(&self) -> BTreeMap<String, TinyTensor> {
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocabulary, self.hidden]),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
        ];
        if self.head == TinyHead::Separate {
            shapes.push(("lm_head.weight".to_owned(), vec![self.vocabulary, self.hidden]));
        }
        let (queries, keys) = (self.query_heads * self.head_width, self.kv_heads * self.head_width);
        for layer in 0..self.layers {
            let in_layer = [
                ("input_layernorm", vec![self.hidden]),
                ("post_attention_layernorm", vec![self.hidden]),
                ("self_attn.q_proj", vec![queries, self.hidden]),
                ("self_attn.k_proj", vec![keys, self.hidden]),
                ("self_attn.v_proj", vec![keys, self.hidden]),
                ("self_attn.o_proj", vec![self.hidden, queries]),
            ];
            let named = |(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape);
            let in_layer = in_layer.map(|(name, shape)| (name.to_owned(), shape));
            shapes.extend(in_layer.into_iter().chain(self.mlp()).map(named));
        }
        let mut state = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        shapes.into_iter().map(|(name, shape)| (name, random_tensor(shape, &mut state))).collect()
    }

    /// The tensors of a layer's MLP.
    fn mlp(&self) -> Vec<(String, Vec<usize>)> {
        let (inner, down) = (vec![self.intermediate, self.hidden], vec![self.hidden, self.intermediate]);
        let products = |module: &str, [gate, up, down_name]: [&str; 3]| {
            [(gate, inner.clone()), (up, inner.clone()), (down_name, down.clone())]
                .map(|(name, shape)| (format!("{module}.{name}"), shape))
        };
        let Some(experts) = self.experts else {
            return products("mlp", ["gate_proj", "up_proj", "down_proj"]).into();
        };
        let router = ("block_sparse_moe.gate".to_owned(), vec![experts, self.hidden]);
        let of_expert =
            |expert| products(&format!("block_sparse_moe.experts.{expert}"), ["w1", "w3", "w2"]);
        std::iter::once(router).chain((0..experts).flat_map(of_expert)).collect()
    }

    /// Writes config.json and model.safetensors into `folder`, which exists.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        std::fs::write(folder.join("config.json"), self.config().to_string())?;
        write_tensors(folder, &self.tensors())
    }
}

/// Writes model.safetensors into `folder`.
///
/// # Errors
/// When it cannot be written.
pub fn write_tensors(folder: &Path, tensors: &BTreeMap<String, TinyTensor>) -> io::Result<()> {
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &path).map_err(io::Error::other)
}

/// Norms near one; matrices scaled so that activations neither die out nor grow.
fn random_tensor(shape: Vec<usize>, state: &mut u64) -> TinyTensor {
    let (offset, scale) = match shape.as_slice() {
        [_, inputs] => (0.0, (3.0 / *inputs as f32).sqrt()),
        _ => (1.0, 0.3),
    };
    let mut uniform = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    let count = shape.iter().product();
    let value = |_| bf16::from_f32(offset + scale * uniform()).to_le_bytes();
    let bytes = (0..count).map(value).collect::<Vec<_>>().concat();
    TinyTensor { shape, bytes }
}
