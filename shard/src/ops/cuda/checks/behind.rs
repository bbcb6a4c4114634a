//! Steps begun behind one that is not finished, against the same steps one by one: the whole engine on a GPU.

use std::sync::Arc;

use lockstep_models::ModelFiles;
use lockstep_process::reports::Progress;
use lockstep_proto::{
    BlockId, Blocks, Bytes, ContextLogprobs, Epoch, Outcome, Position, Sampling, SamplingParams, Seeded,
    Selection, SequenceId, SequenceResult, SequenceStart, Step, StepId, TokenId, TokenMask, Tokens,
    Watermark, Work, WorkTokens,
};

use super::devices::{Checked, broken, on_two_ranks};
use super::models::Folder;
use super::{Checks, Error, Failure, Numbers};
use crate::batch::BLOCK_SIZE;
use crate::comm::{Communicator, Nccl, Solo, Threads, Timed};
use crate::decoder::{Decoder, Dtype, ModelSpec, Precision, Quantize};
use crate::device::Target;
use crate::engine::{Begun, Configuration, Engine, Group};
use crate::load::Loaded;
use crate::ops::cuda::product::Order;
use crate::testing::TinyLlama;

const EPOCH: Epoch = Epoch(1);
const POOL: Blocks = Blocks(256);
const STEPS: u32 = 26;

/// A request, and in which steps it is computed.
struct Script {
    prompt: usize,
    first_step: u32,
    tokens: u32,
    sampling: SamplingParams,
    /// The token of which nothing is left to choose from.
    fails_at: Option<u32>,
}

fn seeded(seed: u64) -> Selection {
    Selection::Seeded(Seeded {
        seed,
        choice: 0,
        temperature: 1.1,
        top_k: 50,
        top_p: 0.95,
        typical_p: 1.0,
        min_p: 0.01,
    })
}

/// Contexts that grow from one recording to the next, sequences that begin and end between others, and all there is to
/// choose tokens by.
fn scripts() -> Vec<Script> {
    let greedy = SamplingParams { top_logprobs: 3, ..SamplingParams::greedy() };
    let penalised = SamplingParams {
        repetition_penalty: 1.4,
        frequency_penalty: 0.5,
        presence_penalty: 0.3,
        ..greedy.clone()
    };
    let drawn = SamplingParams { selection: seeded(7), top_logprobs: 0, ..greedy.clone() };
    let both = SamplingParams { selection: seeded(9), ..penalised.clone() };
    let watermark = Some(Watermark { gamma: 0.5, delta: 1.0 });
    let marked = SamplingParams { watermark, ..greedy.clone() };
    let script = |(prompt, first_step, tokens), sampling: &SamplingParams| Script {
        prompt,
        first_step,
        tokens,
        sampling: sampling.clone(),
        fails_at: None,
    };
    vec![
        script((250, 0, 26), &greedy),
        script((3, 0, 26), &penalised),
        script((16, 2, 20), &drawn),
        script((31, 5, 9), &both),
        Script { fails_at: Some(4), ..script((7, 6, 9), &greedy) },
        script((5, 18, 2), &marked),
        script((64, 21, 5), &both),
    ]
}

/// The token that was sampled last, and one after it.
fn go_on(sequence: SequenceId, position: u32) -> Work {
    Work {
        sequence,
        first_position: Position(position),
        tokens: WorkTokens::LastSampled,
        new_blocks: Vec::new(),
        sampling: Sampling::Sample,
        logprobs: ContextLogprobs::Skip,
        appended: Vec::new(),
    }
}

/// Every step, planned before anything is computed.
fn steps(vocabulary: u32) -> Vec<Step> {
    let mut numbers = Numbers::new(77);
    let scripts = scripts();
    let prompts: Vec<Vec<TokenId>> = scripts
        .iter()
        .map(|script| (0..script.prompt).map(|_| TokenId(numbers.below(vocabulary))).collect())
        .collect();
    let mut next_block = 0;
    let mut all = Vec::new();
    for id in 0..STEPS {
        let mut step = Step {
            epoch: EPOCH,
            step_id: StepId(id.into()),
            starts: Vec::new(),
            work: Vec::new(),
            masks: Vec::new(),
            releases: Vec::new(),
        };
        for ((index, script), prompt) in (0..).zip(&scripts).zip(&prompts) {
            let sequence = SequenceId(index);
            if id == script.first_step + script.tokens {
                step.releases.push(sequence);
            }
            let Some(at) = id.checked_sub(script.first_step).filter(|at| *at < script.tokens) else {
                continue;
            };
            let mut work = go_on(sequence, script.prompt as u32 + at - u32::from(at > 0));
            if at == 0 {
                step.starts.push(SequenceStart {
                    sequence,
                    sampling: script.sampling.clone(),
                    context: prompt.clone(),
                    prompt_tokens: Tokens::of_len(prompt.len()),
                });
                work.tokens = WorkTokens::Ids(prompt.clone());
                work.first_position = Position(0);
                work.logprobs = ContextLogprobs::From(Position(0));
                let last = Tokens(script.prompt as u32 + script.tokens);
                for _ in 0..last.blocks_ceil(BLOCK_SIZE).0 {
                    // Blocks are scattered.
                    work.new_blocks.push(BlockId(next_block * 37 % POOL.0));
                    next_block += 1;
                }
            }
            if script.fails_at == Some(at) {
                step.masks.push(TokenMask { sequence, allowed: vec![0; vocabulary.div_ceil(8) as usize] });
            }
            step.work.push(work);
        }
        // Rows stand elsewhere than in the step before.
        step.work.rotate_left(id as usize % 2);
        all.push(step);
    }
    all
}

/// How steps are put through an engine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    OneByOne,
    Behind,
}

/// What came of every step, and how many were begun behind another.
type Ran = (Vec<Vec<SequenceResult>>, usize);

fn run(files: &ModelFiles, (target, comm): (&Target, Arc<dyn Communicator>), how: How) -> Checked<Ran> {
    let spec = ModelSpec::read(files).map_err(broken)?;
    let comm = Arc::new(Timed::new(comm));
    let of = (&spec, Precision { dtype: Dtype::Bfloat16, quantize: Quantize::AsStored });
    let group = Arc::clone(&comm) as Arc<dyn Communicator>;
    let decoder = Decoder::load_onto((target, group), files, of, Progress::default()).map_err(broken)?;
    let group = Group { comm, epoch: EPOCH, kv_budget: Bytes(u64::MAX) };
    let mut engine = Engine::new(Loaded::new(decoder), group);
    let configuration = Configuration { epoch: EPOCH, blocks: POOL, max_step_tokens: Tokens(512) };
    engine.configure(configuration).map_err(broken)?;
    let (mut results, mut behind) = (Vec::new(), 0);
    let mut before: Option<Begun<Loaded>> = None;
    for step in steps(spec.vocabulary_size()) {
        let may_wait =
            |before: &Begun<Loaded>| how == How::Behind && engine.can_begin_behind(before, &step);
        if let Some(first) = before.take_if(|before| !may_wait(before)) {
            results.push(engine.finish_step(first).map_err(broken)?.results);
        }
        behind += usize::from(before.is_some());
        let begun = engine.begin_step(step, before.as_ref()).map_err(broken)?;
        if let Some(before) = before.replace(begun) {
            results.push(engine.finish_step(before).map_err(broken)?.results);
        }
    }
    if let Some(last) = before {
        results.push(engine.finish_step(last).map_err(broken)?.results);
    }
    Ok((results, behind))
}

/// A model whose contexts are long enough.
fn folder(experts: Option<usize>) -> Checked<Folder> {
    Folder::of(&TinyLlama { max_positions: 2048, experts, ..TinyLlama::new(5) })
}

/// Says where two runs differ, if not in how many steps were begun behind others; and where they tell of other numbers of tokens
/// and failures than they should.
fn compare_results(one_by_one: &Ran, behind: &Ran) -> Checked<()> {
    let bits = |results: &Vec<SequenceResult>| format!("{results:?}");
    let both = one_by_one.0.iter().zip(&behind.0).enumerate();
    for (step, (expected, found)) in both {
        if bits(expected) != bits(found) {
            return Err(broken(format!("step {step}: {expected:?} one by one, {found:?} behind another")));
        }
    }
    let outcomes = || behind.0.iter().flatten().map(|result| &result.outcome);
    let sampled = outcomes().filter(|outcome| matches!(outcome, Outcome::Sampled(_))).count();
    let failed = outcomes().filter(|outcome| matches!(outcome, Outcome::Failed(_))).count();
    let found = (one_by_one.0.len(), behind.0.len(), sampled, failed);
    let expected = (STEPS as usize, STEPS as usize, SAMPLED, FAILED);
    if found == expected { Ok(()) } else { Err(broken(format!("{found:?} in place of {expected:?}"))) }
}

/// How many steps were begun behind another.
fn compare_behind(found: &[usize], expected: &[usize]) -> Checked<Error> {
    if found == expected {
        return Ok(Error::unless(true));
    }
    Err(broken(format!("{found:?} steps were begun behind another in place of {expected:?}")))
}

/// Tokens of all scripts but those the failure leaves none of, and those.
const SAMPLED: usize = 92;
const FAILED: usize = 5;

/// Steps that wait: the first, and those before, with and after the watermark.
const BEHIND: usize = 22;

pub(super) fn check(checks: &mut Checks<'_>, exact: &Target, gpus: usize) {
    for records in [true, false] {
        let recorded = if records { "recorded" } else { "kernel by kernel" };
        let target = Target { records, ..exact.clone() };
        for experts in [None, Some(8)] {
            let with = experts.map_or("", |_| ", with experts");
            let name = format!("steps behind steps and one by one, {recorded}{with}");
            checks.check_or_skip(name, || alone(&target, experts));
        }
    }
    for experts in [None, Some(8)] {
        let with = experts.map_or("", |_| ", with experts");
        checks.check_or_skip(format!("steps behind steps, two ranks by NCCL{with}"), || {
            by_nccl(gpus, experts)
        });
    }
    checks.check_or_skip("steps of two ranks that share a GPU", || through_memory(exact));
}

fn alone(target: &Target, experts: Option<usize>) -> Checked<Error> {
    let folder = folder(experts)?;
    let ran = |how| run(&folder.files(), (target, Arc::new(Solo)), how);
    let (one_by_one, behind) = (ran(How::OneByOne)?, ran(How::Behind)?);
    compare_results(&one_by_one, &behind)?;
    compare_behind(&[one_by_one.1, behind.1], &[0, BEHIND])
}

/// Exact sums: as of one rank.
fn by_nccl(gpus: usize, experts: Option<usize>) -> Checked<Error> {
    let folder = folder(experts)?;
    let files = folder.files();
    let ran = |how| {
        on_two_ranks(gpus, Order::Exact, |target, nccl: Arc<Nccl>| {
            run(&files, (&Target { records: true, ..target.clone() }, nccl), how)
        })
    };
    let (one_by_one, behind) = (ran(How::OneByOne)?, ran(How::Behind)?);
    compare(&one_by_one, &behind, BEHIND)
}

/// Nothing is begun behind anything there: the host is needed in the middle of a step.
fn through_memory(exact: &Target) -> Checked<Error> {
    let folder = folder(None)?;
    let files = folder.files();
    let group = Threads::group(2, super::devices::WATCHDOG).map_err(broken)?;
    let ranks: Vec<Checked<Ran>> = std::thread::scope(|scope| {
        let files = &files;
        let start = |comm: Threads| scope.spawn(move || run(files, (exact, Arc::new(comm)), How::Behind));
        let ranks: Vec<_> = group.into_iter().map(start).collect();
        let ended = |rank: std::thread::ScopedJoinHandle<'_, Checked<Ran>>| {
            rank.join().unwrap_or_else(|_| Err(broken("a rank panicked")))
        };
        ranks.into_iter().map(ended).collect()
    });
    let ranks = ranks.into_iter().collect::<Checked<Vec<Ran>>>()?;
    let alone = run(&files, (exact, Arc::new(Solo)), How::OneByOne)?;
    compare(&[alone, (Vec::new(), 0)], &ranks, 0)
}

/// Two ranks' results against two others'; of the second rank there are none to tell.
fn compare(expected: &[Ran], found: &[Ran], behind: usize) -> Checked<Error> {
    let ([expected, _], [found, other]) = (expected, found) else {
        return Err(Failure::Broken(format!("{} ranks of two", found.len())));
    };
    compare_results(expected, found)?;
    if !other.0.iter().all(Vec::is_empty) {
        return Err(broken("the second rank has results to tell"));
    }
    compare_behind(&[found.1, other.1], &[behind; 2])
}
