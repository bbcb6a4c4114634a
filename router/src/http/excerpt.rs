//! What a client wrote, as answers and logs repeat it: no more of it than tells it apart.

use std::borrow::Cow;

/// Longest excerpt, in bytes.
const MOST_BYTES: usize = 256;

/// The text, or where it is long its beginning.
pub(super) fn excerpt(text: &str) -> Cow<'_, str> {
    if text.len() <= MOST_BYTES {
        return Cow::Borrowed(text);
    }
    let beginning = text.get(..text.floor_char_boundary(MOST_BYTES)).unwrap_or_default();
    Cow::Owned(format!("{beginning}..."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(excerpt(&"a".repeat(MOST_BYTES)), "a".repeat(MOST_BYTES));
        let long = format!("a{}", "ä".repeat(MOST_BYTES));
        assert_eq!(excerpt(&long), format!("a{}...", "ä".repeat(MOST_BYTES / 2 - 1)));
    }
}
