//! Completion responses out.

use lockstep_proto::{TokenId, TokenLogprobs};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::response::{Envelope, Usage, finish_reason};
use super::stream::IMPOSSIBLE;
use crate::engine::{FinishReason, GeneratedToken};
use crate::tokenizer::Vocabulary;

const OBJECT: &str = "text_completion";

/// Answers that come whole.
#[derive(Serialize)]
pub(in crate::http) struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    usage: Usage,
}

/// An answer or, in a stream, a piece of it.
#[derive(Serialize)]
pub(in crate::http) struct CompletionChoice {
    pub(in crate::http) index: u32,
    pub(in crate::http) text: String,
    pub(in crate::http) logprobs: Option<CompletionLogprobs>,
    pub(in crate::http) finish_reason: Option<&'static str>,
}

/// A piece of a stream.
#[derive(Serialize)]
pub(in crate::http) struct CompletionChunk {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    /// Absent unless the client asked for usage; null in chunks that have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// The log-probabilities of an answer or a piece of it; an entry a token in each list.
#[derive(Default, Serialize)]
pub(in crate::http) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Characters of the answer's text before the token.
    text_offset: Vec<usize>,
}

impl Completion {
    pub(in crate::http) fn new(envelope: Envelope, choices: Vec<CompletionChoice>, usage: Usage) -> Self {
        let Envelope { id, created, model, system_fingerprint } = envelope;
        Self { id, object: OBJECT, created, model, system_fingerprint, choices, usage }
    }
}

impl CompletionChunk {
    pub(in crate::http) fn new(
        envelope: Envelope,
        choice: Option<CompletionChoice>,
        usage: Option<Option<Usage>>,
    ) -> Self {
        let Envelope { id, created, model, system_fingerprint } = envelope;
        let choices = choice.into_iter().collect();
        Self { id, object: OBJECT, created, model, system_fingerprint, choices, usage }
    }
}

impl CompletionChoice {
    pub(in crate::http) fn new(
        index: usize,
        text: String,
        logprobs: Option<CompletionLogprobs>,
        finish: Option<FinishReason>,
    ) -> Self {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Self { index, text, logprobs, finish_reason: finish.map(finish_reason) }
    }
}

impl CompletionLogprobs {
    /// Of a prompt that is repeated; nothing is known of its first token but its name.
    pub(in crate::http) fn of_prompt(
        text: &str,
        tokens: &[TokenId],
        known: &[TokenLogprobs],
        vocabulary: &Vocabulary,
    ) -> Self {
        let mut logprobs = Self::default();
        let known = std::iter::once(None).chain(known.iter().map(Some)).chain(std::iter::repeat(None));
        for ((token, known), offset) in tokens.iter().zip(known).zip(offsets(text, tokens, vocabulary)) {
            logprobs.push(*token, known, offset, vocabulary);
        }
        logprobs
    }

    /// Adds generated tokens; `offset` is the text's length in characters, before and after.
    pub(in crate::http) fn extend(
        &mut self,
        tokens: &[GeneratedToken],
        offset: &mut usize,
        vocabulary: &Vocabulary,
    ) {
        for generated in tokens {
            self.push(generated.token.token, Some(&generated.token), *offset, vocabulary);
            if !generated.special {
                *offset += generated.text.chars().count();
            }
        }
    }

    fn push(
        &mut self,
        token: TokenId,
        known: Option<&TokenLogprobs>,
        offset: usize,
        vocabulary: &Vocabulary,
    ) {
        let top = |known: &TokenLogprobs| {
            let mut top = Map::new();
            let chosen = (known.token, known.logprob);
            for (token, logprob) in
                known.top.iter().map(|rival| (rival.token, rival.logprob)).chain([chosen])
            {
                // The more probable of two that read the same comes first.
                top.entry(name(token, vocabulary)).or_insert_with(|| json!(logprob.max(IMPOSSIBLE)));
            }
            top
        };
        self.tokens.push(name(token, vocabulary));
        self.token_logprobs.push(known.map(|known| known.logprob.max(IMPOSSIBLE)));
        self.top_logprobs.push(known.map(top));
        self.text_offset.push(offset);
    }
}

/// What a token reads; its bytes where they are no whole characters, as OpenAI writes them.
fn name(token: TokenId, vocabulary: &Vocabulary) -> String {
    let bytes = vocabulary.bytes(token);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let escaped = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            std::iter::once("bytes:".to_owned()).chain(escaped).collect()
        }
    }
}

/// Where each token of a prompt begins, in characters. Tokens that a tokenizer put around the text, such as
/// one for its beginning, cover none of it, and the space some write before the first word is not there.
fn offsets(text: &str, tokens: &[TokenId], vocabulary: &Vocabulary) -> Vec<usize> {
    let mut rest = text.as_bytes();
    let mut characters = 0;
    let mut offsets = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(characters);
        let piece = vocabulary.bytes(*token);
        let unspaced = piece.strip_prefix(b" ").unwrap_or(piece);
        let covered = if rest.starts_with(piece) {
            piece.len()
        } else if rest.starts_with(unspaced) {
            unspaced.len()
        } else if vocabulary.is_special(*token) {
            0
        } else {
            piece.len().min(rest.len())
        };
        let (passed, after) = rest.split_at(covered);
        // Every byte but those that continue a character.
        characters += passed.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
        rest = after;
    }
    offsets
}
