//! What happened to sequences, for whoever waits for them.

use std::time::Duration;

use lockstep_proto::{SequenceId, TokenLogprobs, Tokens};

/// Something the owner of a sequence should know. A sequence's events come in the order given here
/// (`Preempted` at any time between), and none come after `Finished`,
/// `Failed` or `Expired` or after it was cancelled.
#[derive(Clone, Debug, PartialEq)]
pub enum SequenceEvent {
    /// It left the queue for the first time; told once, when its first step is done at the latest.
    Admitted {
        /// Which sequence.
        sequence: SequenceId,
        /// How long it waited.
        queued: Duration,
        /// How much of its prompt came from the prefix cache.
        cached: Tokens,
    },
    /// The next of the prompt's log-probabilities: of its second token first, in pieces, each token once.
    PromptLogprobs {
        /// Which sequence.
        sequence: SequenceId,
        /// At least one.
        tokens: Vec<TokenLogprobs>,
    },
    /// Its next token; a stop token too, and one that was forced.
    Token {
        /// Which sequence.
        sequence: SequenceId,
        /// The token.
        token: TokenLogprobs,
        /// Who chose it.
        origin: TokenOrigin,
    },
    /// It has all its tokens. The scheduler has forgotten it.
    Finished {
        /// Which sequence.
        sequence: SequenceId,
        /// Why there are no more.
        reason: FinishReason,
    },
    /// It cannot go on. The scheduler has forgotten it.
    Failed {
        /// Which sequence.
        sequence: SequenceId,
        /// For people.
        reason: String,
    },
    /// Its deadline has come. The scheduler has forgotten it.
    Expired {
        /// Which sequence.
        sequence: SequenceId,
        /// How far it came.
        state: ExpiredWhile,
    },
    /// Its blocks were taken for an older sequence; it waits, and goes on by itself.
    Preempted {
        /// Which sequence.
        sequence: SequenceId,
    },
}

impl SequenceEvent {
    /// Whom it is about.
    pub fn sequence(&self) -> SequenceId {
        match self {
            Self::Admitted { sequence, .. }
            | Self::PromptLogprobs { sequence, .. }
            | Self::Token { sequence, .. }
            | Self::Finished { sequence, .. }
            | Self::Failed { sequence, .. }
            | Self::Expired { sequence, .. }
            | Self::Preempted { sequence } => *sequence,
        }
    }
}

/// Who chose a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenOrigin {
    /// The model.
    Sampled,
    /// The sequence's owner: its grammar allowed no other.
    Forced,
}

/// Why a sequence has all its tokens. A stop text is the caller's to see: it cancels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// Its last token is one of its stop tokens, even if it is also the last one allowed.
    StopToken,
    /// It has as many tokens as were asked for.
    Length,
}

/// Where a deadline found its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiredWhile {
    /// In the queue.
    Waiting,
    /// Among those that are computed.
    Running,
}
