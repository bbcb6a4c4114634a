//! A shard whose model is a hash: what it writes for a position depends on every token up to there, and
//! what it samples depends only on what the block table leads to. So a wrong position, context or block
//! shows in the tokens, and most show at once: it panics on a slot that holds something else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockstep_proto::{
    BlockId, ContextLogprobs, Outcome, PromptLogprobs, Sampling, SequenceId, SequenceResult, SequenceStart,
    Step, StepOutput, StepTimings, TokenId, TokenLogprobs, Work, WorkTokens,
};

use super::generator::mix;
use crate::{CacheSalt, CacheShape, FinishReason, Submission};

/// Tokens the model knows; few, so that stop tokens are met and contexts meet again.
pub(super) const VOCABULARY: u32 = 24;

/// Stands for keys and values of one position: a hash of the salt and every token up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kv(u64);

pub(super) struct FakeShard {
    shape: CacheShape,
    /// By block and slot within it.
    slots: Vec<Option<Kv>>,
    sequences: BTreeMap<SequenceId, Started>,
}

struct Started {
    context: Vec<TokenId>,
    /// How many of `context` are the prompt.
    prompt: usize,
    blocks: Vec<BlockId>,
    salt: CacheSalt,
    computed: usize,
    /// Why it cannot go on. Work that was planned before the router knew is answered with it.
    failed: Option<String>,
}

impl FakeShard {
    pub(super) fn new(shape: CacheShape) -> Self {
        let slots = shape.blocks.tokens(shape.block_size).len();
        Self { shape, slots: vec![None; slots], sequences: BTreeMap::new() }
    }

    /// Computes a step. `salts` stands for the adapter a sequence would name.
    pub(super) fn run(
        &mut self,
        step: &Step,
        salts: &BTreeMap<SequenceId, CacheSalt>,
        failing: &BTreeSet<SequenceId>,
    ) -> StepOutput {
        for sequence in &step.releases {
            assert!(self.sequences.remove(sequence).is_some(), "release of unknown sequence {sequence}");
        }
        for start in &step.starts {
            self.start(start, salts[&start.sequence]);
        }
        let results = step.work.iter().map(|work| self.compute(work, failing)).collect();
        StepOutput { epoch: step.epoch, step_id: step.step_id, results, timings: StepTimings::default() }
    }

    fn start(&mut self, start: &SequenceStart, salt: CacheSalt) {
        let (context, prompt) = (start.context.clone(), start.prompt_tokens.len());
        let started = Started { context, prompt, blocks: Vec::new(), salt, computed: 0, failed: None };
        assert!(
            self.sequences.insert(start.sequence, started).is_none(),
            "{} started twice",
            start.sequence
        );
    }

    fn compute(&mut self, work: &Work, failing: &BTreeSet<SequenceId>) -> SequenceResult {
        let sequence = work.sequence;
        let mut started =
            self.sequences.remove(&sequence).expect("work of a sequence that was not started");
        if let Some(reason) = started.failed.clone() {
            self.sequences.insert(sequence, started);
            return SequenceResult { sequence, prompt: Vec::new(), outcome: Outcome::Failed(reason) };
        }
        assert!(started.blocks.is_empty() || started.computed == work.first_position.index(), "{sequence}");
        started.blocks.extend(&work.new_blocks);
        started.context.extend(&work.appended);
        let first = work.first_position.index();
        let end = first + work.tokens.count().len();
        match &work.tokens {
            WorkTokens::Ids(ids) => assert_eq!(ids[..], started.context[first..end], "{sequence}"),
            WorkTokens::LastSampled => assert_eq!(end, started.context.len(), "{sequence}"),
        }
        for position in first..end {
            self.write(&started, position);
        }
        started.computed = end;
        let prompt = self.logprobs(&started, work, first..end);
        let outcome = if failing.contains(&sequence) {
            // What a failed chunk leaves in its blocks is of no use to anyone.
            for position in first..end {
                let slot = self.slot(&started, position);
                self.slots[slot] = None;
            }
            started.failed = Some("it was told to".to_owned());
            Outcome::Failed("it was told to".to_owned())
        } else {
            self.sample(&mut started, work.sampling)
        };
        self.sequences.insert(sequence, started);
        SequenceResult { sequence, prompt, outcome }
    }

    /// Reads every position before `position`, writes it.
    fn write(&mut self, started: &Started, position: usize) {
        let mut expected = Kv::of_salt(started.salt);
        for (earlier, &token) in started.context[..position].iter().enumerate() {
            expected = expected.then(token);
            assert_eq!(
                self.slots[self.slot(started, earlier)],
                Some(expected),
                "position {earlier} is wrong"
            );
        }
        let slot = self.slot(started, position);
        let block = started.blocks[position / self.shape.block_size.len()];
        for (other, theirs) in &self.sequences {
            assert!(
                !theirs.blocks.contains(&block),
                "block {block} is written while sequence {other} has it"
            );
        }
        self.slots[slot] = Some(expected.then(started.context[position]));
    }

    fn sample(&self, started: &mut Started, sampling: Sampling) -> Outcome {
        if sampling == Sampling::Skip {
            return Outcome::Computed;
        }
        assert_eq!(started.computed, started.context.len(), "sampled before the context was computed");
        let last = self.slots[self.slot(started, started.computed - 1)].expect("it was just written");
        let token = last.next_token(started.context.len() - started.prompt);
        started.context.push(token);
        Outcome::Sampled(last.logprob_of(token))
    }

    fn logprobs(
        &self,
        started: &Started,
        work: &Work,
        positions: std::ops::Range<usize>,
    ) -> Vec<TokenLogprobs> {
        match work.logprobs {
            ContextLogprobs::Skip => Vec::new(),
            ContextLogprobs::From(from) => positions
                .filter(|position| *position >= from.index())
                .filter_map(|position| {
                    let next = *started.context.get(position + 1)?;
                    let kv = self.slots[self.slot(started, position)].expect("it was just written");
                    Some(kv.logprob_of(next))
                })
                .collect(),
        }
    }

    fn slot(&self, started: &Started, position: usize) -> usize {
        let size = self.shape.block_size.len();
        started.blocks[position / size].index() * size + position % size
    }
}

impl Kv {
    fn of_salt(salt: CacheSalt) -> Self {
        Self(mix(salt.0 ^ 0x5A17))
    }

    /// Of the last of `tokens`.
    pub(super) fn of(salt: CacheSalt, tokens: impl Iterator<Item = TokenId>) -> Self {
        tokens.fold(Self::of_salt(salt), Self::then)
    }

    /// What a grammar leaves no choice about after this position: often nothing, sometimes a lot.
    pub(super) fn forced(self) -> Vec<TokenId> {
        let drawn = mix(self.0 ^ 0xF0CE);
        let count = [0, 0, 0, 1, 2, 3, 5, 9][(drawn % 8) as usize];
        (0..count).map(|index| TokenId((mix(drawn ^ index) % u64::from(VOCABULARY)) as u32)).collect()
    }

    fn then(self, token: TokenId) -> Self {
        Self(mix(self.0 ^ mix(u64::from(token.0) + 1)))
    }

    /// The output token of this index: a draw depends on it.
    fn next_token(self, index: usize) -> TokenId {
        TokenId(u32::try_from(mix(self.0 ^ index as u64) % u64::from(VOCABULARY)).unwrap())
    }

    fn logprob_of(self, token: TokenId) -> TokenLogprobs {
        let logprob = -((self.then(token).0 % 1000) as f32) / 100.0;
        TokenLogprobs { token, logprob, top: Vec::new() }
    }
}

/// Whether a sequence is held after each token it samples and given what is forced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grammar {
    None,
    Forcing,
}

impl Grammar {
    /// What follows a position without being sampled.
    pub(super) fn forced(self, kv: Kv) -> Vec<TokenId> {
        match self {
            Self::None => Vec::new(),
            Self::Forcing => kv.forced(),
        }
    }
}

/// What a sequence that runs alone on an endless cache gets.
#[derive(Debug, PartialEq)]
pub(super) struct Alone {
    pub(super) prompt_logprobs: Vec<TokenLogprobs>,
    pub(super) tokens: Vec<TokenLogprobs>,
    pub(super) reason: FinishReason,
}

impl Alone {
    pub(super) fn run(submission: &Submission, grammar: Grammar) -> Self {
        let mut kv = Kv::of_salt(submission.cache_salt);
        let mut prompt_logprobs = Vec::new();
        for (position, &token) in submission.prompt.iter().enumerate() {
            if position > 0 && submission.prompt_logprobs == PromptLogprobs::Return {
                prompt_logprobs.push(kv.logprob_of(token));
            }
            kv = kv.then(token);
        }
        let mut tokens = Vec::new();
        let mut forced: VecDeque<_> = grammar.forced(kv).into();
        while tokens.len() < submission.max_new_tokens.len() {
            let (token, is_sampled) = match forced.pop_front() {
                Some(token) => (token, false),
                None => (kv.next_token(tokens.len()), true),
            };
            tokens.push(kv.logprob_of(token));
            if submission.stop_tokens.contains(&token) {
                return Self { prompt_logprobs, tokens, reason: FinishReason::StopToken };
            }
            kv = kv.then(token);
            if is_sampled {
                forced = grammar.forced(kv).into();
            }
        }
        Self { prompt_logprobs, tokens, reason: FinishReason::Length }
    }
}
