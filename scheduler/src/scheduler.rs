//! The scheduler's calls: what happened, what to compute, what came of it.

use std::time::Instant;

use lockstep_proto::{Epoch, Outcome, SequenceId, Step, StepId, StepOutput, Tokens};

use crate::budget::StepBudget;
use crate::event::SequenceEvent;
use crate::finish::StepMismatch;
use crate::group::{Group, Plan};
use crate::limits::{CacheShape, Limits};
use crate::losses::{MAX_LOSSES_IN_A_ROW, Suspect};
use crate::pace::Pace;
use crate::queue::Queue;
use crate::sequence::{Arrival, Sequence};
use crate::stats::Stats;
use crate::submission::{AdmissionError, Submission};

/// Turns submissions into steps and step outputs into events.
///
/// Call [`on_submit`](Self::on_submit) and [`on_cancel`](Self::on_cancel) at any time,
/// [`on_group_ready`](Self::on_group_ready) and [`on_group_lost`](Self::on_group_lost) when it happens.
/// While a group is ready, alternate: [`plan_step`](Self::plan_step), send the step to every rank,
/// [`on_step_done`](Self::on_step_done) with the output of rank 0 once all ranks have answered. At most one
/// step is in flight. After `None` from `plan_step`, ask again once something was submitted or resumed or a group
/// is ready.
///
/// A step that fails as a whole is a lost group: call [`on_group_lost`](Self::on_group_lost). Its sequences
/// go on where they were when the next group is ready.
///
/// The sequence that runs longest and is not held advances in every step, so every sequence that is not
/// cancelled ends. The time decides about deadlines only, in [`on_time`](Self::on_time).
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) limits: Limits,
    pub(crate) queue: Queue,
    /// Absent until a group is ready and after it is lost.
    pub(crate) group: Option<Group>,
    /// What happened while a step was planned, to be told when it is done.
    pub(crate) events: Vec<SequenceEvent>,
    pub(crate) totals: Totals,
    pub(crate) pace: Pace,
    next_arrival: Arrival,
    next_step: StepId,
}

/// Whether what waits may be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doors {
    Open,
    Closed,
}

/// Counts since the scheduler began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) prefix_hit_tokens: u64,
    pub(crate) preemptions: u64,
}

impl Scheduler {
    /// Without sequences and without a group.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            queue: Queue::default(),
            group: None,
            events: Vec::new(),
            totals: Totals::default(),
            pace: Pace::default(),
            next_arrival: Arrival(0),
            next_step: StepId(1),
        }
    }

    /// A group with an empty cache is there. One that was there before is lost.
    ///
    /// Returns the end of those waiting sequences that this cache is too small for, and what was not told
    /// yet of others.
    #[must_use = "sequences that do not fit this cache end here"]
    pub fn on_group_ready(&mut self, epoch: Epoch, cache: CacheShape) -> Vec<SequenceEvent> {
        let mut events = self.on_group_lost();
        let cache = cache.divisible();
        events.append(&mut self.events);
        for sequence in self.queue.extract(|sequence| cache.holds(sequence.max_context())) {
            let reason = AdmissionError::CannotFit {
                needed: sequence.max_context().blocks_ceil(cache.block_size),
                blocks: cache.blocks,
            };
            events.push(SequenceEvent::Failed { sequence: sequence.id, reason: reason.to_string() });
        }
        self.group = Some(Group::new(epoch, cache, self.limits.prefix_cache));
        self.assert_invariants();
        events
    }

    /// The group and all it holds are gone. What ran waits again, with the tokens it has; a step in flight
    /// is void, and so is its output.
    ///
    /// Returns the end of those that were being computed when three groups in a row were lost, and got no
    /// further in between: they would cost every group that follows. The last of the three had nothing else
    /// to compute, so this is the one that fells them.
    #[must_use = "sequences that were lost too often end here"]
    pub fn on_group_lost(&mut self) -> Vec<SequenceEvent> {
        let Some(group) = self.group.take() else { return Vec::new() };
        let mut events = Vec::new();
        for sequence in group.into_sequences() {
            if !sequence.losses.are_too_many() {
                self.queue.put_back(sequence);
                continue;
            }
            // That it was admitted is told: two groups have come since it was.
            let reason = format!(
                "continue a sequence: its shards were lost {MAX_LOSSES_IN_A_ROW} times in a row while they computed the same part of it"
            );
            events.push(SequenceEvent::Failed { sequence: sequence.id, reason });
        }
        self.assert_invariants();
        events
    }

    /// Puts a sequence into the queue. Before the first group is ready it cannot be known whether the cache
    /// is large enough; see [`on_group_ready`](Self::on_group_ready).
    ///
    /// # Errors
    /// Refusals change nothing.
    pub fn on_submit(
        &mut self,
        sequence: SequenceId,
        submission: Submission,
        now: Instant,
    ) -> Result<(), AdmissionError> {
        self.check_admissible(sequence, &submission)?;
        self.check_deadline(&submission.service, now)?;
        let arrival = self.next_arrival;
        self.next_arrival = Arrival(arrival.0 + 1);
        let turn = self.queue.turn(arrival, submission.service.priority, now);
        let running = self.group.iter().flat_map(|group| group.running.values());
        let tenants = running.map(|running| &running.sequence.standing.tenant);
        self.queue.push(Sequence::new(sequence, turn, submission, now), tenants);
        self.assert_invariants();
        Ok(())
    }

    /// Forgets a sequence: no event of it comes any more. Blocks the step in flight may write to come back
    /// when that step is done. Nothing happens if the sequence has ended.
    pub fn on_cancel(&mut self, sequence: SequenceId) {
        if self.queue.remove(sequence).is_none()
            && let Some(group) = &mut self.group
        {
            group.cancel(sequence);
        }
        self.events.retain(|event| event.sequence() != sequence);
        self.assert_invariants();
    }

    /// The next step, ready to send. `None` when there is nothing to compute, no group, or a step in flight.
    ///
    /// Every running sequence that has caught up gets its next token, then what is left of
    /// [`Limits::max_step_tokens`] goes to those that have several tokens to compute, prompts and forced ones, in
    /// the order of their admission, running ones before waiting ones. A sequence that two groups in a row were
    /// lost with is computed alone first, until it gets further than it was.
    pub fn plan_step(&mut self, now: Instant) -> Option<Step> {
        self.group.as_ref().filter(|group| group.in_flight.is_none())?;
        let mut budget = StepBudget::new(self.limits.step_tokens());
        let plan = match self.suspect() {
            None => self.plan_all(Doors::Open, &mut budget, now),
            Some(Suspect::Held) => self.plan_all(Doors::Closed, &mut budget, now),
            Some(Suspect::Running(suspect)) => self.plan_alone(suspect, &mut budget),
            Some(Suspect::Waiting(suspect)) => self
                .admit_alone(suspect, &mut budget, now)
                // What becomes free is for it.
                .unwrap_or_else(|| self.plan_all(Doors::Closed, &mut budget, now)),
        };
        let step = self.launch(plan, now);
        self.assert_invariants();
        step
    }

    /// A plan for everything that runs and, if the doors are open, for what can be admitted.
    fn plan_all(&mut self, doors: Doors, budget: &mut StepBudget, now: Instant) -> Plan {
        let Some(group) = &mut self.group else { return Plan::default() };
        let grants = budget.grant(group.running.values());
        let (mut plan, preempted) = group.grow(&grants);
        if !preempted.is_empty() {
            self.note_preempted(preempted);
        } else if doors == Doors::Open {
            let admitted = group.admit(&self.limits, &mut self.queue, budget, &mut plan);
            self.note_admitted(admitted, now);
        }
        plan
    }

    /// Takes the output of the step in flight in, as rank 0 gave it. The time it took tells the pace.
    ///
    /// # Errors
    /// The output is not of the step in flight, or not an answer to it. Nothing has changed then.
    pub fn on_step_done(
        &mut self,
        output: &StepOutput,
        now: Instant,
    ) -> Result<Vec<SequenceEvent>, StepMismatch> {
        let group = self.group.as_mut().ok_or(StepMismatch::NoneInFlight)?;
        let planned = group.in_flight.as_ref().map(|step| step.planned);
        let chunks = group.take_in_flight(output)?;
        let took = now.saturating_duration_since(planned.unwrap_or(now));
        self.pace.on_step(chunks.iter().fold(Tokens::ZERO, |sum, chunk| sum + chunk.tokens), took);
        let mut events = std::mem::take(&mut self.events);
        for (chunk, result) in chunks.iter().zip(&output.results) {
            let Some(running) = group.running.get(&chunk.sequence) else { continue };
            if matches!(result.outcome, Outcome::Sampled(_)) {
                self.queue.charge(&running.sequence.standing.tenant, Tokens(1));
            }
            if let Some(output) = group.finish_chunk(chunk, result, &mut events) {
                self.pace.on_finished(output);
            }
        }
        self.assert_invariants();
        Ok(events)
    }

    /// The scheduler in numbers.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            waiting: self.queue.len(),
            queue_tokens: self.queue.tokens(),
            queue_time: self.pace.time_for(self.queue.expected_tokens(&self.pace)),
            prefix_hit_tokens_total: self.totals.prefix_hit_tokens,
            preemptions_total: self.totals.preemptions,
            ..Stats::default()
        };
        if let Some(group) = &self.group {
            stats.running = group.running.len();
            stats.blocks_cached = group.cache.cached();
            stats.blocks_free = group.cache.free();
            stats.blocks_used = group.cache.shape().blocks - group.cache.available();
        }
        stats
    }

    /// What waits, then what runs.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        let running = self.group.iter().flat_map(|group| group.running.values());
        self.queue.iter().chain(running.map(|running| &running.sequence))
    }

    /// Sequences that wait or run.
    pub(crate) fn requests(&self) -> usize {
        self.queue.len() + self.group.as_ref().map_or(0, |group| group.running.len())
    }

    /// Whether a sequence of this name waits or runs.
    pub(crate) fn knows(&self, sequence: SequenceId) -> bool {
        self.queue.iter().any(|waiting| waiting.id == sequence)
            || self.group.as_ref().is_some_and(|group| group.running.contains_key(&sequence))
    }

    pub(crate) fn take_step_id(&mut self) -> StepId {
        let step = self.next_step;
        self.next_step = StepId(step.0 + 1);
        step
    }
}
