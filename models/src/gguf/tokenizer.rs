//! tokenizer.json, tokenizer_config.json and generation_config.json from a GGUF file's metadata.

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::vocabulary::{Role, TokenKind, Vocabulary};
use super::{GgufError, byte_level, sentence_piece};

const MODEL: &str = "tokenizer.ggml.model";
const ADD_BEGIN: &str = "tokenizer.ggml.add_bos_token";
const ADD_END: &str = "tokenizer.ggml.add_eos_token";
const TEMPLATE: &str = "tokenizer.chat_template";
const TEMPLATE_NAMES: &str = "tokenizer.chat_templates";

/// Marks that end an answer, by the names known chat formats give them: files often name one only.
const ENDS: &[&str] =
    &["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>"];

/// The kinds of tokenizers, by what a file calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ByteLevel,
    SentencePiece,
}

const KINDS: &[(&str, Kind)] = &[("gpt2", Kind::ByteLevel), ("llama", Kind::SentencePiece)];

/// The parts of tokenizer.json in which kinds differ.
pub(super) struct Parts {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
    pub(super) model: Value,
}

/// tokenizer.json.
pub(super) fn tokenizer(metadata: &Metadata) -> Result<Value, GgufError> {
    let kind = kind(metadata)?;
    let vocabulary = Vocabulary::read(metadata)?;
    let parts = match kind {
        Kind::ByteLevel => byte_level::parts(metadata, &vocabulary)?,
        Kind::SentencePiece => sentence_piece::parts(metadata, &vocabulary)?,
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(&vocabulary),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor(metadata, &vocabulary)?,
        "decoder": parts.decoder,
        "model": parts.model,
    }))
}

/// tokenizer_config.json.
pub(super) fn tokenizer_config(metadata: &Metadata) -> Result<Value, GgufError> {
    let vocabulary = Vocabulary::read(metadata)?;
    let name = |role| vocabulary.with_role(role).map(|id| &vocabulary.tokens[id]);
    let mut config = json!({
        "bos_token": name(Role::Begin),
        "eos_token": name(Role::End),
        "unk_token": name(Role::Unknown),
        "pad_token": name(Role::Padding),
        "add_bos_token": surrounding(metadata, &vocabulary, Role::Begin)?.is_some(),
        "add_eos_token": surrounding(metadata, &vocabulary, Role::End)?.is_some(),
        "clean_up_tokenization_spaces": false,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    if let Some(template) = template(metadata)? {
        config["chat_template"] = template;
    }
    Ok(config)
}

/// generation_config.json.
pub(super) fn generation_config(metadata: &Metadata) -> Result<Value, GgufError> {
    let vocabulary = Vocabulary::read(metadata)?;
    let mut ends: Vec<usize> = Vec::new();
    let stated = [Role::End, Role::EndOfTurn, Role::EndOfMessage].map(|role| vocabulary.with_role(role));
    let is_mark = |id: &usize| vocabulary.kind(*id) == TokenKind::Control;
    let known = ENDS.iter().map(|name| vocabulary.id(name).filter(is_mark));
    for id in stated.into_iter().chain(known).flatten() {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    let mut config = json!({"bos_token_id": vocabulary.with_role(Role::Begin)});
    if !ends.is_empty() {
        config["eos_token_id"] = json!(ends);
    }
    Ok(config)
}

/// The ids config.json names.
pub(super) fn special_ids(metadata: &Metadata) -> Result<Vec<(&'static str, usize)>, GgufError> {
    let vocabulary = Vocabulary::read(metadata)?;
    let roles = [(Role::Begin, "bos_token_id"), (Role::End, "eos_token_id")];
    Ok(roles.into_iter().filter_map(|(role, name)| Some((name, vocabulary.with_role(role)?))).collect())
}

/// The vocabulary as tokenizer.json holds it.
pub(super) fn ids_by_token(vocabulary: &Vocabulary<'_>) -> Map<String, Value> {
    vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect()
}

fn kind(metadata: &Metadata) -> Result<Kind, GgufError> {
    let known = KINDS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let found = Metadata::require(MODEL, metadata.text(MODEL)?, &known)?;
    let kind = KINDS.iter().find(|(name, _)| *name == found).map(|(_, kind)| *kind);
    kind.ok_or_else(|| GgufError::Unsupported {
        what: MODEL.to_owned(),
        found: found.to_owned(),
        supported: known,
    })
}

/// Tokens that are found in a text before it is cut: marks, and text that is never cut.
fn added_tokens(vocabulary: &Vocabulary<'_>) -> Vec<Value> {
    let mut added = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        let special = match vocabulary.kind(id) {
            TokenKind::Control | TokenKind::Unknown => true,
            TokenKind::UserDefined => false,
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => continue,
        };
        added.push(json!({
            "id": id,
            "content": token,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": special,
        }));
    }
    added
}

/// The token of this role, if it is put around every text.
fn surrounding(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
    role: Role,
) -> Result<Option<usize>, GgufError> {
    let added = match role {
        Role::Begin => match metadata.flag(ADD_BEGIN)? {
            Some(stated) => stated,
            None => match kind(metadata)? {
                Kind::ByteLevel => byte_level::begins_by_default(metadata)?,
                Kind::SentencePiece => true,
            },
        },
        Role::End => metadata.flag(ADD_END)?.unwrap_or(false),
        Role::EndOfTurn | Role::EndOfMessage | Role::Unknown | Role::Padding => false,
    };
    Ok(vocabulary.with_role(role).filter(|_| added))
}

fn post_processor(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Value, GgufError> {
    let begin = surrounding(metadata, vocabulary, Role::Begin)?;
    let end = surrounding(metadata, vocabulary, Role::End)?;
    if begin.is_none() && end.is_none() {
        return Ok(Value::Null);
    }
    let around = |sequence: &str, type_id: u32| -> Vec<Value> {
        let special =
            |id: usize| json!({"SpecialToken": {"id": vocabulary.tokens[id], "type_id": type_id}});
        let text = json!({"Sequence": {"id": sequence, "type_id": type_id}});
        begin.map(special).into_iter().chain([text]).chain(end.map(special)).collect()
    };
    let named = |id: usize| {
        let token = &vocabulary.tokens[id];
        (token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]}))
    };
    let special: Map<String, Value> = begin.into_iter().chain(end).map(named).collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": special,
    }))
}

/// The chat template, or all of them with their names where there are several.
fn template(metadata: &Metadata) -> Result<Option<Value>, GgufError> {
    let default = metadata.text(TEMPLATE)?;
    let Some(names) = metadata.texts(TEMPLATE_NAMES)?.filter(|names| !names.is_empty()) else {
        return Ok(default.map(Value::from));
    };
    let mut templates = Vec::new();
    if let Some(default) = default {
        templates.push(json!({"name": "default", "template": default}));
    }
    for name in names {
        if let Some(template) = metadata.text(&format!("{TEMPLATE}.{name}"))? {
            templates.push(json!({"name": name, "template": template}));
        }
    }
    Ok(Some(Value::Array(templates)))
}
