//! GGUF files for tests: any metadata and tensors, and the demo model as a converter would write it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::demo;

const ALIGNMENT: usize = 32;
const VERSION: u32 = 3;

/// The numbers of value types.
const UNSIGNED: u32 = 4;
const SIGNED: u32 = 5;
const FLOAT: u32 = 6;
const FLAG: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

/// The numbers of element types that are written here.
const F32: u32 = 0;
const BF16: u32 = 30;

/// The numbers of token kinds that are written here.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// Puts a GGUF file together.
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    keys: u64,
    metadata: Vec<u8>,
    tensors: u64,
    infos: Vec<u8>,
    data: Vec<u8>,
}

impl GgufWriter {
    /// Nothing written yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// An integer of 32 bits.
    pub fn unsigned(&mut self, key: &str, value: u32) -> &mut Self {
        self.value(key, UNSIGNED, &value.to_le_bytes())
    }

    /// A float of 32 bits.
    pub fn float(&mut self, key: &str, value: f32) -> &mut Self {
        self.value(key, FLOAT, &value.to_le_bytes())
    }

    /// A truth value.
    pub fn flag(&mut self, key: &str, value: Flag) -> &mut Self {
        self.value(key, FLAG, &[u8::from(value == Flag::True)])
    }

    /// A text.
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.value(key, TEXT, &text(value))
    }

    /// A list of texts.
    pub fn texts(&mut self, key: &str, values: &[&str]) -> &mut Self {
        self.list(key, TEXT, values.iter().map(|value| text(value)).collect())
    }

    /// A list of signed integers of 32 bits.
    pub fn signeds(&mut self, key: &str, values: &[i32]) -> &mut Self {
        self.list(key, SIGNED, values.iter().map(|value| value.to_le_bytes().to_vec()).collect())
    }

    /// A list of floats of 32 bits.
    pub fn floats(&mut self, key: &str, values: &[f32]) -> &mut Self {
        self.list(key, FLOAT, values.iter().map(|value| value.to_le_bytes().to_vec()).collect())
    }

    /// A tensor of this shape, rows before columns, of the element type with this number.
    pub fn tensor(&mut self, name: &str, shape: &[usize], element: u32, bytes: &[u8]) -> &mut Self {
        self.tensors += 1;
        self.infos.extend(text(name));
        self.infos.extend((shape.len() as u32).to_le_bytes());
        for size in shape.iter().rev() {
            self.infos.extend((*size as u64).to_le_bytes());
        }
        self.infos.extend(element.to_le_bytes());
        pad(&mut self.data);
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self
    }

    /// The whole file.
    pub fn finish(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(VERSION.to_le_bytes());
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.keys.to_le_bytes());
        file.extend(&self.metadata);
        file.extend(&self.infos);
        pad(&mut file);
        file.extend(&self.data);
        file
    }

    fn value(&mut self, key: &str, kind: u32, bytes: &[u8]) -> &mut Self {
        self.keys += 1;
        self.metadata.extend(text(key));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(bytes);
        self
    }

    fn list(&mut self, key: &str, kind: u32, values: Vec<Vec<u8>>) -> &mut Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.concat());
        self.value(key, LIST, &bytes)
    }
}

/// A truth value of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// It holds.
    True,
    /// It does not.
    False,
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}

/// The embedded demo model as a GGUF file: rows of queries and keys as llama.cpp lays them.
///
/// # Panics
/// When the demo model is not what this was written for.
pub fn demo_as_gguf() -> Vec<u8> {
    let config = json("config.json");
    let number = |key: &str| config[key].as_u64().expect("config.json has this number") as u32;
    let mut file = GgufWriter::new();
    file.text("general.architecture", "llama")
        .unsigned("llama.block_count", number("num_hidden_layers"))
        .unsigned("llama.context_length", number("max_position_embeddings"))
        .unsigned("llama.embedding_length", number("hidden_size"))
        .unsigned("llama.feed_forward_length", number("intermediate_size"))
        .unsigned("llama.attention.head_count", number("num_attention_heads"))
        .unsigned("llama.attention.head_count_kv", number("num_key_value_heads"))
        .unsigned("llama.attention.key_length", number("head_dim"))
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .float("llama.rope.freq_base", 10_000.0);
    write_tokenizer(&mut file);
    write_tensors(&mut file, number("head_dim") as usize);
    file.finish()
}

fn embedded(name: &str) -> &'static [u8] {
    let found = demo::FILES.iter().find(|(candidate, _)| *candidate == name);
    found.expect("the demo model has this file").1
}

fn json(name: &str) -> Value {
    serde_json::from_slice(embedded(name)).expect("the demo model's files are JSON")
}

fn write_tokenizer(file: &mut GgufWriter) {
    let tokenizer = json("tokenizer.json");
    let vocabulary = tokenizer["model"]["vocab"].as_object().expect("the tokenizer has a vocabulary");
    let by_id: BTreeMap<u64, &str> =
        vocabulary.iter().map(|(token, id)| (id.as_u64().expect("an id"), token.as_str())).collect();
    let tokens: Vec<&str> = by_id.into_values().collect();
    let added = tokenizer["added_tokens"].as_array().expect("the tokenizer has added tokens");
    let is_added = |token: &str| added.iter().any(|added| added["content"] == token);
    let kinds: Vec<i32> =
        tokens.iter().map(|token| if is_added(token) { CONTROL } else { NORMAL }).collect();
    let merges: Vec<String> = tokenizer["model"]["merges"]
        .as_array()
        .expect("the tokenizer has merges")
        .iter()
        .map(|pair| format!("{} {}", pair[0].as_str().expect("text"), pair[1].as_str().expect("text")))
        .collect();
    let config = json("tokenizer_config.json");
    file.text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "qwen2")
        .texts("tokenizer.ggml.tokens", &tokens)
        .signeds("tokenizer.ggml.token_type", &kinds)
        .texts("tokenizer.ggml.merges", &merges.iter().map(String::as_str).collect::<Vec<_>>())
        .unsigned("tokenizer.ggml.bos_token_id", 0)
        .unsigned("tokenizer.ggml.eos_token_id", 2)
        .unsigned("tokenizer.ggml.padding_token_id", 0)
        .flag("tokenizer.ggml.add_bos_token", Flag::False)
        .text("tokenizer.chat_template", config["chat_template"].as_str().expect("a template"));
}

fn write_tensors(file: &mut GgufWriter, head_width: usize) {
    let weights = embedded("model.safetensors");
    let (length, rest) = weights.split_first_chunk::<8>().expect("the weights begin with a length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: Value = serde_json::from_slice(header).expect("the header is JSON");
    for (name, info) in header.as_object().expect("the header lists tensors") {
        if name == "__metadata__" {
            continue;
        }
        let offset = |at: usize| info["data_offsets"][at].as_u64().expect("an offset") as usize;
        let bytes = &data[offset(0)..offset(1)];
        let shape: Vec<usize> = info["shape"]
            .as_array()
            .expect("a shape")
            .iter()
            .map(|size| size.as_u64().expect("a size") as usize)
            .collect();
        let gguf = gguf_name(name);
        match shape.as_slice() {
            // Converters widen what is small.
            [_] => file.tensor(&gguf, &shape, F32, &widened(bytes)),
            [rows, columns] if gguf.contains("attn_q.") || gguf.contains("attn_k.") => {
                let row = |row: usize| &bytes[row * columns * 2..][..columns * 2];
                let adjacent = (0..*rows).flat_map(|at| row(half_apart(at, head_width))).copied();
                file.tensor(&gguf, &shape, BF16, &adjacent.collect::<Vec<u8>>())
            }
            _ => file.tensor(&gguf, &shape, BF16, bytes),
        };
    }
}

/// Which row of a Hugging Face checkpoint llama.cpp lays at `row`.
fn half_apart(row: usize, head_width: usize) -> usize {
    let (head, within) = (row / head_width, row % head_width);
    head * head_width + within % 2 * (head_width / 2) + within / 2
}

/// bf16 as f32.
fn widened(bytes: &[u8]) -> Vec<u8> {
    bytes.as_chunks::<2>().0.iter().flat_map(|[low, high]| [0, 0, *low, *high]).collect()
}

fn gguf_name(name: &str) -> String {
    const MODULES: &[(&str, &str)] = &[
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    MODULES.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}
