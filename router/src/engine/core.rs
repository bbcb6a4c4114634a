//! Scheduler and deliveries together: what arrives goes to the one, what comes of it to the other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use lockstep_proto::{
    Epoch, Outcome, ReplicaId, Sampling, SequenceId, Step, StepOutput, StepTimings, TokenId, Tokens, Work,
};
use lockstep_scheduler::{
    CacheShape, Limits, RunAhead, Scheduler, SequenceEvent, StepMismatch, TokenOrigin,
};
use tokio::sync::mpsc;

use super::deliver::{Deliveries, channel_capacity_events};
use super::masks::{Found, Masks, Ready, Settled};
use super::traces::SequenceTraces;
use super::{EngineError, GenerationEvent, GroupEnd, Submit};
use crate::clock;
use crate::metrics::{Metrics, StepKind};
use crate::shards::GroupFacts;

/// The state behind the engine's task. Never awaits.
pub(super) struct Core {
    scheduler: Scheduler,
    deliveries: Deliveries,
    masks: Masks,
    traces: SequenceTraces,
    metrics: Arc<Metrics>,
    /// Of each replica, the oldest first.
    in_flight: BTreeMap<ReplicaId, VecDeque<InFlight>>,
    /// What the last step brought and when, until it is handed on.
    undelivered: Option<(Vec<SequenceEvent>, Instant)>,
    /// Entries in a row of the group's logits.
    vocabulary_size: u32,
    /// For the routes: how long what is queued should take.
    queue_time_ms: Arc<AtomicU64>,
}

#[derive(Clone, Copy)]
struct InFlight {
    /// Since when the shards compute it: it was planned, or the one before it was done.
    since: Instant,
    kind: StepKind,
}

impl Core {
    pub(super) fn new(limits: Limits, deliveries: Deliveries, metrics: Arc<Metrics>) -> Self {
        let queue_time_ms = Arc::new(AtomicU64::new(0));
        let scheduler = Scheduler::new(limits);
        Self {
            scheduler,
            deliveries,
            masks: Masks::default(),
            traces: SequenceTraces::default(),
            metrics,
            in_flight: BTreeMap::new(),
            undelivered: None,
            vocabulary_size: 0,
            queue_time_ms,
        }
    }

    /// Where it is said how long what is queued should take, in milliseconds.
    pub(super) fn queue_time_ms(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.queue_time_ms)
    }

    /// A sequence arrived.
    pub(super) fn on_submit(&mut self, submit: Submit, now: Instant) {
        let Submit { sequence, mut assignment, reply } = submit;
        if let Some(grammar) = &assignment.grammar {
            assignment.submission.forced.clone_from(&grammar.first().forced);
            assignment.submission.run_ahead = RunAhead::Never;
        }
        if let Err(reason) = self.check_forced(&assignment.submission.forced) {
            let _ = reply.send(Err(EngineError::Failed(reason)));
            return;
        }
        let prompt = Tokens::of_len(assignment.submission.prompt.len());
        let capacity = channel_capacity_events(prompt, assignment.submission.max_new_tokens);
        if let Err(refusal) = self.scheduler.on_submit(sequence, assignment.submission, now) {
            // Whoever asked may have left meanwhile.
            let _ = reply.send(Err(refusal.into()));
            return;
        }
        let (tx, rx) = mpsc::channel::<GenerationEvent>(capacity);
        let shown =
            assignment.grammar.as_ref().map(|grammar| Arc::clone(grammar.shown())).unwrap_or_default();
        self.deliveries.open(sequence, (assignment.stops, shown), tx, now);
        if let Some(grammar) = assignment.grammar {
            self.masks.open(sequence, grammar);
        }
        if let Some(origin) = assignment.trace {
            self.traces.open(sequence, origin);
        }
        // If nobody takes the receiver, it is closed and the sequence is swept up.
        let _ = reply.send(Ok(rx));
        self.observe();
    }

    /// Cancels what nobody waits for.
    pub(super) fn sweep(&mut self) {
        for sequence in self.deliveries.take_abandoned() {
            self.cancel(sequence);
        }
        self.observe();
    }

    /// The next step of a replica, with the masks of what it samples.
    pub(super) fn plan(&mut self, replica: ReplicaId, now: Instant) -> Option<Step> {
        let step = self.scheduler.plan_step(replica, now)?;
        Some(self.note_planned(replica, step, now))
    }

    /// The step of a replica after the one under way, before that one is done.
    pub(super) fn plan_ahead(&mut self, replica: ReplicaId, now: Instant) -> Option<Step> {
        let step = self.scheduler.plan_ahead(replica, now)?;
        Some(self.note_planned(replica, step, now))
    }

    /// Takes down what was planned at `now`, and adds its masks.
    fn note_planned(&mut self, replica: ReplicaId, mut step: Step, now: Instant) -> Step {
        let kind = kind_of(&step);
        if kind == StepKind::Prefill && step.work.iter().any(decodes) {
            self.metrics.on_batch_joined(clock::since(now));
        }
        self.in_flight.entry(replica).or_default().push_back(InFlight { since: now, kind });
        self.traces.on_step_planned(&step);
        self.metrics.on_step_planned(kind, step.work.len());
        self.observe();
        step.masks = self.masks.of(&step, self.vocabulary_size);
        step
    }

    /// The oldest step of a replica that was under way is done.
    ///
    /// What it brought is handed on by [`Self::deliver`]: the shards can compute the next step meanwhile.
    pub(super) fn on_step_done(
        &mut self,
        replica: ReplicaId,
        output: &StepOutput,
        now: Instant,
    ) -> Result<(), StepMismatch> {
        self.deliver();
        check_tokens(output, self.vocabulary_size)?;
        let events = self.scheduler.on_step_done(replica, output, now)?;
        self.traces.on_step_done(output);
        let steps = self.in_flight.entry(replica).or_default();
        let in_flight = steps.pop_front();
        steps.iter_mut().for_each(|step| step.since = now);
        if let Some(InFlight { since, kind }) = in_flight {
            self.metrics.on_step_done(kind, now.saturating_duration_since(since), &output.timings);
        }
        let tokens = self.note(&events);
        self.undelivered = Some((events, now));
        for (sequence, token) in tokens {
            self.find_mask(sequence, token);
        }
        if let Some(InFlight { kind, .. }) = in_flight {
            self.metrics.on_batch_filtered(kind, clock::since(now));
        }
        self.observe();
        Ok(())
    }

    /// What the step cost each rank of a replica.
    pub(super) fn on_ranks_done(&self, replica: ReplicaId, ranks: &[StepTimings]) {
        self.metrics.on_ranks_done(replica, ranks);
    }

    /// Whether a replica computes a sequence whose mask is being found out.
    pub(super) fn awaits_masks(&self, replica: ReplicaId) -> bool {
        self.masks.are_pending() && self.scheduler.has_held(replica)
    }

    /// When the next deadline comes.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.scheduler.next_deadline()
    }

    /// Ends what has run out of time.
    pub(super) fn expire(&mut self, now: Instant) {
        let events = self.scheduler.on_time(now);
        if !events.is_empty() {
            self.hand_on(events, now);
            self.observe();
        }
    }

    /// A replica's group is there.
    pub(super) fn on_group_ready(&mut self, replica: ReplicaId, facts: &GroupFacts, now: Instant) {
        self.vocabulary_size = facts.vocabulary_size;
        let cache = CacheShape { blocks: facts.blocks, block_size: facts.block_size };
        self.metrics.on_group_ready(replica, facts);
        let events = self.scheduler.on_group_ready(replica, facts.epoch, cache);
        self.hand_on(events, now);
        self.observe();
    }

    /// A replica's group is to leave: no step is planned for it any more.
    pub(super) fn on_drain(&mut self, replica: ReplicaId) {
        self.scheduler.on_drain(replica);
    }

    /// A replica's group is gone; what ran waits again, or fails if it seems to be the cause.
    pub(super) fn on_group_end(&mut self, replica: ReplicaId, epoch: Epoch, end: GroupEnd, now: Instant) {
        for InFlight { kind, .. } in self.in_flight.remove(&replica).unwrap_or_default() {
            self.metrics.on_step_failed(kind);
        }
        let ran: Vec<SequenceId> = self.scheduler.running_on(replica).collect();
        self.traces.on_group_end(&ran);
        self.metrics.on_group_end(replica, end);
        let events = match end {
            GroupEnd::Lost => self.scheduler.on_group_lost(replica),
            GroupEnd::Drained => {
                self.scheduler.on_group_drained(replica);
                Vec::new()
            }
        };
        self.hand_on(events, now);
        match end {
            GroupEnd::Lost => {
                tracing::warn!(replica = replica.0, epoch = epoch.0, sequences = ran.len(), "shards lost");
            }
            GroupEnd::Drained => {
                tracing::info!(
                    replica = replica.0,
                    epoch = epoch.0,
                    sequences = ran.len(),
                    "shards drained"
                );
            }
        }
        self.observe();
    }

    /// Everyone who waits gets `error`.
    pub(super) fn fail_all(&mut self, error: &EngineError) {
        self.deliver();
        for sequence in self.deliveries.fail_all(error) {
            self.cancel(sequence);
        }
        self.observe();
    }

    /// The spans of sampled sequences.
    pub(super) fn traces(&mut self) -> &mut SequenceTraces {
        &mut self.traces
    }

    /// The masks that are being found out.
    pub(super) fn masks(&mut self) -> &mut Masks {
        &mut self.masks
    }

    /// A mask was found out.
    pub(super) fn on_mask(&mut self, found: Found) {
        match self.masks.on_found(found) {
            Settled::Ready(Ready { sequence, forced, took }) => {
                self.metrics.on_mask(took);
                match self.check_forced(&forced) {
                    Ok(()) => self.scheduler.on_resume(sequence, &forced),
                    Err(reason) => self.fail(sequence, reason),
                }
            }
            Settled::Failed(sequence, reason) => self.fail(sequence, reason),
            Settled::Gone => {}
        }
    }

    /// How many sequences are under way.
    pub(super) fn count(&self) -> usize {
        self.deliveries.count()
    }

    /// Whether somebody waits for what the last step brought.
    pub(super) fn is_undelivered(&self) -> bool {
        self.undelivered.is_some()
    }

    /// Hands on what the last step brought. Sequences that a stop string ends here are cancelled, in steps in flight
    /// too.
    pub(super) fn deliver(&mut self) {
        if let Some((events, now)) = self.undelivered.take() {
            for sequence in self.deliveries.on_events(events, now) {
                self.cancel(sequence);
            }
            self.observe();
        }
    }

    fn hand_on(&mut self, events: Vec<SequenceEvent>, now: Instant) {
        self.deliver();
        let tokens = self.note(&events);
        for sequence in self.deliveries.on_events(events, now) {
            self.cancel(sequence);
        }
        for (sequence, token) in tokens {
            self.find_mask(sequence, token);
        }
    }

    /// Takes down what events mean to grammars and traces; returns the tokens whose masks are to be found.
    fn note(&mut self, events: &[SequenceEvent]) -> Vec<(SequenceId, TokenId)> {
        self.traces.on_events(events);
        self.note_grammars(events)
    }

    /// Closes the places of sequences that end here; returns the sampled tokens of those that go on. Their matchers
    /// have taken the forced ones.
    fn note_grammars(&mut self, events: &[SequenceEvent]) -> Vec<(SequenceId, TokenId)> {
        let mut tokens = Vec::new();
        for event in events {
            match event {
                SequenceEvent::Token { sequence, token, origin } if self.masks.contains(*sequence) => {
                    self.metrics.on_grammar_token(*origin);
                    match origin {
                        TokenOrigin::Sampled => tokens.push((*sequence, token.token)),
                        TokenOrigin::Forced => {}
                    }
                }
                SequenceEvent::Finished { sequence, .. }
                | SequenceEvent::Expired { sequence, .. }
                | SequenceEvent::Failed { sequence, .. } => {
                    self.masks.close(*sequence);
                }
                SequenceEvent::Token { .. }
                | SequenceEvent::Admitted { .. }
                | SequenceEvent::PromptLogprobs { .. }
                | SequenceEvent::Preempted { .. } => {}
            }
        }
        tokens
    }

    fn find_mask(&mut self, sequence: SequenceId, token: TokenId) {
        if !self.masks.contains(sequence) {
            return;
        }
        match self.masks.on_token(sequence, token) {
            Ok(()) => self.scheduler.on_hold(sequence),
            Err(error) => self.fail(sequence, error.to_string()),
        }
    }

    /// Whether the shards, once they are known, have every token: a tokenizer may know more ids than the model.
    fn check_forced(&self, forced: &[TokenId]) -> Result<(), String> {
        let limit = self.vocabulary_size;
        match forced.iter().find(|token| token.0 >= limit && limit > 0) {
            None => Ok(()),
            Some(token) => {
                Err(format!("its grammar needs token {token}, the model's ids end before {limit}"))
            }
        }
    }

    /// A sequence cannot go on, for a reason of its own.
    fn fail(&mut self, sequence: SequenceId, reason: String) {
        self.deliver();
        self.deliveries.fail(sequence, EngineError::Failed(reason));
        self.cancel(sequence);
    }

    fn cancel(&mut self, sequence: SequenceId) {
        self.masks.close(sequence);
        self.traces.close(sequence);
        self.scheduler.on_cancel(sequence);
    }

    fn observe(&self) {
        let stats = self.scheduler.stats();
        let queue_time_ms = u64::try_from(stats.queue_time.as_millis()).unwrap_or(u64::MAX);
        self.queue_time_ms.store(queue_time_ms, Ordering::Relaxed);
        self.metrics.observe_scheduler(&stats);
    }
}

/// Steps that only give each sequence its next token are decoding, with those before it that its grammar forces.
/// Other tokens at once, or tokens after which nothing is sampled, are of prompts or of what a sequence lost.
fn kind_of(step: &Step) -> StepKind {
    if step.work.iter().all(decodes) { StepKind::Decode } else { StepKind::Prefill }
}

fn decodes(work: &Work) -> bool {
    let others = work.tokens.count().saturating_sub(Tokens::of_len(work.appended.len()));
    others <= Tokens(1) && work.sampling == Sampling::Sample
}

/// Whether every id is one the model has, with a number for its log-probability. The shards are another process; an
/// id beyond would be sent back to them in a context and fail every group to come.
fn check_tokens(output: &StepOutput, vocabulary_size: u32) -> Result<(), StepMismatch> {
    let sampled = output.results.iter().filter_map(|result| match &result.outcome {
        Outcome::Sampled(token) => Some(token),
        Outcome::Computed | Outcome::Failed(_) => None,
    });
    let told = sampled.chain(output.results.iter().flat_map(|result| &result.prompt));
    let mut tokens = told.flat_map(|token| {
        let rivals = token.top.iter().map(|rival| (rival.token, rival.logprob));
        std::iter::once((token.token, token.logprob)).chain(rivals)
    });
    let wrong = tokens.find_map(|(id, logprob)| match (id.0 >= vocabulary_size, logprob.is_nan()) {
        (true, _) => Some(format!("found token {id}, expected one below {vocabulary_size}")),
        (false, true) => Some(format!("found no number for the log-probability of token {id}")),
        (false, false) => None,
    });
    wrong.map_or(Ok(()), |detail| Err(StepMismatch::Malformed { detail }))
}

#[cfg(test)]
mod tests {
    use lockstep_proto::{ContextLogprobs, Position, StepId, Work, WorkTokens};

    use super::*;

    #[test]
    fn a_step_is_a_prefill_if_any_of_its_work_is() {
        let work = |tokens, sampling| Work {
            sequence: SequenceId(1),
            first_position: Position(3),
            tokens,
            new_blocks: Vec::new(),
            sampling,
            logprobs: ContextLogprobs::Skip,
            appended: Vec::new(),
        };
        let ids = |count| WorkTokens::Ids(vec![TokenId(1); count]);
        let decode = || work(WorkTokens::LastSampled, Sampling::Sample);
        let forced = |count| Work { appended: vec![TokenId(1); count], ..work(ids(3), Sampling::Sample) };
        let cases = [
            (vec![decode()], StepKind::Decode),
            (vec![decode(), work(ids(1), Sampling::Sample)], StepKind::Decode),
            (vec![decode(), work(ids(1), Sampling::Skip)], StepKind::Prefill),
            (vec![decode(), work(ids(2), Sampling::Sample)], StepKind::Prefill),
            (vec![forced(2)], StepKind::Decode),
            (vec![forced(1)], StepKind::Prefill),
        ];
        for (work, expected) in cases {
            let step = Step {
                epoch: Epoch(1),
                step_id: StepId(1),
                starts: Vec::new(),
                work,
                masks: Vec::new(),
                releases: Vec::new(),
            };
            assert_eq!(kind_of(&step), expected, "{step:?}");
        }
    }
}
