//! Calls out: whole in messages, piece by piece in deltas.

use serde::Serialize;

use super::response::{Delta, finish_reason};
use crate::engine::FinishReason;
use crate::tools::{CallParser, CallRules, CallStyle, Outcome, Piece};

/// Letters and digits of an id, besides what it begins with.
const ID_CHARACTERS: usize = 24;
/// Templates of Mistral's models take no other length.
const MISTRAL_ID_CHARACTERS: usize = 9;

/// A call in a message.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::http) struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: CalledFunction,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct CalledFunction {
    name: String,
    /// JSON, as the model wrote it.
    arguments: String,
}

/// A piece of a call in a stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ToolCallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

/// What an answer's text says.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::http) struct Said {
    pub(super) content: Option<String>,
    pub(super) calls: Vec<ToolCall>,
    pub(super) finish_reason: &'static str,
}

/// Hears an answer's text out.
#[derive(Clone, Debug)]
pub(in crate::http) enum Listener {
    /// All of it is content.
    Plain,
    /// There may be calls in it.
    Calls { parser: Box<CallParser>, ids: CallIds, begun: usize },
}

/// Where the ids of an answer's calls come from.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct CallIds {
    style: CallStyle,
    /// What they are drawn with; absent where they come once.
    seed: Option<u64>,
}

impl Listener {
    /// For one answer to a request with these rules.
    pub(in crate::http) fn new(rules: Option<&CallRules>, style: CallStyle) -> Self {
        match rules {
            None => Self::Plain,
            Some(rules) => {
                let parser = Box::new(CallParser::new(style, rules.names()));
                Self::Calls { parser, ids: CallIds { style, seed: None }, begun: 0 }
            }
        }
    }

    /// Of a request's `choice`, whose calls have the same ids each time where `seed` is given.
    pub(in crate::http) fn named(mut self, seed: Option<u64>, choice: usize) -> Self {
        if let Self::Calls { ids, .. } = &mut self {
            ids.seed = seed.map(|seed| mixed(seed ^ mixed(choice as u64)));
        }
        self
    }

    /// A whole answer.
    pub(in crate::http) fn hear_all(mut self, text: String, reason: FinishReason) -> Said {
        let Self::Calls { parser, ids, .. } = &mut self else {
            return Said { content: Some(text), calls: Vec::new(), finish_reason: finish_reason(reason) };
        };
        let mut pieces = parser.push(&text);
        let (rest, outcome) = parser.finish();
        pieces.extend(rest);
        let (mut content, mut calls) = (String::new(), Vec::<ToolCall>::new());
        for piece in pieces {
            match piece {
                Piece::Content(text) => content.push_str(&text),
                Piece::Call { name } => calls.push(ToolCall::new(ids.id(calls.len()), name)),
                Piece::Arguments(text) => {
                    if let Some(call) = calls.last_mut() {
                        call.function.arguments.push_str(&text);
                    }
                }
            }
        }
        let content = (calls.is_empty() || !content.is_empty()).then_some(content);
        Said { content, calls, finish_reason: finish_word(reason, outcome) }
    }

    /// What a piece of the text adds, and why the answer ended if it did.
    pub(super) fn hear(
        &mut self,
        text: &str,
        reason: Option<FinishReason>,
    ) -> (Vec<Delta>, Option<&'static str>) {
        let Self::Calls { parser, ids, begun } = self else {
            let delta = (!text.is_empty()).then(|| Delta::of_content(text.to_owned()));
            return (delta.into_iter().collect(), reason.map(finish_reason));
        };
        let mut pieces = parser.push(text);
        let mut word = None;
        if let Some(reason) = reason {
            let (rest, outcome) = parser.finish();
            pieces.extend(rest);
            word = Some(finish_word(reason, outcome));
        }
        let deltas = pieces.into_iter().map(|piece| match piece {
            Piece::Content(text) => Delta::of_content(text),
            Piece::Call { name } => {
                *begun += 1;
                let index = *begun - 1;
                Delta::of_call(ToolCallDelta::beginning(index, ToolCall::new(ids.id(index), name)))
            }
            Piece::Arguments(text) => Delta::of_call(ToolCallDelta::more(begun.saturating_sub(1), text)),
        });
        (deltas.collect(), word)
    }

    /// The content of a chunk that has nothing to say.
    pub(super) fn silence(&self) -> Option<String> {
        match self {
            Self::Plain => Some(String::new()),
            Self::Calls { .. } => None,
        }
    }
}

impl ToolCall {
    fn new(id: String, name: String) -> Self {
        let function = CalledFunction { name, arguments: String::new() };
        Self { id, kind: "function", function }
    }
}

impl ToolCallDelta {
    fn beginning(index: usize, call: ToolCall) -> Self {
        let ToolCall { id, kind, function: CalledFunction { name, arguments } } = call;
        let function = FunctionDelta { name: Some(name), arguments };
        Self { index, id: Some(id), kind: Some(kind), function }
    }

    fn more(index: usize, arguments: String) -> Self {
        Self { index, id: None, kind: None, function: FunctionDelta { name: None, arguments } }
    }
}

/// An answer, or a piece of one, that is sent again: its calls get ids of their own.
pub(in crate::http) fn with_new_call_ids(text: &str, style: CallStyle) -> String {
    // Quotes inside of JSON texts are escaped: there this stands nowhere.
    const BEFORE: &str = "\"id\":\"";
    const AFTER: &str = "\",\"type\":\"function\"";
    let mut renamed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(AFTER) {
        match before.rfind(BEFORE) {
            Some(at) => {
                renamed.push_str(before.get(..at + BEFORE.len()).unwrap_or_default());
                renamed.push_str(&new_id(style));
            }
            None => renamed.push_str(before),
        }
        renamed.push_str(AFTER);
        rest = after;
    }
    renamed.push_str(rest);
    renamed
}

impl CallIds {
    /// Of the answer's `index`-th call.
    fn id(self, index: usize) -> String {
        let Some(seed) = self.seed else { return new_id(self.style) };
        let (high, low) =
            (mixed(seed.wrapping_add(2 * index as u64)), mixed(seed.wrapping_add(2 * index as u64 + 1)));
        written_id(self.style, &format!("{high:016x}{low:016x}"))
    }
}

/// The output function of splitmix64 (Steele, Lea and Flood 2014): each input has an output of its own.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// An id that no other call has, in the form that the model's own template takes.
fn new_id(style: CallStyle) -> String {
    written_id(style, &uuid::Uuid::new_v4().simple().to_string())
}

fn written_id(style: CallStyle, random: &str) -> String {
    // The last digits are all random.
    let last = |count: usize| random.get(random.len() - count..).unwrap_or_default();
    match style {
        CallStyle::Mistral | CallStyle::MistralArgs => last(MISTRAL_ID_CHARACTERS).to_owned(),
        CallStyle::Llama3 | CallStyle::Hermes | CallStyle::Json => format!("call_{}", last(ID_CHARACTERS)),
    }
}

/// OpenAI's word for why an answer ended that may have calls.
fn finish_word(reason: FinishReason, outcome: Outcome) -> &'static str {
    match (reason, outcome) {
        (FinishReason::EndOfSequence | FinishReason::StopSequence, Outcome::Calls) => "tool_calls",
        (FinishReason::Length, Outcome::Calls | Outcome::Text)
        | (FinishReason::EndOfSequence | FinishReason::StopSequence, Outcome::Text) => {
            finish_reason(reason)
        }
    }
}
