//! Values survive the wire; incomplete messages are refused.

use super::*;

#[test]
fn a_step_survives_the_wire() {
    let mut sampling = SamplingParams::seeded(7);
    sampling.logit_bias.push(LogitBias { token: TokenId(3), bias: -1.5 });
    sampling.logprobs_of = LogprobsOf::Warped;
    sampling.watermark = Some(Watermark { gamma: 0.25, delta: 1.5 });
    let step = Step {
        epoch: Epoch(2),
        step_id: StepId(9),
        starts: vec![SequenceStart {
            sequence: SequenceId(1),
            sampling,
            context: vec![TokenId(5), TokenId(6)],
            prompt_tokens: Tokens(1),
        }],
        work: vec![
            Work {
                sequence: SequenceId(1),
                first_position: Position(0),
                tokens: WorkTokens::Ids(vec![TokenId(5), TokenId(6)]),
                new_blocks: vec![BlockId(4)],
                sampling: Sampling::Skip,
                logprobs: ContextLogprobs::From(Position(9)),
                appended: vec![TokenId(5), TokenId(6)],
            },
            Work {
                sequence: SequenceId(8),
                first_position: Position(33),
                tokens: WorkTokens::LastSampled,
                new_blocks: vec![],
                sampling: Sampling::Sample,
                logprobs: ContextLogprobs::Skip,
                appended: vec![],
            },
        ],
        masks: vec![TokenMask { sequence: SequenceId(8), allowed: vec![0b101] }],
        releases: vec![SequenceId(0)],
    };
    assert_eq!(Step::try_from(wire::Step::from(step.clone())), Ok(step));
}

#[test]
fn an_output_survives_the_wire() {
    let token = TokenLogprobs {
        token: TokenId(4),
        logprob: -0.5,
        top: vec![TokenLogprob { token: TokenId(4), logprob: -0.5 }],
    };
    let result = |outcome| SequenceResult { sequence: SequenceId(1), prompt: vec![token.clone()], outcome };
    let output = StepOutput {
        epoch: Epoch(1),
        step_id: StepId(2),
        results: vec![
            result(Outcome::Computed),
            result(Outcome::Sampled(token.clone())),
            result(Outcome::Failed("logits are not finite".to_owned())),
        ],
        timings: StepTimings { forward_ns: 1, sample_ns: 2, comm_ns: 3 },
    };
    assert_eq!(StepOutput::try_from(wire::StepOutput::from(output.clone())), Ok(output));
}

#[test]
fn a_message_without_its_fields_is_refused() {
    let start = wire::SequenceStart { sequence: 1, sampling: None, context: vec![], prompt_tokens: 0 };
    assert_eq!(SequenceStart::try_from(start), Err(WireError::Missing("SequenceStart.sampling")));
    let result = wire::SequenceResult { sequence: 1, prompt: vec![], outcome: None };
    assert_eq!(SequenceResult::try_from(result), Err(WireError::Missing("SequenceResult.outcome")));
}
