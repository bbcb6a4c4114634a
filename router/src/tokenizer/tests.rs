//! The vocabulary's bytes against the tokenizer's own decoder.

use proptest::prelude::*;

use super::*;
use crate::testing::{byte_level_tokenizer, sentence_tokenizer};

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = Detokenizer::new();
    let mut text = String::new();
    for id in ids {
        let token = TokenId(*id);
        if !tokenizer.vocabulary.is_special(token) {
            text.push_str(&stream.push(tokenizer.vocabulary.bytes(token)));
        }
    }
    text.push_str(&stream.finish());
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_byte_level_stream_equals_the_decoded_whole(ids in proptest::collection::vec(0..262u32, 0..40)) {
        let tokenizer = Tokenizer::from_bytes(byte_level_tokenizer().as_bytes()).unwrap();
        let whole = tokenizer.inner.decode(&ids, true).unwrap();
        prop_assert_eq!(streamed(&tokenizer, &ids), whole);
    }

    #[test]
    fn a_byte_fallback_stream_equals_the_decoded_whole(text in "[a-c é€😀]{0,30}") {
        let tokenizer = Tokenizer::from_bytes(sentence_tokenizer().as_bytes()).unwrap();
        let ids = tokenizer.inner.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
        // A letter before it, as a prompt would be: decoders strip the very first space.
        let letter = tokenizer.inner.token_to_id("a").unwrap();
        let whole = tokenizer.inner.decode(&[&[letter], ids.as_slice()].concat(), true).unwrap();
        prop_assert_eq!(format!("a{}", streamed(&tokenizer, &ids)), whole);
    }
}

#[test]
fn special_tokens_have_a_name_and_no_text() {
    let tokenizer = Tokenizer::from_bytes(byte_level_tokenizer().as_bytes()).unwrap();
    let end = tokenizer.id("<|im_end|>").unwrap();
    assert!(tokenizer.vocabulary.is_special(end));
    assert_eq!(tokenizer.vocabulary.text(end), "<|im_end|>");
    assert_eq!(streamed(&tokenizer, &[end.0]), "");
}

#[test]
fn pieces_say_where_they_come_from() {
    let tokenizer = Tokenizer::from_bytes(byte_level_tokenizer().as_bytes()).unwrap();
    let pieces = tokenizer.pieces("ab", SpecialTokens::Add).unwrap();
    let places: Vec<(usize, usize, &str)> =
        pieces.iter().map(|piece| (piece.start, piece.stop, piece.text.as_str())).collect();
    assert_eq!(places, [(0, 1, "a"), (1, 2, "b")]);
}

/// The tokenizers that `tests/fixtures/tokenizers/generate.py` makes, by name.
const KINDS: [(&str, &[u8]); 4] = [
    ("llama2", include_bytes!("../../tests/fixtures/tokenizers/llama2.json")),
    ("gemma", include_bytes!("../../tests/fixtures/tokenizers/gemma.json")),
    ("metaspace", include_bytes!("../../tests/fixtures/tokenizers/metaspace.json")),
    ("byte_level", include_bytes!("../../tests/fixtures/tokenizers/byte_level.json")),
];

fn of_kind(name: &str) -> Tokenizer {
    let (_, json) = KINDS.into_iter().find(|(kind, _)| *kind == name).unwrap();
    Tokenizer::from_bytes(json).unwrap()
}

fn ids(tokens: &[TokenId]) -> Vec<u32> {
    tokens.iter().map(|token| token.0).collect()
}

#[test]
fn each_kind_encodes_as_in_python_and_streams_what_python_decodes() {
    let cases = include_str!("../../tests/fixtures/tokenizers/cases.json");
    let cases: Vec<serde_json::Value> = serde_json::from_str(cases).unwrap();
    for case in &cases {
        let (kind, text) = (case["tokenizer"].as_str().unwrap(), case["text"].as_str().unwrap());
        let tokenizer = of_kind(kind);
        let plain = ids(&tokenizer.encode(text, SpecialTokens::Skip).unwrap());
        let with_special = ids(&tokenizer.encode(text, SpecialTokens::Add).unwrap());
        assert_eq!(serde_json::json!(plain), case["ids"], "{kind}: {text:?}");
        assert_eq!(serde_json::json!(with_special), case["with_special"], "{kind}: {text:?}");
        // A decoder cuts the first space of all; a stream goes on after a prompt and keeps it.
        let (streamed, decoded) = (streamed(&tokenizer, &plain), case["decoded"].as_str().unwrap());
        let cut = streamed.strip_prefix(' ').unwrap_or(&streamed);
        assert!(streamed == decoded || cut == decoded, "{kind}: {text:?}: {streamed:?} is not {decoded:?}");
    }
}

/// Text that is hard on streams: spaces at both ends, characters of several bytes, joined emoji, tokens by name.
fn hard_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-f ]{0,8}",
        "\\PC{1,3}",
        proptest::sample::select(vec![
            "the cat",
            "  ",
            "\n\n",
            "é",
            "日本",
            "👩‍👩‍👧",
            "<tool>",
            "</tool>",
            "</s>",
            "▁",
            "<0x41>",
            "\u{301}",
            "<｜end▁of｜>",
        ])
        .prop_map(str::to_owned),
    ];
    proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// For every kind of tokenizer: what streams after a prompt is what the whole has after it.
    #[test]
    fn a_stream_after_a_prompt_equals_the_rest_of_the_decoded_whole(text in hard_text()) {
        for (kind, json) in KINDS {
            let tokenizer = Tokenizer::from_bytes(json).unwrap();
            let prompt = tokenizer.inner.encode_fast("the cat a", false).unwrap().get_ids().to_vec();
            let answer = tokenizer.inner.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
            let before = tokenizer.inner.decode(&prompt, true).unwrap();
            let whole = tokenizer.inner.decode(&[prompt, answer.clone()].concat(), true).unwrap();
            prop_assert_eq!(format!("{before}{}", streamed(&tokenizer, &answer)), whole, "{}", kind);
        }
    }

    /// Any ids at all, as an untrained model would choose them: no piece is half a character.
    #[test]
    fn no_piece_of_a_stream_ends_within_a_character(ids in proptest::collection::vec(0..420u32, 0..40)) {
        for (_, json) in KINDS {
            let tokenizer = Tokenizer::from_bytes(json).unwrap();
            let mut bytes = Vec::new();
            for id in ids.iter().map(|id| TokenId(*id)).filter(|id| !tokenizer.vocabulary.is_special(*id)) {
                bytes.extend_from_slice(tokenizer.vocabulary.bytes(id));
            }
            prop_assert_eq!(streamed(&tokenizer, &ids), String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}

#[test]
fn a_folder_without_a_fast_tokenizer_says_what_is_there_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let files = ModelFiles::Folder(folder.path().to_path_buf());
    let message = || Tokenizer::load(&files).err().unwrap().to_string();
    assert!(message().contains("found no tokenizer, expected tokenizer.json"), "{}", message());
    for name in ["tokenizer.model", "vocab.json", "merges.txt", "config.json"] {
        std::fs::write(folder.path().join(name), "{}").unwrap();
    }
    assert!(message().contains("found merges.txt, tokenizer.model, vocab.json, expected"), "{}", message());
    assert!(message().contains("AutoTokenizer as T; T.from_pretrained('"), "{}", message());
}

#[test]
fn ids_that_are_far_apart_are_refused() {
    let mut json: serde_json::Value = serde_json::from_str(&byte_level_tokenizer()).unwrap();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    vocabulary.insert("far".to_owned(), serde_json::json!(u32::MAX));
    let error = Tokenizer::from_bytes(json.to_string().as_bytes()).err().unwrap().to_string();
    assert!(error.contains("with ids up to 4294967294, expected about as many ids as tokens"), "{error}");
}

#[test]
fn a_damaged_tokenizer_is_told_from_one_that_was_not_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let files = ModelFiles::Folder(folder.path().to_path_buf());
    let whole = byte_level_tokenizer();
    let cut = whole.get(..whole.len() / 2).unwrap();
    for (content, expected) in [
        (cut, "cut off, damaged or of another format"),
        ("{}", "cut off, damaged or of another format"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
    ] {
        std::fs::write(folder.path().join("tokenizer.json"), content).unwrap();
        let message = Tokenizer::load(&files).err().unwrap().to_string();
        assert!(message.contains(expected), "{message}");
    }
}
