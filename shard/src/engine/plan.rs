//! A step, checked: which rows are computed, and what becomes of their logits.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_proto::{
    ContextLogprobs, Sampling, SequenceId, Step, StepId, TokenId, TokenMask, Tokens, Work,
};

use super::error::{InvalidSequence, InvalidStep};
use super::sequences::{Awaited, Chunk, Limits, Progress, Sequence, Sequences};
use crate::batch::{Batch, BatchSequence, FedRow};
use crate::sampling::is_for_devices;

/// What one step computes.
pub(super) struct Plan {
    pub(super) step: StepId,
    pub(super) batch: Batch,
    /// One a logit row of the batch, in that order.
    pub(super) purposes: Vec<Purpose>,
    /// One an entry of the step's work, in that order.
    pub(super) entries: Vec<Entry>,
    /// Whether a device can answer all that is asked.
    pub(super) is_for_devices: bool,
}

/// What a row of logits is wanted for.
pub(super) struct Purpose {
    pub(super) sequence: SequenceId,
    pub(super) ask: Ask,
}

/// What is asked of a row of logits.
pub(super) enum Ask {
    /// The log-probability of the known token that follows.
    Known(TokenId),
    /// A token that follows.
    Sample(Sample),
}

/// How a token is asked for, but for what its sequence's sampler knows.
pub(super) struct Sample {
    /// The grammar's mask.
    pub(super) allowed: Option<Vec<u8>>,
    /// How many tokens were emitted before.
    pub(super) output_position: Tokens,
    /// In which wanted row of the step before the last of them is chosen, where that is not known yet.
    pub(super) fed: Option<usize>,
}

/// What becomes of one entry of the step's work.
pub(super) enum Entry {
    /// Its rows are in the batch.
    Computed(Computed),
    /// The sequence failed before; nothing is computed.
    Failed(SequenceId, String),
}

/// A chunk in the batch. Its logit rows follow those of the chunk before it: first those of tokens
/// that are known, then the one that is sampled.
pub(super) struct Computed {
    pub(super) sequence: SequenceId,
    /// How many logit rows ask about known tokens.
    pub(super) known_rows: usize,
    /// Whether a token is sampled from one more.
    pub(super) samples: bool,
}

impl Computed {
    /// How many logit rows are its own.
    pub(super) fn rows(&self) -> usize {
        self.known_rows + usize::from(self.samples)
    }
}

impl Plan {
    /// Applies the step's releases and starts to `sequences` and lays out its work. After an error the
    /// sequences are of no use.
    pub(super) fn new(step: Step, sequences: &mut Sequences, limits: &Limits) -> Result<Self, InvalidStep> {
        let Step { epoch: _, step_id: step, starts, work, masks, releases } = step;
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
        let entries = Vec::with_capacity(work.len());
        let mut plan =
            Self { step, batch: Batch::default(), purposes: Vec::new(), entries, is_for_devices: true };
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
        let rows_before = self.purposes.len();
        match work.logprobs {
            ContextLogprobs::From(position) => {
                // Those a known token follows.
                let skipped = position.index().saturating_sub(chunk.first.index());
                let following = sequence.context.iter().skip(chunk.first.index() + 1);
                let following = following.take(chunk.tokens.len());
                for (row, token) in (first_row..).zip(following).skip(skipped) {
                    self.want(row, Purpose { sequence: work.sequence, ask: Ask::Known(*token) });
                }
            }
            ContextLogprobs::Skip => {}
        }
        let known_rows = self.purposes.len() - rows_before;
        let samples = match work.sampling {
            Sampling::Sample => {
                let output_position = sequence.output_position();
                let chosen_here = Awaited { step: self.step, row: self.purposes.len() };
                let fed = sequence.awaited.replace(chosen_here).map(|awaited| awaited.row);
                let ask = Ask::Sample(Sample { allowed, output_position, fed });
                let last_row = first_row + chunk.tokens.len() - 1;
                self.want(last_row, Purpose { sequence: work.sequence, ask });
                true
            }
            Sampling::Skip => false,
        };
        if self.purposes.len() > rows_before {
            self.is_for_devices &= is_for_devices(sequence.sampler.params());
        }
        Ok(Entry::Computed(Computed { sequence: work.sequence, known_rows, samples }))
    }

    /// Puts a chunk's tokens at the end of the batch; returns its first row.
    fn add_rows(&mut self, sequence: &Sequence, chunk: Chunk) -> usize {
        let first_row = self.batch.token_ids.len();
        self.batch.token_ids.extend_from_slice(sequence.tokens(chunk));
        if let Some(Awaited { step: _, row: chosen_in }) = sequence.awaited {
            // The whole chunk: any token stands for it.
            self.batch.fed.push(FedRow { row: first_row, chosen_in });
            self.batch.token_ids.push(TokenId(0));
        }
        self.batch.sequences.push(BatchSequence {
            first_row,
            rows: chunk.tokens.len(),
            first_position: chunk.first,
            blocks: sequence.blocks.clone(),
        });
        first_row
    }

    fn want(&mut self, row: usize, purpose: Purpose) {
        self.batch.logit_rows.push(row);
        self.purposes.push(purpose);
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
