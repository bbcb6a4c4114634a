//! Text to tokens and back. Encoding is for the CPU pool, never for async threads.

mod stream;
mod vocabulary;

use std::sync::Arc;

use lockstep_models::{FileBytes, FileError, ModelFiles};
use lockstep_proto::TokenId;
use thiserror::Error;

pub use stream::Detokenizer;
pub use vocabulary::Vocabulary;

/// Other files that tokenizers are kept in.
const OTHER_FILES: [&str; 7] = [
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tekken.json",
    "sentencepiece.bpe.model",
];

/// What the small text in place of a file in Git's large file storage begins with.
const POINTER: &[u8] = b"version http";

/// A tokenizer that cannot be used, or text it cannot take.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is a tokenizer of another kind, or none.
    #[error(
        "load the tokenizer of {place}: found {found}, expected tokenizer.json; make it with: python -c \"from \
         transformers import AutoTokenizer as T; T.from_pretrained('{place}').save_pretrained('{place}')\""
    )]
    NotFast {
        /// The model's folder.
        place: String,
        /// What is there.
        found: String,
    },
    /// The file was never fetched.
    #[error(
        "read tokenizer.json: found a pointer of Git's large file storage, expected the file itself; fetch it with: \
         git lfs pull"
    )]
    Pointer,
    /// The file does not parse.
    #[error(
        "parse tokenizer.json: {reason}; found {size} bytes that are cut off, damaged or of another format, expected \
         what Hugging Face's tokenizers save; fetch the file again"
    )]
    Parse {
        /// What is wrong with it.
        reason: String,
        /// Its size in bytes.
        size: usize,
    },
    /// The decoder cannot be looked at.
    #[error("read the decoder of tokenizer.json: {0}")]
    Decoder(serde_json::Error),
    /// The decoder is of a kind whose tokens are not bytes of text.
    #[error(
        "read the decoder of tokenizer.json: found {0}, supported are ByteLevel, ByteFallback, Replace, Metaspace, \
         Fuse, leading Strip, and sequences of them"
    )]
    UnsupportedDecoder(String),
    /// Its ids are far apart.
    #[error(
        "read the vocabulary of tokenizer.json: found {entries} tokens with ids up to {largest}, expected about as many \
         ids as tokens"
    )]
    Gaps {
        /// The largest id.
        largest: u32,
        /// How many tokens there are.
        entries: usize,
    },
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
    /// Reads the tokenizer of a model. What goes around a text is what its `tokenizer.json` says: as in
    /// transformers, `add_bos_token` and `add_eos_token` of `tokenizer_config.json` do not change that.
    ///
    /// # Errors
    /// When there is no `tokenizer.json`, or it cannot be used.
    pub fn load(files: &ModelFiles) -> Result<Self, TokenizerError> {
        Self::from_bytes(&Self::find(files)?)
    }

    /// The `tokenizer.json` of a model, not looked at.
    ///
    /// # Errors
    /// When there is none; names what there is instead.
    pub fn find(files: &ModelFiles) -> Result<FileBytes, TokenizerError> {
        if let Some(bytes) = files.open("tokenizer.json")? {
            return Ok(bytes);
        }
        let mut found = files.names_ending_in("")?;
        found.retain(|name| OTHER_FILES.contains(&name.as_str()) || name.ends_with(".tiktoken"));
        let found = if found.is_empty() { "no tokenizer".to_owned() } else { found.join(", ") };
        Err(TokenizerError::NotFast { place: files.to_argument(), found })
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When it does not parse or its decoder is of an unsupported kind.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        if json.starts_with(POINTER) {
            return Err(TokenizerError::Pointer);
        }
        let unusable = |reason: String| TokenizerError::Parse { reason, size: json.len() };
        let parsed = tokenizers::Tokenizer::from_bytes(json);
        let mut inner = parsed.map_err(|error| unusable(error.to_string()))?;
        // Lengths are the validation's to judge.
        inner.with_truncation(None).map_err(|error| unusable(error.to_string()))?;
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
