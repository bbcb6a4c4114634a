//! Checked conversions between the domain types and the wire, and nowhere else.

use thiserror::Error;

use crate::wire;
use crate::{
    BlockId, Bytes, ContextLogprobs, Epoch, LogitBias, LogprobsOf, Outcome, Position, Rank, Sampling,
    SamplingParams, Seeded, Selection, SequenceId, SequenceResult, SequenceStart, ShardDescription, Step,
    StepId, StepOutput, StepTimings, TokenId, TokenLogprob, TokenLogprobs, TokenMask, Tokens, Watermark,
    Work, WorkTokens,
};

/// A message that no peer of this release sends.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// A field that every peer sets is absent.
    #[error("missing field {0}")]
    Missing(&'static str),
}

impl From<ShardDescription> for wire::DescribeResponse {
    fn from(shard: ShardDescription) -> Self {
        Self {
            rank: shard.rank.0,
            world_size: shard.world_size,
            epoch: shard.epoch.0,
            vocabulary_size: shard.vocabulary_size,
            max_positions: shard.max_positions.0,
            block_size: shard.block_size.0,
            block_bytes: shard.block_bytes.0,
            kv_budget_bytes: shard.kv_budget.0,
            weight_bytes: shard.weights.0,
            arithmetic: shard.arithmetic,
        }
    }
}

impl From<wire::DescribeResponse> for ShardDescription {
    fn from(shard: wire::DescribeResponse) -> Self {
        Self {
            rank: Rank(shard.rank),
            world_size: shard.world_size,
            epoch: Epoch(shard.epoch),
            vocabulary_size: shard.vocabulary_size,
            max_positions: Tokens(shard.max_positions),
            block_size: Tokens(shard.block_size),
            block_bytes: Bytes(shard.block_bytes),
            kv_budget: Bytes(shard.kv_budget_bytes),
            weights: Bytes(shard.weight_bytes),
            arithmetic: shard.arithmetic,
        }
    }
}

impl From<Step> for wire::Step {
    fn from(step: Step) -> Self {
        Self {
            epoch: step.epoch.0,
            step_id: step.step_id.0,
            starts: step.starts.into_iter().map(Into::into).collect(),
            work: step.work.into_iter().map(Into::into).collect(),
            masks: step
                .masks
                .into_iter()
                .map(|mask| wire::TokenMask { sequence: mask.sequence.0, allowed: mask.allowed })
                .collect(),
            releases: step.releases.into_iter().map(|sequence| sequence.0).collect(),
            // Beside the step: no rank computes anything else because of them.
            trace_parents: Vec::new(),
        }
    }
}

impl TryFrom<wire::Step> for Step {
    type Error = WireError;

    fn try_from(step: wire::Step) -> Result<Self, WireError> {
        Ok(Self {
            epoch: Epoch(step.epoch),
            step_id: StepId(step.step_id),
            starts: step.starts.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            work: step.work.into_iter().map(Into::into).collect(),
            masks: step
                .masks
                .into_iter()
                .map(|mask| TokenMask { sequence: SequenceId(mask.sequence), allowed: mask.allowed })
                .collect(),
            releases: step.releases.into_iter().map(SequenceId).collect(),
        })
    }
}

impl From<SequenceStart> for wire::SequenceStart {
    fn from(start: SequenceStart) -> Self {
        Self {
            sequence: start.sequence.0,
            sampling: Some(start.sampling.into()),
            context: ids_to_wire(start.context),
            prompt_tokens: start.prompt_tokens.0,
        }
    }
}

impl TryFrom<wire::SequenceStart> for SequenceStart {
    type Error = WireError;

    fn try_from(start: wire::SequenceStart) -> Result<Self, WireError> {
        Ok(Self {
            sequence: SequenceId(start.sequence),
            sampling: start.sampling.ok_or(WireError::Missing("SequenceStart.sampling"))?.into(),
            context: ids_from_wire(start.context),
            prompt_tokens: Tokens(start.prompt_tokens),
        })
    }
}

impl From<Work> for wire::Work {
    fn from(work: Work) -> Self {
        let tokens = match work.tokens {
            WorkTokens::Ids(ids) => ids_to_wire(ids),
            WorkTokens::LastSampled => Vec::new(),
        };
        Self {
            sequence: work.sequence.0,
            first_position: work.first_position.0,
            tokens,
            new_blocks: work.new_blocks.into_iter().map(|block| block.0).collect(),
            sample: work.sampling == Sampling::Sample,
            prompt_logprobs: work.logprobs != ContextLogprobs::Skip,
            logprobs_from: match work.logprobs {
                ContextLogprobs::Skip => 0,
                ContextLogprobs::From(position) => position.0,
            },
            appended: ids_to_wire(work.appended),
        }
    }
}

impl From<wire::Work> for Work {
    fn from(work: wire::Work) -> Self {
        let tokens = if work.tokens.is_empty() {
            WorkTokens::LastSampled
        } else {
            WorkTokens::Ids(ids_from_wire(work.tokens))
        };
        Self {
            sequence: SequenceId(work.sequence),
            first_position: Position(work.first_position),
            tokens,
            new_blocks: work.new_blocks.into_iter().map(BlockId).collect(),
            sampling: if work.sample { Sampling::Sample } else { Sampling::Skip },
            logprobs: match work.prompt_logprobs {
                true => ContextLogprobs::From(Position(work.logprobs_from)),
                false => ContextLogprobs::Skip,
            },
            appended: ids_from_wire(work.appended),
        }
    }
}

impl From<SamplingParams> for wire::SamplingParams {
    fn from(params: SamplingParams) -> Self {
        let seeded = match params.selection {
            Selection::Greedy => None,
            Selection::Seeded(seeded) => Some(wire::Seeded {
                seed: seeded.seed,
                choice: seeded.choice,
                temperature: seeded.temperature,
                top_k: seeded.top_k,
                top_p: seeded.top_p,
                typical_p: seeded.typical_p,
                min_p: seeded.min_p,
            }),
        };
        Self {
            seeded,
            repetition_penalty: params.repetition_penalty,
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            logit_bias: params
                .logit_bias
                .into_iter()
                .map(|entry| wire::LogitBias { token: entry.token.0, bias: entry.bias })
                .collect(),
            top_logprobs: params.top_logprobs,
            warped_logprobs: params.logprobs_of == LogprobsOf::Warped,
            watermark: params.watermark.map(|Watermark { gamma, delta }| wire::Watermark { gamma, delta }),
        }
    }
}

impl From<wire::SamplingParams> for SamplingParams {
    fn from(params: wire::SamplingParams) -> Self {
        let selection = match params.seeded {
            None => Selection::Greedy,
            Some(seeded) => Selection::Seeded(Seeded {
                seed: seeded.seed,
                choice: seeded.choice,
                temperature: seeded.temperature,
                top_k: seeded.top_k,
                top_p: seeded.top_p,
                typical_p: seeded.typical_p,
                min_p: seeded.min_p,
            }),
        };
        Self {
            selection,
            repetition_penalty: params.repetition_penalty,
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            logit_bias: params
                .logit_bias
                .into_iter()
                .map(|entry| LogitBias { token: TokenId(entry.token), bias: entry.bias })
                .collect(),
            top_logprobs: params.top_logprobs,
            logprobs_of: if params.warped_logprobs { LogprobsOf::Warped } else { LogprobsOf::Model },
            watermark: params.watermark.map(|wire::Watermark { gamma, delta }| Watermark { gamma, delta }),
        }
    }
}

impl From<StepOutput> for wire::StepOutput {
    fn from(output: StepOutput) -> Self {
        Self {
            epoch: output.epoch.0,
            step_id: output.step_id.0,
            results: output.results.into_iter().map(Into::into).collect(),
            forward_ns: output.timings.forward_ns,
            sample_ns: output.timings.sample_ns,
            comm_ns: output.timings.comm_ns,
        }
    }
}

impl TryFrom<wire::StepOutput> for StepOutput {
    type Error = WireError;

    fn try_from(output: wire::StepOutput) -> Result<Self, WireError> {
        Ok(Self {
            epoch: Epoch(output.epoch),
            step_id: StepId(output.step_id),
            results: output.results.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            timings: StepTimings {
                forward_ns: output.forward_ns,
                sample_ns: output.sample_ns,
                comm_ns: output.comm_ns,
            },
        })
    }
}

impl From<SequenceResult> for wire::SequenceResult {
    fn from(result: SequenceResult) -> Self {
        use wire::sequence_result::Outcome as WireOutcome;
        let outcome = match result.outcome {
            Outcome::Computed => WireOutcome::Chunk(wire::ChunkDone {}),
            Outcome::Sampled(token) => WireOutcome::Sampled(token.into()),
            Outcome::Failed(reason) => WireOutcome::Failed(reason),
        };
        Self {
            sequence: result.sequence.0,
            prompt: result.prompt.into_iter().map(Into::into).collect(),
            outcome: Some(outcome),
        }
    }
}

impl TryFrom<wire::SequenceResult> for SequenceResult {
    type Error = WireError;

    fn try_from(result: wire::SequenceResult) -> Result<Self, WireError> {
        use wire::sequence_result::Outcome as WireOutcome;
        let outcome = match result.outcome.ok_or(WireError::Missing("SequenceResult.outcome"))? {
            WireOutcome::Chunk(wire::ChunkDone {}) => Outcome::Computed,
            WireOutcome::Sampled(token) => Outcome::Sampled(token.into()),
            WireOutcome::Failed(reason) => Outcome::Failed(reason),
        };
        Ok(Self {
            sequence: SequenceId(result.sequence),
            prompt: result.prompt.into_iter().map(Into::into).collect(),
            outcome,
        })
    }
}

impl From<TokenLogprobs> for wire::TokenLogprobs {
    fn from(token: TokenLogprobs) -> Self {
        let top = token
            .top
            .into_iter()
            .map(|entry| wire::TokenLogprob { token: entry.token.0, logprob: entry.logprob })
            .collect();
        Self { token: token.token.0, logprob: token.logprob, top }
    }
}

impl From<wire::TokenLogprobs> for TokenLogprobs {
    fn from(token: wire::TokenLogprobs) -> Self {
        let top = token
            .top
            .into_iter()
            .map(|entry| TokenLogprob { token: TokenId(entry.token), logprob: entry.logprob })
            .collect();
        Self { token: TokenId(token.token), logprob: token.logprob, top }
    }
}

fn ids_to_wire(ids: Vec<TokenId>) -> Vec<u32> {
    ids.into_iter().map(|id| id.0).collect()
}

fn ids_from_wire(ids: Vec<u32>) -> Vec<TokenId> {
    ids.into_iter().map(TokenId).collect()
}

#[cfg(test)]
mod tests;
