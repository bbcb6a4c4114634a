//! What a step takes of a process's memory stays under what the plan says. It is the only test of its program:
//! the peak is the process's.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[expect(dead_code, reason = "this test takes what it needs of it")]
mod ranks;

use lockstep_proto::{
    BlockId, Bytes, ContextLogprobs, Outcome, Position, Sampling, SamplingParams, SequenceId,
    SequenceStart, Step, StepId, TokenId, TokenLogprobs, Tokens, Work, WorkTokens,
};
use lockstep_shard::batch::BLOCK_SIZE;
use lockstep_shard::decoder::{Dtype, ModelSpec};
use lockstep_shard::plan::MemoryPlan;
use lockstep_shard::testing::TinyLlama;

use self::ranks::{EPOCH, Ranks, Transport};

/// Tokens of the prompt whose memory is watched.
const ROWS: Tokens = Tokens(1500);
/// Beside the plan: stacks and scratch space of threads, the step's messages, what the allocator keeps for
/// itself. More than all of these together take.
const SLACK: Bytes = Bytes(24 << 20);

/// A step of one prompt from position 0 on, with the log-probabilities of its tokens and one token sampled.
fn prefill(id: u64, tokens: Tokens) -> Step {
    let sequence = SequenceId(id);
    // Few distinct tokens, so that the embedding table's pages stay in the file.
    let context: Vec<TokenId> = (0..tokens.0).map(|at| TokenId(at * 7 % 50)).collect();
    let sampling = SamplingParams { top_logprobs: 2, ..SamplingParams::greedy() };
    let blocks = 0..tokens.blocks_ceil(BLOCK_SIZE).0;
    let work = Work {
        sequence,
        first_position: Position(0),
        tokens: WorkTokens::Ids(context.clone()),
        new_blocks: blocks.map(BlockId).collect(),
        sampling: Sampling::Sample,
        logprobs: ContextLogprobs::From(Position(0)),
        appended: Vec::new(),
    };
    Step {
        epoch: EPOCH,
        step_id: StepId(id),
        starts: vec![SequenceStart { sequence, sampling, context, prompt_tokens: tokens }],
        work: vec![work],
        masks: Vec::new(),
        releases: Vec::new(),
    }
}

/// The step's log-probabilities, the sampled token's last, as bits.
fn run(ranks: &mut Ranks, step: &Step) -> Vec<(TokenId, u32)> {
    let mut output = ranks.run(step);
    let result = output.results.remove(0);
    let Outcome::Sampled(sampled) = result.outcome else { panic!("nothing was sampled") };
    let bits = |found: &TokenLogprobs| (found.token, found.logprob.to_bits());
    result.prompt.iter().chain([&sampled]).map(bits).collect()
}

/// A line of /proc/self/status.
fn status(name: &str) -> Bytes {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let kibibytes: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
    Bytes(kibibytes << 10)
}

#[test]
fn a_long_prompt_with_log_probabilities_stays_within_the_plan() {
    let model = TinyLlama {
        hidden: 64,
        intermediate: 2048,
        vocabulary: 100_000,
        max_positions: ROWS.len() + 1,
        ..TinyLlama::new(23)
    };
    // As a shard's process does.
    lockstep_shard::keep_freed_memory();
    let folder = tempfile::tempdir().unwrap();
    model.write(folder.path()).unwrap();
    let files = lockstep_models::ModelFiles::Folder(folder.path().to_owned());
    let spec = ModelSpec::read(&files).unwrap();
    let mut alone = None;
    for world_size in [1, 2] {
        let plan = MemoryPlan::new(&spec, Dtype::Bfloat16, world_size).unwrap();
        let mut ranks = Ranks::start(&files, Dtype::Bfloat16, Transport::Threads(world_size));
        // Threads and their stacks are there afterwards, and the pages of the head.
        run(&mut ranks, &prefill(0, Tokens(20)));
        // Forgets the peak of loading.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS");
        let found = run(&mut ranks, &prefill(1, ROWS));
        let taken = status("VmHWM").saturating_sub(before);
        let rank = plan.activations(ROWS) + plan.kv_for(ROWS.blocks_ceil(BLOCK_SIZE));
        let planned = Bytes(rank.0 * u64::from(world_size)) + SLACK;
        eprintln!("{world_size} ranks: {taken} taken, {planned} planned");
        assert!(taken <= planned, "{world_size} ranks: {taken} taken, {planned} planned");
        // Logits of all rows at once would not have fit.
        let all_logits = Bytes(ROWS.len() as u64 * model.vocabulary as u64 * 4);
        assert!(planned < all_logits, "{planned} planned, {all_logits} of logits");
        assert_eq!(found.len(), ROWS.len());
        assert_eq!(*alone.get_or_insert(found.clone()), found, "{world_size} ranks");
    }
}
