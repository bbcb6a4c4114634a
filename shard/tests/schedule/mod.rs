//! A plain scheduler: enough to put sequences through an engine in every way the contract names.

use std::collections::{BTreeMap, VecDeque};

use lockstep_proto::{
    BlockId, ContextLogprobs, Outcome, Position, Sampling, SamplingParams, SequenceId, SequenceResult,
    SequenceStart, Step, StepId, TokenId, TokenLogprobs, Tokens, Work, WorkTokens,
};
use lockstep_shard::batch::BLOCK_SIZE;

use crate::ranks::{BLOCKS, EPOCH, Ranks};

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) new_tokens: usize,
    pub(crate) sampling: SamplingParams,
    /// What it is answered, where runs of it are forced.
    pub(crate) script: Vec<TokenId>,
}

/// How requests are put through the engine.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) chunks: Chunks,
    pub(crate) preemption: Preemption,
    pub(crate) prefix: Prefix,
    pub(crate) forcing: Forcing,
}

/// Whether tokens are given that would have been sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forcing {
    Never,
    /// Runs of several lengths.
    Runs,
}

/// How many tokens of a context one step computes at most.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chunks {
    Whole,
    Of(usize),
}

/// Whether sequences lose their blocks and are replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preemption {
    Never,
    /// Each sequence once, at a point of its own: some in the prompt, most after some tokens.
    EachOnce,
}

/// Whether a sequence begins with blocks another has computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    Computed,
    /// The longest prefix of whole blocks that an earlier sequence shares.
    Reused,
}

impl Plan {
    /// Whole prompts, nothing preempted, nothing reused.
    pub(crate) fn plain() -> Self {
        Self {
            chunks: Chunks::Whole,
            preemption: Preemption::Never,
            prefix: Prefix::Computed,
            forcing: Forcing::Never,
        }
    }
}

/// What a request was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// For each position of the prompt that was computed the first time, of the token after it.
    prompt: Vec<(usize, TokenLogprobs)>,
    output: Vec<TokenLogprobs>,
}

impl Answer {
    /// The tokens it says.
    pub(crate) fn tokens(&self) -> Vec<TokenId> {
        self.output.iter().map(|token| token.token).collect()
    }

    /// Compares every bit with `expected`, which has all of the prompt.
    pub(crate) fn check(&self, expected: &Self, what: &str) {
        let tokens = |answer: &Self| answer.output.iter().map(|token| token.token.0).collect::<Vec<_>>();
        assert_eq!(tokens(self), tokens(expected), "{what}: tokens");
        let outputs = self.output.iter().zip(&expected.output).enumerate();
        for (index, (found, expected)) in outputs {
            assert_eq!(bits(found), bits(expected), "{what}: log-probabilities of output {index}");
        }
        for (position, found) in &self.prompt {
            let (_, expected) = &expected.prompt[*position];
            assert_eq!(bits(found), bits(expected), "{what}: log-probabilities after position {position}");
        }
    }
}

fn bits(token: &TokenLogprobs) -> Vec<(u32, u32)> {
    let own = (token.token.0, token.logprob.to_bits());
    std::iter::once(own).chain(token.top.iter().map(|top| (top.token.0, top.logprob.to_bits()))).collect()
}

/// Answers all of `requests`, together.
pub(crate) fn run(ranks: &mut Ranks, requests: &[Request], plan: &Plan) -> Vec<Answer> {
    let mut schedule = Schedule::new(requests, plan);
    let mut step_id = 0;
    while !schedule.is_done() {
        let step = schedule.plan_step(StepId(step_id));
        let output = ranks.run(&step);
        assert_eq!(output.results.len(), step.work.len());
        for (work, result) in step.work.iter().zip(output.results) {
            schedule.on_result(work, result);
        }
        step_id += 1;
    }
    schedule.check_plan_was_followed();
    schedule.sequences.into_iter().map(|sequence| sequence.answer).collect()
}

struct Schedule<'a> {
    plan: &'a Plan,
    sequences: Vec<Sequence<'a>>,
    free: VecDeque<BlockId>,
    /// Whole blocks that were computed, under all tokens up to their end. Empty where nothing is reused.
    cached: BTreeMap<Vec<TokenId>, BlockId>,
    /// Starts behind a cached prefix.
    reuses: usize,
    /// Tokens that were given.
    forced: usize,
}

struct Sequence<'a> {
    request: &'a Request,
    context: Vec<TokenId>,
    computed: usize,
    blocks: Vec<BlockId>,
    /// How many of `blocks` the engine knows.
    announced: usize,
    /// Tokens at the end of `context` that the engine has not been given.
    appended: Vec<TokenId>,
    state: State,
    preemption: Preemption,
    answer: Answer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be started, for the first time or again.
    Waiting,
    Running,
    Done,
}

impl<'a> Schedule<'a> {
    fn new(requests: &'a [Request], plan: &'a Plan) -> Self {
        let sequence = |request: &'a Request| Sequence {
            request,
            context: request.prompt.clone(),
            computed: 0,
            blocks: Vec::new(),
            announced: 0,
            appended: Vec::new(),
            state: State::Waiting,
            preemption: plan.preemption,
            answer: Answer { prompt: Vec::new(), output: Vec::new() },
        };
        // Scattered, so that neighbours in a table are not neighbours in the pool.
        let free = (0..BLOCKS.0).map(|index| BlockId(index * 389 % BLOCKS.0)).collect();
        Self {
            plan,
            sequences: requests.iter().map(sequence).collect(),
            free,
            cached: BTreeMap::new(),
            reuses: 0,
            forced: 0,
        }
    }

    /// A comparison of two runs that are alike would show nothing.
    fn check_plan_was_followed(&self) {
        assert!(self.sequences.iter().all(|sequence| sequence.preemption == Preemption::Never));
        assert_eq!(self.reuses > 0, self.plan.prefix == Prefix::Reused);
        assert_eq!(self.forced > 0, self.plan.forcing == Forcing::Runs);
    }

    fn is_done(&self) -> bool {
        self.sequences.iter().all(|sequence| sequence.state == State::Done)
    }

    fn plan_step(&mut self, step_id: StepId) -> Step {
        let mut step = Step {
            epoch: EPOCH,
            step_id,
            starts: Vec::new(),
            work: Vec::new(),
            masks: Vec::new(),
            releases: Vec::new(),
        };
        // Sequences join one after another, so that the batch is never the same twice.
        let joined = self.sequences.len().min(4 * (step_id.0 as usize + 1));
        for index in 0..joined {
            self.preempt_if_due(index, &mut step);
            if self.sequences[index].state == State::Waiting {
                self.start(index, &mut step);
            }
            if self.sequences[index].state == State::Running {
                step.work.push(self.work(index));
            }
        }
        step
    }

    fn preempt_if_due(&mut self, index: usize, step: &mut Step) {
        let sequence = &mut self.sequences[index];
        let due = match index % 4 {
            0 => sequence.computed > 0,
            _ => sequence.context.len() - sequence.request.prompt.len() > index % 5,
        };
        if sequence.state == State::Running && sequence.preemption == Preemption::EachOnce && due {
            sequence.preemption = Preemption::Never;
            sequence.state = State::Waiting;
            self.release(index);
            step.releases.push(id(index));
        }
    }

    fn start(&mut self, index: usize, step: &mut Step) {
        let sequence = &mut self.sequences[index];
        sequence.state = State::Running;
        sequence.appended.clear();
        // One token at least is computed, for its logits.
        let owed = sequence.untold_from().map_or(usize::MAX, |position| position.index());
        let whole = (sequence.context.len() - 1).min(owed) / BLOCK_SIZE.len();
        let prefix = |blocks: usize| self.cached.get(&sequence.context[..blocks * BLOCK_SIZE.len()]);
        sequence.blocks = (1..=whole).map_while(prefix).copied().collect();
        sequence.computed = sequence.blocks.len() * BLOCK_SIZE.len();
        self.reuses += usize::from(sequence.computed > 0);
        step.starts.push(SequenceStart {
            sequence: id(index),
            sampling: sequence.request.sampling.clone(),
            context: sequence.context.clone(),
            prompt_tokens: Tokens::of_len(sequence.request.prompt.len()),
        });
    }

    fn work(&mut self, index: usize) -> Work {
        let sequence = &mut self.sequences[index];
        let left = sequence.context.len() - sequence.computed;
        let count = match self.plan.chunks {
            Chunks::Whole => left,
            Chunks::Of(most) => left.min(most),
        };
        let end = sequence.computed + count;
        while sequence.blocks.len() < Tokens::of_len(end).blocks_ceil(BLOCK_SIZE).len() {
            sequence.blocks.push(self.free.pop_front().unwrap());
        }
        let new_blocks = sequence.blocks[sequence.announced..].to_vec();
        sequence.announced = sequence.blocks.len();
        let emitted = sequence.context.len() > sequence.request.prompt.len();
        let tokens = match left == 1 && emitted && index.is_multiple_of(2) {
            true => WorkTokens::LastSampled,
            false => WorkTokens::Ids(sequence.context[sequence.computed..end].to_vec()),
        };
        Work {
            sequence: id(index),
            first_position: Position(u32::try_from(sequence.computed).unwrap()),
            tokens,
            new_blocks,
            sampling: if end == sequence.context.len() { Sampling::Sample } else { Sampling::Skip },
            logprobs: match sequence.untold_from() {
                Some(position) => ContextLogprobs::From(position),
                None if emitted => ContextLogprobs::Skip,
                None => ContextLogprobs::From(Position(0)),
            },
            appended: std::mem::take(&mut sequence.appended),
        }
    }

    fn on_result(&mut self, work: &Work, result: SequenceResult) {
        assert_eq!(work.sequence, result.sequence);
        let index = usize::try_from(work.sequence.0).unwrap();
        let sequence = &mut self.sequences[index];
        sequence.computed += work.tokens.count().len();
        let from = match work.logprobs {
            ContextLogprobs::Skip => 0,
            ContextLogprobs::From(position) => position.index().max(work.first_position.index()),
        };
        for (position, token) in (from..).zip(result.prompt) {
            if position + 1 < sequence.request.prompt.len() {
                sequence.answer.prompt.push((position, token));
            } else {
                assert_eq!(position + 1, sequence.request.prompt.len() + sequence.answer.output.len());
                sequence.answer.output.push(token);
            }
        }
        if self.plan.prefix == Prefix::Reused {
            for (number, block) in sequence.blocks.iter().enumerate() {
                let end = (number + 1) * BLOCK_SIZE.len();
                if end <= sequence.computed {
                    self.cached.entry(sequence.context[..end].to_vec()).or_insert(*block);
                }
            }
        }
        match result.outcome {
            Outcome::Computed => assert_eq!(work.sampling, Sampling::Skip),
            Outcome::Failed(reason) => panic!("sequence {index}: {reason}"),
            Outcome::Sampled(token) => {
                sequence.context.push(token.token);
                sequence.answer.output.push(token);
                if self.plan.forcing == Forcing::Runs {
                    self.forced += sequence.force();
                }
            }
        }
        if sequence.answer.output.len() == sequence.request.new_tokens {
            sequence.state = State::Done;
            self.release(index);
        }
    }

    /// Blocks that may be reused stay; the pool holds those of every sequence twice.
    fn release(&mut self, index: usize) {
        let sequence = &mut self.sequences[index];
        let blocks = std::mem::take(&mut sequence.blocks);
        (sequence.computed, sequence.announced) = (0, 0);
        match self.plan.prefix {
            Prefix::Computed => self.free.extend(blocks),
            Prefix::Reused => {}
        }
    }
}

impl Sequence<'_> {
    /// The position before the first token that was given and whose log-probability is owed.
    fn untold_from(&self) -> Option<Position> {
        let told = self.request.prompt.len() + self.answer.output.len();
        (self.context.len() > told).then(|| Position(u32::try_from(told - 1).unwrap()))
    }

    /// Gives the next run of its script, but never the last token. Returns how long it is.
    fn force(&mut self) -> usize {
        let next = self.answer.output.len();
        let most = (self.request.new_tokens - 1).saturating_sub(next);
        let run = [0, 3, 1, 5, 2][(next + self.request.prompt.len()) % 5].min(most);
        let run = &self.request.script[next..][..run];
        self.context.extend(run);
        self.appended.extend(run);
        run.len()
    }
}

fn id(index: usize) -> SequenceId {
    SequenceId(index as u64)
}
