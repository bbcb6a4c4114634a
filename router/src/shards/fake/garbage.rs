//! Answers that no group gives.

use lockstep_proto::{Outcome, SequenceResult, StepOutput, TokenId, TokenLogprobs};

/// An answer that no group gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Garbage {
    /// Of another incarnation.
    WrongEpoch,
    /// To another step.
    WrongStep,
    /// Without one of the sequences.
    MissingSequence,
    /// With a sequence twice.
    DoubledSequence,
    /// Of a sequence that was not asked for.
    OtherSequence,
    /// Without the token that was asked for.
    NoToken,
    /// With a token the model does not have.
    UnknownToken,
    /// With something that is no number.
    NotANumber,
}

impl Garbage {
    pub(super) fn spoil(self, output: &mut StepOutput) {
        let results = &mut output.results;
        match self {
            Self::WrongEpoch => output.epoch.0 += 1,
            Self::WrongStep => output.step_id.0 -= 1,
            Self::MissingSequence => drop(results.pop()),
            Self::DoubledSequence => results.extend_from_within(..1),
            Self::OtherSequence => results.iter_mut().for_each(|result| result.sequence.0 += 1),
            Self::NoToken => results.iter_mut().for_each(|result| result.outcome = Outcome::Computed),
            Self::UnknownToken => {
                let token = TokenLogprobs { token: TokenId(u32::MAX), logprob: -1.0, top: Vec::new() };
                results.iter_mut().for_each(|result| result.outcome = Outcome::Sampled(token.clone()));
            }
            Self::NotANumber => results.iter_mut().for_each(spoil_numbers),
        }
    }
}

pub(super) fn spoil_numbers(result: &mut SequenceResult) {
    match &mut result.outcome {
        Outcome::Sampled(token) => token.logprob = f32::NAN,
        Outcome::Computed | Outcome::Failed(_) => {}
    }
}
