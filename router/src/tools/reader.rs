//! Reads a text that may go on. Every verdict holds whatever follows: what could still become another is `More`.

/// Why reading stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// What comes next decides.
    More,
    /// It is something else.
    Mismatch,
}

/// White space between two JSON tokens.
const SPACE: [char; 4] = [' ', '\n', '\r', '\t'];

/// Whether all of `text` is white space of JSON.
pub(super) fn is_space(text: &str) -> bool {
    text.chars().all(|character| SPACE.contains(&character))
}

/// `text` without the white space at its end.
pub(super) fn trim_end(text: &str) -> &str {
    text.trim_end_matches(SPACE)
}

/// A place in a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// How many bytes are read.
    pub(super) fn read(&self) -> usize {
        self.at
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Reads `literal`.
    pub(super) fn expect(&mut self, literal: &str) -> Result<(), Stop> {
        let rest = self.rest();
        if rest.starts_with(literal) {
            self.at += literal.len();
            return Ok(());
        }
        Err(if literal.starts_with(rest) { Stop::More } else { Stop::Mismatch })
    }

    /// Reads the parts one after the other, white space before each.
    pub(super) fn expect_all(&mut self, parts: &[&str]) -> Result<(), Stop> {
        parts.iter().try_for_each(|part| {
            self.space();
            self.expect(part)
        })
    }

    /// Looks for `literal` without reading it.
    pub(super) fn peek(&self, literal: &str) -> Result<(), Stop> {
        let mut ahead = *self;
        ahead.expect(literal)
    }

    /// Skips white space.
    pub(super) fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches(SPACE).len();
    }

    /// Reads one of `names` and what must follow it; says which.
    pub(super) fn one_of<'n>(
        &mut self,
        names: impl IntoIterator<Item = &'n str>,
        end: &str,
    ) -> Result<usize, Stop> {
        let mut best = Stop::Mismatch;
        for (place, name) in names.into_iter().enumerate() {
            let mut ahead = *self;
            match ahead.expect(name).and_then(|()| ahead.expect(end)) {
                Ok(()) => {
                    *self = ahead;
                    return Ok(place);
                }
                Err(Stop::More) => best = Stop::More,
                Err(Stop::Mismatch) => {}
            }
        }
        Err(best)
    }

    /// Skips letters and digits.
    pub(super) fn alphanumeric(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric()).len();
    }

    /// Reads what `part` reads, if it is there.
    pub(super) fn option<T>(
        &mut self,
        part: impl FnOnce(&mut Self) -> Result<T, Stop>,
    ) -> Result<Option<T>, Stop> {
        let before = *self;
        match part(self) {
            Ok(read) => Ok(Some(read)),
            Err(Stop::Mismatch) => {
                *self = before;
                Ok(None)
            }
            Err(Stop::More) => Err(Stop::More),
        }
    }
}
