//! Answers to content and calls, as they come. Pure.
//!
//! A call counts once its function's name is known and its arguments begin; whatever only looks like one is content.
//! White space between content and calls belongs to neither.

use std::sync::Arc;

use super::reader::{Reader, Stop, is_space, trim_end};
use super::style::{CallStyle, Frame, Next, Opened};
use super::value::ObjectEnd;

/// Part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text for people.
    Content(String),
    /// A call begins; those of one answer are counted by their order.
    Call {
        /// The function's name.
        name: String,
    },
    /// More JSON of the arguments of the call that began last, as the model writes it.
    Arguments(String),
}

/// What an answer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There are calls, and the arguments of each are whole.
    Calls,
    /// There is no call, or the last one was cut off.
    Text,
}

/// Takes one answer apart.
#[derive(Clone, Debug)]
pub struct CallParser {
    style: CallStyle,
    names: Arc<[String]>,
    state: State,
    /// What is not decided yet.
    pending: String,
    has_calls: bool,
}

#[derive(Clone, Debug)]
enum State {
    Text(Before),
    Arguments {
        end: ObjectEnd,
        frame: Frame,
    },
    /// The arguments are whole; what the syntax has behind them is not.
    Closing(Frame),
}

/// What comes before a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Content,
    Call,
}

/// What a step came to.
enum Step {
    /// So many bytes of what is pending are decided.
    Taken(usize, State),
    /// Nothing more is.
    Wait,
}

/// Whether anything follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    Maybe,
    Nothing,
}

impl CallParser {
    /// For an answer in `style` that may call functions of these names.
    pub fn new(style: CallStyle, names: Arc<[String]>) -> Self {
        let state = State::Text(Before::Nothing);
        Self { style, names, state, pending: String::new(), has_calls: false }
    }

    /// Takes the next piece of the text; what is certain with it.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.pending.push_str(text);
        let mut pieces = Vec::new();
        self.run(Follows::Maybe, &mut pieces);
        pieces
    }

    /// What was held back, once nothing follows.
    pub fn finish(&mut self) -> (Vec<Piece>, Outcome) {
        let mut pieces = Vec::new();
        self.run(Follows::Nothing, &mut pieces);
        let is_cut = matches!(self.state, State::Arguments { .. });
        let outcome = if self.has_calls && !is_cut { Outcome::Calls } else { Outcome::Text };
        (pieces, outcome)
    }

    fn run(&mut self, follows: Follows, pieces: &mut Vec<Piece>) {
        while !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            match self.step(&pending, follows, pieces) {
                Step::Taken(bytes, state) => {
                    self.state = state;
                    self.pending = pending.get(bytes..).unwrap_or_default().to_owned();
                }
                Step::Wait => {
                    self.pending = pending;
                    return;
                }
            }
        }
    }

    fn step(&mut self, pending: &str, follows: Follows, pieces: &mut Vec<Piece>) -> Step {
        match &mut self.state {
            State::Text(before) => {
                let before = *before;
                self.text(pending, before, follows, pieces)
            }
            State::Arguments { end, frame } => match end.find(pending) {
                Some(bytes) => {
                    let frame = *frame;
                    add_arguments(pieces, pending.get(..bytes).unwrap_or_default());
                    Step::Taken(bytes, State::Closing(frame))
                }
                None => {
                    add_arguments(pieces, pending);
                    Step::Taken(pending.len(), self.state.clone())
                }
            },
            State::Closing(frame) => {
                let frame = *frame;
                self.closing(pending, frame, follows, pieces)
            }
        }
    }

    fn closing(&mut self, pending: &str, frame: Frame, follows: Follows, pieces: &mut Vec<Piece>) -> Step {
        let names = self.names();
        let mut reader = Reader::new(pending);
        match self.style.close(&mut reader, &names, frame) {
            Ok(Next::Call(called)) => self.begin(reader.read(), Opened { called, frame }, pieces),
            Ok(Next::Text) => Step::Taken(reader.read(), State::Text(Before::Call)),
            Err(Stop::Mismatch) => Step::Taken(0, State::Text(Before::Call)),
            Err(Stop::More) => match follows {
                Follows::Maybe => Step::Wait,
                // Syntax that was cut off is no content.
                Follows::Nothing => Step::Taken(pending.len(), State::Text(Before::Call)),
            },
        }
    }

    fn begin(&mut self, bytes: usize, opened: Opened, pieces: &mut Vec<Piece>) -> Step {
        let name = self.names.get(opened.called).cloned().unwrap_or_default();
        pieces.push(Piece::Call { name });
        self.has_calls = true;
        Step::Taken(bytes, State::Arguments { end: ObjectEnd::default(), frame: opened.frame })
    }

    fn text(&mut self, pending: &str, before: Before, follows: Follows, pieces: &mut Vec<Piece>) -> Step {
        if before == Before::Nothing && self.style.begins_bare() {
            let names = self.names();
            let mut reader = Reader::new(pending);
            match self.style.open(&mut reader, &names) {
                Ok(opened) => return self.begin(reader.read(), opened, pieces),
                Err(Stop::More) if follows == Follows::Maybe => return Step::Wait,
                Err(Stop::More | Stop::Mismatch) => {}
            }
        }
        let mark = self.style.mark().and_then(|mark| Some((pending.find(mark)?, mark)));
        match mark {
            Some((at, mark)) => self.marked(pending, (at, mark), follows, pieces),
            None => self.unmarked(pending, before, follows, pieces),
        }
    }

    /// A mark stands in the text.
    fn marked(
        &mut self,
        pending: &str,
        (at, mark): (usize, &str),
        follows: Follows,
        pieces: &mut Vec<Piece>,
    ) -> Step {
        let text = pending.get(..at).unwrap_or_default();
        let inside = at + mark.len();
        let names = self.names();
        let mut reader = Reader::new(pending.get(inside..).unwrap_or_default());
        match self.style.open(&mut reader, &names) {
            Ok(opened) => {
                add_content(pieces, trim_end(text));
                self.begin(inside + reader.read(), opened, pieces)
            }
            Err(Stop::More) if follows == Follows::Maybe => {
                let certain = trim_end(text);
                if certain.is_empty() {
                    return Step::Wait;
                }
                add_content(pieces, certain);
                Step::Taken(certain.len(), State::Text(Before::Content))
            }
            Err(Stop::More | Stop::Mismatch) => {
                add_content(pieces, pending.get(..inside).unwrap_or_default());
                Step::Taken(inside, State::Text(Before::Content))
            }
        }
    }

    fn unmarked(&self, pending: &str, before: Before, follows: Follows, pieces: &mut Vec<Piece>) -> Step {
        if follows == Follows::Nothing {
            let is_dropped = before == Before::Call && is_space(pending);
            if !is_dropped {
                add_content(pieces, pending);
            }
            let state = if is_dropped { before } else { Before::Content };
            return Step::Taken(pending.len(), State::Text(state));
        }
        let certain = trim_end(&pending[..pending.len() - self.begun_mark(pending)]);
        if certain.is_empty() {
            return Step::Wait;
        }
        add_content(pieces, certain);
        Step::Taken(certain.len(), State::Text(Before::Content))
    }

    /// How many bytes at the end may be the beginning of a mark.
    fn begun_mark(&self, text: &str) -> usize {
        let mark = self.style.mark().unwrap_or_default();
        let lengths = (1..mark.len()).rev();
        let mut begun =
            lengths.filter(|length| mark.get(..*length).is_some_and(|begun| text.ends_with(begun)));
        begun.next().unwrap_or(0)
    }

    fn names(&self) -> Arc<[String]> {
        Arc::clone(&self.names)
    }
}

fn add_content(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Content(last)) => last.push_str(text),
        Some(Piece::Call { .. } | Piece::Arguments(_)) | None => {
            pieces.push(Piece::Content(text.to_owned()))
        }
    }
}

fn add_arguments(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Arguments(last)) => last.push_str(text),
        Some(Piece::Call { .. } | Piece::Content(_)) | None => {
            pieces.push(Piece::Arguments(text.to_owned()));
        }
    }
}
