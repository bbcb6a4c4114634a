//! The ways in which models write calls.

use super::reader::{Reader, Stop};
use super::{hermes, json, llama3, mistral};

/// How a model writes the calls it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallStyle {
    /// `{"name": …, "parameters": …}` alone, or after `<|python_tag|>`.
    Llama3,
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`.
    Hermes,
    /// `[TOOL_CALLS] [{"name": …, "arguments": …}]`.
    Mistral,
    /// `[TOOL_CALLS]name[ARGS]{…}`.
    MistralArgs,
    /// `{"name": …, "arguments": …}` alone, or a list of such objects.
    Json,
}

/// What calls are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Single,
    List,
}

/// A call whose arguments begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// Which function.
    pub(super) called: usize,
    pub(super) frame: Frame,
}

/// What follows a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A call of this function, in the same frame.
    Call(usize),
    /// Text, the end, or a call that is opened anew.
    Text,
}

impl CallStyle {
    /// The style that a model's chat templates show; plain JSON where they show none.
    pub fn of_templates(sources: &str) -> Self {
        let has = |mark: &str| sources.contains(mark);
        if has(mistral::OPEN) {
            return if has(mistral::ARGS) { Self::MistralArgs } else { Self::Mistral };
        }
        // Other families put XML or bare names between the same marks.
        if has(hermes::OPEN) && has("arguments") && !has("<function=") && !has("<arg_key>") {
            return Self::Hermes;
        }
        if has(llama3::TAG) || (has("<|start_header_id|>") && has("parameters")) {
            return Self::Llama3;
        }
        Self::Json
    }

    /// What opens a call wherever it stands.
    pub fn mark(self) -> Option<&'static str> {
        match self {
            Self::Llama3 => Some(llama3::TAG),
            Self::Hermes => Some(hermes::OPEN),
            Self::Mistral | Self::MistralArgs => Some(mistral::OPEN),
            Self::Json => None,
        }
    }

    /// Every mark of its syntax: tokens of these names are part of the text.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Llama3 => &[llama3::TAG],
            Self::Hermes => &[hermes::OPEN, hermes::CLOSE],
            Self::Mistral => &[mistral::OPEN],
            Self::MistralArgs => &[mistral::OPEN, mistral::ARGS],
            Self::Json => &[],
        }
    }

    /// Whether an answer may begin with a call that nothing marks.
    pub(super) fn begins_bare(self) -> bool {
        match self {
            Self::Llama3 | Self::Json => true,
            Self::Hermes | Self::Mistral | Self::MistralArgs => false,
        }
    }

    /// Reads up to the arguments of a call, from behind the mark or from the beginning of the answer.
    pub(super) fn open(self, reader: &mut Reader<'_>, names: &[String]) -> Result<Opened, Stop> {
        match self {
            Self::Llama3 => llama3::open(reader, names),
            Self::Hermes => hermes::open(reader, names),
            Self::Mistral | Self::MistralArgs => mistral::open(reader, names),
            Self::Json => json::open(reader, names),
        }
    }

    /// Reads what follows the arguments of a call.
    pub(super) fn close(
        self,
        reader: &mut Reader<'_>,
        names: &[String],
        frame: Frame,
    ) -> Result<Next, Stop> {
        match self {
            Self::Llama3 => llama3::close(reader, names),
            Self::Hermes => hermes::close(reader),
            Self::Mistral | Self::MistralArgs => mistral::close(reader, names, frame),
            Self::Json => json::close(reader, names, frame),
        }
    }
}
