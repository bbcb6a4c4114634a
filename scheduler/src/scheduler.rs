//! The scheduler's calls: what happened, what to compute, what came of it.

use std::time::{Duration, Instant};

use lockstep_proto::{Epoch, Outcome, ReplicaId, SequenceId, Step, StepOutput, Tokens};

use crate::admit::Admission;
use crate::budget::StepBudget;
use crate::event::SequenceEvent;
use crate::finish::StepMismatch;
use crate::group::{Group, Leaving, Phase, Plan};
use crate::limits::{CacheShape, Limits};
use crate::losses::{MAX_LOSSES_IN_A_ROW, Suspect};
use crate::pace::Pace;
use crate::placement::Siblings;
use crate::queue::Queue;
use crate::replicas::Replicas;
use crate::sequence::{Arrival, Running, Sequence};
use crate::stats::Stats;
use crate::submission::{AdmissionError, Submission};

/// Turns submissions into steps and step outputs into events, for one or more groups of shards that compute the same:
/// the replicas of a model. There is one queue, and whoever has room takes what is next in it.
///
/// Call [`on_submit`](Self::on_submit) and [`on_cancel`](Self::on_cancel) at any time,
/// [`on_group_ready`](Self::on_group_ready) and [`on_group_lost`](Self::on_group_lost) when it happens.
/// While a replica's group is ready, alternate: [`plan_step`](Self::plan_step), send the step to every rank,
/// [`on_step_done`](Self::on_step_done) with the output of rank 0 once all ranks have answered. While a step is in flight
/// [`plan_ahead`](Self::plan_ahead) may give another, to be sent and answered after it; at most two are in flight for
/// each replica. After `None` from `plan_step`, ask again once something was submitted or resumed, or anything has
/// changed with another replica.
///
/// A step that fails as a whole is a lost group: call [`on_group_lost`](Self::on_group_lost). Its sequences
/// go on where they were, with the replica that takes them first. A group that is to leave is told by
/// [`on_drain`](Self::on_drain) and [`on_group_drained`](Self::on_group_drained); its sequences do the same.
///
/// The sequence that runs longest on a replica, is not held and does not end with what is in flight advances in every
/// step of it, so every sequence that is not cancelled ends. The time decides about deadlines only, in [`on_time`](Self::on_time).
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) limits: Limits,
    pub(crate) queue: Queue,
    pub(crate) replicas: Replicas,
    /// What happened while a step was planned, to be told when it is done.
    pub(crate) events: Vec<SequenceEvent>,
    pub(crate) totals: Totals,
    pub(crate) pace: Pace,
    next_arrival: Arrival,
}

/// Whether what waits may be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doors {
    Open,
    Closed,
}

/// Counts since the scheduler began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) prefix_hit_tokens: u64,
    pub(crate) preemptions: u64,
    pub(crate) moves: u64,
}

impl Scheduler {
    /// Without sequences and without a group.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            queue: Queue::default(),
            replicas: Replicas::default(),
            events: Vec::new(),
            totals: Totals::default(),
            pace: Pace::default(),
            next_arrival: Arrival(0),
        }
    }

    /// A group with an empty cache is there. One that was there before in its place is lost.
    ///
    /// Returns the end of those waiting sequences that every cache there is is too small for, and what was not told
    /// yet of others.
    #[must_use = "sequences that do not fit this cache end here"]
    pub fn on_group_ready(
        &mut self,
        replica: ReplicaId,
        epoch: Epoch,
        cache: CacheShape,
    ) -> Vec<SequenceEvent> {
        let mut events = self.on_group_lost(replica);
        events.append(&mut self.events);
        self.replicas.put(Group::new(replica, epoch, cache.divisible(), self.limits));
        let replicas = &self.replicas;
        for sequence in self.queue.extract(|sequence| replicas.hold(sequence)) {
            let largest = replicas.largest().map_or(cache, |group| group.cache.shape());
            let reason = AdmissionError::CannotFit {
                needed: sequence.max_context().blocks_ceil(largest.block_size),
                blocks: largest.blocks,
            };
            events.push(SequenceEvent::Failed { sequence: sequence.id, reason: reason.to_string() });
        }
        self.assert_invariants();
        events
    }

    /// The group and all it holds are gone. What ran waits again, with the tokens it has; steps in flight
    /// are void, and so are their outputs.
    ///
    /// Returns the end of those that were being computed when three groups in a row were lost, and got no
    /// further in between: they would cost every group that follows. The last of the three had nothing else
    /// to compute, so this is the one that fells them.
    #[must_use = "sequences that were lost too often end here"]
    pub fn on_group_lost(&mut self, replica: ReplicaId) -> Vec<SequenceEvent> {
        self.put_back_all(replica, Leaving::Lost)
    }

    /// The group is to leave: it gets no step any more, and no sequence but those it has.
    pub fn on_drain(&mut self, replica: ReplicaId) {
        if let Some(group) = self.replicas.get_mut(replica) {
            group.phase = Phase::Draining;
        }
    }

    /// A group that is to leave has left. What ran waits again, as if its group were lost; but this is nobody's fault.
    pub fn on_group_drained(&mut self, replica: ReplicaId) {
        let ended = self.put_back_all(replica, Leaving::Drained);
        debug_assert!(ended.is_empty(), "a planned end fells nobody");
    }

    fn put_back_all(&mut self, replica: ReplicaId, leaving: Leaving) -> Vec<SequenceEvent> {
        let Some(group) = self.replicas.take(replica) else { return Vec::new() };
        let mut events = Vec::new();
        for sequence in group.into_sequences(leaving) {
            if !sequence.losses.are_too_many() {
                self.queue.put_back(sequence);
                continue;
            }
            let id = sequence.id;
            let reason = format!(
                "continue a sequence: its shards were lost {MAX_LOSSES_IN_A_ROW} times in a row while they computed the same part of it"
            );
            // What is not told yet comes before its end.
            events.extend(self.events.extract_if(.., |event| event.sequence() == id));
            events.push(SequenceEvent::Failed { sequence: id, reason });
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
        let tenants = self.replicas.running().map(|running| &running.sequence.standing.tenant);
        self.queue.push(Sequence::new(sequence, turn, submission, now), tenants);
        self.assert_invariants();
        Ok(())
    }

    /// Forgets a sequence: no event of it comes any more. Blocks that steps in flight may write to come back
    /// when these are done. Nothing happens if the sequence has ended.
    pub fn on_cancel(&mut self, sequence: SequenceId) {
        if self.queue.remove(sequence).is_none()
            && let Some(group) = self.replicas.group_of(sequence)
        {
            group.let_go(sequence);
        }
        self.events.retain(|event| event.sequence() != sequence);
        self.assert_invariants();
    }

    /// The next step of a replica, ready to send. `None` when there is nothing for it to compute, no group, a group
    /// that is to leave, or a step in flight.
    ///
    /// Every running sequence that has caught up gets its next token, then what is left of
    /// [`Limits::max_step_tokens`] goes to those that have several tokens to compute, prompts and forced ones, in
    /// the order of their admission, running ones before waiting ones. A waiting one is left to the replica that has
    /// the longest prefix of it cached among the least loaded. A sequence that two groups in a row were
    /// lost with is computed alone first, until it gets further than it was.
    pub fn plan_step(&mut self, replica: ReplicaId, now: Instant) -> Option<Step> {
        self.replicas.get(replica).filter(|group| group.is_idle())?;
        // Out of its place: the others are looked at while it plans.
        let mut group = self.replicas.take(replica)?;
        let mut budget = StepBudget::new(self.limits.step_tokens());
        let planned = match self.suspect(&group) {
            None => self.plan_all(&mut group, Doors::Open, &mut budget),
            Some(Suspect::Held) => self.plan_all(&mut group, Doors::Closed, &mut budget),
            Some(Suspect::Running(suspect)) => {
                (self.plan_alone(&mut group, suspect, &mut budget), Vec::new())
            }
            Some(Suspect::Waiting(suspect)) => {
                match self.admit_alone(&mut group, suspect, &mut budget) {
                    Some((plan, admission)) => (plan, vec![admission]),
                    // What becomes free is for it.
                    None => self.plan_all(&mut group, Doors::Closed, &mut budget),
                }
            }
        };
        let step = self.launch(&mut group, planned, now);
        self.replicas.put(group);
        self.assert_invariants();
        step
    }

    /// Makes what is planned a step, if it computes anything.
    pub(crate) fn launch(
        &mut self,
        group: &mut Group,
        (plan, admitted): (Plan, Vec<Admission>),
        now: Instant,
    ) -> Option<Step> {
        self.note_admitted(admitted, now);
        (!plan.is_empty()).then(|| group.launch(self.replicas.take_step_id(group.replica), plan, now))
    }

    /// A plan for everything that runs and, if the doors are open, for what can be admitted.
    pub(crate) fn plan_all(
        &mut self,
        group: &mut Group,
        doors: Doors,
        budget: &mut StepBudget,
    ) -> (Plan, Vec<Admission>) {
        let grants = budget.grant(group.running.values());
        let (mut plan, preempted) = group.grow(&grants);
        let mut admitted = Vec::new();
        if !preempted.is_empty() {
            self.note_preempted(preempted);
        } else if doors == Doors::Open {
            admitted = group.admit(&mut self.queue, Siblings::new(&self.replicas), budget, &mut plan);
        }
        (plan, admitted)
    }

    /// Takes the output of a replica's oldest step in flight in, as rank 0 gave it. The time it took tells the pace.
    ///
    /// # Errors
    /// The output is not of that step, or not an answer to it. Nothing has changed then.
    pub fn on_step_done(
        &mut self,
        replica: ReplicaId,
        output: &StepOutput,
        now: Instant,
    ) -> Result<Vec<SequenceEvent>, StepMismatch> {
        let group = self.replicas.get_mut(replica).ok_or(StepMismatch::NoneInFlight)?;
        let (chunks, took) = group.take_in_flight(output, now)?;
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
        let expected = self.queue.expected_tokens(&self.pace);
        let mut stats = Stats {
            waiting: self.queue.len(),
            queue_tokens: self.queue.tokens(),
            queue_time: self.time_for(expected),
            prefix_hit_tokens_total: self.totals.prefix_hit_tokens,
            preemptions_total: self.totals.preemptions,
            moves_total: self.totals.moves,
            ..Stats::default()
        };
        for group in self.replicas.groups() {
            stats.running += group.running.len();
            stats.blocks_cached += group.cache.cached();
            stats.blocks_free += group.cache.free();
            stats.blocks_used += group.cache.shape().blocks - group.cache.available();
        }
        stats
    }

    /// The sequences a replica computes, the one that runs longest first.
    pub fn running_on(&self, replica: ReplicaId) -> impl Iterator<Item = SequenceId> {
        self.replicas.get(replica).into_iter().flat_map(|group| group.running.keys().copied())
    }

    /// Whether a replica has a sequence that waits for its owner.
    pub fn has_held(&self, replica: ReplicaId) -> bool {
        self.replicas.get(replica).is_some_and(|group| group.running.values().any(Running::is_held))
    }

    /// How long so many tokens take, all replicas together.
    pub(crate) fn time_for(&self, tokens: u64) -> Duration {
        let replicas = self.replicas.groups().count().max(1) as u64;
        self.pace.time_for(tokens.div_ceil(replicas))
    }

    /// What waits, then what runs.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.queue.iter().chain(self.replicas.running().map(|running| &running.sequence))
    }

    /// Sequences that wait or run.
    pub(crate) fn requests(&self) -> usize {
        self.queue.len() + self.replicas.groups().map(|group| group.running.len()).sum::<usize>()
    }

    /// Whether a sequence of this name waits or runs, or has left and is computed in a step that is in flight.
    pub(crate) fn knows(&self, sequence: SequenceId) -> bool {
        let is_of = |group: &Group| group.running.contains_key(&sequence) || group.computes(sequence);
        self.queue.iter().any(|waiting| waiting.id == sequence) || self.replicas.groups().any(is_of)
    }
}
