//! Text to tokens and back. Encoding is for the CPU pool, never for async threads.

mod stream;
mod vocabulary;

use std::sync::Arc;

use lockstep_proto::TokenId;
use thiserror::Error;

pub use stream::Detokenizer;
pub use vocabulary::Vocabulary;

/// A tokenizer that cannot be used, or text it cannot take.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The file does not parse.
    #[error("parse tokenizer.json: {0}")]
    Parse(String),
    /// The decoder cannot be looked at.
    #[error("read the decoder of tokenizer.json: {0}")]
    Decoder(serde_json::Error),
    /// The decoder is of a kind whose tokens are not bytes of text.
    #[error(
        "read the decoder of tokenizer.json: found {0}, supported are ByteLevel, ByteFallback, Replace, Metaspace, \
         Fuse, leading Strip, and sequences of them"
    )]
    UnsupportedDecoder(String),
    /// The text cannot be encoded.
    #[error("tokenize the text: {0}")]
    Encode(String),
}

/// Whether the tokens a tokenizer puts around a text (such as a beginning-of-sequence) are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// As the tokenizer says.
    Add,
    /// The text has them already.
    Skip,
}

/// A token and where in the text it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The token.
    pub token: TokenId,
    /// What it stands for.
    pub text: String,
    /// First byte of the text it covers.
    pub start: usize,
    /// One past the last byte.
    pub stop: usize,
}

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocabulary: Arc<Vocabulary>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When it does not parse or its decoder is of an unsupported kind.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        let parsed = tokenizers::Tokenizer::from_bytes(json);
        let mut inner = parsed.map_err(|error| TokenizerError::Parse(error.to_string()))?;
        // Lengths are the validation's to judge.
        inner.with_truncation(None).map_err(|error| TokenizerError::Parse(error.to_string()))?;
        inner.with_padding(None);
        let vocabulary = Arc::new(Vocabulary::of(&inner)?);
        Ok(Self { inner, vocabulary })
    }

    /// What each token stands for.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// The id of a token by its name.
    pub fn id(&self, name: &str) -> Option<TokenId> {
        self.inner.token_to_id(name).map(TokenId)
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// When the tokenizer has no tokens for it.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>, TokenizerError> {
        let encoded = self.inner.encode_fast(text, special == SpecialTokens::Add);
        let encoded = encoded.map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(encoded.get_ids().iter().map(|id| TokenId(*id)).collect())
    }

    /// The tokens of a text and where each comes from.
    ///
    /// # Errors
    /// When the tokenizer has no tokens for it.
    pub fn pieces(&self, text: &str, special: SpecialTokens) -> Result<Vec<Piece>, TokenizerError> {
        let encoded = self.inner.encode(text, special == SpecialTokens::Add);
        let encoded = encoded.map_err(|error| TokenizerError::Encode(error.to_string()))?;
        let places = encoded.get_ids().iter().zip(encoded.get_offsets());
        Ok(places
            .map(|(id, (start, stop))| {
                let token = TokenId(*id);
                Piece { token, text: self.vocabulary.text(token), start: *start, stop: *stop }
            })
            .collect())
    }
}

#[cfg(test)]
mod tests;
