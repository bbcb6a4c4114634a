//! Small tokenizers and a template, for tests of this crate and of what embeds it.

use serde_json::{Map, Value, json};

/// Ids of the byte-level test tokenizer that are not single bytes. Byte `b` has id `b`.
pub mod ids {
    /// `<|im_start|>`, special.
    pub const IM_START: u32 = 256;
    /// `<|im_end|>`, special, ends an answer.
    pub const IM_END: u32 = 257;
    /// `ab`.
    pub const AB: u32 = 258;
    /// A full stop and two line feeds.
    pub const FULL_STOP_BREAK: u32 = 259;
    /// `END!`
    pub const END_MARK: u32 = 260;
    /// The first two bytes of `€`.
    pub const EURO_START: u32 = 261;
}

/// Entries of the byte-level test vocabulary.
pub const VOCABULARY_SIZE: u32 = 262;

/// A ChatML template.
pub const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
                            message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
                            {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A byte-level `tokenizer.json` with a token for each byte and a few longer ones.
pub fn byte_level_tokenizer() -> String {
    byte_level_tokenizer_with(&[])
}

/// The same with more special tokens, of the ids from [`VOCABULARY_SIZE`] on.
pub fn byte_level_tokenizer_with(marks: &[&str]) -> String {
    let mut vocabulary: Map<String, Value> =
        (0..=u8::MAX).map(|byte| (byte_level_char(byte).to_string(), json!(byte))).collect();
    let euro: String = "€".bytes().take(2).map(byte_level_char).collect();
    for (token, id) in [
        ("<|im_start|>", ids::IM_START),
        ("<|im_end|>", ids::IM_END),
        ("ab", ids::AB),
        (".ĊĊ", ids::FULL_STOP_BREAK),
        ("END!", ids::END_MARK),
        (euro.as_str(), ids::EURO_START),
    ] {
        vocabulary.insert(token.to_owned(), json!(id));
    }
    let special = |(content, id): (&str, u32)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let marks = marks.iter().copied().zip(VOCABULARY_SIZE..);
    let specials = [("<|im_start|>", ids::IM_START), ("<|im_end|>", ids::IM_END)].into_iter().chain(marks);
    vocabulary.extend(specials.clone().map(|(mark, id)| (mark.to_owned(), json!(id))));
    let added: Vec<Value> = specials.map(special).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": []}
    })
    .to_string()
}

/// A sentence-piece style `tokenizer.json` that falls back to bytes.
pub fn sentence_tokenizer() -> String {
    let mut vocabulary = Map::new();
    vocabulary.insert("<unk>".to_owned(), json!(0));
    for byte in 0..=u8::MAX {
        vocabulary.insert(format!("<0x{byte:02X}>"), json!(1 + u32::from(byte)));
    }
    for (place, token) in ["▁", "a", "b", "c"].into_iter().enumerate() {
        vocabulary.insert(token.to_owned(), json!(257 + place));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocabulary, "merges": []}
    })
    .to_string()
}

/// The character a byte is written as in byte-level vocabularies.
fn byte_level_char(byte: u8) -> char {
    let code = match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u32::from(byte),
        0..=0x20 => 0x100 + u32::from(byte),
        0x7F..=0xA0 => 0x121 + u32::from(byte) - 0x7F,
        0xAD => 0x143,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}
