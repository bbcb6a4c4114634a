//! What came of a step: tokens, ends, failures; and ends from outside.

use lockstep_proto::{Epoch, Outcome, Sampling, SequenceId, SequenceResult, StepId, StepOutput, Tokens};

use crate::event::{SequenceEvent, TokenOrigin};
use crate::group::Group;
use crate::sequence::{Chunk, News};

/// Why a step's output is not taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepMismatch {
    /// Drop it: the group was lost, or the step was answered before.
    #[error("take in a step's output: no step is in flight; drop the output")]
    NoneInFlight,
    /// Drop it: it answers another step.
    #[error(
        "take in a step's output: found step {step} of epoch {epoch}, expected step {expected_step} of epoch {expected_epoch}; drop the output"
    )]
    Stale {
        /// Of the output.
        epoch: Epoch,
        /// Of the output.
        step: StepId,
        /// Of the group.
        expected_epoch: Epoch,
        /// In flight.
        expected_step: StepId,
    },
    /// Treat the group as lost: it answers the step in flight, but not what was asked.
    #[error("take in a step's output: {detail}; restart the shards")]
    Malformed {
        /// What was found and what was expected.
        detail: String,
    },
}

impl Group {
    /// Ends the step in flight if `output` answers it, and gives the blocks of cancelled sequences back.
    /// Returns what was asked, an entry for each of the output's results.
    pub(crate) fn take_in_flight(&mut self, output: &StepOutput) -> Result<Vec<Chunk>, StepMismatch> {
        let in_flight = self.in_flight.as_ref().ok_or(StepMismatch::NoneInFlight)?;
        if (output.epoch, output.step_id) != (self.epoch, in_flight.step) {
            return Err(StepMismatch::Stale {
                epoch: output.epoch,
                step: output.step_id,
                expected_epoch: self.epoch,
                expected_step: in_flight.step,
            });
        }
        check_answers(&in_flight.chunks, &output.results)
            .map_err(|detail| StepMismatch::Malformed { detail })?;
        let Some(in_flight) = self.in_flight.take() else { return Err(StepMismatch::NoneInFlight) };
        for table in in_flight.cancelled {
            self.cache.release(table);
        }
        Ok(in_flight.chunks)
    }

    /// Takes one result in. That of a sequence cancelled meanwhile is dropped. Returns the tokens of its
    /// output if the sequence ended by itself.
    pub(crate) fn finish_chunk(
        &mut self,
        chunk: &Chunk,
        result: &SequenceResult,
        events: &mut Vec<SequenceEvent>,
    ) -> Option<Tokens> {
        let id = chunk.sequence;
        let running = self.running.get_mut(&id)?;
        if let Outcome::Failed(reason) = &result.outcome {
            events.push(SequenceEvent::Failed { sequence: id, reason: reason.clone() });
            self.retire(id);
            return None;
        }
        let News { prompt, forced } = running.sequence.tell_logprobs(chunk.logprobs, &result.prompt);
        if !prompt.is_empty() {
            events.push(SequenceEvent::PromptLogprobs { sequence: id, tokens: prompt });
        }
        let origin = TokenOrigin::Forced;
        events.extend(forced.into_iter().map(|token| SequenceEvent::Token { sequence: id, token, origin }));
        running.computed += chunk.tokens;
        running.sequence.losses.on_computed(running.computed);
        let computed = &running.sequence.known[..running.computed.len()];
        self.cache.publish(&mut running.table, running.sequence.salt, computed);
        if let Outcome::Sampled(token) = &result.outcome {
            running.push_sampled(token.token);
            events.push(SequenceEvent::Token {
                sequence: id,
                token: token.clone(),
                origin: TokenOrigin::Sampled,
            });
        } else if !running.behind().is_empty() && !running.sequence.is_told() {
            return None;
        }
        let reason = running.sequence.finish_reason()?;
        let output = running.sequence.output_tokens();
        events.push(SequenceEvent::Finished { sequence: id, reason });
        self.retire(id);
        Some(output)
    }

    /// Ends a running sequence from outside.
    pub(crate) fn cancel(&mut self, sequence: SequenceId) {
        let Some(running) = self.running.shift_remove(&sequence) else { return };
        self.releases.push(sequence);
        let in_flight = self
            .in_flight
            .as_mut()
            .filter(|step| step.chunks.iter().any(|chunk| chunk.sequence == sequence));
        match in_flight {
            Some(step) => step.cancelled.push(running.table),
            None => self.cache.release(running.table),
        }
    }

    /// Forgets a running sequence that no step computes.
    fn retire(&mut self, sequence: SequenceId) {
        if let Some(running) = self.running.shift_remove(&sequence) {
            self.releases.push(sequence);
            self.cache.release(running.table);
        }
    }
}

/// Whether each chunk has its result, in order. The shards are another process, so nothing is taken for
/// granted.
fn check_answers(chunks: &[Chunk], results: &[SequenceResult]) -> Result<(), String> {
    if chunks.len() != results.len() {
        return Err(format!("found {} results, expected {}", results.len(), chunks.len()));
    }
    for (chunk, result) in chunks.iter().zip(results) {
        let sequence = chunk.sequence;
        if result.sequence != sequence {
            return Err(format!("found a result of sequence {}, expected {sequence}", result.sequence));
        }
        match (&result.outcome, chunk.sampling) {
            (Outcome::Failed(_), _) => continue,
            (Outcome::Computed, Sampling::Skip) | (Outcome::Sampled(_), Sampling::Sample) => {}
            (Outcome::Computed, Sampling::Sample) => {
                return Err(format!("found no token for sequence {sequence}, expected one"));
            }
            (Outcome::Sampled(_), Sampling::Skip) => {
                return Err(format!("found a token for sequence {sequence}, expected none"));
            }
        }
        if result.prompt.len() < chunk.logprobs.count.len() {
            return Err(format!(
                "found {} log-probabilities of the context of sequence {sequence}, expected {}",
                result.prompt.len(),
                chunk.logprobs.count,
            ));
        }
    }
    Ok(())
}
