//! The shards: they keep what a real group's blocks would hold and read it from there, so that a block that is handed
//! out twice, a wrong position or a lost context shows. They outlive the router, and fail in every way the plan has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_proto::{
    BlockId, Bytes, Epoch, Outcome, Rank, Sampling, Selection, SequenceId, SequenceResult, SequenceStart,
    ShardDescription, Step, StepOutput, StepTimings, TokenId, TokenLogprobs, Tokens, TraceParent, Work,
    WorkTokens,
};
use lockstep_router::shards::{GroupConfig, ShardError, ShardGroup};
use lockstep_router::testing::VOCABULARY_SIZE;
use tokio::time::Instant;

use crate::alone::Kv;
use crate::in_flight::{InFlight, Sent};
use crate::plan::{BLOCK_TOKENS, BREAKS, FAILS, FELLS, MAX_TOKENS};
use crate::world::{Shared, World, lock};

/// What a rank's call is given at most.
const CALL_LIMIT: Duration = Duration::from_secs(10);
const BLOCK_BYTES: u64 = 1024;
/// Why a sequence cannot go on.
const FAILURE: &str = "it was told to";
/// What the trace says of a step that is sent before the one before it is answered.
pub(crate) const AHEAD: &str = ", ahead";

/// The group as the world has it.
pub(crate) struct Shards {
    epoch: u64,
    /// Until then it loads.
    up_at: Duration,
    /// Since when the router has had no group; absent while it has.
    away_since: Option<Duration>,
    /// The longest that this router has had none.
    longest_away: Duration,
    in_flight: InFlight,
    sequences: BTreeMap<SequenceId, Started>,
    slots: Vec<Option<Kv>>,
    /// Answers that were given before.
    given: Vec<StepOutput>,
    suspicions: BTreeMap<SequenceId, Suspicion>,
    /// Those that have the loss of this incarnation on their account already.
    blamed: BTreeSet<SequenceId>,
    /// Who asked for each sequence.
    clients: BTreeMap<SequenceId, usize>,
}

struct Started {
    context: Vec<TokenId>,
    prompt: usize,
    blocks: Vec<BlockId>,
    computed: usize,
    seed: Option<u64>,
    /// Whether it cannot go on. Work that was planned before the router knew is answered likewise.
    has_failed: bool,
}

/// How often in a row a sequence was computed when its group was lost.
#[derive(Default)]
struct Suspicion {
    furthest: usize,
    losses: u32,
}

/// The router's end of it.
pub(crate) struct Link {
    world: Shared,
}

/// What becomes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    Slow,
    Lost,
    Hangs,
    Garbage(Garbage),
}

/// An answer that no group gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Garbage {
    /// One that was given before: late, or a second time.
    Again,
    OtherEpoch,
    OtherStep,
    Missing,
    Doubled,
    OtherSequence,
    NoToken,
    UnknownToken,
    NotANumber,
}

const GARBAGE: [Garbage; 9] = [
    Garbage::Again,
    Garbage::OtherEpoch,
    Garbage::OtherStep,
    Garbage::Missing,
    Garbage::Doubled,
    Garbage::OtherSequence,
    Garbage::NoToken,
    Garbage::UnknownToken,
    Garbage::NotANumber,
];

impl Shards {
    pub(crate) fn new() -> Self {
        Self {
            epoch: 1,
            up_at: Duration::ZERO,
            away_since: Some(Duration::ZERO),
            longest_away: Duration::ZERO,
            in_flight: InFlight::default(),
            sequences: BTreeMap::new(),
            slots: Vec::new(),
            given: Vec::new(),
            suspicions: BTreeMap::new(),
            blamed: BTreeSet::new(),
            clients: BTreeMap::new(),
        }
    }

    /// The next router knows nothing of the sequences of this one.
    pub(crate) fn on_router_gone(&mut self, now: Duration) {
        self.in_flight.clear();
        self.suspicions.clear();
        self.blamed.clear();
        self.clients.clear();
        self.given.clear();
        self.away_since = Some(now);
        self.longest_away = Duration::ZERO;
    }

    /// The longest that this router has had no group, up to now.
    pub(crate) fn longest_away(&self, now: Duration) -> Duration {
        let away = self.away_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        self.longest_away.max(away)
    }

    /// This incarnation ends; the next one loads until `up_at`.
    pub(crate) fn restart(&mut self, (now, up_at): (Duration, Duration)) {
        self.epoch += 1;
        self.up_at = up_at;
        self.away_since.get_or_insert(now);
        self.in_flight.clear();
        self.blamed.clear();
        self.sequences.clear();
    }

    /// This incarnation is lost with all that is computed: one loss each, in however many steps.
    fn note_losses(&mut self) -> Vec<usize> {
        let mut too_often = Vec::new();
        for sequence in self.in_flight.sequences() {
            if !self.blamed.insert(sequence) {
                continue;
            }
            let suspicion = self.suspicions.entry(sequence).or_default();
            suspicion.losses += 1;
            if suspicion.losses >= 3 {
                too_often.extend(self.clients.get(&sequence));
            }
        }
        too_often
    }

    fn note_clients(&mut self, step: &Step) -> Result<(), String> {
        for start in &step.starts {
            self.clients.insert(start.sequence, client_of(start)?);
        }
        Ok(())
    }

    fn note_progress(&mut self, step: &Step) {
        for work in &step.work {
            let end = work.first_position.index() + work.tokens.count().len();
            let suspicion = self.suspicions.entry(work.sequence).or_default();
            if end > suspicion.furthest {
                *suspicion = Suspicion { furthest: end, losses: 0 };
                self.blamed.remove(&work.sequence);
            }
        }
    }

    fn begin(&mut self, step: &Step) -> Result<(), String> {
        for released in &step.releases {
            self.sequences.remove(released).ok_or_else(|| format!("release of unknown {released}"))?;
        }
        for start in &step.starts {
            if self.sequences.insert(start.sequence, Started::new(start)).is_some() {
                return Err(format!("{} started twice", start.sequence));
            }
        }
        Ok(())
    }

    fn compute(&mut self, step: &Step) -> Result<StepOutput, String> {
        let masks: BTreeMap<_, _> =
            step.masks.iter().map(|mask| (mask.sequence, &mask.allowed[..])).collect();
        let mut results = Vec::new();
        for work in &step.work {
            let id = work.sequence;
            let mut started = self.sequences.remove(&id).ok_or_else(|| format!("work of unknown {id}"))?;
            let outcome = self.chunk(&mut started, work, masks.get(&id).copied());
            let (prompt, outcome) = outcome.map_err(|reason| format!("sequence {id}: {reason}"))?;
            self.sequences.insert(id, started);
            results.push(SequenceResult { sequence: id, prompt, outcome });
        }
        let timings = StepTimings::default();
        Ok(StepOutput { epoch: step.epoch, step_id: step.step_id, results, timings })
    }

    fn chunk(
        &mut self,
        started: &mut Started,
        work: &Work,
        mask: Option<&[u8]>,
    ) -> Result<(Vec<TokenLogprobs>, Outcome), String> {
        if started.has_failed {
            return Ok((Vec::new(), Outcome::Failed(FAILURE.to_owned())));
        }
        let first = work.first_position.index();
        if !started.blocks.is_empty() && started.computed != first {
            return Err(format!("work from {first} on, computed {}", started.computed));
        }
        started.blocks.extend(&work.new_blocks);
        started.context.extend(&work.appended);
        let end = first + work.tokens.count().len();
        if end > started.context.len() {
            return Err(format!("work up to {end} of {} known tokens", started.context.len()));
        }
        match &work.tokens {
            WorkTokens::Ids(ids) if ids[..] != started.context[first..end] => {
                return Err("other tokens than its context's".to_owned());
            }
            WorkTokens::Ids(_) => {}
            WorkTokens::LastSampled if end != started.context.len() => {
                return Err("the last token is not the last".to_owned());
            }
            WorkTokens::LastSampled => {}
        }
        let mut prompt = Vec::new();
        for position in first..end {
            let kv = self.write(started, position)?;
            let follows = started.context.get(position + 1);
            let is_told = match work.logprobs {
                lockstep_proto::ContextLogprobs::Skip => false,
                lockstep_proto::ContextLogprobs::From(from) => position >= from.index(),
            };
            prompt.extend(follows.filter(|_| is_told).map(|token| told(kv, *token)));
        }
        started.computed = end;
        if work.sampling == Sampling::Skip {
            return Ok((prompt, Outcome::Computed));
        }
        if started.has(FAILS) {
            started.has_failed = true;
            return Ok((prompt, Outcome::Failed(FAILURE.to_owned())));
        }
        let kv = self.slots[started.slot(end - 1)].ok_or("nothing was written")?;
        let drawn = kv.next_token(started.seed);
        let token =
            mask.map_or(Some(drawn), |mask| first_allowed(drawn, mask)).ok_or("its mask is empty")?;
        if end == started.context.len() {
            started.context.push(token);
        }
        let mut sampled = told(kv, token);
        if started.has(BREAKS) {
            sampled.logprob = f32::NAN;
        }
        Ok((prompt, Outcome::Sampled(sampled)))
    }

    /// Reads every position before `position`, writes it.
    fn write(&mut self, started: &Started, position: usize) -> Result<Kv, String> {
        let mut expected = Kv::NOTHING;
        for (earlier, token) in started.context[..position].iter().enumerate() {
            expected = expected.then(*token);
            if self.slots[started.slot(earlier)] != Some(expected) {
                return Err(format!("its blocks hold something else at {earlier}"));
            }
        }
        let block = started.blocks[position / BLOCK_TOKENS as usize];
        if self.sequences.values().any(|other| other.blocks.contains(&block)) {
            return Err(format!("block {block} is written while another sequence has it"));
        }
        let kv = expected.then(started.context[position]);
        self.slots[started.slot(position)] = Some(kv);
        Ok(kv)
    }
}

impl Started {
    fn new(start: &SequenceStart) -> Self {
        let (context, prompt) = (start.context.clone(), start.prompt_tokens.len());
        let seed = match &start.sampling.selection {
            Selection::Greedy => None,
            Selection::Seeded(seeded) => Some(seeded.seed),
        };
        Self { context, prompt, blocks: Vec::new(), computed: 0, seed, has_failed: false }
    }

    fn slot(&self, position: usize) -> usize {
        let size = BLOCK_TOKENS as usize;
        self.blocks[position / size].index() * size + position % size
    }

    fn has(&self, byte: u8) -> bool {
        self.context[..self.prompt].contains(&TokenId(byte.into()))
    }
}

/// Who asked for a sequence: the number at its prompt's end.
fn client_of(start: &SequenceStart) -> Result<usize, String> {
    let digits = start.context[..start.prompt_tokens.len()].iter().rev().take(2);
    let digit = |token: &TokenId| Some(char::from(u8::try_from(token.0).ok()?).to_digit(10)? as usize);
    let digits: Option<Vec<usize>> = digits.map(digit).collect();
    match digits.as_deref() {
        Some([ones, tens]) => Ok(tens * 10 + ones),
        Some(_) | None => Err("a prompt that nobody has".to_owned()),
    }
}

/// Whose results an answer has, and of what kind.
fn answers(output: &StepOutput) -> impl Iterator<Item = (SequenceId, bool)> {
    let is_sampled = |result: &SequenceResult| matches!(result.outcome, Outcome::Sampled(_));
    output.results.iter().map(move |result| (result.sequence, is_sampled(result)))
}

impl Garbage {
    fn spoil(self, output: &mut StepOutput, given: &[StepOutput]) {
        if self == Self::Again {
            let same = |earlier: &&StepOutput| answers(earlier).eq(answers(output));
            match given.iter().rev().find(same).or(given.last()).cloned() {
                Some(earlier) => *output = earlier,
                None => output.step_id.0 += 1,
            }
            return;
        }
        let results = &mut output.results;
        match self {
            Self::Again => {}
            Self::OtherEpoch | Self::OtherStep => {
                if self == Self::OtherEpoch {
                    output.epoch.0 -= 1;
                } else {
                    output.step_id.0 += 1;
                }
                // What another step brought is not what this one would.
                for result in results {
                    if let Outcome::Sampled(token) = &mut result.outcome {
                        token.token = TokenId(u32::from(b'Z'));
                    }
                }
            }
            Self::Missing => drop(results.pop()),
            Self::Doubled => results.extend_from_within(..1),
            Self::OtherSequence => results[0].sequence.0 += 1_000,
            Self::NoToken | Self::UnknownToken | Self::NotANumber => {
                let result = &mut results[0];
                let unknown = TokenLogprobs { token: TokenId(u32::MAX), logprob: -1.0, top: Vec::new() };
                match (self, &mut result.outcome) {
                    (Self::NotANumber, Outcome::Sampled(token)) => token.logprob = f32::NAN,
                    (Self::NoToken, Outcome::Sampled(_)) => result.outcome = Outcome::Computed,
                    _ => result.outcome = Outcome::Sampled(unknown),
                }
            }
        }
    }
}

fn told(kv: Kv, token: TokenId) -> TokenLogprobs {
    TokenLogprobs { token, logprob: kv.logprob(token), top: Vec::new() }
}

fn first_allowed(token: TokenId, mask: &[u8]) -> Option<TokenId> {
    let is_allowed = |id: &u32| mask.get(*id as usize / 8).is_some_and(|byte| byte >> (id % 8) & 1 == 1);
    (token.0..VOCABULARY_SIZE).chain(0..token.0).find(is_allowed).map(TokenId)
}

fn gone(reason: &str) -> ShardError {
    ShardError::NoGroup(reason.to_owned())
}

impl World {
    /// The group is lost now, and the next one loads for some time.
    pub(crate) fn lose_group(&mut self, why: &str) {
        let now = self.now();
        let is_long = self.is_met(|faults| faults.long.away);
        let loading =
            if is_long { self.random.millis(15_000, 40_000) } else { self.random.millis(20, 3_000) };
        let (epoch, back) = (self.shards.epoch, loading.as_millis());
        self.log(format_args!("group {epoch} is lost: {why}; back in {back} ms"));
        self.blame_all();
        self.shards.restart((now, now + loading));
    }

    fn blame_all(&mut self) {
        for client in self.shards.note_losses() {
            self.may_fail(client);
        }
    }

    fn lose_step(&mut self, why: &str) -> ShardError {
        self.lose_group(why);
        gone(why)
    }

    fn fate(&mut self) -> Fate {
        let faults = self.plan.faults;
        if self.random.once_in(faults.step_lost) {
            return Fate::Lost;
        }
        if self.random.once_in(faults.step_hangs) {
            return Fate::Hangs;
        }
        if self.random.once_in(faults.step_garbage) {
            return Fate::Garbage(self.random.pick(&GARBAGE));
        }
        if self.random.once_in(faults.step_slow) { Fate::Slow } else { Fate::Done }
    }

    fn begin_step(&mut self, step: Step) -> Result<(), ShardError> {
        if step.epoch.0 != self.shards.epoch {
            return Err(gone("it is another incarnation"));
        }
        if let Err(reason) = self.shards.note_clients(&step) {
            self.violation(format!("step {} of epoch {}: {reason}", step.step_id, step.epoch));
        }
        let fate = self.fate();
        let tokens: u32 = step.work.iter().map(|work| work.tokens.count().0).sum();
        let sequences: Vec<u64> = step.work.iter().map(|work| work.sequence.0).collect();
        let ahead = if self.shards.in_flight.is_empty() { "" } else { AHEAD };
        self.log(format_args!("step {} of {sequences:?}, {tokens} tokens{ahead}: {fate:?}", step.step_id));
        let takes = match fate {
            Fate::Slow => self.random.millis(500, 1_900),
            Fate::Done | Fate::Lost | Fate::Hangs | Fate::Garbage(_) => {
                self.random.millis(1, 5) + Duration::from_micros(u64::from(tokens) * 300)
            }
        };
        let begins = self.shards.in_flight.until().unwrap_or_else(Instant::now);
        if let Err(reason) = self.shards.in_flight.push(Sent { step, fate, until: begins + takes }) {
            self.violation(reason);
        }
        self.expect_to_be_given_up();
        Ok(())
    }

    /// A router gives up a group that hangs; see `describe`.
    fn expect_to_be_given_up(&mut self) {
        if self.shards.in_flight.hangs() {
            self.blame_all();
            let now = self.now();
            self.shards.away_since.get_or_insert(now);
        }
    }

    fn finish_step(&mut self) -> Result<StepOutput, ShardError> {
        let Some(Sent { step, fate, .. }) = self.shards.in_flight.front().cloned() else {
            return Err(gone("it is another incarnation"));
        };
        if fate == Fate::Lost {
            return Err(self.lose_step("in a step"));
        }
        if let Err(reason) = self.shards.begin(&step) {
            self.violation(format!("step {} of epoch {}: {reason}", step.step_id, step.epoch));
        }
        let is_felled = step.work.iter().any(|work| {
            self.shards.sequences.get(&work.sequence).is_some_and(|started| started.has(FELLS))
        });
        if is_felled {
            return Err(self.lose_step("a prompt fells it"));
        }
        let computed = self.shards.compute(&step);
        let mut output = match computed {
            Ok(output) => output,
            Err(reason) => {
                self.violation(format!("step {} of epoch {}: {reason}", step.step_id, step.epoch));
                return Err(gone("it was asked what no group can compute"));
            }
        };
        let right = output.clone();
        if let Fate::Garbage(garbage) = fate {
            garbage.spoil(&mut output, &self.shards.given);
        }
        let is_number = |result: &SequenceResult| match &result.outcome {
            Outcome::Sampled(token) => !token.logprob.is_nan(),
            Outcome::Computed | Outcome::Failed(_) => true,
        };
        if output == right && right.results.iter().all(is_number) {
            self.shards.note_progress(&step);
            self.shards.in_flight.pop();
            self.expect_to_be_given_up();
        } else {
            // The router is to find out; this incarnation is of no use to it any more.
            self.lose_group("it answers garbage");
        }
        self.shards.given.push(right);
        Ok(output)
    }
}

impl Link {
    pub(crate) fn new(world: Shared) -> Self {
        Self { world }
    }
}

impl ShardGroup for Link {
    async fn describe(&mut self, lost: Option<Epoch>) -> Result<Vec<ShardDescription>, ShardError> {
        let is_silent = {
            let mut world = lock(&self.world);
            if lost == Some(Epoch(world.shards.epoch)) {
                world.lose_group("its router says so");
            }
            let rate = world.plan.faults.bring_up;
            world.shards.up_at <= world.now() && world.random.once_in(rate * 2)
        };
        if is_silent {
            tokio::time::sleep(CALL_LIMIT).await;
        }
        let world = lock(&self.world);
        if is_silent || world.now() < world.shards.up_at {
            return Err(gone("it loads"));
        }
        Ok(vec![ShardDescription {
            rank: Rank(0),
            world_size: 1,
            epoch: Epoch(world.shards.epoch),
            vocabulary_size: VOCABULARY_SIZE,
            max_positions: Tokens(MAX_TOKENS as u32),
            block_size: Tokens(BLOCK_TOKENS as u32),
            block_bytes: Bytes(BLOCK_BYTES),
            kv_budget: Bytes(BLOCK_BYTES * u64::from(world.plan.server.blocks)),
            weights: Bytes(1),
            arithmetic: "simulated".to_owned(),
        }])
    }

    async fn configure(&mut self, config: GroupConfig) -> Result<(), ShardError> {
        let mut world = lock(&self.world);
        let rate = world.plan.faults.bring_up;
        if world.random.once_in(rate) {
            world.lose_group("while it is set up");
        }
        if config.epoch.0 != world.shards.epoch {
            return Err(gone("it is another incarnation"));
        }
        let slots = (config.blocks.0 as usize) * BLOCK_TOKENS as usize;
        world.shards.slots = vec![None; slots];
        world.shards.sequences.clear();
        world.shards.in_flight.clear();
        world.shards.longest_away = world.shards.longest_away(world.now());
        world.shards.away_since = None;
        world.log(format_args!("group {} serves", config.epoch));
        Ok(())
    }

    fn begin(&mut self, step: Step, _traces: &[TraceParent]) -> Result<(), ShardError> {
        lock(&self.world).begin_step(step)
    }

    async fn finish(&mut self) -> Result<StepOutput, ShardError> {
        let until = {
            let world = lock(&self.world);
            let sent = world.shards.in_flight.front();
            sent.filter(|sent| sent.fate != Fate::Hangs)
                .map(|sent| sent.until)
                .or(sent.is_none().then(Instant::now))
        };
        let Some(until) = until else { return std::future::pending().await };
        tokio::time::sleep_until(until).await;
        lock(&self.world).finish_step()
    }

    fn timings(&self) -> &[StepTimings] {
        &[StepTimings { forward_ns: 1, sample_ns: 0, comm_ns: 0 }]
    }

    async fn lost(&mut self) -> ShardError {
        let falls_after = {
            let mut world = lock(&self.world);
            let rate = world.plan.faults.idle_lost;
            world.random.once_in(rate).then(|| world.random.millis(0, 2_000))
        };
        let Some(falls_after) = falls_after else { return std::future::pending().await };
        tokio::time::sleep(falls_after).await;
        lock(&self.world).lose_group("while it is idle");
        gone("it was lost while nothing was computed")
    }
}
