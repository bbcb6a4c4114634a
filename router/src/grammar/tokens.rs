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

#[cfg(test)]
mod tests {
    use lockstep_models::ModelFiles;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{byte_level_tokenizer, ids, sentence_tokenizer};

    fn env(tokenizer: Tokenizer) -> TokEnv {
        tokens_of(Arc::new(tokenizer), &[TokenId(ids::IM_END)]).unwrap()
    }

    fn envs() -> Vec<TokEnv> {
        let parsed = |json: String| Tokenizer::from_bytes(json.as_bytes()).unwrap();
        let demo = Tokenizer::load(&ModelFiles::EmbeddedDemo).unwrap();
        vec![env(parsed(byte_level_tokenizer())), env(parsed(sentence_tokenizer())), env(demo)]
    }

    #[test]
    fn text_is_cut_as_the_tokenizer_cuts_it() {
        let demo = Tokenizer::load(&ModelFiles::EmbeddedDemo).unwrap();
        let text = "Once upon a time, there was a little dog.";
        let expected: Vec<u32> =
            demo.encode(text, SpecialTokens::Skip).unwrap().into_iter().map(|token| token.0).collect();
        assert_eq!(env(demo).tokenize_bytes(text.as_bytes()), expected);
        // The name of a token of control is a text like others.
        let envs = envs();
        let named = envs[0].tokenize_bytes(b"<|im_end|>");
        assert!(!named.contains(&ids::IM_END) && envs[0].tok_trie().decode_raw(&named) == b"<|im_end|>");
    }

    /// As sentence-piece tokenizers do, which put a space before every text.
    #[test]
    fn what_a_tokenizer_puts_before_a_text_is_left_out() {
        let mut json: serde_json::Value = serde_json::from_str(&sentence_tokenizer()).unwrap();
        let prepend = serde_json::json!({"type": "Prepend", "prepend": "\u{2581}"});
        json["normalizer"] =
            serde_json::json!({"type": "Sequence", "normalizers": [prepend, json["normalizer"]]});
        let tokenizer = Arc::new(Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap());
        let id = |name: &str| tokenizer.id(name).unwrap().0;
        let (space, a, b) = (id("\u{2581}"), id("a"), id("b"));
        let plain = tokenizer.encode("ab", SpecialTokens::Skip).unwrap();
        assert_eq!(plain, [space, a, b].map(TokenId));
        let env = tokens_of(Arc::clone(&tokenizer), &[TokenId(0)]).unwrap();
        assert_eq!(env.tokenize_bytes(b"ab"), [a, b]);
        assert_eq!(env.tokenize_bytes(b" a b"), [space, a, space, b]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_pieces_are_the_text_again(text in r#"[ a-z"{}:,\u{e9}\u{20ac}\n]{0,40}|<[|]im_(end|start)[|]>[a-c ]{0,9}"#, cut in 0_usize..4) {
            for env in envs() {
                let bytes = &text.as_bytes()[..text.len().saturating_sub(cut)];
                let tokens = env.tokenize_bytes(bytes);
                prop_assert_eq!(env.tok_trie().decode_raw(&tokens), bytes);
            }
        }
    }
}
