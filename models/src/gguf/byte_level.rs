//! Byte-level BPE: tokenizer.json of a vocabulary that lists its merges.

use serde_json::{Value, json};

use super::config::ARCHITECTURE;
use super::merges::{self, MERGES};
use super::metadata::Metadata;
use super::tokenizer::Parts;
use super::vocabulary::Vocabulary;
use super::{GgufError, tokenizer};

const PRE_TOKENIZER: &str = "tokenizer.ggml.pre";

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut into words before merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// By the expression of GPT-2.
    Gpt2,
    /// Each digit alone, the rest by the expression of GPT-2.
    DigitsThenGpt2,
    /// By this expression.
    Expression(&'static str),
}

/// Whether a word that is a token is taken whole, whatever merges would make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WholeWords {
    Merged,
    Taken,
}

/// What the files of one name of a pre-tokenizer do.
struct PreTokenizer {
    names: &'static [&'static str],
    cut: Cut,
    whole_words: WholeWords,
}

const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["llama-bpe", "llama-v3", "llama3", "falcon3", "pixtral"],
        cut: Cut::Expression(LLAMA_3),
        whole_words: WholeWords::Taken,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe"],
        cut: Cut::Expression(LLAMA_3),
        whole_words: WholeWords::Merged,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"],
        cut: Cut::Expression(QWEN_2),
        whole_words: WholeWords::Merged,
    },
    PreTokenizer { names: &["tekken"], cut: Cut::Expression(TEKKEN), whole_words: WholeWords::Taken },
    PreTokenizer { names: &["gpt-4o"], cut: Cut::Expression(GPT_4O), whole_words: WholeWords::Merged },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        cut: Cut::DigitsThenGpt2,
        whole_words: WholeWords::Merged,
    },
    PreTokenizer {
        names: &["gpt-2", "mpt", "olmo", "jais", "phi-2"],
        cut: Cut::Gpt2,
        whole_words: WholeWords::Merged,
    },
];

/// The parts of tokenizer.json that are this kind's own.
pub(super) fn parts(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Parts, GgufError> {
    let pre_tokenizer = pre_tokenizer(metadata)?;
    Ok(Parts {
        normalizer: normalizer(metadata)?,
        pre_tokenizer: match pre_tokenizer.cut {
            Cut::Gpt2 => byte_level(WordExpression::Gpt2),
            Cut::DigitsThenGpt2 => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                byte_level(WordExpression::Gpt2),
            ]}),
            Cut::Expression(expression) => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false},
                byte_level(WordExpression::None),
            ]}),
        },
        decoder: byte_level(WordExpression::Gpt2),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre_tokenizer.whole_words == WholeWords::Taken,
            "vocab": tokenizer::ids_by_token(vocabulary),
            "merges": Metadata::require(MERGES, merges::listed(metadata)?, "a list of pairs of tokens")?,
        }),
    })
}

/// Whether these files' tokenizers put a beginning before a text where the file does not say.
pub(super) fn begins_by_default(metadata: &Metadata) -> Result<bool, GgufError> {
    Ok(pre_tokenizer(metadata)?.whole_words == WholeWords::Taken)
}

/// The tokenizers of Qwen compose characters first. Files do not say so, and others use Qwen's expression
/// without.
fn normalizer(metadata: &Metadata) -> Result<Value, GgufError> {
    let is_qwen = metadata.text(ARCHITECTURE)?.is_some_and(|name| name.starts_with("qwen"));
    let composes = is_qwen && metadata.text(PRE_TOKENIZER)? == Some("qwen2");
    Ok(if composes { json!({"type": "NFC"}) } else { Value::Null })
}

fn pre_tokenizer(metadata: &Metadata) -> Result<&'static PreTokenizer, GgufError> {
    let known = || {
        let names = PRE_TOKENIZERS.iter().flat_map(|known| known.names);
        names.copied().collect::<Vec<_>>().join(", ")
    };
    let found = metadata.text(PRE_TOKENIZER)?;
    let found = Metadata::require(PRE_TOKENIZER, found, &format!("one of {}", known()))?;
    let fits = |known: &&PreTokenizer| known.names.contains(&found);
    PRE_TOKENIZERS.iter().find(fits).ok_or_else(|| GgufError::Unsupported {
        what: PRE_TOKENIZER.to_owned(),
        found: found.to_owned(),
        supported: known(),
    })
}

/// Whether byte-level pre-tokenizing cuts words itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WordExpression {
    Gpt2,
    None,
}

fn byte_level(words: WordExpression) -> Value {
    let use_regex = words == WordExpression::Gpt2;
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}
