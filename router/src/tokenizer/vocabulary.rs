//! The bytes each token stands for.
//!
//! Read once from the tokenizer's own decoder, so that no decoder runs while text streams. Text continues
//! a prompt: what a decoder would strip from the very beginning is kept.

use lockstep_proto::TokenId;
use serde_json::Value;

use super::TokenizerError;

/// Bytes and kind of every token id. Ids beyond it stand for nothing.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    special: Vec<bool>,
}

/// How a token's text becomes bytes, in the order of the tokenizer's decoder.
/// Ids without a token beside as many as there are tokens: memory is taken for every id.
const MOST_GAPS: usize = 1 << 16;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// Each character stands for one byte, as in GPT-2; a token with any other character is plain text.
    ByteLevel,
    /// `<0x41>` is the byte 0x41.
    ByteFallback,
    /// Every occurrence of the first is the second.
    Replace(String, String),
}

impl Vocabulary {
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(TokenizerError::Decoder)?;
        let mut rules = Vec::new();
        add_rules(&decoder, &mut rules)?;
        let ids = tokenizer.get_vocab(true);
        let entries = ids.len();
        let count = ids.into_values().max().map_or(0, |last| last.saturating_add(1));
        if count as usize > entries.saturating_mul(2).saturating_add(MOST_GAPS) {
            return Err(TokenizerError::Gaps { largest: count - 1, entries });
        }
        let mut vocabulary = Self { bytes: Vec::new(), ends: Vec::new(), special: Vec::new() };
        for id in 0..count {
            let text = tokenizer.id_to_token(id).unwrap_or_default();
            let special = tokenizer.get_added_vocabulary().is_special_token(&text);
            vocabulary.add(&text, &rules, special);
        }
        Ok(vocabulary)
    }

    fn add(&mut self, text: &str, rules: &[Rule], special: bool) {
        let bytes = if special { text.as_bytes().to_vec() } else { bytes_of(text, rules) };
        self.bytes.extend_from_slice(&bytes);
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        self.special.push(special);
    }

    /// How many ids there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes a token stands for; its name if it is special.
    pub fn bytes(&self, token: TokenId) -> &[u8] {
        let Some(end) = self.ends.get(token.index()) else { return &[] };
        let start = token.index().checked_sub(1).and_then(|before| self.ends.get(before)).unwrap_or(&0);
        self.bytes.get(*start as usize..*end as usize).unwrap_or_default()
    }

    /// A token's text on its own; parts of characters are replaced.
    pub fn text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(self.bytes(token)).into_owned()
    }

    /// Whether a token is control, not text.
    pub fn is_special(&self, token: TokenId) -> bool {
        self.special.get(token.index()).copied().unwrap_or(false)
    }
}

fn add_rules(decoder: &Value, rules: &mut Vec<Rule>) -> Result<(), TokenizerError> {
    let unsupported = || TokenizerError::UnsupportedDecoder(decoder.to_string());
    match decoder.get("type").and_then(Value::as_str).ok_or_else(unsupported)? {
        "ByteLevel" => rules.push(Rule::ByteLevel),
        "ByteFallback" => rules.push(Rule::ByteFallback),
        // Joins texts, which pushing them one after the other does too.
        "Fuse" => {}
        // Cuts at the very beginning, where ours has the prompt.
        "Strip" if decoder.get("stop").and_then(Value::as_u64) == Some(0) => {}
        "Metaspace" => {
            let mark = decoder.get("replacement").and_then(Value::as_str).ok_or_else(unsupported)?;
            rules.push(Rule::Replace(mark.to_owned(), " ".to_owned()));
        }
        "Replace" => {
            let from =
                decoder.pointer("/pattern/String").and_then(Value::as_str).ok_or_else(unsupported)?;
            let to = decoder.get("content").and_then(Value::as_str).ok_or_else(unsupported)?;
            rules.push(Rule::Replace(from.to_owned(), to.to_owned()));
        }
        "Sequence" => {
            let parts = decoder.get("decoders").and_then(Value::as_array).ok_or_else(unsupported)?;
            for part in parts {
                add_rules(part, rules)?;
            }
        }
        _ => return Err(unsupported()),
    }
    Ok(())
}

fn bytes_of(token: &str, rules: &[Rule]) -> Vec<u8> {
    let mut text = token.to_owned();
    for rule in rules {
        match rule {
            Rule::Replace(from, to) => text = text.replace(from.as_str(), to),
            Rule::ByteFallback => {
                if let Some(byte) = named_byte(&text) {
                    return vec![byte];
                }
            }
            Rule::ByteLevel => {
                let bytes: Option<Vec<u8>> = text.chars().map(byte_level_byte).collect();
                return bytes.unwrap_or_else(|| text.into_bytes());
            }
        }
    }
    text.into_bytes()
}

fn named_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The byte a character stands for in byte-level vocabularies: printable Latin-1 stands for itself, the
/// other bytes, in order, for the characters from U+0100 on.
fn byte_level_byte(character: char) -> Option<u8> {
    let byte = match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => code,
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_characters_are_their_bytes() {
        let rules = [Rule::ByteLevel];
        let cases: [(&str, &[u8]); 5] = [
            ("Ġa", b" a"),
            ("Ċ", b"\n"),
            ("Ã©", "é".as_bytes()),
            ("<tool call>", b"<tool call>"),
            ("Ń", &[0xAD]),
        ];
        for (token, bytes) in cases {
            assert_eq!(bytes_of(token, &rules), bytes, "{token}");
        }
    }

    #[test]
    fn sentence_pieces_keep_their_leading_space_and_name_bytes() {
        let decoder = serde_json::json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let mut rules = Vec::new();
        add_rules(&decoder, &mut rules).unwrap();
        let cases: [(&str, &[u8]); 4] =
            [("▁word", b" word"), ("<0xE2>", &[0xE2]), ("<0xZZ>", b"<0xZZ>"), ("a", b"a")];
        for (token, bytes) in cases {
            assert_eq!(bytes_of(token, &rules), bytes, "{token}");
        }
    }

    #[test]
    fn an_unknown_decoder_is_refused_by_name() {
        let error = add_rules(&serde_json::json!({"type": "CTC"}), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("CTC"), "{error}");
    }
}
