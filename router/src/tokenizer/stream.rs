//! Bytes of tokens in, whole characters out. Pure; one for each sequence.

/// Longest beginning of a UTF-8 character that is not the whole of it, in bytes.
const LONGEST_PARTIAL_CHARACTER: usize = 3;

/// Turns a sequence's tokens into text as they come.
///
/// What has been handed out never changes and never ends within a character: bytes that may still become
/// one are held back. Bytes that cannot become one are replaced exactly as `String::from_utf8_lossy` would
/// replace them in the whole, so the pieces joined equal the decoded whole. Work is linear in the bytes
/// pushed: at most three bytes wait.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    waiting: Vec<u8>,
}

impl Detokenizer {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self { waiting: Vec::with_capacity(LONGEST_PARTIAL_CHARACTER) }
    }

    /// Text that is certain once these bytes have followed; may be empty.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.waiting.is_empty() {
            return self.take_whole_characters(bytes);
        }
        let mut joined = std::mem::take(&mut self.waiting);
        joined.extend_from_slice(bytes);
        self.take_whole_characters(&joined)
    }

    /// What was held back, once nothing follows: empty, or one replacement character.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.waiting);
        String::from_utf8_lossy(&rest).into_owned()
    }

    fn take_whole_characters(&mut self, bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len());
        let mut rest = bytes;
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            let Some(wrong) = error.error_len() else {
                self.waiting.extend_from_slice(after);
                return text;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = after.get(wrong..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(tokens: &[Vec<u8>]) -> Vec<String> {
        let mut stream = Detokenizer::new();
        let mut pieces: Vec<String> = tokens.iter().map(|token| stream.push(token)).collect();
        pieces.push(stream.finish());
        pieces
    }

    #[test]
    fn a_character_in_parts_comes_out_whole_with_its_last_part() {
        let smile = "😀".as_bytes();
        let tokens: Vec<Vec<u8>> = smile.iter().map(|byte| vec![*byte]).collect();
        assert_eq!(pieces(&tokens), ["", "", "", "😀", ""]);
    }

    #[test]
    fn bytes_that_cannot_become_a_character_do_not_wait() {
        assert_eq!(
            pieces(&[vec![0xFF], vec![b'a'], vec![0xE2, 0x82], vec![b'b']]),
            ["\u{FFFD}", "a", "", "\u{FFFD}b", ""]
        );
    }

    #[test]
    fn half_a_character_at_the_end_is_one_replacement() {
        assert_eq!(pieces(&[vec![b'a', 0xF0, 0x9F]]), ["a", "\u{FFFD}"]);
    }

    /// Tokens that often cut characters: text cut at random bytes, mixed with random bytes.
    fn tokens() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let piece = prop_oneof![
            "\\PC{1,4}".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 1..3),
            proptest::sample::select("né€😀�".as_bytes().to_vec()).prop_map(|byte| vec![byte]),
        ];
        proptest::collection::vec(piece, 0..24)
    }

    proptest! {
        #[test]
        fn pieces_joined_equal_the_whole_and_never_end_within_a_character(tokens in tokens()) {
            let whole = tokens.concat();
            let pieces = pieces(&tokens);
            prop_assert_eq!(pieces.concat(), String::from_utf8_lossy(&whole).into_owned());
            // Each prefix of the pieces is a prefix of the whole's decoding: nothing is taken back.
            let mut stream = Detokenizer::new();
            let mut seen = Vec::new();
            for token in &tokens {
                seen.extend_from_slice(token);
                stream.push(token);
                prop_assert!(stream.waiting.len() <= LONGEST_PARTIAL_CHARACTER);
                prop_assert!(seen.ends_with(&stream.waiting));
            }
        }

        #[test]
        fn any_cut_of_valid_text_gives_the_text_without_replacements(text in "\\PC{0,40}", cut in 1..4usize) {
            let tokens: Vec<Vec<u8>> = text.as_bytes().chunks(cut).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(pieces(&tokens).concat(), text);
        }
    }
}
