//! Steps that are begun behind one that is not finished: the same answers as steps one by one, and what must wait.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fake;

use std::sync::Arc;

use lockstep_proto::{
    BlockId, Blocks, Bytes, ContextLogprobs, Epoch, Outcome, Position, Sampling, SamplingParams, Seeded,
    Selection, SequenceId, SequenceResult, SequenceStart, Step, StepId, TokenId, TokenMask, Tokens,
    Watermark, Work, WorkTokens,
};
use lockstep_shard::comm::{Communicator, Solo, Timed};
use lockstep_shard::engine::{Begun, Configuration, Engine, Group, Model, StepError};

use self::fake::device::{Call, Calls, FakeDevice, Pace};
use self::fake::{BROKEN_TOKEN, FakeModel};

const EPOCH: Epoch = Epoch(3);

fn group() -> Group {
    Group { comm: Arc::new(Timed::new(Arc::new(Solo))), epoch: EPOCH, kv_budget: Bytes(1 << 20) }
}

fn configured<M: Model>(model: M, group: Group) -> Engine<M> {
    let mut engine = Engine::new(model, group);
    let configuration = Configuration { epoch: EPOCH, blocks: Blocks(200), max_step_tokens: Tokens(40) };
    engine.configure(configuration).unwrap();
    engine.on_stream_opened();
    engine
}

fn on_host() -> Engine<FakeModel> {
    let group = group();
    configured(FakeModel::new(Arc::clone(&group.comm) as Arc<dyn Communicator>), group)
}

fn on_device() -> (Engine<FakeDevice>, Calls) {
    let group = group();
    let comm = Arc::clone(&group.comm) as Arc<dyn Communicator>;
    let (model, calls) = FakeDevice::new(comm, Pace::Instant);
    (configured(model, group), calls)
}

fn start(sequence: u64, sampling: SamplingParams, context: &[u32]) -> SequenceStart {
    SequenceStart {
        sequence: SequenceId(sequence),
        sampling,
        context: context.iter().copied().map(TokenId).collect(),
        prompt_tokens: Tokens::of_len(context.len()),
    }
}

/// The whole of a prompt, and a token after it. Each sequence has blocks of its own.
fn prefill(sequence: u64, context: &[u32]) -> Work {
    let ids = context.iter().copied().map(TokenId).collect();
    let blocks = (0..12).map(|block| BlockId(sequence as u32 * 12 + block)).collect();
    Work { tokens: WorkTokens::Ids(ids), new_blocks: blocks, ..decode(sequence, 0) }
}

fn decode(sequence: u64, position: u32) -> Work {
    Work {
        sequence: SequenceId(sequence),
        first_position: Position(position),
        tokens: WorkTokens::LastSampled,
        new_blocks: Vec::new(),
        sampling: Sampling::Sample,
        logprobs: ContextLogprobs::Skip,
        appended: Vec::new(),
    }
}

fn greedy() -> SamplingParams {
    SamplingParams { top_logprobs: 2, ..SamplingParams::greedy() }
}

fn penalised() -> SamplingParams {
    SamplingParams { repetition_penalty: 1.7, frequency_penalty: 0.6, presence_penalty: 0.3, ..greedy() }
}

fn drawn() -> SamplingParams {
    let seeded =
        Seeded { seed: 11, choice: 1, temperature: 1.4, top_k: 0, top_p: 1.0, typical_p: 1.0, min_p: 0.0 };
    SamplingParams { selection: Selection::Seeded(seeded), ..greedy() }
}

fn watermarked() -> SamplingParams {
    SamplingParams { watermark: Some(Watermark { gamma: 0.5, delta: 2.0 }), ..greedy() }
}

fn plain(starts: Vec<SequenceStart>, work: Vec<Work>) -> Step {
    Step { epoch: EPOCH, step_id: StepId(0), starts, work, masks: Vec::new(), releases: Vec::new() }
}

fn numbered(steps: Vec<Step>) -> Vec<Step> {
    (0..).zip(steps).map(|(id, step)| Step { step_id: StepId(id), ..step }).collect()
}

type Results = Vec<Vec<SequenceResult>>;

fn one_by_one<M: Model>(engine: &mut Engine<M>, steps: &[Step]) -> Results {
    steps.iter().map(|step| engine.run_step(step.clone()).unwrap().results).collect()
}

/// Each step is begun behind the one before it wherever it may be; also in which that was so.
fn behind<M: Model>(engine: &mut Engine<M>, steps: &[Step]) -> (Results, Vec<bool>) {
    let mut results = Vec::new();
    let mut were_behind = Vec::new();
    let mut before: Option<Begun<M>> = None;
    for step in steps {
        if let Some(first) = before.take_if(|before| !engine.can_begin_behind(before, step)) {
            results.push(engine.finish_step(first).unwrap().results);
        }
        were_behind.push(before.is_some());
        let begun = engine.begin_step(step.clone(), before.as_ref()).unwrap();
        results.extend(before.map(|before| engine.finish_step(before).unwrap().results));
        before = Some(begun);
    }
    results.extend(before.map(|before| engine.finish_step(before).unwrap().results));
    (results, were_behind)
}

/// The same answers one by one on the host, one by one on the device, and one behind the other there.
#[track_caller]
fn check(steps: Vec<Step>, expected_behind: &[bool]) -> Results {
    let steps = numbered(steps);
    let expected = one_by_one(&mut on_host(), &steps);
    assert_eq!(one_by_one(&mut on_device().0, &steps), expected, "one by one on a device");
    let (mut engine, calls) = on_device();
    let (found, were_behind) = behind(&mut engine, &steps);
    assert_eq!(found, expected, "one behind the other");
    assert_eq!(were_behind, expected_behind);
    assert_eq!(engine.steps(), steps.len() as u64);
    // The device knows of no step that has nothing to compute.
    let computed: Vec<bool> = steps
        .iter()
        .zip(expected_behind)
        .filter(|(step, _)| !step.work.is_empty())
        .map(|(_, is)| *is)
        .collect();
    for (number, _) in computed.iter().enumerate().filter(|(_, is_behind)| **is_behind) {
        let at = |call| calls.lock().unwrap().iter().position(|found| *found == call).unwrap();
        let is_before = at(Call::Begin(number)) < at(Call::Answers(number - 1));
        assert!(is_before, "the device's step {number} waited for the one before it");
    }
    expected
}

#[test]
fn tokens_that_nobody_knows_yet_are_fed_and_penalised() {
    let first = plain(
        vec![start(1, greedy(), &[3, 1, 4]), start(2, penalised(), &[5, 9]), start(3, drawn(), &[2])],
        vec![prefill(1, &[3, 1, 4]), prefill(2, &[5, 9]), prefill(3, &[2])],
    );
    let mut steps = vec![first];
    for at in 0..7 {
        let mut work = vec![decode(1, 3 + at), decode(2, 2 + at), decode(3, 1 + at)];
        // Rows stand elsewhere than in the step before.
        work.rotate_left(at as usize % 3);
        steps.push(plain(Vec::new(), work));
    }
    let behind = [false, true, true, true, true, true, true, true];
    let results = check(steps, &behind);
    let tokens = |row: &SequenceResult| match &row.outcome {
        Outcome::Sampled(sampled) => sampled.token,
        Outcome::Computed | Outcome::Failed(_) => panic!("{row:?}"),
    };
    let distinct: std::collections::BTreeSet<_> = results.iter().flatten().map(tokens).collect();
    assert!(distinct.len() > 8, "what is fed hardly shows: {distinct:?}");
}

#[test]
fn sequences_come_go_and_are_left_out_behind_a_step() {
    let chunk = Work { sampling: Sampling::Skip, ..prefill(2, &[7, 7, 7]) };
    let rest = WorkTokens::Ids(vec![TokenId(8), TokenId(9)]);
    let rest = Work { tokens: rest, ..decode(2, 3) };
    let released = |step: Step, sequence| Step { releases: vec![SequenceId(sequence)], ..step };
    let steps = vec![
        plain(vec![start(1, greedy(), &[3])], vec![prefill(1, &[3])]),
        plain(vec![start(2, penalised(), &[7, 7, 7, 8, 9])], vec![decode(1, 1), chunk]),
        plain(Vec::new(), vec![rest]),
        // The first was left out for a step, and is gone while its next token is on its way.
        plain(Vec::new(), vec![decode(2, 5), decode(1, 2)]),
        released(plain(vec![start(3, drawn(), &[6])], vec![prefill(3, &[6]), decode(2, 6)]), 1),
        plain(Vec::new(), vec![decode(2, 7), decode(3, 1)]),
        plain(Vec::new(), Vec::new()),
        plain(Vec::new(), vec![decode(3, 2)]),
    ];
    check(steps, &[false, true, true, true, true, true, true, false]);
}

#[test]
fn a_sequence_that_fails_is_computed_in_vain_and_the_others_are_not_touched() {
    let nothing = TokenMask { sequence: SequenceId(1), allowed: vec![0; 8] };
    let masked = plain(Vec::new(), vec![decode(1, 1), decode(2, 2)]);
    let steps = vec![
        plain(
            vec![start(1, greedy(), &[3]), start(2, greedy(), &[5, 9])],
            vec![prefill(1, &[3]), prefill(2, &[5, 9])],
        ),
        Step { masks: vec![nothing], ..masked },
        plain(Vec::new(), vec![decode(2, 3), decode(1, 2)]),
        plain(Vec::new(), vec![decode(1, 3), decode(2, 4)]),
    ];
    let results = check(steps, &[false, true, true, true]);
    let failures = results.iter().flatten().filter(|row| matches!(row.outcome, Outcome::Failed(_)));
    assert_eq!(failures.map(|row| row.sequence.0).collect::<Vec<_>>(), [1, 1, 1]);
}

#[test]
fn what_the_host_must_know_first_waits() {
    let prompt = [3, 1, 4];
    let first = |sampling| plain(vec![start(1, sampling, &prompt)], vec![prefill(1, &prompt)]);
    let next = plain(Vec::new(), vec![decode(1, 3)]);
    check(vec![first(watermarked()), next.clone()], &[false, false]);
    check(vec![first(SamplingParams { top_logprobs: 40, ..greedy() }), next], &[false, false]);

    let appended = Work { appended: vec![TokenId(5)], ..decode(1, 4) };
    let both =
        WorkTokens::Ids(fake::continuation(&prompt, 1).into_iter().chain([5]).map(TokenId).collect());
    let appended = Work { tokens: both, first_position: Position(3), ..appended };
    check(vec![first(greedy()), plain(Vec::new(), vec![appended])], &[false, false]);

    let known = WorkTokens::Ids(fake::continuation(&prompt, 1).into_iter().map(TokenId).collect());
    let known = Work { tokens: known, ..decode(1, 3) };
    check(vec![first(greedy()), plain(Vec::new(), vec![known])], &[false, false]);

    let again = Step { releases: vec![SequenceId(1)], ..first(greedy()) };
    check(vec![first(greedy()), again], &[false, false]);

    let newcomer = plain(
        vec![start(2, watermarked(), &[8])],
        vec![decode(1, 3), Work { logprobs: ContextLogprobs::Skip, ..prefill(2, &[8]) }],
    );
    check(vec![first(greedy()), newcomer], &[false, false]);
}

#[test]
fn on_the_host_nothing_is_begun_behind_anything() {
    let mut engine = on_host();
    let steps = numbered(vec![
        plain(vec![start(1, greedy(), &[3])], vec![prefill(1, &[3])]),
        plain(Vec::new(), vec![decode(1, 1)]),
    ]);
    let begun = engine.begin_step(steps[0].clone(), None).unwrap();
    assert!(engine.is_computed(&begun).unwrap());
    assert!(!engine.can_begin_behind(&begun, &steps[1]));
}

#[test]
fn the_step_before_one_that_makes_no_sense_is_answered() {
    let (mut engine, _) = on_device();
    let steps = numbered(vec![
        plain(vec![start(1, greedy(), &[3])], vec![prefill(1, &[3])]),
        plain(Vec::new(), vec![decode(1, 2)]),
    ]);
    let begun = engine.begin_step(steps[0].clone(), None).unwrap();
    assert!(engine.can_begin_behind(&begun, &steps[1]));
    let refused = engine.begin_step(steps[1].clone(), Some(&begun));
    assert!(matches!(refused.err(), Some(StepError::Invalid { .. })));
    let output = engine.finish_step(begun).unwrap();
    assert!(matches!(output.results[0].outcome, Outcome::Sampled(_)));
}

#[test]
fn a_step_of_broken_numbers_is_fatal_whatever_is_begun_behind_it() {
    let (mut engine, _) = on_device();
    let steps = numbered(vec![
        plain(
            vec![start(1, greedy(), &[BROKEN_TOKEN]), start(2, greedy(), &[3])],
            vec![prefill(1, &[BROKEN_TOKEN]), prefill(2, &[3])],
        ),
        plain(Vec::new(), vec![decode(1, 1), decode(2, 1)]),
    ]);
    let begun = engine.begin_step(steps[0].clone(), None).unwrap();
    let behind = engine.begin_step(steps[1].clone(), Some(&begun)).unwrap();
    let broken = engine.finish_step(begun);
    assert!(matches!(broken, Err(StepError::Fatal { step: StepId(0), .. })), "{broken:?}");
    drop(behind);
}

#[test]
fn where_numbers_may_overflow_a_sequence_without_any_fails_alone() {
    let group = group();
    let mut model = FakeModel::new(Arc::clone(&group.comm) as Arc<dyn Communicator>);
    model.may_overflow = true;
    let mut engine = configured(model, group);
    let starts = vec![start(1, greedy(), &[BROKEN_TOKEN]), start(2, greedy(), &[3])];
    let work = vec![prefill(1, &[BROKEN_TOKEN]), prefill(2, &[3])];
    let steps = numbered(vec![plain(starts, work), plain(Vec::new(), vec![decode(1, 1), decode(2, 1)])]);
    for results in one_by_one(&mut engine, &steps) {
        let [broken, other] = results.as_slice() else { panic!("{results:?}") };
        let Outcome::Failed(reason) = &broken.outcome else { panic!("{broken:?}") };
        assert!(reason.contains("65504") && reason.contains("bfloat16"), "{reason}");
        assert!(matches!(other.outcome, Outcome::Sampled(_)), "{other:?}");
    }
}
