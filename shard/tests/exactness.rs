//! The exactness contract, on a random tiny model and on the embedded demo model: a sequence's tokens and
//! log-probabilities have the same bits alone or in a batch of 32, for every chunking of its prompt, with
//! blocks of a prefix reused or not, with tokens sampled one by one or given in runs, on 1, 2 and 4 ranks, on any number of threads, after a replay, and whenever
//! it is repeated.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod ranks;
mod schedule;

use lockstep_models::ModelFiles;
use lockstep_proto::{LogitBias, SamplingParams, Seeded, Selection, TokenId, Watermark};
use lockstep_shard::decoder::{Dtype, Precision, Quantize};
use lockstep_shard::testing::TinyLlama;

use self::ranks::{Pool, Ranks, Transport};
use self::schedule::{Answer, Chunks, Forcing, Plan, Preemption, Prefix, Request, run};

/// Requests of one batch.
const REQUESTS: u32 = 32;

/// A model and the requests put to it, with the answers each gives alone on one rank.
struct Suite {
    files: ModelFiles,
    precision: Precision,
    requests: Vec<Request>,
    alone: Vec<Answer>,
    _folder: Option<tempfile::TempDir>,
}

impl Suite {
    fn tiny(precision: Precision) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tiny = TinyLlama::new(11);
        tiny.write(folder.path()).unwrap();
        let vocabulary = u32::try_from(tiny.vocabulary).unwrap();
        let files = ModelFiles::Folder(folder.path().to_owned());
        Self::new(files, precision, requests(vocabulary), Some(folder))
    }

    fn demo(quantize: Quantize) -> Self {
        let precision = Precision { dtype: Dtype::Bfloat16, quantize };
        Self::new(ModelFiles::EmbeddedDemo, precision, requests(4096), None)
    }

    fn new(
        files: ModelFiles,
        precision: Precision,
        requests: Vec<Request>,
        folder: Option<tempfile::TempDir>,
    ) -> Self {
        let mut ranks = Ranks::start(&files, precision, Transport::Solo);
        let alone = |request: &Request| {
            let mut answers = run(&mut ranks, std::slice::from_ref(request), &Plan::plain());
            answers.pop().unwrap()
        };
        let alone: Vec<Answer> = requests.iter().map(alone).collect();
        let scripts = alone.iter().map(Answer::tokens);
        let requests = requests
            .into_iter()
            .zip(scripts)
            .map(|(request, script)| Request { script, ..request })
            .collect();
        Self { files, precision, requests, alone, _folder: folder }
    }

    /// Runs all requests together as `plan` says, and compares every bit with the answers given alone.
    fn check(&self, transport: Transport, plans: &[Plan]) {
        self.check_on(transport, Pool::Shared, plans);
    }

    fn check_on(&self, transport: Transport, pool: Pool, plans: &[Plan]) {
        let mut ranks = Ranks::start_on(&self.files, self.precision, transport, pool);
        for plan in plans {
            let answers = run(&mut ranks, &self.requests, plan);
            for (index, (answer, alone)) in answers.iter().zip(&self.alone).enumerate() {
                answer.check(alone, &format!("{transport:?} {pool:?} {plan:?} request {index}"));
            }
        }
    }
}

/// Everything weights are held in.
fn precisions() -> [Precision; 5] {
    let quantized = |quantize| Precision { dtype: Dtype::Bfloat16, quantize };
    let [float32, bfloat16, float16] =
        [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16].map(Precision::from);
    [float32, bfloat16, float16, quantized(Quantize::Int8), quantized(Quantize::Int4)]
}

/// Mixed lengths, seeds and parameters; all begin alike, so that a prefix can be reused.
fn requests(vocabulary: u32) -> Vec<Request> {
    let token = |index: u32, salt: u32| {
        let mixed = (index + 1).wrapping_mul(0x9E37_79B9) ^ salt.wrapping_mul(0x85EB_CA6B);
        TokenId((mixed ^ (mixed >> 13)).wrapping_mul(0xC2B2_AE35) % vocabulary)
    };
    let request = |number: u32| {
        let len = [1, 2, 17, 33, 48, 64, 65, 90, 100, 131][number as usize % 10];
        let shared = if number.is_multiple_of(2) { 80 } else { 16 };
        let salt = |index: u32| if index < shared { 0 } else { number + 1 };
        let prompt = (0..len).map(|index| token(index, salt(index))).collect();
        Request {
            prompt,
            new_tokens: 6 + number as usize % 9,
            sampling: sampling(number),
            script: Vec::new(),
        }
    };
    (0..REQUESTS).map(request).collect()
}

fn sampling(number: u32) -> SamplingParams {
    let plain = Seeded {
        seed: u64::from(number) << 33 | 5,
        choice: number % 3,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        typical_p: 1.0,
        min_p: 0.0,
    };
    let selection = match number % 7 {
        0 => Selection::Greedy,
        1 => Selection::Seeded(plain),
        2 => Selection::Seeded(Seeded { temperature: 0.7, top_k: 40, ..plain }),
        3 => Selection::Seeded(Seeded { temperature: 1.3, top_p: 0.9, ..plain }),
        4 => Selection::Seeded(Seeded { typical_p: 0.8, ..plain }),
        5 => Selection::Seeded(Seeded { min_p: 0.02, top_p: 0.95, top_k: 100, ..plain }),
        _ => Selection::Greedy,
    };
    SamplingParams {
        selection,
        repetition_penalty: if number.is_multiple_of(5) { 1.2 } else { 1.0 },
        frequency_penalty: if number % 4 == 1 { 0.5 } else { 0.0 },
        presence_penalty: if number % 4 == 2 { -0.3 } else { 0.0 },
        watermark: (number % 5 == 3).then_some(Watermark::USUAL),
        logit_bias: match number % 6 {
            0 => vec![LogitBias { token: TokenId(9), bias: 2.0 }],
            _ => Vec::new(),
        },
        top_logprobs: number % 4,
        ..SamplingParams::greedy()
    }
}

/// E1 and E2: together, in every chunking. E5: after a replay. E3: with a prefix reused. E6: once more.
fn all_plans() -> Vec<Plan> {
    let chunked = |tokens| Plan { chunks: Chunks::Of(tokens), ..Plan::plain() };
    vec![
        Plan::plain(),
        chunked(1),
        chunked(7),
        chunked(64),
        Plan { preemption: Preemption::EachOnce, ..chunked(7) },
        Plan { preemption: Preemption::EachOnce, ..Plan::plain() },
        Plan { prefix: Prefix::Reused, ..chunked(64) },
        Plan { prefix: Prefix::Reused, preemption: Preemption::EachOnce, ..chunked(7) },
        Plan { forcing: Forcing::Runs, ..Plan::plain() },
        Plan { forcing: Forcing::Runs, ..chunked(2) },
        Plan {
            forcing: Forcing::Runs,
            prefix: Prefix::Reused,
            preemption: Preemption::EachOnce,
            ..chunked(7)
        },
        Plan::plain(),
    ]
}

/// What is left to compare on several ranks, where one plan costs more.
fn some_plans() -> Vec<Plan> {
    vec![
        Plan::plain(),
        Plan {
            chunks: Chunks::Of(7),
            prefix: Prefix::Reused,
            preemption: Preemption::EachOnce,
            forcing: Forcing::Runs,
        },
    ]
}

#[test]
fn a_tiny_model_is_exact_on_one_rank() {
    for precision in precisions() {
        Suite::tiny(precision).check(Transport::Solo, &all_plans());
    }
}

#[test]
fn a_tiny_model_is_exact_on_several_ranks() {
    for precision in precisions() {
        let suite = Suite::tiny(precision);
        for ranks in [2, 4] {
            suite.check(Transport::Threads(ranks), &some_plans());
            suite.check(Transport::SharedMemory(ranks), &all_plans());
        }
        suite.check(Transport::Tcp(2), &some_plans()[1..]);
    }
}

#[test]
fn the_demo_model_is_exact_on_one_rank() {
    Suite::demo(Quantize::None).check(Transport::Solo, &all_plans());
    Suite::demo(Quantize::Int8).check(Transport::Solo, &some_plans());
}

#[test]
fn the_demo_model_is_exact_on_several_ranks() {
    for quantize in [Quantize::None, Quantize::Int4] {
        let suite = Suite::demo(quantize);
        suite.check(Transport::Threads(2), &some_plans()[1..]);
        suite.check(Transport::SharedMemory(4), &some_plans()[1..]);
    }
}

#[test]
fn the_demo_model_is_exact_on_any_number_of_threads() {
    for quantize in [Quantize::None, Quantize::Int8] {
        let suite = Suite::demo(quantize);
        for threads in [1, 3] {
            suite.check_on(Transport::Solo, Pool::Own(threads), &[Plan::plain()]);
            suite.check_on(Transport::SharedMemory(2), Pool::Own(threads), &[Plan::plain()]);
        }
    }
}
