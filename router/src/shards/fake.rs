//! A deterministic group in this process, for tests: its tokens are a function of the context alone, it can
//! be paused between steps, lost and brought back, and it refuses steps that no group could compute.

mod garbage;

use std::collections::{BTreeMap, VecDeque};
use std::hash::Hasher;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use lockstep_proto::{
    Bytes, ContextLogprobs, Epoch, Outcome, Rank, Sampling, SamplingParams, SequenceId, SequenceResult,
    ShardDescription, Step, StepOutput, StepTimings, TokenId, TokenLogprob, TokenLogprobs, Tokens,
    TraceParent, Work, WorkTokens,
};
use tokio::sync::{Semaphore, watch};

use self::garbage::spoil_numbers;
use super::{GroupConfig, ShardError, ShardGroup};

pub use self::garbage::Garbage;

/// Steps a group that is not paused may take: as good as endless.
const UNPAUSED_STEPS: usize = 1 << 40;

/// Steps a group has at most.
const STEPS_AT_ONCE: usize = 2;

/// What each step of a fake group is said to cost.
const TIMINGS: StepTimings = StepTimings { forward_ns: 1000, sample_ns: 100, comm_ns: 0 };

/// What a fake group computes.
#[derive(Clone, Debug)]
pub enum FakeModel {
    /// These tokens after any prompt, then the last of them for ever.
    Script(Vec<TokenId>),
    /// A hash of the whole context.
    Hash,
    /// A hash of the whole context and of everything that decides how tokens are chosen; log-probabilities
    /// differ from token to token.
    Seeded,
}

/// A fake group's size.
#[derive(Clone, Debug)]
pub struct FakeShape {
    /// Entries in a row of logits.
    pub vocabulary_size: u32,
    /// Longest context.
    pub max_positions: Tokens,
    /// Tokens a block holds.
    pub block_size: Tokens,
    /// Blocks it has.
    pub blocks: u32,
}

/// Steers a [`FakeGroup`] from outside.
#[derive(Clone)]
pub struct FakeControl {
    shared: Arc<Shared>,
}

struct Shared {
    /// The incarnation that answers; `None` while none does.
    epoch: watch::Sender<Option<Epoch>>,
    steps: Semaphore,
    /// How many steps it was handed.
    begun: watch::Sender<u64>,
    observed: Mutex<Observed>,
}

#[derive(Default)]
struct Observed {
    last_epoch: u64,
    steps: u64,
    most_steps_at_once: usize,
    failure: Option<String>,
    ignores_masks: bool,
    poison: Option<Poison>,
    garbage: Option<Garbage>,
    seized: Option<mpsc::Receiver<()>>,
}

/// What a poisonous sequence does to a group.
#[derive(Clone, Copy)]
enum Poison {
    /// It is lost with a prompt that has this token.
    Fells(TokenId),
    /// Numbers of a sequence whose prompt has this token are none.
    Breaks(TokenId),
}

/// The group itself.
pub struct FakeGroup {
    model: FakeModel,
    shape: FakeShape,
    shared: Arc<Shared>,
    sequences: BTreeMap<SequenceId, FakeSequence>,
    /// Steps that are not computed, the oldest first.
    begun: VecDeque<Step>,
    /// The incarnation that was configured.
    configured: Option<Epoch>,
}

struct FakeSequence {
    context: Vec<TokenId>,
    prompt: usize,
    computed: usize,
    blocks: usize,
    top: u32,
    sampling: String,
}

impl FakeGroup {
    /// A group that is not there yet; [`FakeControl::come_back`] brings it up.
    pub fn new(model: FakeModel, shape: FakeShape) -> (Self, FakeControl) {
        let shared = Arc::new(Shared {
            epoch: watch::Sender::new(None),
            steps: Semaphore::new(UNPAUSED_STEPS),
            begun: watch::Sender::new(0),
            observed: Mutex::default(),
        });
        let control = FakeControl { shared: Arc::clone(&shared) };
        let group = Self {
            model,
            shape,
            shared,
            sequences: BTreeMap::new(),
            begun: VecDeque::new(),
            configured: None,
        };
        (group, control)
    }
}

impl FakeControl {
    /// Every call fails from here on, steps in flight too.
    pub fn lose(&self) {
        self.shared.epoch.send_replace(None);
    }

    /// A new incarnation answers.
    pub fn come_back(&self) {
        let mut observed = self.shared.observed();
        observed.last_epoch += 1;
        self.shared.epoch.send_replace(Some(Epoch(observed.last_epoch)));
    }

    /// Whether an incarnation answers.
    pub fn is_up(&self) -> bool {
        self.shared.epoch.borrow().is_some()
    }

    /// No step is computed until [`Self::allow_steps`] or [`Self::resume`].
    pub fn pause(&self) {
        self.shared.steps.forget_permits(usize::MAX);
    }

    /// Computes this many steps more.
    pub fn allow_steps(&self, steps: usize) {
        self.shared.steps.add_permits(steps);
    }

    /// Computes without limit again.
    pub fn resume(&self) {
        self.shared.steps.add_permits(UNPAUSED_STEPS);
    }

    /// The first sequence of the next step fails for this reason.
    pub fn fail_next(&self, reason: &str) {
        self.shared.observed().failure = Some(reason.to_owned());
    }

    /// The group is lost with every step that computes a sequence whose prompt has this token.
    pub fn fall_over(&self, poison: TokenId) {
        self.shared.observed().poison = Some(Poison::Fells(poison));
    }

    /// What is computed of a sequence whose prompt has this token is no number.
    pub fn break_numbers(&self, poison: TokenId) {
        self.shared.observed().poison = Some(Poison::Breaks(poison));
    }

    /// The next step is answered with garbage.
    pub fn answer_garbage(&self, garbage: Garbage) {
        self.shared.observed().garbage = Some(garbage);
    }

    /// The next step blocks the thread that asks for it, as a bug would, until what is returned is dropped.
    pub fn seize(&self) -> mpsc::Sender<()> {
        let (release, seized) = mpsc::channel();
        self.shared.observed().seized = Some(seized);
        release
    }

    /// Every token is chosen as if there were no grammars.
    pub fn ignore_masks(&self) {
        self.shared.observed().ignores_masks = true;
    }

    /// Steps computed so far.
    pub fn steps(&self) -> u64 {
        self.shared.observed().steps
    }

    /// The most steps it ever had that were not answered.
    pub fn most_steps_at_once(&self) -> usize {
        self.shared.observed().most_steps_at_once
    }

    /// Waits until so many steps more have been handed over than are computed.
    pub async fn until_begun_ahead(&self, steps: u64) {
        let mut begun = self.shared.begun.subscribe();
        // It ends with the group at the latest.
        let _ = begun.wait_for(|begun| *begun >= self.steps() + steps).await;
    }
}

impl Shared {
    fn observed(&self) -> std::sync::MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self) -> Result<Epoch, ShardError> {
        let epoch = *self.epoch.borrow();
        epoch.ok_or_else(|| ShardError::NoGroup("the fake group is lost".to_owned()))
    }
}

impl ShardGroup for FakeGroup {
    async fn describe(&mut self, _lost: Option<Epoch>) -> Result<Vec<ShardDescription>, ShardError> {
        let epoch = self.shared.present()?;
        let block_bytes = Bytes(1024);
        Ok(vec![ShardDescription {
            rank: Rank(0),
            world_size: 1,
            epoch,
            vocabulary_size: self.shape.vocabulary_size,
            max_positions: self.shape.max_positions,
            block_size: self.shape.block_size,
            block_bytes,
            kv_budget: Bytes(block_bytes.0 * u64::from(self.shape.blocks)),
            weights: Bytes(1 << 20),
            arithmetic: "fake".to_owned(),
        }])
    }

    async fn configure(&mut self, config: GroupConfig) -> Result<(), ShardError> {
        let epoch = self.shared.present()?;
        if config.epoch != epoch {
            return Err(ShardError::NoGroup(format!("configured for {}, this is {epoch}", config.epoch)));
        }
        self.sequences.clear();
        self.begun.clear();
        self.configured = Some(epoch);
        Ok(())
    }

    fn begin(&mut self, step: Step, _traces: &[TraceParent]) -> Result<(), ShardError> {
        let seized = self.shared.observed().seized.take();
        // It ends when the other end is dropped.
        let _ = seized.map(|seized| seized.recv());
        if self.begun.len() >= STEPS_AT_ONCE {
            return Err(ShardError::NoGroup(format!("the fake group has {STEPS_AT_ONCE} steps already")));
        }
        self.begun.push_back(step);
        let most = &mut self.shared.observed().most_steps_at_once;
        *most = self.begun.len().max(*most);
        self.shared.begun.send_modify(|begun| *begun += 1);
        Ok(())
    }

    async fn finish(&mut self) -> Result<StepOutput, ShardError> {
        let shared = Arc::clone(&self.shared);
        let mut epoch = shared.epoch.subscribe();
        tokio::select! {
            biased;
            _ = epoch.wait_for(|current| *current != self.configured) => {
                return Err(ShardError::NoGroup("the fake group was lost".to_owned()));
            }
            permit = shared.steps.acquire() => {
                let permit = permit.map_err(|_| ShardError::NoGroup("the fake group is closed".to_owned()))?;
                permit.forget();
            }
        }
        let oldest = self.begun.pop_front();
        let step = oldest.ok_or_else(|| ShardError::NoGroup("the fake group has no step".to_owned()))?;
        if self.is_poisoned_by(&step) {
            self.shared.epoch.send_replace(None);
            return Err(ShardError::NoGroup("the fake group fell".to_owned()));
        }
        Ok(self.compute(step))
    }

    fn timings(&self) -> &[StepTimings] {
        &[TIMINGS]
    }

    async fn lost(&mut self) -> ShardError {
        let mut epoch = self.shared.epoch.subscribe();
        let _ = epoch.wait_for(|current| *current != self.configured).await;
        ShardError::NoGroup("the fake group was lost".to_owned())
    }
}

impl FakeGroup {
    fn is_poisoned_by(&self, step: &Step) -> bool {
        let Some(Poison::Fells(poison)) = self.shared.observed().poison else { return false };
        let started = |id: SequenceId| step.starts.iter().find(|start| start.sequence == id);
        let has_it = |id: SequenceId| match (self.sequences.get(&id), started(id)) {
            (_, Some(start)) => start.context[..start.prompt_tokens.len()].contains(&poison),
            (Some(known), None) => known.context[..known.prompt].contains(&poison),
            (None, None) => false,
        };
        step.work.iter().any(|work| has_it(work.sequence))
    }

    fn compute(&mut self, step: Step) -> StepOutput {
        for released in &step.releases {
            self.sequences.remove(released);
        }
        for start in step.starts {
            let sequence = FakeSequence {
                prompt: start.prompt_tokens.len(),
                context: start.context,
                computed: 0,
                blocks: 0,
                top: start.sampling.top_logprobs,
                sampling: format!("{:?}", SamplingParams { top_logprobs: 0, ..start.sampling }),
            };
            self.sequences.insert(start.sequence, sequence);
        }
        let mut failure = {
            let mut observed = self.shared.observed();
            observed.steps += 1;
            observed.failure.take()
        };
        let obeys = !self.shared.observed().ignores_masks;
        let mut masks: BTreeMap<SequenceId, Vec<u8>> =
            step.masks.into_iter().map(|mask| (mask.sequence, mask.allowed)).collect();
        let mut results = Vec::with_capacity(step.work.len());
        for work in step.work {
            let sequence = work.sequence;
            let mask = masks.remove(&sequence);
            let outcome = match failure.take() {
                Some(reason) => Err(reason),
                None => self.chunk(work, mask.filter(|_| obeys)),
            };
            let (prompt, outcome) = outcome.unwrap_or_else(|reason| (Vec::new(), Outcome::Failed(reason)));
            results.push(SequenceResult { sequence, prompt, outcome });
        }
        assert!(masks.is_empty(), "masks of sequences without work");
        let mut output = StepOutput { epoch: step.epoch, step_id: step.step_id, results, timings: TIMINGS };
        self.break_poisonous(&mut output);
        if let Some(garbage) = self.shared.observed().garbage.take() {
            garbage.spoil(&mut output);
        }
        output
    }

    fn break_poisonous(&self, output: &mut StepOutput) {
        let Some(Poison::Breaks(poison)) = self.shared.observed().poison else { return };
        for result in &mut output.results {
            let known = self.sequences.get(&result.sequence);
            if known.is_some_and(|known| known.context[..known.prompt].contains(&poison)) {
                spoil_numbers(result);
            }
        }
    }

    fn chunk(
        &mut self,
        work: Work,
        mask: Option<Vec<u8>>,
    ) -> Result<(Vec<TokenLogprobs>, Outcome), String> {
        let model = self.model.clone();
        let vocabulary = self.shape.vocabulary_size;
        let sequence =
            self.sequences.get_mut(&work.sequence).ok_or("work for a sequence that never started")?;
        let first = work.first_position.index();
        let count = work.tokens.count().len();
        if sequence.blocks == 0 {
            // What comes before the first chunk is in blocks of the prefix cache.
            sequence.computed = first;
        }
        sequence.blocks += work.new_blocks.len();
        sequence.context.extend(&work.appended);
        let end = first + count;
        if sequence.computed != first || end > sequence.context.len() {
            return Err(format!("work for {first}..{end}, computed {}", sequence.computed));
        }
        if sequence.blocks * self.shape.block_size.len() < end {
            return Err(format!("{} blocks for {end} tokens", sequence.blocks));
        }
        if let WorkTokens::Ids(ids) = &work.tokens
            && sequence.context[first..end] != ids[..]
        {
            return Err(format!("other tokens than the context's at {first}..{end}"));
        }
        if let Some(unknown) = sequence.context[first..end].iter().find(|token| token.0 >= vocabulary) {
            return Err(format!("token {unknown}, ids end before {vocabulary}"));
        }
        sequence.computed = end;
        let prompt = match work.logprobs {
            ContextLogprobs::Skip => Vec::new(),
            ContextLogprobs::From(from) => sequence.logprobs(first.max(from.index())..end, vocabulary),
        };
        if work.sampling == Sampling::Skip {
            return Ok((prompt, Outcome::Computed));
        }
        let mut token = match &model {
            FakeModel::Script(_) | FakeModel::Hash => {
                model.next(&sequence.context[..end], sequence.prompt, vocabulary)
            }
            FakeModel::Seeded => drawn(&sequence.context[..end], &sequence.sampling, vocabulary),
        };
        if let Some(mask) = mask {
            token = first_allowed(token, &mask, vocabulary)?;
        }
        if sequence.context.len() == end {
            sequence.context.push(token);
        }
        let mut sampled = logprobs(token, sequence.top, vocabulary);
        if matches!(model, FakeModel::Seeded) {
            sampled.logprob -= (token.0 % 16) as f32 / 16.0;
        }
        Ok((prompt, Outcome::Sampled(sampled)))
    }
}

impl FakeSequence {
    /// Of the known tokens that follow `positions`.
    fn logprobs(&self, positions: Range<usize>, vocabulary: u32) -> Vec<TokenLogprobs> {
        let following = positions.filter_map(|position| self.context.get(position + 1));
        following.map(|token| logprobs(*token, self.top, vocabulary)).collect()
    }
}

impl FakeModel {
    fn next(&self, context: &[TokenId], prompt: usize, vocabulary: u32) -> TokenId {
        match self {
            Self::Script(tokens) => {
                let place = context.len().saturating_sub(prompt);
                tokens.get(place).or(tokens.last()).copied().unwrap_or(TokenId(0))
            }
            Self::Hash | Self::Seeded => drawn(context, "", vocabulary),
        }
    }
}

/// A hash of the context and of how tokens are chosen.
fn drawn(context: &[TokenId], sampling: &str, vocabulary: u32) -> TokenId {
    let mut hasher = std::hash::DefaultHasher::new();
    context.iter().for_each(|token| hasher.write_u32(token.0));
    hasher.write(sampling.as_bytes());
    TokenId(u32::try_from(hasher.finish() % u64::from(vocabulary.max(1))).unwrap_or(0))
}

/// The token itself or the next one, around the end of the vocabulary, that the mask allows.
fn first_allowed(token: TokenId, mask: &[u8], vocabulary: u32) -> Result<TokenId, String> {
    if mask.len() < (vocabulary as usize).div_ceil(8) {
        return Err(format!("a mask of {} bytes for {vocabulary} tokens", mask.len()));
    }
    let is_allowed = |id: u32| mask[id as usize / 8] >> (id % 8) & 1 == 1;
    let mut ids = (token.0..vocabulary).chain(0..token.0);
    ids.find(|id| is_allowed(*id)).map(TokenId).ok_or_else(|| "the mask allows no token".to_owned())
}

/// Halves of probability: the token itself first, then its neighbours.
fn logprobs(token: TokenId, top: u32, vocabulary: u32) -> TokenLogprobs {
    let logprob = -0.5;
    let rival = |place: u32| TokenLogprob {
        token: TokenId((token.0 + place) % vocabulary.max(1)),
        logprob: logprob - f32::from(u8::try_from(place).unwrap_or(u8::MAX)),
    };
    TokenLogprobs { token, logprob, top: (0..top).map(rival).collect() }
}
