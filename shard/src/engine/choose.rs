//! From rows of logits, or what a device says of them, to results, and from results to what every rank must know.

use lockstep_proto::{Outcome, SequenceResult, TokenId, TokenLogprobs};

use super::model::{LogitRows, RowAnswer};
use super::plan::{Ask, Computed, Entry, Purpose, Sample};
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
pub(super) fn found<L: LogitRows>(purposes: &[Purpose], sequences: &Sequences, logits: &L) -> Vec<Found> {
    /// Scalar operations an entry takes to be looked at and weighed.
    const OPERATIONS: usize = 8;

    let asks: Vec<_> = purposes.iter().map(|purpose| ask(purpose, sequences)).collect();
    let entries: usize = (0..asks.len()).map(|index| logits.row(index).len()).sum();
    map_each(asks.len(), entries * OPERATIONS, |index| match &asks[index] {
        Ok(ask) => Ok(ask.answer(logits.row(index))?),
        Err(missing) => Err(missing.clone()),
    })
}

/// What a device has found, and the host in the rows that are left to it.
pub(super) fn of_answers(
    purposes: &[Purpose],
    sequences: &Sequences,
    answers: Vec<RowAnswer>,
) -> Vec<Found> {
    let rows = purposes.iter().zip(answers);
    rows.map(|(purpose, answer)| match answer {
        RowAnswer::Found(found) => Ok(found?),
        RowAnswer::Logits(logits) => Ok(ask(purpose, sequences)?.answer(&logits)?),
        RowAnswer::LeftToRank0 => Err(Missing::Choice(FAILED_ON_RANK_0.to_owned())),
    })
    .collect()
}

/// What is asked of a row; of one whose sequence is not known something of which nothing comes.
pub(super) fn ask_or_nothing<'a>(purpose: &'a Purpose, sequences: &'a Sequences) -> RowAsk<'a> {
    ask(purpose, sequences).unwrap_or(RowAsk::Known { token: TokenId(0), top: 0 })
}

fn ask<'a>(purpose: &'a Purpose, sequences: &'a Sequences) -> Result<RowAsk<'a>, Missing> {
    let sequence = sequences.get(purpose.sequence).map_err(|error| Missing::Choice(error.to_string()))?;
    let sampler = &sequence.sampler;
    Ok(match &purpose.ask {
        Ask::Known(token) => RowAsk::Known { token: *token, top: sampler.params().top_logprobs as usize },
        Ask::Sample(Sample { allowed, output_position, fed }) => RowAsk::Sample {
            sampler,
            allowed: allowed.as_deref(),
            output_position: *output_position,
            fed: *fed,
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

/// Of a model whose numbers may overflow: who has none fails, and nobody else.
pub(super) fn failing_alone(found: Vec<Found>) -> Vec<Found> {
    let alone = |missing| match missing {
        Missing::Numbers(error) => Missing::Choice(format!(
            "{error}, or beyond 65504, the largest number of float16: bfloat16 holds larger ones"
        )),
        Missing::Choice(reason) => Missing::Choice(reason),
    };
    found.into_iter().map(|found| found.map_err(alone)).collect()
}

/// Why no row is to be believed, if any is no row of numbers.
fn check_numbers(found: &[Found]) -> Result<(), SamplingError> {
    let broken = found.iter().find_map(|found| match found {
        Err(Missing::Numbers(error)) => Some(*error),
        Err(Missing::Choice(_)) | Ok(_) => None,
    });
    broken.map_or(Ok(()), Err)
}

/// One result an entry of the plan, from what was found in all its rows of logits, in their order.
///
/// # Errors
/// When any is no row of numbers, other than of a sequence that has failed.
pub(super) fn results(
    entries: &[Entry],
    found: Vec<Found>,
    sequences: &Sequences,
) -> Result<Vec<SequenceResult>, SamplingError> {
    let mut found = found.into_iter();
    entries.iter().map(|entry| result(entry, &mut found, sequences)).collect()
}

fn result(
    entry: &Entry,
    found: &mut impl Iterator<Item = Found>,
    sequences: &Sequences,
) -> Result<SequenceResult, SamplingError> {
    let failed = |sequence, reason| SequenceResult {
        sequence,
        prompt: Vec::new(),
        outcome: Outcome::Failed(reason),
    };
    Ok(match entry {
        Entry::Failed(sequence, reason) => failed(*sequence, reason.clone()),
        Entry::Computed(computed) => {
            // All of a chunk's rows are taken, even where the first has failed: the next chunk's come after them.
            let rows: Vec<Found> = found.by_ref().take(computed.rows()).collect();
            // It may have failed after this step was begun, and was computed in vain.
            if let Some(reason) = sequences.failure(computed.sequence) {
                return Ok(failed(computed.sequence, reason));
            }
            check_numbers(&rows)?;
            match of_computed(computed, rows) {
                Ok(result) => result,
                Err(Missing::Choice(reason)) => failed(computed.sequence, reason),
                Err(Missing::Numbers(error)) => return Err(error),
            }
        }
    })
}

fn of_computed(computed: &Computed, rows: Vec<Found>) -> Result<SequenceResult, Missing> {
    let Computed { sequence, known_rows, samples } = computed;
    let mut rows = rows.into_iter();
    let prompt: Vec<Found> = rows.by_ref().take(*known_rows).collect();
    let outcome = if *samples {
        Outcome::Sampled(rows.next().unwrap_or_else(|| Err(Missing::Choice(NOT_COMPUTED.to_owned())))?)
    } else {
        Outcome::Computed
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
