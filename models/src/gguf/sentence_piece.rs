//! SentencePiece BPE: tokenizer.json of a vocabulary whose scores say what is merged first.

use serde_json::{Value, json};

use super::merges;
use super::metadata::Metadata;
use super::tokenizer::Parts;
use super::vocabulary::{Role, TokenKind, Vocabulary, check_length};
use super::{GgufError, tokenizer};

const SCORES: &str = "tokenizer.ggml.scores";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";

/// What stands for a space in tokens.
const SPACE: &str = "\u{2581}";

/// The parts of tokenizer.json that are this kind's own.
pub(super) fn parts(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Parts, GgufError> {
    // Files whose scores say nothing list their merges.
    let merges = match merges::listed(metadata)? {
        Some(listed) => listed,
        None => {
            let scores = Metadata::require(SCORES, metadata.floats(SCORES)?, "a list of scores")?;
            check_length(SCORES, scores.len(), vocabulary.len())?;
            merges::by_score(vocabulary, &scores)
        }
    };
    let adds_space = metadata.flag(ADD_SPACE)?.unwrap_or(true);
    let unknown = vocabulary
        .with_role(Role::Unknown)
        .or_else(|| (0..vocabulary.len()).find(|id| vocabulary.kind(*id) == TokenKind::Unknown));
    Ok(Parts {
        normalizer: normalizer(adds_space),
        pre_tokenizer: Value::Null,
        decoder: decoder(adds_space),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown.map(|id| &vocabulary.tokens[id]),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": tokenizer::ids_by_token(vocabulary),
            "merges": merges,
        }),
    })
}

fn normalizer(adds_space: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    if !adds_space {
        return replace;
    }
    json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]})
}

fn decoder(adds_space: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if adds_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}
