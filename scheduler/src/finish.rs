//! What came of a step: tokens, ends, failures; and ends from outside.

use std::time::{Duration, Instant};

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
    /// Drop it: it answers another step than the oldest in flight.
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
        /// The oldest in flight.
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
    /// Ends the oldest step in flight if `output` answers it, and gives the blocks of sequences back that it computed
    /// last. Returns what was asked, an entry for each of the output's results, and how long it took.
    pub(crate) fn take_in_flight(
        &mut self,
        output: &StepOutput,
        now: Instant,
    ) -> Result<(Vec<Chunk>, Duration), StepMismatch> {
        let in_flight = self.in_flight.front().ok_or(StepMismatch::NoneInFlight)?;
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
        let in_flight = self.in_flight.pop_front().ok_or(StepMismatch::NoneInFlight)?;
        for table in in_flight.left {
            self.cache.release(table);
        }
        if let Some(next) = self.in_flight.front_mut() {
            next.since = now;
        }
        Ok((in_flight.chunks, now.saturating_duration_since(in_flight.since)))
    }

    /// Takes one result in. That of a sequence that has ended meanwhile is dropped. Returns the tokens of its
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
            self.let_go(id);
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
        self.let_go(id);
        Some(output)
    }

    /// Forgets a running sequence that has ended. Blocks that a step in flight may write to come back with the last
    /// such step.
    pub(crate) fn let_go(&mut self, sequence: SequenceId) {
        let Some(running) = self.running.shift_remove(&sequence) else { return };
        self.releases.push(sequence);
        match self.in_flight.iter_mut().rfind(|step| step.computes(sequence)) {
            Some(step) => step.left.push(running.table),
            None => self.cache.release(running.table),
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
