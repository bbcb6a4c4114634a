//! A grammar as asked for, and what can be wrong with it.

use lockstep_proto::TokenId;
use serde_json::{Value, json};
use thiserror::Error;

/// Bytes of a grammar at most.
pub(super) const MAX_BYTES: usize = 256 * 1024;

/// Most rules of a client's grammar in Lark. The library follows one into the other recursively, at a few
/// kilobytes of stack each, and the threads that compile have 64 MiB.
const MAX_LARK_RULES: usize = 1_000;

/// Whitespace between two JSON tokens: enough to print nested values prettily, and an end to it for a model
/// that would go on for ever.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// What the text of an answer must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Grammar {
    /// A JSON value for this schema, as text.
    JsonSchema(String),
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text that a context-free grammar in the library's own dialect of Lark describes.
    Lark(String),
    /// Text and calls of functions.
    Calls(CallGrammar),
}

/// A grammar of texts and calls in the library's own language. `@f0`, `@f1` and so on are the schemas.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallGrammar {
    /// Of the model's tokens.
    pub tokens: String,
    /// Of bytes: the same texts, special tokens by their names.
    pub bytes: String,
    /// Of each function's arguments.
    pub schemas: Vec<String>,
    /// Special tokens whose names are part of the text.
    pub shown: Vec<TokenId>,
}

/// A grammar that is not served, or an answer that broke one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GrammarError {
    /// It is longer than is compiled.
    #[error("the grammar has {found} bytes, at most {limit} are allowed; shorten it")]
    TooLarge {
        /// Its size.
        found: usize,
        /// The largest.
        limit: usize,
    },
    /// The library refuses it, for this reason.
    #[error("{0}")]
    Refused(String),
    /// It is too complex.
    #[error("it is not compiled within {limit_s} s; simplify it")]
    TooSlow {
        /// How long it was waited for.
        limit_s: u64,
    },
    /// Nothing can tell the end of an answer.
    #[error("the model has no end-of-sequence token, which a grammar needs")]
    NoEnd,
    /// A token does not follow, or none can.
    #[error("follow the grammar: {0}")]
    Stuck(String),
    /// The answer is not what the grammar describes.
    #[error("check the answer: it is not what its grammar describes: {0}")]
    Broken(String),
}

impl Grammar {
    /// Any JSON object.
    pub fn any_object() -> Self {
        Self::of_schema(&json!({"type": "object"}))
    }

    /// A JSON value for `schema`.
    pub fn of_schema(schema: &Value) -> Self {
        Self::JsonSchema(schema.to_string())
    }

    /// A client's grammar in Lark, within what the library can take.
    ///
    /// # Errors
    /// When it has more rules than the library can follow one into the other, or names tokens by number, which
    /// mean nothing where answers are checked.
    pub(super) fn check_lark(text: &str) -> Result<(), GrammarError> {
        let found = text.lines().filter(|line| line.contains(':')).count();
        if found > MAX_LARK_RULES {
            let reason = format!("it has {found} rules, at most {MAX_LARK_RULES} are allowed; use fewer");
            return Err(GrammarError::Refused(reason));
        }
        if text.contains("<[") {
            let reason = "it names tokens by number; write the text that is meant instead of <[...]>";
            return Err(GrammarError::Refused(reason.to_owned()));
        }
        Ok(())
    }

    /// How much of it there is, in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
            Self::Calls(calls) => calls.tokens.len() + calls.schemas.iter().map(String::len).sum::<usize>(),
        }
    }

    /// The schema as the library takes it: what it leaves open about whitespace is settled.
    ///
    /// # Errors
    /// When it is no schema, or would have the library ignore what it cannot enforce.
    pub(super) fn schema_of(text: &str) -> Result<Value, GrammarError> {
        const OPTIONS: &str = "x-guidance";
        let refused = |reason: String| GrammarError::Refused(reason);
        let mut schema: Value = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
        let fields = match &mut schema {
            Value::Object(fields) => fields,
            Value::Bool(_) => return Ok(schema),
            Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(refused("a JSON Schema is an object or a boolean".to_owned()));
            }
        };
        let options = fields.entry(OPTIONS).or_insert_with(|| json!({"whitespace_pattern": WHITESPACE}));
        if options.get("lenient").is_some_and(|lenient| lenient != &Value::Bool(false)) {
            return Err(refused(format!("`{OPTIONS}.lenient` would ignore keywords of the schema")));
        }
        Ok(schema)
    }
}
