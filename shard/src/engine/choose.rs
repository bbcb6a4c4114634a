//! From logits to results, on rank 0, and from results to what the other ranks must know.

use lockstep_proto::{Outcome, SequenceResult, TokenId, TokenLogprobs};
use rayon::prelude::*;

use super::model::LogitRows;
use super::plan::{Computed, Entry, PromptRows, SampleRow};
use super::sequences::{Sequence, Sequences};
use crate::sampling;

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

/// One result an entry of the plan. Entries do not depend on each other, so neither does their order of
/// computation matter.
pub(super) fn results<L: LogitRows>(
    entries: &[Entry],
    sequences: &Sequences,
    logits: &L,
) -> Vec<SequenceResult> {
    let of = |entry| result(entry, sequences, logits);
    match entries {
        // Handing one entry to the pool takes longer than it saves.
        [only] => vec![of(only)],
        more => more.par_iter().map(of).collect(),
    }
}

fn result<L: LogitRows>(entry: &Entry, sequences: &Sequences, logits: &L) -> SequenceResult {
    let failed = |sequence, reason| SequenceResult {
        sequence,
        prompt: Vec::new(),
        outcome: Outcome::Failed(reason),
    };
    match entry {
        Entry::Failed(sequence, reason) => failed(*sequence, reason.clone()),
        Entry::Computed(computed) => match of_computed(computed, sequences, logits) {
            Ok(result) => result,
            Err(reason) => failed(computed.sequence, reason),
        },
    }
}

fn of_computed<L: LogitRows>(
    computed: &Computed,
    sequences: &Sequences,
    logits: &L,
) -> Result<SequenceResult, String> {
    let Computed { sequence: id, prompt, sample } = computed;
    let sequence = sequences.get(*id).map_err(|error| error.to_string())?;
    let outcome = match sample {
        None => Outcome::Computed,
        Some(row) => Outcome::Sampled(sampled(sequence, row, logits)?),
    };
    Ok(SequenceResult { sequence: *id, prompt: prompt_logprobs(sequence, prompt, logits)?, outcome })
}

fn sampled<L: LogitRows>(
    sequence: &Sequence,
    row: &SampleRow,
    logits: &L,
) -> Result<TokenLogprobs, String> {
    let SampleRow { logit_row, allowed } = row;
    let sampled =
        sequence.sampler.sample(logits.row(*logit_row), allowed.as_deref(), sequence.output_position());
    sampled.map_err(|error| error.to_string())
}

fn prompt_logprobs<L: LogitRows>(
    sequence: &Sequence,
    prompt: &PromptRows,
    logits: &L,
) -> Result<Vec<TokenLogprobs>, String> {
    let top = sequence.sampler.params().top_logprobs as usize;
    let of = |(row, token): (usize, &TokenId)| sampling::of_prompt_token(logits.row(row), *token, top);
    let rows = prompt.logit_rows.clone().zip(&prompt.following);
    rows.map(of).collect::<Result<_, _>>().map_err(|error| error.to_string())
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
