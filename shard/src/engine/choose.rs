//! From logits to results, on rank 0, and from results to what the other ranks must know.

use lockstep_proto::{Outcome, Sampling, SequenceResult, TokenId, TokenLogprobs};

use super::model::{LogitRows, ModelError};
use super::plan::{Ask, Computed, Entry, Purpose};
use super::sequences::Sequences;
use crate::ops::cpu::parallel::map_each;
use crate::sampling::{RowAsk, SamplingError};

/// What a step means for a sequence, on every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Nothing was sampled.
    Nothing,
    /// This token follows.
    Token(TokenId),
    /// The sequence cannot go on.
    Failed,
}

/// Why a rank other than 0 says a sequence failed; nobody reads its results.
const FAILED_ON_RANK_0: &str = "rank 0 could not sample it";

/// Why a sequence fails that a token was to be sampled for, from a row of logits that never came.
const NOT_COMPUTED: &str = "choose a token: its logits were not computed";

/// What was found in a row of logits, or why nothing was.
pub(super) type Found = Result<TokenLogprobs, Missing>;

/// Why nothing was found in a row of logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// The row holds no numbers: this rank or its sequence is broken, and nothing it computes can be believed.
    Numbers(SamplingError),
    /// The sequence cannot go on.
    Choice(String),
}

/// What is found in a slice of logits, one a purpose. Rows do not depend on each other, so neither does their
/// order of computation matter.
///
/// # Errors
/// When the device the logits are on fails, or another rank is lost.
pub(super) fn found<L: LogitRows>(
    purposes: &[Purpose],
    sequences: &Sequences,
    logits: &mut L,
) -> Result<Vec<Found>, ModelError> {
    /// Scalar operations an entry takes to be looked at and weighed.
    const OPERATIONS: usize = 8;

    let asks: Vec<_> = purposes.iter().map(|purpose| ask(purpose, sequences)).collect();
    // Of a sequence that is not known nothing is asked, and its row may be looked at all the same.
    let nothing = RowAsk::Known { token: TokenId(0), top: 0 };
    let asked: Vec<_> = asks.iter().map(|ask| ask.as_ref().copied().unwrap_or(nothing)).collect();
    if let Some(found) = logits.ask(&asked)? {
        let found = asks.into_iter().zip(found).map(|(ask, found)| ask.and_then(|_| Ok(found?)));
        return Ok(found.collect());
    }
    let logits = &*logits;
    let entries: usize = (0..asks.len()).map(|index| logits.row(index).len()).sum();
    Ok(map_each(asks.len(), entries * OPERATIONS, |index| match &asks[index] {
        Ok(ask) => Ok(ask.answer(logits.row(index))?),
        Err(missing) => Err(missing.clone()),
    }))
}

fn ask<'a>(purpose: &'a Purpose, sequences: &'a Sequences) -> Result<RowAsk<'a>, Missing> {
    let sequence = sequences.get(purpose.sequence).map_err(|error| Missing::Choice(error.to_string()))?;
    let sampler = &sequence.sampler;
    Ok(match &purpose.ask {
        Ask::Known(token) => RowAsk::Known { token: *token, top: sampler.params().top_logprobs as usize },
        Ask::Sample(allowed) => RowAsk::Sample {
            sampler,
            allowed: allowed.as_deref(),
            output_position: sequence.output_position(),
        },
    })
}

impl From<SamplingError> for Missing {
    fn from(error: SamplingError) -> Self {
        match error {
            SamplingError::NotFinite { .. } => Self::Numbers(error),
            SamplingError::NothingLeft => Self::Choice(error.to_string()),
        }
    }
}

/// Why no row of a step is to be believed, if any is no row of numbers.
pub(super) fn check_numbers(found: &[Found]) -> Result<(), SamplingError> {
    let broken = found.iter().find_map(|found| match found {
        Err(Missing::Numbers(error)) => Some(*error),
        Err(Missing::Choice(_)) | Ok(_) => None,
    });
    broken.map_or(Ok(()), Err)
}

/// One result an entry of the plan, from what was found in all its rows of logits, in their order.
pub(super) fn results(entries: &[Entry], found: Vec<Found>) -> Vec<SequenceResult> {
    let mut found = found.into_iter();
    entries.iter().map(|entry| result(entry, &mut found)).collect()
}

fn result(entry: &Entry, found: &mut impl Iterator<Item = Found>) -> SequenceResult {
    let failed = |sequence, reason| SequenceResult {
        sequence,
        prompt: Vec::new(),
        outcome: Outcome::Failed(reason),
    };
    match entry {
        Entry::Failed(sequence, reason) => failed(*sequence, reason.clone()),
        Entry::Computed(computed) => match of_computed(computed, found) {
            Ok(result) => result,
            Err(Missing::Choice(reason)) => failed(computed.sequence, reason),
            Err(Missing::Numbers(error)) => failed(computed.sequence, error.to_string()),
        },
    }
}

fn of_computed(
    computed: &Computed,
    found: &mut impl Iterator<Item = Found>,
) -> Result<SequenceResult, Missing> {
    let Computed { sequence, known_rows, sampling } = computed;
    // All of a chunk's rows are taken, even where the first has failed: the next chunk's come after them.
    let prompt: Vec<Found> = found.by_ref().take(*known_rows).collect();
    let outcome = match sampling {
        Sampling::Skip => Outcome::Computed,
        Sampling::Sample => {
            Outcome::Sampled(found.next().unwrap_or_else(|| Err(Missing::Choice(NOT_COMPUTED.to_owned())))?)
        }
    };
    let prompt = prompt.into_iter().collect::<Result<_, _>>()?;
    Ok(SequenceResult { sequence: *sequence, prompt, outcome })
}

/// What every rank must know of a result.
pub(super) fn choice(result: &SequenceResult) -> Choice {
    match &result.outcome {
        Outcome::Computed => Choice::Nothing,
        Outcome::Sampled(sampled) => Choice::Token(sampled.token),
        Outcome::Failed(_) => Choice::Failed,
    }
}

/// Why a sequence failed, as far as this rank knows.
pub(super) fn failure(result: Option<&SequenceResult>) -> String {
    match result.map(|result| &result.outcome) {
        Some(Outcome::Failed(reason)) => reason.clone(),
        Some(Outcome::Computed | Outcome::Sampled(_)) | None => FAILED_ON_RANK_0.to_owned(),
    }
}

impl Choice {
    pub(super) const BYTES: usize = 4;
    const NOTHING: u32 = u32::MAX;
    const FAILED: u32 = u32::MAX - 1;

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let number = match self {
            Self::Nothing => Self::NOTHING,
            Self::Failed => Self::FAILED,
            Self::Token(token) => token.0,
        };
        number.to_le_bytes()
    }

    pub(super) fn decode(bytes: [u8; Self::BYTES]) -> Self {
        match u32::from_le_bytes(bytes) {
            Self::NOTHING => Self::Nothing,
            Self::FAILED => Self::Failed,
            token => Self::Token(TokenId(token)),
        }
    }
}
