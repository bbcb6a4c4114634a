//! Stop strings: matched anywhere in the text, inside tokens too. Pure.

/// What becomes of the text that matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopText {
    /// It stays at the end of the answer.
    Keep,
    /// It is cut off; text that could be its beginning is held back until that is decided.
    Cut,
}

/// What a piece of text came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Text that is certainly part of the answer.
    pub text: String,
    /// Whether a stop string ended the answer in this piece; what follows it is dropped.
    pub stopped: bool,
}

/// Watches the text of one answer for its stop strings.
///
/// The answer ends where the first stop string is complete; of those complete at the same character, the
/// longest counts. This does not depend on how the text is cut into pieces. Linear in the text, whatever
/// the strings' lengths (Knuth, Morris and Pratt 1977).
#[derive(Clone, Debug)]
pub struct StopStrings {
    matchers: Vec<Matcher>,
    placement: StopText,
    held: String,
}

#[derive(Clone, Debug)]
struct Matcher {
    needle: Vec<u8>,
    /// For each length of a matched beginning, the longest shorter one that is also its end.
    fallback: Vec<usize>,
    matched: usize,
}

impl StopStrings {
    /// Watches for `stops`; empty ones never match.
    pub fn new(stops: &[String], placement: StopText) -> Self {
        let matchers =
            stops.iter().filter(|stop| !stop.is_empty()).map(|stop| Matcher::new(stop)).collect();
        Self { matchers, placement, held: String::new() }
    }

    /// What becomes of the text that matches.
    pub fn placement(&self) -> StopText {
        self.placement
    }

    /// Takes the next piece of the text.
    pub fn push(&mut self, piece: &str) -> Passed {
        let complete = piece.bytes().enumerate().find_map(|(at, byte)| {
            let longest = self.matchers.iter_mut().filter_map(|matcher| matcher.advance(byte)).max()?;
            Some((at + 1, longest))
        });
        match (complete, self.placement) {
            (None, StopText::Keep) => Passed { text: piece.to_owned(), stopped: false },
            (Some((end, _)), StopText::Keep) => Passed { text: prefix(piece, end), stopped: true },
            (Some((end, length)), StopText::Cut) => {
                let mut text = std::mem::take(&mut self.held);
                text.push_str(&prefix(piece, end));
                text.truncate(text.len().saturating_sub(length));
                Passed { text, stopped: true }
            }
            (None, StopText::Cut) => {
                self.held.push_str(piece);
                let undecided = self.matchers.iter().map(|matcher| matcher.matched).max().unwrap_or(0);
                let rest = self.held.split_off(self.held.len().saturating_sub(undecided));
                Passed { text: std::mem::replace(&mut self.held, rest), stopped: false }
            }
        }
    }

    /// What was held back, once nothing follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

impl Matcher {
    fn new(stop: &str) -> Self {
        let needle = stop.as_bytes().to_vec();
        let mut fallback = vec![0; needle.len() + 1];
        let mut matcher = Self { needle, fallback: Vec::new(), matched: 0 };
        for length in 2..=matcher.needle.len() {
            let mut candidate = fallback[length - 1];
            while candidate > 0 && matcher.needle[candidate] != matcher.needle[length - 1] {
                candidate = fallback[candidate];
            }
            let grows = matcher.needle[candidate] == matcher.needle[length - 1];
            fallback[length] = candidate + usize::from(grows);
        }
        matcher.fallback = fallback;
        matcher
    }

    /// Takes a byte; the needle's length if it is complete with it.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.needle.get(self.matched) != Some(&byte) {
            self.matched = self.fallback[self.matched];
        }
        if self.needle.get(self.matched) == Some(&byte) {
            self.matched += 1;
        }
        (self.matched == self.needle.len()).then_some(self.matched)
    }
}

fn prefix(text: &str, end: usize) -> String {
    text.get(..end).unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: the earliest end, then the longest.
    fn reference(text: &str, stops: &[String], placement: StopText) -> (String, bool) {
        let ends = (1..=text.len()).filter(|end| text.is_char_boundary(*end));
        for end in ends {
            let longest =
                stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max();
            if let Some(length) = longest {
                let cut = if placement == StopText::Cut { end - length } else { end };
                return (text[..cut].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    fn run(pieces: &[String], stops: &[String], placement: StopText) -> (String, bool) {
        let mut watch = StopStrings::new(stops, placement);
        let mut text = String::new();
        for piece in pieces {
            let passed = watch.push(piece);
            text.push_str(&passed.text);
            if passed.stopped {
                return (text, true);
            }
        }
        text.push_str(&watch.finish());
        (text, false)
    }

    #[test]
    fn a_stop_inside_a_token_ends_the_answer_there() {
        let stops = vec!["\n\n".to_owned()];
        let pieces = ["one".to_owned(), ".\n\ntwo".to_owned()];
        assert_eq!(run(&pieces, &stops, StopText::Keep), ("one.\n\n".to_owned(), true));
        assert_eq!(run(&pieces, &stops, StopText::Cut), ("one.".to_owned(), true));
    }

    #[test]
    fn text_that_may_begin_a_stop_waits_until_it_does_not() {
        let mut watch = StopStrings::new(&["END".to_owned()], StopText::Cut);
        assert_eq!(watch.push("aE"), Passed { text: "a".into(), stopped: false });
        assert_eq!(watch.push("N"), Passed::default());
        assert_eq!(watch.push("E"), Passed { text: "EN".into(), stopped: false });
        assert_eq!(watch.push("ND!"), Passed { text: String::new(), stopped: true });
    }

    proptest! {
        #[test]
        fn any_cut_of_a_text_gives_the_defined_answer(
            pieces in proptest::collection::vec("[abé]{0,4}", 0..12),
            stops in proptest::collection::vec("[abé]{1,4}", 0..4),
            cut in any::<bool>(),
        ) {
            let placement = if cut { StopText::Cut } else { StopText::Keep };
            let whole = pieces.concat();
            prop_assert_eq!(run(&pieces, &stops, placement), reference(&whole, &stops, placement));
        }
    }
}
