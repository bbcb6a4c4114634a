//! Which two tokens become one, and in what order: as a file lists them, or as its scores imply.

use std::cmp::Ordering;

use super::GgufError;
use super::metadata::Metadata;
use super::vocabulary::{TokenKind, Vocabulary};

pub(super) const MERGES: &str = "tokenizer.ggml.merges";

/// The pairs a file lists, first merged first; each is written as two tokens with a space between them.
pub(super) fn listed(metadata: &Metadata) -> Result<Option<Vec<[&str; 2]>>, GgufError> {
    let Some(merges) = metadata.texts(MERGES)? else { return Ok(None) };
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let pair = pair(merge).ok_or_else(|| GgufError::Invalid {
            what: format!("an element of {MERGES}"),
            found: format!("{merge:?}"),
            expected: "two tokens with a space between them".to_owned(),
        });
        pairs.push(pair?);
    }
    Ok(Some(pairs))
}

fn pair(merge: &str) -> Option<[&str; 2]> {
    // A token is at least one character, so the space that divides is not the first one.
    let first = merge.chars().next()?.len_utf8();
    let space = first + merge.get(first..)?.find(' ')?;
    Some([merge.get(..space)?, merge.get(space + 1..)?])
}

/// A token made of two others.
struct Merge<'a> {
    left: &'a str,
    right: &'a str,
    ids: (usize, usize),
    score: f64,
}

/// Every way to make a token of two others, the best token first. SentencePiece merges the two neighbours
/// whose token has the highest score; among equal ones longer parts go first, as transformers orders them.
pub(super) fn by_score<'a>(vocabulary: &'a Vocabulary<'_>, scores: &[f64]) -> Vec<[&'a str; 2]> {
    let is_text = |id: usize| vocabulary.kind(id) == TokenKind::Normal;
    let part = |text: &str| vocabulary.id(text).filter(|id| is_text(*id));
    let mut merges = Vec::new();
    for ((id, token), score) in vocabulary.tokens.iter().enumerate().zip(scores) {
        if !is_text(id) {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(first), Some(second)) = (part(left), part(right)) {
                merges.push(Merge { left, right, ids: (first, second), score: *score });
            }
        }
    }
    merges.sort_by(order);
    merges.into_iter().map(|merge| [merge.left, merge.right]).collect()
}

fn order(one: &Merge<'_>, other: &Merge<'_>) -> Ordering {
    let lengths = |merge: &Merge<'_>| (merge.left.chars().count(), merge.right.chars().count());
    let best_first = other.score.total_cmp(&one.score);
    best_first.then_with(|| lengths(other).cmp(&lengths(one))).then_with(|| one.ids.cmp(&other.ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_divides_two_tokens_that_are_not_empty() {
        let cases = [
            ("a b", Some(["a", "b"])),
            ("  b", Some([" ", "b"])),
            ("\u{2581} \u{2581}a", Some(["\u{2581}", "\u{2581}a"])),
            ("ab", None),
            (" b", None),
            ("", None),
        ];
        for (merge, expected) in cases {
            assert_eq!(pair(merge), expected, "{merge:?}");
        }
    }
}
