//! What a caller asks for, and why it is refused.

use std::time::Duration;

use lockstep_proto::{Blocks, PromptLogprobs, SamplingParams, SequenceId, TokenId, Tokens};

use crate::service::Service;

/// One sequence to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    /// The prompt, at least one token.
    pub prompt: Vec<TokenId>,
    /// Tokens of the output that come first whatever the model says: what a grammar begins with.
    pub forced: Vec<TokenId>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Tokens to generate at most. 0 computes the prompt alone.
    pub max_new_tokens: Tokens,
    /// Any of these ends the sequence; empty when end-of-sequence is ignored.
    pub stop_tokens: Vec<TokenId>,
    /// Whether log-probabilities of the prompt are wanted. They are computed, not cached: the prompt's
    /// blocks are not looked up in the prefix tree.
    pub prompt_logprobs: PromptLogprobs,
    /// Who may share KV blocks with whom.
    pub cache_salt: CacheSalt,
    /// Whether what follows a token may be computed before its owner has the token.
    pub run_ahead: RunAhead,
    /// For whom, how urgently and until when.
    pub service: Service,
}

impl Submission {
    /// The longest context this can grow to.
    pub(crate) fn max_context(&self) -> Tokens {
        let prompt = Tokens::of_len(self.prompt.len());
        Tokens(prompt.0.saturating_add(self.max_new_tokens.0))
    }
}

/// Whether what follows a token may be computed before it is known outside the shards: of a sequence, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunAhead {
    /// It may.
    Allowed,
    /// It must not. The owner of such a sequence finds out after each token what may follow, and holds it meanwhile.
    Never,
}

/// Stands for everything besides the tokens that decides a block's contents or who may reuse it: model,
/// adapter, tenant. Blocks are shared between equal salts only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheSalt(pub u64);

/// Why a submission is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// Try again later.
    #[error("admit a request: {limit} requests wait or run, and no more are allowed; try again later")]
    Full {
        /// The limit that is reached.
        limit: u32,
    },
    /// Try again later.
    #[error(
        "admit a request: {waiting} tokens wait, and with its {prompt} they are more than {limit}; try again later"
    )]
    QueueFull {
        /// Tokens in the queue.
        waiting: Tokens,
        /// Tokens of its prompt.
        prompt: Tokens,
        /// The limit that would be passed.
        limit: Tokens,
    },
    /// It could not begin before its deadline.
    #[error(
        "admit a request: {:.2} s are left until its deadline and about {:.2} s of work wait before it; give it more time or try again later",
        left.as_secs_f32(), wait.as_secs_f32()
    )]
    TooLate {
        /// How long it would wait, about.
        wait: Duration,
        /// How long it may take.
        left: Duration,
    },
    /// The context would be longer than one sequence may be.
    #[error(
        "admit a request: prompt and output need {requested} tokens, at most {limit} are allowed; shorten one of them"
    )]
    TooLong {
        /// Prompt and `max_new_tokens` together.
        requested: Tokens,
        /// The longest context allowed.
        limit: Tokens,
    },
    /// The KV cache is too small even when nothing else runs.
    #[error(
        "admit a request: prompt and output need {needed} KV blocks, the cache has {blocks}; shorten one of them or give the cache more memory"
    )]
    CannotFit {
        /// Blocks for prompt and `max_new_tokens`.
        needed: Blocks,
        /// Blocks there are.
        blocks: Blocks,
    },
    /// There is nothing to compute.
    #[error("admit a request: its prompt has no tokens, at least one is needed")]
    EmptyPrompt,
    /// Each sequence has its own name.
    #[error("admit sequence {sequence}: a sequence of that name waits or runs; choose another")]
    Duplicate {
        /// The name that is taken.
        sequence: SequenceId,
    },
}
