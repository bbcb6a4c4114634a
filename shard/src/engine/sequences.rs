//! The sequences a rank knows: their tokens, blocks and samplers. A cache: the router can start each anew.

use std::collections::BTreeMap;

use lockstep_proto::{
    BlockId, Blocks, Position, Sampling, SequenceId, SequenceStart, StepId, TokenId, Tokens, Work,
    WorkTokens,
};

use super::error::InvalidSequence;
use crate::sampling::{self, Sampler};

/// What limits a step, set by the model and by `Configure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) vocabulary_size: u32,
    pub(super) max_positions: Tokens,
    pub(super) block_size: Tokens,
    /// Blocks of the KV cache.
    pub(super) blocks: Blocks,
    /// Tokens of one step.
    pub(super) max_step_tokens: Tokens,
}

/// Every sequence that was started and not released.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    known: BTreeMap<SequenceId, Sequence>,
}

/// One sequence.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) sampler: Sampler,
    /// Every token known: the prompt, then what was emitted.
    pub(super) context: Vec<TokenId>,
    prompt_tokens: Tokens,
    /// Where the token after those is chosen, until it is known.
    pub(super) awaited: Option<Awaited>,
    /// From position 0 on.
    pub(super) blocks: Vec<BlockId>,
    pub(super) progress: Progress,
}

/// A token that is being chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Awaited {
    /// The last step that was begun of those that choose one.
    pub(super) step: StepId,
    /// In which of its wanted rows.
    pub(super) row: usize,
}

/// How far a sequence has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing was computed here. The first chunk may begin past 0, behind blocks of a cached prefix.
    Started,
    /// The KV of every position before this one is in its blocks.
    Computed(Position),
    /// It cannot go on, for this reason. Work that was planned before the router knew is answered with it.
    Failed(String),
}

/// The positions of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) first: Position,
    pub(super) tokens: Tokens,
}

impl Chunk {
    /// One past the last position. Wide, so that nothing a peer sends overflows.
    pub(super) fn end(self) -> u64 {
        u64::from(self.first.0) + u64::from(self.tokens.0)
    }
}

impl Sequences {
    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.known.clear();
    }

    /// Forgets one. One that is not known is forgotten already.
    pub(super) fn release(&mut self, sequence: SequenceId) {
        self.known.remove(&sequence);
    }

    pub(super) fn get(&self, sequence: SequenceId) -> Result<&Sequence, InvalidSequence> {
        self.known.get(&sequence).ok_or(InvalidSequence::Unknown)
    }

    pub(super) fn get_mut(&mut self, sequence: SequenceId) -> Result<&mut Sequence, InvalidSequence> {
        self.known.get_mut(&sequence).ok_or(InvalidSequence::Unknown)
    }

    /// Why one cannot go on.
    pub(super) fn failure(&self, sequence: SequenceId) -> Option<String> {
        match &self.known.get(&sequence)?.progress {
            Progress::Failed(reason) => Some(reason.clone()),
            Progress::Started | Progress::Computed(_) => None,
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    /// Adds one.
    pub(super) fn start(&mut self, start: SequenceStart, limits: &Limits) -> Result<(), InvalidSequence> {
        let SequenceStart { sequence, sampling, context, prompt_tokens } = start;
        if self.known.contains_key(&sequence) {
            return Err(InvalidSequence::StartedTwice);
        }
        let vocabulary = limits.vocabulary_size;
        if prompt_tokens.is_empty() || prompt_tokens.len() > context.len() {
            let context = Tokens::of_len(context.len());
            return Err(InvalidSequence::Context { context, prompt: prompt_tokens });
        }
        if let Some(token) = context.iter().find(|token| token.0 >= vocabulary) {
            return Err(InvalidSequence::UnknownToken { token: *token, vocabulary });
        }
        sampling::check(&sampling, vocabulary as usize).map_err(InvalidSequence::Params)?;
        let sampler = Sampler::new(sampling, &context, prompt_tokens);
        let blocks = Vec::new();
        self.known.insert(
            sequence,
            Sequence {
                sampler,
                context,
                prompt_tokens,
                awaited: None,
                blocks,
                progress: Progress::Started,
            },
        );
        Ok(())
    }
}

impl Sequence {
    /// How many tokens there are, with the one that is awaited.
    fn length(&self) -> Tokens {
        Tokens::of_len(self.context.len() + usize::from(self.awaited.is_some()))
    }

    /// How many tokens were emitted, with the one that is awaited.
    pub(super) fn output_position(&self) -> Tokens {
        self.length().saturating_sub(self.prompt_tokens)
    }

    /// The tokens of `chunk`, which [`Self::begin`] has checked, but for the one that is awaited.
    pub(super) fn tokens(&self, chunk: Chunk) -> &[TokenId] {
        let first = chunk.first.index();
        let end = self.context.len().min(first + chunk.tokens.len());
        self.context.get(first..end).unwrap_or_default()
    }

    /// Takes note that a step is finished: what it has chosen is awaited no more.
    pub(super) fn on_finished(&mut self, step: StepId) {
        if self.awaited.is_some_and(|awaited| awaited.step == step) {
            self.awaited = None;
        }
    }

    /// Takes note of the token that follows.
    pub(super) fn on_emitted(&mut self, token: TokenId) {
        self.context.push(token);
        self.sampler.on_emitted(token);
    }

    /// Checks `work`, takes its tokens and blocks and counts it as computed.
    pub(super) fn begin(&mut self, work: &Work, limits: &Limits) -> Result<Chunk, InvalidSequence> {
        self.append(&work.appended, limits.vocabulary_size)?;
        let chunk = Chunk { first: work.first_position, tokens: work.tokens.count() };
        self.check_positions(work, chunk, limits)?;
        match &work.tokens {
            WorkTokens::Ids(ids) => self.check_tokens(ids, chunk.first)?,
            WorkTokens::LastSampled => self.check_last(chunk)?,
        }
        for block in &work.new_blocks {
            if block.0 >= limits.blocks.0 {
                return Err(InvalidSequence::UnknownBlock { block: *block, blocks: limits.blocks });
            }
        }
        self.blocks.extend_from_slice(&work.new_blocks);
        let held = self.blocks.len() as u64 * u64::from(limits.block_size.0);
        if held < chunk.end() {
            let blocks = Blocks::of_len(self.blocks.len());
            return Err(InvalidSequence::TooFewBlocks { blocks, end: chunk.end() });
        }
        self.progress = Progress::Computed(chunk.first.advance(chunk.tokens));
        Ok(chunk)
    }

    /// Takes note of tokens that follow without being sampled here.
    fn append(&mut self, tokens: &[TokenId], vocabulary: u32) -> Result<(), InvalidSequence> {
        if let Some(token) = tokens.iter().find(|token| token.0 >= vocabulary) {
            return Err(InvalidSequence::UnknownToken { token: *token, vocabulary });
        }
        tokens.iter().for_each(|token| self.on_emitted(*token));
        Ok(())
    }

    fn check_positions(&self, work: &Work, chunk: Chunk, limits: &Limits) -> Result<(), InvalidSequence> {
        let end = chunk.end();
        let context = self.length();
        if let Progress::Computed(expected) = self.progress
            && chunk.first != expected
        {
            return Err(InvalidSequence::Position { found: chunk.first, expected });
        }
        if end > u64::from(context.0) {
            return Err(InvalidSequence::PastContext { end, context });
        }
        if end > u64::from(limits.max_positions.0) {
            return Err(InvalidSequence::TooLong { end, limit: limits.max_positions });
        }
        let samples_early = work.sampling == Sampling::Sample && end != u64::from(context.0);
        if samples_early {
            return Err(InvalidSequence::SampledEarly { end, context });
        }
        Ok(())
    }

    /// A chunk of the token sampled last stands at the end of what is known.
    fn check_last(&self, chunk: Chunk) -> Result<(), InvalidSequence> {
        let last = self.length().saturating_sub(Tokens(1));
        if chunk.first == Position(last.0) {
            Ok(())
        } else {
            Err(InvalidSequence::Position { found: chunk.first, expected: Position(last.0) })
        }
    }

    /// The ids a chunk names are those the sequence was started with, was given or has sampled.
    fn check_tokens(&self, ids: &[TokenId], first: Position) -> Result<(), InvalidSequence> {
        let known = self.context.iter().skip(first.index());
        for ((offset, found), expected) in (0..).map(Tokens).zip(ids).zip(known) {
            if found != expected {
                let position = first.advance(offset);
                return Err(InvalidSequence::OtherToken { position, found: *found, expected: *expected });
            }
        }
        Ok(())
    }
}
