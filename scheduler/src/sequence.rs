//! One sequence and its two states: waiting, with nothing on any shard, and running, with blocks.
//!
//! There is no prefill and no decode: a running sequence has computed tokens that catch up with known ones.

use std::time::Instant;

use lockstep_proto::{
    Blocks, ContextLogprobs, Position, PromptLogprobs, ReplicaId, Sampling, SamplingParams, SequenceId,
    SequenceStart, TokenId, TokenLogprobs, Tokens, Work, WorkTokens,
};

use crate::blocks::BlockTable;
use crate::event::FinishReason;
use crate::losses::Losses;
use crate::pace::Pace;
use crate::queue::Turn;
use crate::service::Tenant;
use crate::submission::{CacheSalt, RunAhead, Submission};

/// Counts submissions: a smaller one is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrival(pub(crate) u64);

/// What is known of a sequence whatever becomes of the shards.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    /// The prompt, then every token of the output: those the owner has, then forced ones it has yet to be told.
    pub(crate) known: Vec<TokenId>,
    pub(crate) prompt_tokens: Tokens,
    pub(crate) salt: CacheSalt,
    pub(crate) losses: Losses,
    pub(crate) standing: Standing,
    sampling: SamplingParams,
    max_new_tokens: Tokens,
    stop_tokens: Vec<TokenId>,
    run_ahead: RunAhead,
    told: Told,
}

/// What the owner of a sequence has of it.
#[derive(Clone, Copy, Debug)]
struct Told {
    /// Tokens of the prompt, from the second on, whose log-probabilities are wanted.
    logprobs_wanted: Tokens,
    /// How many of them the owner has.
    logprobs: Tokens,
    /// Tokens of the output the owner has.
    output: Tokens,
}

/// What decides when a sequence is computed.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) tenant: Tenant,
    /// Its place among those of its tenant.
    pub(crate) turn: Turn,
    pub(crate) deadline: Option<Instant>,
    /// Until its first admission: when it was submitted.
    pub(crate) queued_since: Option<Instant>,
    /// Whose blocks it waits for, when it was last looked at.
    pub(crate) leader: Option<Leader>,
    /// Who computed it last.
    pub(crate) replica: Option<ReplicaId>,
    pub(crate) hold: Hold,
}

/// Whether a sequence may be given its next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// It may.
    Free,
    /// Its owner has yet to find out which tokens may follow.
    Held,
}

/// A sequence that holds blocks and that the shards know by name.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) sequence: Sequence,
    pub(crate) table: BlockTable,
    /// Tokens whose keys and values are in the blocks, after the last step that is done.
    pub(crate) computed: Tokens,
    /// The same after every step in flight.
    pub(crate) scheduled: Tokens,
    /// Tokens that the steps in flight sample: they follow the known ones.
    pub(crate) awaited: Tokens,
    last_token: LastToken,
    /// Of the known tokens the last ones, which the shards have yet to be given.
    unannounced: Tokens,
}

/// Where the shard has the last known token from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastToken {
    /// From us: in the context of the sequence's start, or appended to it.
    Given,
    /// It sampled the token itself, which is then all that is left to compute.
    Sampled,
}

/// A running sequence that is computing what a waiting one begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) sequence: SequenceId,
    /// Blocks that both begin with.
    pub(crate) until: Blocks,
}

/// A chunk in the step in flight, as needed to take its result in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) sequence: SequenceId,
    pub(crate) tokens: Tokens,
    pub(crate) sampling: Sampling,
    /// Log-probabilities of the context that must come with the result.
    pub(crate) logprobs: Owed,
}

/// Log-probabilities of the tokens that follow some positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owed {
    /// The first of the positions.
    pub(crate) from: Tokens,
    /// How many there are.
    pub(crate) count: Tokens,
}

/// What a chunk's log-probabilities are news of.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) prompt: Vec<TokenLogprobs>,
    pub(crate) forced: Vec<TokenLogprobs>,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, turn: Turn, submission: Submission, now: Instant) -> Self {
        let prompt_tokens = Tokens::of_len(submission.prompt.len());
        let logprobs_wanted = match submission.prompt_logprobs {
            PromptLogprobs::Skip => Tokens::ZERO,
            PromptLogprobs::Return => prompt_tokens.saturating_sub(Tokens(1)),
        };
        let mut sequence = Self {
            id,
            known: submission.prompt,
            prompt_tokens,
            salt: submission.cache_salt,
            losses: Losses::default(),
            standing: Standing {
                tenant: submission.service.tenant,
                turn,
                deadline: submission.service.deadline,
                queued_since: Some(now),
                leader: None,
                replica: None,
                hold: Hold::Free,
            },
            sampling: submission.sampling,
            max_new_tokens: submission.max_new_tokens,
            stop_tokens: submission.stop_tokens,
            run_ahead: submission.run_ahead,
            told: Told { logprobs_wanted, logprobs: Tokens::ZERO, output: Tokens::ZERO },
        };
        sequence.force(&submission.forced);
        sequence
    }

    /// Appends tokens to the output that the owner chose, up to its end. Returns how many there are.
    pub(crate) fn force(&mut self, tokens: &[TokenId]) -> Tokens {
        let before = self.known_tokens();
        for token in tokens {
            if self.finish_reason().is_some() {
                break;
            }
            self.known.push(*token);
        }
        self.known_tokens() - before
    }

    pub(crate) fn known_tokens(&self) -> Tokens {
        Tokens::of_len(self.known.len())
    }

    pub(crate) fn arrival(&self) -> Arrival {
        self.standing.turn.arrival()
    }

    /// Whether it was ever admitted.
    pub(crate) fn has_run(&self) -> bool {
        self.standing.queued_since.is_none()
    }

    /// Tokens expected to be computed for it until it ends.
    pub(crate) fn expected_tokens(&self, pace: &Pace) -> u64 {
        let left = self.max_context().saturating_sub(self.known_tokens());
        u64::from(self.known_tokens().0) + u64::from(pace.expected_output(left).0)
    }

    /// Tokens it has written, told or not.
    pub(crate) fn output_tokens(&self) -> Tokens {
        self.known_tokens().saturating_sub(self.prompt_tokens)
    }

    /// Whether what follows it is being found out.
    pub(crate) fn is_held(&self) -> bool {
        self.standing.hold == Hold::Held
    }

    /// The longest context this can grow to.
    pub(crate) fn max_context(&self) -> Tokens {
        Tokens(self.prompt_tokens.0.saturating_add(self.max_new_tokens.0))
    }

    /// Context to have blocks for before it is worth admitting: what is known and one token more, so that
    /// the sequence gets at least as far as its next token.
    pub(crate) fn wanted_context(&self) -> Tokens {
        (self.known_tokens() + Tokens(1)).min(self.max_context())
    }

    /// The part of the context that may come from the prefix tree: one token must be left to compute, for
    /// its logits, and positions whose log-probabilities are owed must be computed.
    pub(crate) fn reusable(&self) -> &[TokenId] {
        let mut end = self.known_tokens().saturating_sub(Tokens(1));
        if self.told.logprobs < self.told.logprobs_wanted {
            end = end.min(self.told.logprobs);
        }
        &self.known[..end.min(self.before_untold()).len()]
    }

    pub(crate) fn start(&self) -> SequenceStart {
        SequenceStart {
            sequence: self.id,
            sampling: self.sampling.clone(),
            context: self.known.clone(),
            prompt_tokens: self.prompt_tokens,
        }
    }

    /// Why there is nothing more to sample, if so. A stop token comes before the length.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        let emitted = &self.known[self.prompt_tokens.len()..];
        if emitted.last().is_some_and(|last| self.stop_tokens.contains(last)) {
            return Some(FinishReason::StopToken);
        }
        (Tokens::of_len(emitted.len()) >= self.max_new_tokens).then_some(FinishReason::Length)
    }

    /// Which of a chunk's log-probabilities, of which there are as many as are owed, are news.
    pub(crate) fn tell_logprobs(&mut self, owed: Owed, found: &[TokenLogprobs]) -> News {
        let part = |from: Tokens, to: Tokens| {
            let first = from.saturating_sub(owed.from).len().min(found.len());
            let end = to.saturating_sub(owed.from).len().min(owed.count.len()).min(found.len());
            found[first..end.max(first)].to_vec()
        };
        let prompt = part(self.told.logprobs, self.told.logprobs_wanted);
        let forced = part(self.before_untold(), self.known_tokens().saturating_sub(Tokens(1)));
        self.told.logprobs += Tokens::of_len(prompt.len());
        self.told.output += Tokens::of_len(forced.len());
        News { prompt, forced }
    }

    /// Which log-probabilities a chunk must bring: all those of its positions as long as one of the prompt is
    /// owed, and those of what was forced and is not told yet.
    fn owed_logprobs(&self, start: Tokens, end: Tokens) -> Owed {
        let wanted = self.told.logprobs_wanted.min(end);
        let from = if wanted > self.told.logprobs { start } else { start.max(self.before_untold()) };
        let forced = self.known_tokens().saturating_sub(Tokens(1)).min(end);
        let until = if self.has_untold() { forced } else { wanted };
        Owed { from, count: until.saturating_sub(from) }
    }

    /// The position before the first token of the output that the owner has not: its logits tell of it.
    fn before_untold(&self) -> Tokens {
        (self.prompt_tokens + self.told.output).saturating_sub(Tokens(1))
    }

    /// Whether the owner has all of an output there is. What follows its last token is of no use where that ends it.
    pub(crate) fn is_told(&self) -> bool {
        !self.output_tokens().is_empty() && !self.has_untold()
    }

    /// Whether there are forced tokens that the owner has yet to be told of.
    fn has_untold(&self) -> bool {
        self.output_tokens() > self.told.output
    }
}

impl Running {
    /// A sequence whose table holds what was found of it, `cached` tokens.
    pub(crate) fn new(sequence: Sequence, table: BlockTable, cached: Tokens) -> Self {
        Self {
            sequence,
            table,
            computed: cached,
            scheduled: cached,
            awaited: Tokens::ZERO,
            last_token: LastToken::Given,
            unannounced: Tokens::ZERO,
        }
    }

    /// Known tokens that are not computed; at least one between steps.
    pub(crate) fn behind(&self) -> Tokens {
        self.sequence.known_tokens().saturating_sub(self.computed)
    }

    /// Tokens that the next step can compute: those known that no step in flight computes, or the one that the step in
    /// flight samples.
    pub(crate) fn ready(&self) -> Tokens {
        if self.is_held() || self.is_ending() {
            return Tokens::ZERO;
        }
        (self.sequence.known_tokens() + self.awaited).saturating_sub(self.scheduled)
    }

    /// Whether the steps in flight compute the last of it, whatever they sample.
    pub(crate) fn is_ending(&self) -> bool {
        if self.awaited.is_empty() {
            return self.scheduled == self.sequence.known_tokens()
                && self.sequence.finish_reason().is_some();
        }
        self.sequence.output_tokens() + self.awaited >= self.sequence.max_new_tokens
    }

    /// Whether nothing may be computed of it before its owner has had a say.
    pub(crate) fn waits_for_owner(&self) -> bool {
        let is_awaited = !self.awaited.is_empty() && !self.is_ending();
        self.is_held() || is_awaited && self.sequence.run_ahead == RunAhead::Never
    }

    /// Context to have blocks for so that it gets as far as the token after those that are known or being sampled.
    pub(crate) fn wanted_context(&self) -> Tokens {
        (self.sequence.wanted_context() + self.awaited).min(self.sequence.max_context())
    }

    /// The next `tokens` of it, which are [`ready`](Self::ready), as work for the shards, with the blocks its table got
    /// since the last time.
    pub(crate) fn take_chunk(&mut self, tokens: Tokens) -> (Work, Chunk) {
        let (first, end) = (self.scheduled, self.scheduled + tokens);
        let is_awaited = !self.awaited.is_empty();
        let caught_up = end == self.sequence.known_tokens() + self.awaited;
        let sampling = if caught_up && (is_awaited || self.sequence.finish_reason().is_none()) {
            Sampling::Sample
        } else {
            Sampling::Skip
        };
        let work_tokens = match self.last_token {
            LastToken::Given if !is_awaited => {
                WorkTokens::Ids(self.sequence.known[first.len()..end.len()].to_vec())
            }
            LastToken::Given | LastToken::Sampled => WorkTokens::LastSampled,
        };
        self.scheduled = end;
        if sampling == Sampling::Sample {
            self.awaited += Tokens(1);
        }
        let logprobs = self.sequence.owed_logprobs(first, end);
        let unannounced = std::mem::replace(&mut self.unannounced, Tokens::ZERO);
        let announced = self.sequence.known.len() - unannounced.len();
        let work = Work {
            sequence: self.sequence.id,
            first_position: Position(first.0),
            tokens: work_tokens,
            new_blocks: self.table.take_unannounced(),
            sampling,
            logprobs: if logprobs.count.is_empty() {
                ContextLogprobs::Skip
            } else {
                ContextLogprobs::From(Position(logprobs.from.0))
            },
            appended: self.sequence.known[announced..].to_vec(),
        };
        (work, Chunk { sequence: self.sequence.id, tokens, sampling, logprobs })
    }

    /// Appends a token the shard sampled.
    pub(crate) fn push_sampled(&mut self, token: TokenId) {
        self.sequence.known.push(token);
        self.sequence.told.output += Tokens(1);
        self.awaited -= Tokens(1);
        self.last_token = LastToken::Sampled;
    }

    /// Appends tokens the owner chose, for the shards to be given with the next chunk.
    pub(crate) fn force(&mut self, tokens: &[TokenId]) -> Tokens {
        debug_assert!(self.awaited.is_empty(), "a sequence that is held is not being sampled");
        let forced = self.sequence.force(tokens);
        if !forced.is_empty() {
            self.unannounced += forced;
            self.last_token = LastToken::Given;
        }
        forced
    }

    /// Whether nothing of it may be computed: it has caught up, and what follows is being found out.
    pub(crate) fn is_held(&self) -> bool {
        self.sequence.is_held()
    }
}
