//! Clients of a random history: what they ask for and what they have got.

use std::time::{Duration, Instant};

use lockstep_proto::{PromptLogprobs, SamplingParams, SequenceId, TokenId, TokenLogprobs, Tokens};

use super::fake_shard::{Grammar, Kv, VOCABULARY};
use super::generator::Generator;
use crate::{CacheSalt, Priority, RunAhead, Service, Submission, Tenant};

/// A sequence that has not ended and is not cancelled.
pub(super) struct Client {
    pub(super) submission: Submission,
    pub(super) grammar: Grammar,
    /// Whether its owner is finding out what follows.
    pub(super) held: bool,
    pub(super) admitted: bool,
    pub(super) started: u32,
    pub(super) told_to_fail: bool,
    /// The most that was ever computed of it.
    pub(super) furthest: Tokens,
    /// Groups lost while they computed it, since it last got further.
    pub(super) losses: u32,
    pub(super) prompt_logprobs: Vec<TokenLogprobs>,
    pub(super) tokens: Vec<TokenLogprobs>,
}

impl Client {
    pub(super) fn new(submission: Submission, grammar: Grammar) -> Self {
        Self {
            submission,
            grammar,
            held: false,
            admitted: false,
            started: 0,
            told_to_fail: false,
            furthest: Tokens::ZERO,
            losses: 0,
            prompt_logprobs: Vec::new(),
            tokens: Vec::new(),
        }
    }
}

impl Client {
    /// What follows what it has got without being sampled.
    pub(super) fn forced(&self) -> Vec<TokenId> {
        let emitted = self.tokens.iter().map(|token| token.token);
        let known = self.submission.prompt.iter().copied().chain(emitted);
        self.grammar.forced(Kv::of(self.submission.cache_salt, known))
    }
}

/// A third of the sequences has a grammar.
pub(super) fn grammar_of(sequence: SequenceId) -> Grammar {
    if sequence.0.is_multiple_of(3) { Grammar::Forcing } else { Grammar::None }
}

/// A prompt that often begins like others: with a stream of the salt's, or with an earlier text.
pub(super) fn random_submission(
    random: &mut Generator,
    texts: &[Vec<TokenId>],
    id: SequenceId,
    now: Instant,
) -> Submission {
    let mut prompt = match random.between(0, 3) {
        0 => Vec::new(),
        1 => random.pick(texts).cloned().unwrap_or_default(),
        stream => (0..random.between(1, 20)).map(|index| TokenId((index * stream) % VOCABULARY)).collect(),
    };
    let tail = random.between(u32::from(prompt.is_empty()), 4);
    prompt.extend((0..tail).map(|_| TokenId(random.between(0, VOCABULARY - 1))));
    let stop_tokens = (0..random.between(0, 2)).map(|_| TokenId(random.between(0, VOCABULARY - 1)));
    let stop_tokens = stop_tokens.collect();
    let forced = grammar_of(id).forced(Kv::of(salt_of(id), prompt.iter().copied()));
    Submission {
        prompt,
        forced,
        stop_tokens,
        sampling: SamplingParams::greedy(),
        max_new_tokens: Tokens(random.between(0, 20)),
        prompt_logprobs: if random.once_in(4) { PromptLogprobs::Return } else { PromptLogprobs::Skip },
        cache_salt: salt_of(id),
        run_ahead: match grammar_of(id) {
            Grammar::None => RunAhead::Allowed,
            Grammar::Forcing => RunAhead::Never,
        },
        service: random_service(random, now),
    }
}

/// Three tenants of all priorities; some in a hurry.
fn random_service(random: &mut Generator, now: Instant) -> Service {
    let priorities = [Priority::LOW, Priority::NORMAL, Priority::HIGH];
    Service {
        tenant: Tenant::named(["", "a", "b"][random.between(0, 2) as usize]),
        priority: random.pick(&priorities).copied().unwrap(),
        deadline: random.once_in(8).then(|| now + Duration::from_millis(random.between(0, 40).into())),
    }
}

/// Two salts, so that many share and some must not.
pub(super) fn salt_of(sequence: SequenceId) -> CacheSalt {
    CacheSalt(u64::from(sequence.0 % 4 == 3))
}
