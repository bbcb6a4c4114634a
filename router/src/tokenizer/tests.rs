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
