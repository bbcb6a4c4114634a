//! config.json from a GGUF file's metadata.

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::names::ROPE_FACTORS;
use super::parse::Header;
use super::{Gguf, GgufError, RowOrder, rope, tokenizer};

pub(super) const ARCHITECTURE: &str = "general.architecture";
const PARTS: &str = "split.count";

/// A GGUF architecture and how its Hugging Face checkpoints differ from others.
struct Architecture {
    name: &'static str,
    hugging_face: &'static str,
    rotated_rows: RotatedRows,
}

/// How the converter lays the rows of queries and keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RotatedRows {
    AsTheyAre,
    AdjacentPairs,
}

const ARCHITECTURES: &[Architecture] = &[
    // Mistral, SmolLM and others with Llama's tensors go by its name.
    Architecture {
        name: "llama",
        hugging_face: "LlamaForCausalLM",
        rotated_rows: RotatedRows::AdjacentPairs,
    },
    Architecture { name: "qwen2", hugging_face: "Qwen2ForCausalLM", rotated_rows: RotatedRows::AsTheyAre },
    Architecture { name: "qwen3", hugging_face: "Qwen3ForCausalLM", rotated_rows: RotatedRows::AsTheyAre },
];

/// What config.json says of this model.
pub(super) fn config(gguf: &Gguf) -> Result<Value, GgufError> {
    let header = &gguf.header;
    let architecture = architecture(&header.metadata)?;
    let keys = Keys { metadata: &header.metadata, architecture: architecture.name };
    keys.check_supported()?;
    let theta = keys.float("rope.freq_base")?.unwrap_or(rope::DEFAULT_BASE);
    let head_width = keys.head_width()?;
    let context = keys.require("context_length")?;
    let mut config = Map::new();
    let mut set = |name: &str, value: Value| config.insert(name.to_owned(), value);
    set("architectures", json!([architecture.hugging_face]));
    set("model_type", json!(architecture.name));
    set("hidden_size", json!(keys.require("embedding_length")?));
    set("intermediate_size", json!(keys.require("feed_forward_length")?));
    set("num_hidden_layers", json!(keys.require("block_count")?));
    set("num_attention_heads", json!(keys.require("attention.head_count")?));
    set("num_key_value_heads", json!(keys.kv_heads()?));
    set("head_dim", json!(head_width));
    set("vocab_size", json!(vocabulary(header)?));
    set("max_position_embeddings", json!(context));
    set("rms_norm_eps", json!(decimal(keys.require_float("attention.layer_norm_rms_epsilon")?)));
    set("rope_theta", json!(decimal(theta)));
    set("rope_scaling", rope::scaling(&keys, gguf.floats(ROPE_FACTORS)?, theta)?);
    set("hidden_act", json!("silu"));
    set("tie_word_embeddings", json!(!header.tensors.contains_key("output.weight")));
    set("attention_bias", json!(header.tensors.contains_key("blk.0.attn_q.bias")));
    set("mlp_bias", json!(header.tensors.contains_key("blk.0.ffn_gate.bias")));
    if let Some(turned) = keys.unsigned("rope.dimension_count")?.filter(|turned| *turned != head_width) {
        set("partial_rotary_factor", json!(turned as f64 / head_width as f64));
    }
    if let Some(window) = keys.unsigned("attention.sliding_window")?.filter(|window| *window < context) {
        set("sliding_window", json!(window));
        if architecture.name == "llama" {
            set("architectures", json!(["MistralForCausalLM"]));
            set("model_type", json!("mistral"));
        }
    }
    for (name, id) in tokenizer::special_ids(&header.metadata)? {
        set(name, json!(id));
    }
    Ok(Value::Object(config))
}

/// How the rows of queries and keys lie in this file.
pub(super) fn order_of_rotated_rows(header: &Header) -> Result<RowOrder, GgufError> {
    let architecture = architecture(&header.metadata)?;
    match architecture.rotated_rows {
        RotatedRows::AsTheyAre => Ok(RowOrder::Same),
        RotatedRows::AdjacentPairs => {
            let keys = Keys { metadata: &header.metadata, architecture: architecture.name };
            Ok(RowOrder::AdjacentPairs { head_width: keys.head_width()? as usize })
        }
    }
}

/// A float as its shortest decimal in single precision: what the config it was converted from says.
pub(super) fn decimal(value: f64) -> f64 {
    let single = value as f32;
    if f64::from(single) == value { single.to_string().parse().unwrap_or(value) } else { value }
}

fn architecture(metadata: &Metadata) -> Result<&'static Architecture, GgufError> {
    let known = || ARCHITECTURES.iter().map(|known| known.name).collect::<Vec<_>>().join(", ");
    let found = Metadata::require(ARCHITECTURE, metadata.text(ARCHITECTURE)?, &known())?;
    ARCHITECTURES.iter().find(|known| known.name == found).ok_or_else(|| GgufError::Unsupported {
        what: ARCHITECTURE.to_owned(),
        found: found.to_owned(),
        supported: known(),
    })
}

/// Rows of the embedding: the vocabulary may be padded beyond the tokens there are.
fn vocabulary(header: &Header) -> Result<usize, GgufError> {
    let embedding = "token_embd.weight";
    let found = header.tensors.get(embedding).and_then(|tensor| tensor.shape.first().copied());
    Metadata::require(embedding, found, "the embedding's tensor")
}

/// The metadata of one architecture: its keys begin with its name.
pub(super) struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'static str,
}

impl Keys<'_> {
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(super) fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.metadata.unsigned_of_all_layers(&self.name(key))
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.metadata.float(&self.name(key))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.metadata.text(&self.name(key))
    }

    /// Elements of a head; even and not 0.
    pub(super) fn head_width(&self) -> Result<u64, GgufError> {
        let heads = self.require("attention.head_count")?;
        let shared = self.require("embedding_length")?.checked_div(heads);
        let width = self.unsigned("attention.key_length")?.or(shared).unwrap_or(0);
        if width == 0 || !width.is_multiple_of(2) {
            return Err(GgufError::Invalid {
                what: format!("the width of a head ({})", self.name("attention.key_length")),
                found: width.to_string(),
                expected: "an even number of at least 2".to_owned(),
            });
        }
        Ok(width)
    }

    fn kv_heads(&self) -> Result<u64, GgufError> {
        let stated = self.unsigned("attention.head_count_kv")?;
        stated.map_or_else(|| self.require("attention.head_count"), Ok)
    }

    fn require(&self, key: &str) -> Result<u64, GgufError> {
        Metadata::require(&self.name(key), self.unsigned(key)?, "an integer")
    }

    fn require_float(&self, key: &str) -> Result<f64, GgufError> {
        Metadata::require(&self.name(key), self.float(key)?, "a float")
    }

    /// An error for what other tensors or other arithmetic would be needed for.
    fn check_supported(&self) -> Result<(), GgufError> {
        let unsupported = |what: String, found: String, supported: &str| {
            Err(GgufError::Unsupported { what, found, supported: supported.to_owned() })
        };
        let parts = self.metadata.unsigned(PARTS)?.unwrap_or(1);
        if parts > 1 {
            return unsupported(PARTS.to_owned(), parts.to_string(), "one file: merge its parts");
        }
        let experts = self.unsigned("expert_count")?.unwrap_or(0);
        if experts > 0 {
            return unsupported(self.name("expert_count"), experts.to_string(), "0: no mixture of experts");
        }
        let (width, value_width) = (self.head_width()?, self.unsigned("attention.value_length")?);
        match value_width {
            Some(found) if found != width => {
                unsupported(self.name("attention.value_length"), found.to_string(), &width.to_string())
            }
            Some(_) | None => Ok(()),
        }
    }
}
