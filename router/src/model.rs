//! What the router knows of the model: tokenizer, chat template, end tokens, positions. No weights.

use std::sync::Arc;

use lockstep_models::{FileError, ModelFiles};
use lockstep_proto::{TokenId, Tokens};
use serde_json::Value;
use thiserror::Error;

use crate::chat::{ChatTemplate, Clock, SourceError, TemplateError, TemplateTokens, template_sources};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::tools::CallSupport;
use crate::validation::SamplingDefaults;

/// The model's text side cannot be read.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file is missing or unreadable.
    #[error(transparent)]
    File(#[from] FileError),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template does not parse.
    #[error("compile the chat template: {0}")]
    Template(TemplateError),
    /// The chat template cannot be read.
    #[error(transparent)]
    TemplateSource(#[from] SourceError),
}

/// What the router knows of the model.
pub struct Model {
    /// The name clients see.
    pub id: String,
    /// The revision on the Hub, if it is known.
    pub sha: Option<String>,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to a prompt, if the model can chat.
    pub template: Option<ChatTemplate>,
    /// Any of these ends an answer.
    pub end_tokens: Vec<TokenId>,
    /// Longest context, if `config.json` tells.
    pub max_positions: Option<Tokens>,
    /// What it knows of tools.
    pub calls: CallSupport,
    /// What requests of chat leave open.
    pub sampling_defaults: SamplingDefaults,
}

impl Model {
    /// Reads a model's files.
    ///
    /// # Errors
    /// When a file is missing, unreadable, or of a kind that is not supported.
    pub fn load(files: &ModelFiles, id: String) -> Result<Self, ModelError> {
        let config: Value = files.open_json("config.json")?.unwrap_or_default();
        let generation: Value = files.open_json("generation_config.json")?.unwrap_or_default();
        let tokenizer_config: Value = files.open_json("tokenizer_config.json")?.unwrap_or_default();
        let special_tokens_map: Value = files.open_json("special_tokens_map.json")?.unwrap_or_default();
        let tokenizer = Tokenizer::load(files)?;
        let tokens = TemplateTokens::from_files(&tokenizer_config, &special_tokens_map);
        let end_tokens = end_tokens(&generation, &config, tokens.eos.as_deref(), &tokenizer);
        let sources = template_sources(files, &tokenizer_config)?;
        let template = (!sources.is_empty())
            .then(|| ChatTemplate::of_several(&sources, tokens, Clock::System))
            .transpose()
            .map_err(ModelError::Template)?;
        Ok(Self {
            id,
            sha: None,
            calls: CallSupport::of(template.as_ref(), &tokenizer, None),
            tokenizer: Arc::new(tokenizer),
            template,
            end_tokens,
            max_positions: positions(&config),
            sampling_defaults: SamplingDefaults::from_generation_config(&generation),
        })
    }
}

/// A list in `generation_config.json` is the whole answer. A single id there, or else what `config.json` says,
/// goes with the tokenizer's own: models tuned for chat often name the end of a turn only there.
fn end_tokens(
    generation: &Value,
    config: &Value,
    named: Option<&str>,
    tokenizer: &Tokenizer,
) -> Vec<TokenId> {
    let listed = generation.get("eos_token_id");
    let mut tokens = ids(listed);
    if listed.is_some_and(Value::is_array) && !tokens.is_empty() {
        return tokens;
    }
    if tokens.is_empty() {
        tokens = ids(config.get("eos_token_id").or_else(|| config.pointer("/text_config/eos_token_id")));
    }
    tokens.extend(named.and_then(|name| tokenizer.id(name)).filter(|token| !tokens.contains(token)));
    tokens
}

/// One id or a list of them.
fn ids(value: Option<&Value>) -> Vec<TokenId> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId);
    match value {
        Some(Value::Array(items)) => items.iter().filter_map(id).collect(),
        Some(single) => id(single).into_iter().collect(),
        None => Vec::new(),
    }
}

fn positions(config: &Value) -> Option<Tokens> {
    let text_config = config.get("text_config").unwrap_or(config);
    let value = text_config.get("max_position_embeddings").or_else(|| text_config.get("n_positions"))?;
    value.as_u64().map(|positions| Tokens(u32::try_from(positions).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::byte_level_tokenizer;

    #[test]
    fn end_tokens_come_from_the_file_that_knows_best() {
        let tokenizer = Tokenizer::from_bytes(byte_level_tokenizer().as_bytes()).unwrap();
        let (one, list) = (json!({"eos_token_id": 2}), json!({"eos_token_id": [2, 0]}));
        let cases = [
            (&list, &one, Some("<|im_end|>"), vec![TokenId(2), TokenId(0)]),
            (&one, &list, None, vec![TokenId(2)]),
            (&one, &list, Some("<|im_end|>"), vec![TokenId(2), TokenId(257)]),
            (&json!({}), &list, Some("<|im_end|>"), vec![TokenId(2), TokenId(0), TokenId(257)]),
            (&json!({}), &json!({"text_config": {"eos_token_id": 3}}), None, vec![TokenId(3)]),
            (&json!({}), &json!({}), Some("<|im_end|>"), vec![TokenId(257)]),
            (&json!({}), &one, Some("no such token"), vec![TokenId(2)]),
            (&json!({}), &json!({}), None, vec![]),
        ];
        for (generation, config, named, expected) in cases {
            assert_eq!(end_tokens(generation, config, named, &tokenizer), expected);
        }
    }

    #[test]
    fn the_demo_model_can_chat() {
        let model = Model::load(&ModelFiles::EmbeddedDemo, "demo".to_owned()).unwrap();
        let template = model.template.unwrap();
        let message = json!({"role": "user", "content": "Hi"});
        let prompt = template
            .render(&crate::chat::Conversation { messages: vec![message], ..Default::default() })
            .unwrap();
        assert!(prompt.ends_with("<|im_start|>assistant\n"), "{prompt}");
        let tokens = model.tokenizer.encode(&prompt, crate::tokenizer::SpecialTokens::Skip).unwrap();
        let vocabulary = model.tokenizer.vocabulary();
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| vocabulary.bytes(*token)).copied().collect();
        assert_eq!(String::from_utf8_lossy(&bytes), prompt);
        assert!(!model.end_tokens.is_empty() && model.max_positions.is_some());
        assert!(model.end_tokens.iter().all(|token| vocabulary.is_special(*token)));
    }
}
