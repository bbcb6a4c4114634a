//! Runs steps on one rank: checks them, computes them with the other ranks, samples, answers.
//!
//! Knows nothing of connections, threads and text. Everything it holds can be rebuilt from the tokens a
//! router knows.

mod begun;
mod choose;
mod error;
mod model;
mod plan;
mod sequences;

use std::sync::Arc;

use lockstep_proto::{
    Blocks, Bytes, Epoch, Rank, SequenceResult, ShardDescription, Step, StepId, StepOutput, StepTimings,
    Tokens,
};
use tracing::debug;

use self::begun::{Lap, Rows};
use self::choose::{Choice, Found};
use self::plan::{Entry, Plan, Purpose};
use self::sequences::{Limits, Progress, Sequences};
use crate::comm::{Communicator, Timed};

pub use self::begun::Begun;
pub use self::error::{ConfigureError, FatalError, InvalidSequence, InvalidStep, StepError};
pub use self::model::{LogitRows, Model, ModelError, NeverAsked, RowAnswer};

/// One rank of a group, with its model and the sequences it knows.
///
/// Call [`configure`](Self::configure) first, [`on_stream_opened`](Self::on_stream_opened) whenever a router
/// begins to send steps, then [`begin_step`](Self::begin_step) and [`finish_step`](Self::finish_step) for each, or
/// [`run_step`](Self::run_step), which is both.
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

    /// Whether a step that was begun may have a device to wait for.
    pub fn is_asynchronous(&self) -> bool {
        self.model.is_asynchronous()
    }

    /// Whether `next` may be begun before `begun`, the step before it, is finished: both are for the device alone, and the
    /// host need not know what the first chooses. Nothing is wrong where it may not.
    pub fn can_begin_behind(&self, begun: &Begun<M>, next: &Step) -> bool {
        self.model.is_asynchronous() && begun.feeds(next, &self.sequences)
    }

    /// Computes one step, together with the other ranks, which are given the same one.
    ///
    /// # Errors
    /// When the step makes no sense, or the rank is of no use any more.
    pub fn run_step(&mut self, step: Step) -> Result<StepOutput, StepError> {
        let begun = self.begin_step(step, None)?;
        self.finish_step(begun)
    }

    /// Begins one step; a device computes it while the host goes on. Steps are finished in their order. `before` is the one
    /// that is not finished yet, where there is one, behind which this one [may begin](Self::can_begin_behind).
    ///
    /// # Errors
    /// When the step makes no sense, or the rank is of no use any more. The one before it can be finished all the same.
    pub fn begin_step(&mut self, step: Step, before: Option<&Begun<M>>) -> Result<Begun<M>, StepError> {
        let step_id = step.step_id;
        let plan = self.plan(step).map_err(|reason| StepError::Invalid { step: step_id, reason })?;
        self.steps += 1;
        let fatal = |reason| StepError::Fatal { step: step_id, reason };
        let comm_before = self.group.comm.nanoseconds();
        let (rows, mut timings) = self.begin_rows(&plan, before.and_then(Begun::asked)).map_err(fatal)?;
        timings.comm_ns = self.group.comm.nanoseconds() - comm_before;
        debug!(
            step = step_id.0,
            behind = before.map(|before| before.step().0),
            sequences = plan.entries.len(),
            tokens = plan.batch.token_ids.len(),
            fed = plan.batch.fed.len(),
            "step begun",
        );
        Ok(Begun { plan, rows, timings })
    }

    /// Whether [`Self::finish_step`] has no device to wait for.
    ///
    /// # Errors
    /// When the rank is of no use any more.
    pub fn is_computed(&mut self, begun: &Begun<M>) -> Result<bool, StepError> {
        let is_answered = begun.asked().map_or(Ok(true), |asked| self.model.is_answered(asked));
        is_answered.map_err(|error| StepError::Fatal { step: begun.step(), reason: error.into() })
    }

    /// Waits for a step that was begun, and takes note of what it chose.
    ///
    /// # Errors
    /// When the rank is of no use any more.
    pub fn finish_step(&mut self, begun: Begun<M>) -> Result<StepOutput, StepError> {
        let Begun { plan, rows, mut timings } = begun;
        let step = plan.step;
        let comm_before = self.group.comm.nanoseconds();
        let mut lap = Lap::start();
        let results = self.finish_rows(&plan, rows).map_err(|reason| StepError::Fatal { step, reason })?;
        timings.sample_ns += lap.next_ns();
        timings.comm_ns += self.group.comm.nanoseconds() - comm_before;
        debug!(
            step = step.0,
            known = self.sequences.count(),
            forward_ns = timings.forward_ns,
            sample_ns = timings.sample_ns,
            comm_ns = timings.comm_ns,
            "step",
        );
        Ok(StepOutput { epoch: self.group.epoch, step_id: step, results, timings })
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

    /// Starts the plan's rows, and says where the time went.
    fn begin_rows(
        &mut self,
        plan: &Plan,
        before: Option<&M::Asked>,
    ) -> Result<(Rows<M::Asked>, StepTimings), FatalError> {
        let Plan { batch, purposes, .. } = plan;
        let mut timings = StepTimings::default();
        // A step of failed sequences only computes nothing.
        if batch.token_ids.is_empty() {
            return Ok((Rows::Found(Vec::new()), timings));
        }
        let mut lap = Lap::start();
        let hidden = self.model.forward(batch, before)?;
        timings.forward_ns += lap.next_ns();
        let asked = {
            let asks: Vec<_> =
                purposes.iter().map(|purpose| choose::ask_or_nothing(purpose, &self.sequences)).collect();
            self.model.ask(&hidden, &asks, before)?
        };
        timings.sample_ns += lap.next_ns();
        let rows = match asked {
            Some(asked) => Rows::Asked(asked),
            None => Rows::Found(self.found_on_host(purposes, &hidden, &mut timings)?),
        };
        Ok((rows, timings))
    }

    /// What rank 0 finds in the batch's rows of logits. The logits of a step may be larger than its KV: they are computed
    /// slice by slice, and no slice outlives its turn.
    fn found_on_host(
        &self,
        purposes: &[Purpose],
        hidden: &M::Hidden,
        timings: &mut StepTimings,
    ) -> Result<Vec<Found>, FatalError> {
        let mut found = Vec::new();
        let mut lap = Lap::start();
        let at_once = self.model.logit_rows_at_once().max(1);
        for first in (0..purposes.len()).step_by(at_once) {
            let rows = first..purposes.len().min(first + at_once);
            let logits = self.model.logits(hidden, rows.clone())?;
            timings.forward_ns += lap.next_ns();
            if self.group.comm.rank() == Rank(0) {
                found.extend(choose::found(&purposes[rows], &self.sequences, &logits));
            }
            timings.sample_ns += lap.next_ns();
        }
        Ok(found)
    }

    /// The plan's results, which only rank 0 tells.
    fn finish_rows(
        &mut self,
        plan: &Plan,
        rows: Rows<M::Asked>,
    ) -> Result<Vec<SequenceResult>, FatalError> {
        if plan.entries.is_empty() {
            return Ok(Vec::new());
        }
        let is_rank_0 = self.group.comm.rank() == Rank(0);
        // What a device finds of all rows, every rank's does: nobody need tell the others.
        let (found, is_everywhere) = match rows {
            Rows::Found(found) => (found, plan.batch.logit_rows.is_empty()),
            Rows::Asked(asked) => {
                let answers = self.model.answers(asked)?;
                (choose::of_answers(&plan.purposes, &self.sequences, answers), plan.is_for_devices)
            }
        };
        let found = if self.model.may_overflow() { choose::failing_alone(found) } else { found };
        let results = match is_rank_0 || is_everywhere {
            true => choose::results(&plan.entries, found, &self.sequences)?,
            false => Vec::new(),
        };
        let choices = match is_everywhere {
            true => results.iter().map(choose::choice).collect(),
            false => self.shared(plan, &results)?,
        };
        self.take_note(plan, &choices, &results);
        Ok(if is_rank_0 { results } else { Vec::new() })
    }

    /// Tells every rank what rank 0 has chosen.
    fn shared(&self, plan: &Plan, results: &[SequenceResult]) -> Result<Vec<Choice>, FatalError> {
        let mut bytes: Vec<u8> =
            results.iter().flat_map(|result| choose::choice(result).encode()).collect();
        bytes.resize(plan.entries.len() * Choice::BYTES, 0);
        self.group.comm.broadcast(Rank(0), &mut bytes)?;
        let (choices, _) = bytes.as_chunks::<{ Choice::BYTES }>();
        Ok(choices.iter().copied().map(Choice::decode).collect())
    }

    fn take_note(&mut self, plan: &Plan, choices: &[Choice], results: &[SequenceResult]) {
        for (index, (entry, choice)) in plan.entries.iter().zip(choices).enumerate() {
            let (Entry::Computed(plan::Computed { sequence, .. }) | Entry::Failed(sequence, _)) = entry;
            // It may have been released by the step behind this one.
            let Ok(sequence) = self.sequences.get_mut(*sequence) else { continue };
            sequence.on_finished(plan.step);
            match choice {
                Choice::Nothing => {}
                Choice::Token(token) => sequence.on_emitted(*token),
                Choice::Failed => sequence.progress = Progress::Failed(choose::failure(results.get(index))),
            }
        }
    }
}
