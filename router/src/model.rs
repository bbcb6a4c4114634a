//! What the router knows of the model: tokenizer, chat template, end tokens, positions. No weights.

use lockstep_models::{FileError, ModelFiles};
use lockstep_proto::{TokenId, Tokens};
use serde_json::Value;
use thiserror::Error;

use crate::chat::{
    ChatTemplate, Clock, SourceError, TemplateError, TemplateTokens, template_sources,
};
use crate::tokenizer::{Tokenizer, TokenizerError};

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
    pub tokenizer: Tokenizer,
    /// Messages to a prompt, if the model can chat.
    pub template: Option<ChatTemplate>,
    /// Any of these ends an answer.
    pub end_tokens: Vec<TokenId>,
    /// Longest context, if `config.json` tells.
    pub max_positions: Option<Tokens>,
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
        let tokenizer = Tokenizer::from_bytes(&files.require("tokenizer.json")?)?;
        let tokens = TemplateTokens {
            bos: token_name(&tokenizer_config, "bos_token"),
            eos: token_name(&tokenizer_config, "eos_token"),
            others: std::collections::BTreeMap::new(),
        };
        let end_tokens = end_tokens(&generation, &config, tokens.eos.as_deref(), &tokenizer);
        let sources = template_sources(files, &tokenizer_config)?;
        let template = (!sources.is_empty())
            .then(|| ChatTemplate::of_several(&sources, tokens, Clock::System))
            .transpose();
        Ok(Self {
            id,
            sha: None,
            tokenizer,
            template: template.map_err(ModelError::Template)?,
            end_tokens,
            max_positions: positions(&config),
        })
    }
}

/// `generation_config.json` knows best, then `tokenizer_config.json`, then `config.json`.
fn end_tokens(
    generation: &Value,
    config: &Value,
    named: Option<&str>,
    tokenizer: &Tokenizer,
) -> Vec<TokenId> {
    let listed = ids(generation.get("eos_token_id"));
    if !listed.is_empty() {
        return listed;
    }
    match named.and_then(|name| tokenizer.id(name)) {
        Some(token) => vec![token],
        None => ids(config.get("eos_token_id")),
    }
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

/// A token written as text or as an object with its text under `content`.
fn token_name(tokenizer_config: &Value, key: &str) -> Option<String> {
    let value = tokenizer_config.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
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
            (&json!({}), &one, Some("<|im_end|>"), vec![TokenId(257)]),
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
        let prompt = template.render(&crate::chat::Conversation { messages: vec![message], ..Default::default() }).unwrap();
        assert!(prompt.ends_with("<|im_start|>assistant\n"), "{prompt}");
        let tokens = model.tokenizer.encode(&prompt, crate::tokenizer::SpecialTokens::Skip).unwrap();
        let vocabulary = model.tokenizer.vocabulary();
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| vocabulary.bytes(*token)).copied().collect();
        assert_eq!(String::from_utf8_lossy(&bytes), prompt);
        assert!(!model.end_tokens.is_empty() && model.max_positions.is_some());
        assert!(model.end_tokens.iter().all(|token| vocabulary.is_special(*token)));
    }
}
