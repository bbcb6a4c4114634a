//! The model's tokens as the grammar library sees them, and how a text that is forced is cut into tokens: as the
//! model's own tokenizer cuts it.

use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use lockstep_proto::TokenId;

use super::GrammarError;
use crate::tokenizer::{SpecialTokens, Tokenizer, Vocabulary};

/// Stands before a text whose beginning a tokenizer would change: that of a text is not that of a continuation.
const BEFORE: char = '\u{2}';

/// All there is.
struct Tokens {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

/// A vocabulary, of which `end_tokens` end an answer.
pub(super) fn tokens_of(tokenizer: Arc<Tokenizer>, end_tokens: &[TokenId]) -> Result<TokEnv, GrammarError> {
    let vocabulary = tokenizer.vocabulary();
    let count = u32::try_from(vocabulary.len()).unwrap_or(u32::MAX);
    let ends: Vec<u32> = end_tokens.iter().map(|token| token.0).filter(|id| *id < count).collect();
    let Some(first_end) = ends.first() else { return Err(GrammarError::NoEnd) };
    let words: Vec<Vec<u8>> = (0..count).map(|id| word_of(vocabulary, TokenId(id), &ends)).collect();
    let trie = TokTrie::from(&TokRxInfo::new(count, *first_end), &words).with_eos_tokens(&ends);
    Ok(Arc::new(Tokens { trie, tokenizer }))
}

/// A token's bytes. Control is marked, so that no text ever matches it.
fn word_of(vocabulary: &Vocabulary, token: TokenId, ends: &[u32]) -> Vec<u8> {
    let bytes = vocabulary.bytes(token);
    let is_control = vocabulary.is_special(token) || ends.contains(&token.0);
    match bytes.first() {
        Some(_) if is_control => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
        // The mark itself, which begins no text.
        Some(&TokTrie::SPECIAL_TOKEN_MARKER) | None => Vec::new(),
        Some(_) => bytes.to_vec(),
    }
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| self.cut(text))
    }

    /// What is forced is cut in one way. Where the model chooses it chooses among all.
    fn tokenize_is_canonical(&self) -> bool {
        true
    }
}

impl Tokens {
    /// As the tokenizer cuts it, where the pieces are the text again, byte for byte; else the longest tokens that
    /// fit, one after the other.
    fn cut(&self, text: &str) -> Vec<u32> {
        let whole = self.encoded(text);
        if self.spells(&whole, text) {
            return whole;
        }
        let after = self.encoded(&format!("{BEFORE}{text}"));
        let ends_with_it = |count: &usize| self.bytes_of(&after[..*count]).ends_with(&[BEFORE as u8]);
        let rest = (1..=after.len()).find(ends_with_it).map(|count| after[count..].to_vec());
        match rest.filter(|rest| self.spells(rest, text)) {
            Some(rest) => rest,
            None => self.trie.greedy_tokenize(text.as_bytes()),
        }
    }

    fn encoded(&self, text: &str) -> Vec<u32> {
        let encoded = self.tokenizer.encode(text, SpecialTokens::Skip).unwrap_or_default();
        encoded.into_iter().map(|token| token.0).collect()
    }

    /// Whether the tokens are the text's bytes and no control.
    fn spells(&self, tokens: &[u32], text: &str) -> bool {
        self.bytes_of(tokens) == text.as_bytes()
    }

    fn bytes_of(&self, tokens: &[u32]) -> Vec<u8> {
        let known = tokens.iter().filter(|token| (**token as usize) < self.trie.vocab_size());
        known.flat_map(|token| self.trie.token(*token)).copied().collect()
    }
}
