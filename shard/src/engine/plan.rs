//! A step, checked: which rows are computed, and what becomes of their logits.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use lockstep_proto::{PromptLogprobs, Sampling, SequenceId, Step, TokenId, TokenMask, Tokens, Work};

use super::error::{InvalidSequence, InvalidStep};
use super::sequences::{Chunk, Limits, Progress, Sequence, Sequences};
use crate::batch::{Batch, BatchSequence};

/// What one step computes.
pub(super) struct Plan {
    pub(super) batch: Batch,
    /// One an entry of the step's work, in that order.
    pub(super) entries: Vec<Entry>,
}

/// What becomes of one entry of the step's work.
pub(super) enum Entry {
    /// Its rows are in the batch.
    Computed(Computed),
    /// The sequence failed before; nothing is computed.
    Failed(SequenceId, String),
}

/// A chunk in the batch.
pub(super) struct Computed {
    pub(super) sequence: SequenceId,
    /// Which of the batch's logit rows belong to prompt tokens, and the tokens that follow them.
    pub(super) prompt: PromptRows,
    /// What is sampled.
    pub(super) sample: Option<SampleRow>,
}

/// Logit rows whose following token is known and asked about.
#[derive(Default)]
pub(super) struct PromptRows {
    pub(super) logit_rows: Range<usize>,
    /// (logit_rows): the tokens that follow.
    pub(super) following: Vec<TokenId>,
}

/// A logit row a token is sampled from.
pub(super) struct SampleRow {
    pub(super) logit_row: usize,
    /// The grammar's mask.
    pub(super) allowed: Option<Vec<u8>>,
}

impl Plan {
    /// Applies the step's releases and starts to `sequences` and lays out its work. After an error the
    /// sequences are of no use.
    pub(super) fn new(step: Step, sequences: &mut Sequences, limits: &Limits) -> Result<Self, InvalidStep> {
        let Step { epoch: _, step_id: _, starts, work, masks, releases } = step;
        for sequence in releases {
            sequences.release(sequence);
        }
        for start in starts {
            let sequence = start.sequence;
            of_sequence(sequence, sequences.start(start, limits))?;
        }
        check_size(&work, limits)?;
        check_once(&work)?;
        let mut masks = Masks::new(masks, limits)?;
        let mut plan = Self { batch: Batch::default(), entries: Vec::with_capacity(work.len()) };
        for work in &work {
            let entry = plan.add(work, sequences, limits, &mut masks);
            plan.entries.push(of_sequence(work.sequence, entry)?);
        }
        masks.check_used()?;
        Ok(plan)
    }

    fn add(
        &mut self,
        work: &Work,
        sequences: &mut Sequences,
        limits: &Limits,
        masks: &mut Masks,
    ) -> Result<Entry, InvalidSequence> {
        let sequence = sequences.get_mut(work.sequence)?;
        let allowed = match work.sampling {
            Sampling::Sample => masks.take(work.sequence),
            Sampling::Skip => None,
        };
        if let Progress::Failed(reason) = &sequence.progress {
            return Ok(Entry::Failed(work.sequence, reason.clone()));
        }
        let chunk = sequence.begin(work, limits)?;
        let first_row = self.add_rows(sequence, chunk);
        let prompt = match work.prompt_logprobs {
            PromptLogprobs::Return => self.want_prompt(sequence, chunk, first_row),
            PromptLogprobs::Skip => PromptRows::default(),
        };
        let sample = (work.sampling == Sampling::Sample).then(|| {
            let last_row = first_row + chunk.tokens.len() - 1;
            SampleRow { logit_row: self.want(last_row), allowed }
        });
        Ok(Entry::Computed(Computed { sequence: work.sequence, prompt, sample }))
    }

    /// Puts a chunk's tokens at the end of the batch; returns its first row.
    fn add_rows(&mut self, sequence: &Sequence, chunk: Chunk) -> usize {
        let first_row = self.batch.token_ids.len();
        self.batch.token_ids.extend_from_slice(sequence.tokens(chunk));
        self.batch.sequences.push(BatchSequence {
            first_row,
            rows: chunk.tokens.len(),
            first_position: chunk.first,
            blocks: sequence.blocks.clone(),
        });
        first_row
    }

    /// Logits of every row of the chunk that a known token follows.
    fn want_prompt(&mut self, sequence: &Sequence, chunk: Chunk, first_row: usize) -> PromptRows {
        let after_first = chunk.first.index() + 1;
        let following: Vec<TokenId> =
            sequence.context[after_first..].iter().take(chunk.tokens.len()).copied().collect();
        let first_logit_row = self.batch.logit_rows.len();
        self.batch.logit_rows.extend(first_row..first_row + following.len());
        PromptRows { logit_rows: first_logit_row..self.batch.logit_rows.len(), following }
    }

    fn want(&mut self, row: usize) -> usize {
        self.batch.logit_rows.push(row);
        self.batch.logit_rows.len() - 1
    }
}

/// The step's grammar masks, each to be used once.
struct Masks {
    by_sequence: BTreeMap<SequenceId, Vec<u8>>,
}

impl Masks {
    fn new(masks: Vec<TokenMask>, limits: &Limits) -> Result<Self, InvalidStep> {
        let expected = limits.vocabulary_size.div_ceil(8) as usize;
        let mut by_sequence = BTreeMap::new();
        for TokenMask { sequence, allowed } in masks {
            let found = allowed.len();
            if found < expected {
                return of_sequence(sequence, Err(InvalidSequence::ShortMask { found, expected }));
            }
            if by_sequence.insert(sequence, allowed).is_some() {
                return of_sequence(sequence, Err(InvalidSequence::UnusedMask));
            }
        }
        Ok(Self { by_sequence })
    }

    fn take(&mut self, sequence: SequenceId) -> Option<Vec<u8>> {
        self.by_sequence.remove(&sequence)
    }

    fn check_used(&self) -> Result<(), InvalidStep> {
        match self.by_sequence.keys().next() {
            None => Ok(()),
            Some(sequence) => of_sequence(*sequence, Err(InvalidSequence::UnusedMask)),
        }
    }
}

fn check_size(work: &[Work], limits: &Limits) -> Result<(), InvalidStep> {
    let tokens: usize = work.iter().map(|work| work.tokens.count().len()).sum();
    let found = Tokens::of_len(tokens);
    let limit = limits.max_step_tokens;
    if found > limit { Err(InvalidStep::TooLarge { found, limit }) } else { Ok(()) }
}

fn check_once(work: &[Work]) -> Result<(), InvalidStep> {
    let mut seen = BTreeSet::new();
    match work.iter().find(|work| !seen.insert(work.sequence)) {
        None => Ok(()),
        Some(work) => of_sequence(work.sequence, Err(InvalidSequence::WorkedTwice)),
    }
}

fn of_sequence<T>(sequence: SequenceId, result: Result<T, InvalidSequence>) -> Result<T, InvalidStep> {
    result.map_err(|reason| InvalidStep::Sequence { sequence, reason })
}
