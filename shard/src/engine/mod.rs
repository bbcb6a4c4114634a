//! Runs steps on one rank: checks them, computes them with the other ranks, samples, answers.
//!
//! Knows nothing of connections, threads and text. Everything it holds can be rebuilt from the tokens a
//! router knows.

mod choose;
mod error;
mod model;
mod plan;
mod sequences;

use std::sync::Arc;
use std::time::Instant;

use lockstep_proto::{
    Blocks, Bytes, Epoch, Rank, SequenceResult, ShardDescription, Step, StepId, StepOutput, StepTimings,
    Tokens,
};
use tracing::debug;

use self::choose::{Choice, Found};
use self::plan::{Entry, Plan};
use self::sequences::{Limits, Progress, Sequences};
use crate::comm::{Communicator, Timed};

pub use self::error::{ConfigureError, FatalError, InvalidSequence, InvalidStep, StepError};
pub use self::model::{LogitRows, Model, ModelError};

/// One rank of a group, with its model and the sequences it knows.
///
/// Call [`configure`](Self::configure) first, [`on_stream_opened`](Self::on_stream_opened) whenever a router
/// begins to send steps, then [`run_step`](Self::run_step) for each.
pub struct Engine<M> {
    model: M,
    group: Group,
    limits: Option<Limits>,
    sequences: Sequences,
    last_step: Option<StepId>,
    /// Begun since it was loaded.
    steps: u64,
}

/// What an engine is part of.
pub struct Group {
    /// The other ranks.
    pub comm: Arc<Timed>,
    /// The group's incarnation.
    pub epoch: Epoch,
    /// Bytes this rank may spend on KV blocks.
    pub kv_budget: Bytes,
}

/// What `Configure` settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The group's incarnation.
    pub epoch: Epoch,
    /// Blocks of the KV cache.
    pub blocks: Blocks,
    /// Most tokens of one step.
    pub max_step_tokens: Tokens,
}

impl<M: Model> Engine<M> {
    /// An engine that knows no sequence and has no KV cache yet.
    pub fn new(model: M, group: Group) -> Self {
        Self { model, group, limits: None, sequences: Sequences::default(), last_step: None, steps: 0 }
    }

    /// The other ranks.
    pub fn comm(&self) -> Arc<Timed> {
        Arc::clone(&self.group.comm)
    }

    /// What this rank is and how much it can hold.
    pub fn describe(&self) -> ShardDescription {
        let Self { model, group, .. } = self;
        ShardDescription {
            rank: group.comm.rank(),
            world_size: group.comm.world_size(),
            epoch: group.epoch,
            vocabulary_size: model.vocabulary_size(),
            max_positions: model.max_positions(),
            block_size: model.block_size(),
            block_bytes: model.block_bytes(),
            kv_budget: group.kv_budget,
            weights: model.weight_bytes(),
            arithmetic: model.arithmetic(),
        }
    }

    /// Fixes the size of the KV cache and forgets every sequence.
    ///
    /// # Errors
    /// When it is meant for another epoch, over this rank's budget or over the machine's memory.
    pub fn configure(&mut self, configuration: Configuration) -> Result<(), ConfigureError> {
        let Configuration { epoch, blocks, max_step_tokens } = configuration;
        if epoch != self.group.epoch {
            return Err(ConfigureError::Epoch { found: epoch, expected: self.group.epoch });
        }
        if blocks.is_empty() || max_step_tokens.is_empty() {
            return Err(ConfigureError::Empty { blocks, max_step_tokens });
        }
        let limit = self.describe().blocks_that_fit();
        if blocks > limit {
            return Err(ConfigureError::OverBudget { blocks, limit });
        }
        self.on_stream_opened();
        if self.limits.is_none_or(|limits| limits.blocks != blocks) {
            self.limits = None;
            self.model.allocate_kv(blocks).map_err(ConfigureError::Allocate)?;
        }
        self.limits = Some(Limits {
            vocabulary_size: self.model.vocabulary_size(),
            max_positions: self.model.max_positions(),
            block_size: self.model.block_size(),
            blocks,
            max_step_tokens,
        });
        Ok(())
    }

    /// How many steps were begun. Ranks that exchange data do so in the same one.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Forgets every sequence: a router that opens a stream starts them anew.
    pub fn on_stream_opened(&mut self) {
        self.sequences.clear();
        self.last_step = None;
    }

    /// Computes one step, together with the other ranks, which are given the same one.
    ///
    /// # Errors
    /// When the step makes no sense, or the rank is of no use any more.
    pub fn run_step(&mut self, step: Step) -> Result<StepOutput, StepError> {
        let step_id = step.step_id;
        let invalid = |reason| StepError::Invalid { step: step_id, reason };
        let plan = self.plan(step).map_err(invalid)?;
        self.steps += 1;
        let comm_before = self.group.comm.nanoseconds();
        let fatal = |reason| StepError::Fatal { step: step_id, reason };
        let (results, mut timings) = self.compute(&plan).map_err(fatal)?;
        timings.comm_ns = self.group.comm.nanoseconds() - comm_before;
        debug!(
            step = %step_id,
            sequences = plan.entries.len(),
            tokens = plan.batch.token_ids.len(),
            known = self.sequences.count(),
            forward_ns = timings.forward_ns,
            sample_ns = timings.sample_ns,
            comm_ns = timings.comm_ns,
            "step",
        );
        Ok(StepOutput { epoch: self.group.epoch, step_id, results, timings })
    }

    fn plan(&mut self, step: Step) -> Result<Plan, InvalidStep> {
        let limits = self.limits.ok_or(InvalidStep::NotConfigured)?;
        if step.epoch != self.group.epoch {
            return Err(InvalidStep::Epoch { found: step.epoch, expected: self.group.epoch });
        }
        if let Some(last) = self.last_step
            && last.0.checked_add(1) != Some(step.step_id.0)
        {
            return Err(InvalidStep::Order { last });
        }
        self.last_step = Some(step.step_id);
        Plan::new(step, &mut self.sequences, &limits)
    }

    /// The plan's results, which only rank 0 has, and where the time went.
    fn compute(&mut self, plan: &Plan) -> Result<(Vec<SequenceResult>, StepTimings), FatalError> {
        if plan.entries.is_empty() {
            return Ok((Vec::new(), StepTimings::default()));
        }
        let (found, timings) = self.found(plan)?;
        choose::check_numbers(&found)?;
        let results = match self.group.comm.rank() {
            Rank(0) => choose::results(&plan.entries, found),
            Rank(_) => Vec::new(),
        };
        self.share(plan, &results)?;
        Ok((results, timings))
    }

    /// What was found in the batch's rows of logits, on rank 0, and where the time went. The logits of a step
    /// may be larger than its KV: they are computed slice by slice, and no slice outlives its turn.
    fn found(&mut self, plan: &Plan) -> Result<(Vec<Found>, StepTimings), FatalError> {
        let Plan { batch, purposes, entries: _ } = plan;
        let mut found = Vec::new();
        let mut timings = StepTimings::default();
        // A step of failed sequences only computes nothing.
        if batch.token_ids.is_empty() {
            return Ok((found, timings));
        }
        let mut lap = Lap::start();
        let hidden = self.model.forward(batch)?;
        timings.forward_ns += lap.next_ns();
        let at_once = self.model.logit_rows_at_once().max(1);
        for first in (0..purposes.len()).step_by(at_once) {
            let rows = first..purposes.len().min(first + at_once);
            let mut logits = self.model.logits(&hidden, rows.clone())?;
            timings.forward_ns += lap.next_ns();
            if self.group.comm.rank() == Rank(0) {
                found.extend(choose::found(&purposes[rows], &self.sequences, &mut logits)?);
            }
            timings.sample_ns += lap.next_ns();
        }
        Ok((found, timings))
    }

    /// Tells every rank what rank 0 has sampled.
    fn share(&mut self, plan: &Plan, results: &[SequenceResult]) -> Result<(), FatalError> {
        if plan.batch.logit_rows.is_empty() {
            return Ok(());
        }
        let mut bytes: Vec<u8> =
            results.iter().flat_map(|result| choose::choice(result).encode()).collect();
        bytes.resize(plan.entries.len() * Choice::BYTES, 0);
        self.group.comm.broadcast(Rank(0), &mut bytes)?;
        let (choices, _) = bytes.as_chunks::<{ Choice::BYTES }>();
        for (index, (entry, choice)) in plan.entries.iter().zip(choices).enumerate() {
            let (Entry::Computed(plan::Computed { sequence, .. }) | Entry::Failed(sequence, _)) = entry;
            let Ok(sequence) = self.sequences.get_mut(*sequence) else { continue };
            match Choice::decode(*choice) {
                Choice::Nothing => {}
                Choice::Token(token) => sequence.on_emitted(token),
                Choice::Failed => sequence.progress = Progress::Failed(choose::failure(results.get(index))),
            }
        }
        Ok(())
    }
}

/// Tells the times between two moments.
struct Lap(Instant);

impl Lap {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Since the last call.
    fn next_ns(&mut self) -> u64 {
        let since = std::mem::replace(&mut self.0, Instant::now());
        u64::try_from((self.0 - since).as_nanos()).unwrap_or(u64::MAX)
    }
}
