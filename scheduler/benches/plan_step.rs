//! What the scheduler adds to a step: `plan_step` and `on_step_done` with 1, 64 and 1,024 sequences, and a
//! look-up in the prefix tree, with one replica and with two. Prints medians; judges nothing.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::time::{Duration, Instant};

use lockstep_proto::{
    Blocks, Epoch, Outcome, PromptLogprobs, ReplicaId, Sampling, SamplingParams, SequenceId,
    SequenceResult, Step, StepOutput, StepTimings, TokenId, TokenLogprobs, Tokens,
};
use lockstep_scheduler::{
    CacheSalt, CacheShape, Limits, PrefixCaching, RunAhead, Scheduler, Service, Submission,
};

const PROMPT_TOKENS: u32 = 200;
const STEPS: usize = 500;
const ONLY: ReplicaId = ReplicaId(0);

fn main() {
    for sequences in [1, 64, 1024] {
        decode(sequences);
    }
    admission(1);
    admission(2);
}

/// Steps in which every sequence gets one token.
fn decode(sequences: u32) {
    let mut scheduler = scheduler(sequences);
    for sequence in 0..sequences {
        let prompt = (0..PROMPT_TOKENS).map(|index| TokenId(sequence * 1_000 + index)).collect();
        submit(&mut scheduler, u64::from(sequence), prompt);
    }
    let (mut plan, mut done) = (Vec::new(), Vec::new());
    while plan.len() < STEPS {
        let (step, planned) = timed(|| scheduler.plan_step(ONLY, Instant::now()));
        let output = answer(&step.expect("sequences run"));
        let (events, taken_in) = timed(|| scheduler.on_step_done(ONLY, &output, Instant::now()));
        if events.expect("it answers the step").len() == sequences as usize {
            plan.push(planned);
            done.push(taken_in);
        }
    }
    println!("{sequences:5} sequences: plan_step {:?}, on_step_done {:?}", median(plan), median(done));
}

/// A step that admits one sequence of 1,000 tokens, all but the last block of them cached. Where there are several
/// replicas the others are asked what they have of it.
fn admission(replicas: u32) {
    let mut scheduler = scheduler(1);
    for replica in 1..replicas {
        let cache = CacheShape { blocks: Blocks(1_064), block_size: Tokens(16) };
        assert!(scheduler.on_group_ready(ReplicaId(replica), Epoch(1), cache).is_empty());
    }
    let prompt: Vec<_> = (0..1_000).map(TokenId).collect();
    let mut times = Vec::new();
    for sequence in 0..STEPS as u64 {
        submit(&mut scheduler, sequence, prompt.clone());
        let (step, time) = timed(|| scheduler.plan_step(ONLY, Instant::now()));
        times.push(time);
        let output = answer(&step.expect("a sequence waits"));
        scheduler.on_step_done(ONLY, &output, Instant::now()).expect("it answers the step");
        scheduler.on_cancel(SequenceId(sequence));
    }
    println!("admission of 1,000 cached tokens, {replicas} replicas: plan_step {:?}", median(times));
}

fn scheduler(sequences: u32) -> Scheduler {
    let mut scheduler = Scheduler::new(Limits {
        max_requests: sequences,
        max_queue_tokens: Tokens(u32::MAX),
        max_running: sequences,
        max_step_tokens: Tokens(4096),
        max_total: Tokens(8192),
        prefix_cache: PrefixCaching::Enabled,
    });
    let blocks = Blocks(sequences * 64 + 1_000);
    let ended = scheduler.on_group_ready(ONLY, Epoch(1), CacheShape { blocks, block_size: Tokens(16) });
    assert!(ended.is_empty());
    scheduler
}

fn submit(scheduler: &mut Scheduler, sequence: u64, prompt: Vec<TokenId>) {
    let submission = Submission {
        prompt,
        forced: Vec::new(),
        sampling: SamplingParams::greedy(),
        max_new_tokens: Tokens(4_000),
        stop_tokens: vec![TokenId(2)],
        prompt_logprobs: PromptLogprobs::Skip,
        cache_salt: CacheSalt(0),
        run_ahead: RunAhead::Allowed,
        service: Service::default(),
    };
    scheduler.on_submit(SequenceId(sequence), submission, Instant::now()).expect("it fits");
}

fn answer(step: &Step) -> StepOutput {
    let results = step.work.iter().map(|work| SequenceResult {
        sequence: work.sequence,
        prompt: Vec::new(),
        outcome: match work.sampling {
            Sampling::Skip => Outcome::Computed,
            Sampling::Sample => {
                Outcome::Sampled(TokenLogprobs { token: TokenId(3), logprob: 0.0, top: Vec::new() })
            }
        },
    });
    StepOutput {
        epoch: step.epoch,
        step_id: step.step_id,
        results: results.collect(),
        timings: StepTimings::default(),
    }
}

fn timed<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = call();
    (value, start.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
