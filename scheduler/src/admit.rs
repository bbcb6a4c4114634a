//! Who may enter the queue, and who leaves it: waiting → running, with what is cached of it.

use std::time::Instant;

use lockstep_proto::{Blocks, ReplicaId, SequenceId, Tokens};

use crate::blocks::Found;
use crate::budget::StepBudget;
use crate::event::SequenceEvent;
use crate::group::{Group, Plan};
use crate::limits::PrefixCaching;
use crate::placement::Siblings;
use crate::queue::Queue;
use crate::scheduler::Scheduler;
use crate::sequence::{Leader, Running, Sequence};
use crate::submission::{AdmissionError, Submission};

/// While something runs, admission leaves one block in so many free, and one at least, so that what runs
/// can grow for a while before anything must be preempted.
const RESERVE_SHARE: u32 = 64;

/// A sequence that has left the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admission {
    sequence: SequenceId,
    /// Until its first admission: when it was submitted.
    queued_since: Option<Instant>,
    cached: Tokens,
    /// Who computed it last.
    before: Option<ReplicaId>,
    replica: ReplicaId,
}

impl Scheduler {
    /// Refuses what can never be computed, then what is too much at the moment.
    pub(crate) fn check_admissible(
        &self,
        sequence: SequenceId,
        submission: &Submission,
    ) -> Result<(), AdmissionError> {
        if submission.prompt.is_empty() {
            return Err(AdmissionError::EmptyPrompt);
        }
        let requested = submission.max_context();
        if requested > self.limits.max_total {
            return Err(AdmissionError::TooLong { requested, limit: self.limits.max_total });
        }
        if let Some(largest) = self.replicas.largest() {
            let shape = largest.cache.shape();
            if !shape.holds(requested) {
                let needed = requested.blocks_ceil(shape.block_size);
                return Err(AdmissionError::CannotFit { needed, blocks: shape.blocks });
            }
        }
        if self.knows(sequence) {
            return Err(AdmissionError::Duplicate { sequence });
        }
        if self.requests() >= self.limits.max_requests as usize {
            return Err(AdmissionError::Full { limit: self.limits.max_requests });
        }
        let (waiting, prompt) = (self.queue.tokens(), Tokens::of_len(submission.prompt.len()));
        let limit = self.limits.max_queue_tokens;
        if !waiting.is_empty() && waiting.0.saturating_add(prompt.0) > limit.0 {
            return Err(AdmissionError::QueueFull { waiting, prompt, limit });
        }
        Ok(())
    }

    pub(crate) fn note_admitted(&mut self, admissions: Vec<Admission>, now: Instant) {
        for Admission { sequence, queued_since, cached, before, replica } in admissions {
            self.totals.prefix_hit_tokens += u64::from(cached.0);
            self.totals.moves += u64::from(before.is_some_and(|before| before != replica));
            if let Some(since) = queued_since {
                let queued = now.saturating_duration_since(since);
                self.events.push(SequenceEvent::Admitted { sequence, queued, cached });
            }
        }
    }
}

/// Whether a waiting sequence can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It can.
    Fits,
    /// Not yet: this one computes what it begins with.
    Follows(Leader),
    /// There are too few blocks.
    Lacks,
    /// There will never be enough of them.
    Never,
}

/// What a group makes of a waiting sequence.
#[derive(Debug)]
pub(crate) struct Prospect {
    pub(crate) fit: Fit,
    /// Tokens of it that are cached, or soon will be.
    pub(crate) prefix: Tokens,
    found: Found,
}

impl Group {
    /// Admits in the queue's order until tokens, places or blocks run out, and plans the first chunk of
    /// each. Who waits for the blocks of a running sequence, is held, or is better off with one of the siblings, is
    /// passed over and keeps its place.
    pub(crate) fn admit(
        &mut self,
        queue: &mut Queue,
        mut siblings: Siblings<'_>,
        budget: &mut StepBudget,
        plan: &mut Plan,
    ) -> Vec<Admission> {
        let mut admissions = Vec::new();
        let mut passed_over = Vec::new();
        let mut places = self.places_beside(plan);
        while !budget.is_spent() && places > 0 {
            let Some(mut next) = queue.pop() else { break };
            let Some(prospect) = self.prospect_unless_it_waits(&mut next) else {
                siblings.leave_to_self(&next);
                passed_over.push(next);
                continue;
            };
            match prospect.fit {
                Fit::Fits if siblings.prefer(&next, self, prospect.prefix) => passed_over.push(next),
                Fit::Fits => {
                    let admission = self.admit_one(next, prospect.found, budget, plan);
                    if admission.queued_since.is_some()
                        && let Some(running) = self.running.get(&admission.sequence)
                    {
                        let prompt = running.sequence.known_tokens() - admission.cached;
                        queue.charge(&running.sequence.standing.tenant, prompt);
                    }
                    admissions.push(admission);
                    places -= 1;
                }
                Fit::Follows(_) => {
                    siblings.leave_to_self(&next);
                    passed_over.push(next);
                }
                Fit::Never => passed_over.push(next),
                Fit::Lacks => {
                    // Nobody overtakes it: what becomes free is for it, however much it needs.
                    passed_over.push(next);
                    break;
                }
            }
        }
        for sequence in passed_over {
            queue.put_back(sequence);
        }
        admissions
    }

    /// Admits a waiting sequence out of turn and plans its first chunk, if it can run now.
    pub(crate) fn admit_if_it_fits(
        &mut self,
        waiting: SequenceId,
        queue: &mut Queue,
        budget: &mut StepBudget,
        plan: &mut Plan,
    ) -> Option<Admission> {
        let mut sequence = queue.remove(waiting)?;
        match self.prospect_unless_it_waits(&mut sequence) {
            Some(Prospect { fit: Fit::Fits, found, .. }) => {
                Some(self.admit_one(sequence, found, budget, plan))
            }
            Some(_) | None => {
                queue.put_back(sequence);
                None
            }
        }
    }

    /// What there is for `waiting`, unless it is held or follows whom it followed when it was last looked at.
    fn prospect_unless_it_waits(&self, waiting: &mut Sequence) -> Option<Prospect> {
        if waiting.is_held() || waiting.standing.leader.is_some_and(|leader| self.is_leading(leader)) {
            return None;
        }
        let prospect = self.prospect(waiting);
        waiting.standing.leader = match prospect.fit {
            Fit::Follows(leader) => Some(leader),
            Fit::Fits | Fit::Lacks | Fit::Never => None,
        };
        Some(prospect)
    }

    /// Whether `waiting` can run now, and what is cached of it.
    pub(crate) fn prospect(&self, waiting: &Sequence) -> Prospect {
        let shape = self.cache.shape();
        let found = self.cache.find(waiting.salt, waiting.reusable());
        let leader = self.leader_of(waiting, found.len());
        let missing = waiting.wanted_context().blocks_ceil(shape.block_size).saturating_sub(found.len());
        let fit = match leader {
            _ if !shape.holds(waiting.max_context()) => Fit::Never,
            Some(leader) => Fit::Follows(leader),
            None if missing + self.promised() > self.cache.available_beside(&found) => Fit::Lacks,
            None => Fit::Fits,
        };
        let prefix = leader.map_or(found.len(), |leader| leader.until).tokens(shape.block_size);
        Prospect { fit, prefix, found }
    }

    fn admit_one(
        &mut self,
        mut sequence: Sequence,
        found: Found,
        budget: &mut StepBudget,
        plan: &mut Plan,
    ) -> Admission {
        let mut table = self.cache.open(found);
        let cached = table.len().tokens(self.cache.shape().block_size);
        let tokens = budget.take(sequence.known_tokens() - cached);
        self.cache.extend(&mut table, cached + tokens).expect("the missing blocks are available");
        let admission = Admission {
            sequence: sequence.id,
            queued_since: sequence.standing.queued_since.take(),
            cached,
            before: sequence.standing.replica.replace(self.replica),
            replica: self.replica,
        };
        plan.push_start(sequence.start());
        let mut running = Running::new(sequence, table, cached);
        plan.push_chunk(running.take_chunk(tokens));
        self.running.insert(admission.sequence, running);
        admission
    }

    /// A running sequence that will soon publish blocks that `waiting`, of which so many are `cached`, can use. Waiting for them is cheaper than computing them twice: choices of one request and bursts
    /// with one system prompt compute it once.
    fn leader_of(&self, waiting: &Sequence, cached: Blocks) -> Option<Leader> {
        if self.cache.caching() == PrefixCaching::Disabled {
            return None;
        }
        let reusable = waiting.reusable();
        let block_size = self.cache.shape().block_size;
        let alike = |running: &Running| {
            let known = reusable.iter().zip(&running.sequence.known);
            Tokens::of_len(known.take_while(|(a, b)| a == b).count()).blocks_floor(block_size)
        };
        let mut open = self.running.values().filter(|running| {
            running.sequence.salt == waiting.salt && running.table.is_open() && alike(running) > cached
        });
        let running = open.next()?;
        Some(Leader { sequence: running.sequence.id, until: alike(running) })
    }

    /// Whether what follows `leader` is still better off waiting.
    fn is_leading(&self, leader: Leader) -> bool {
        let running = self.running.get(&leader.sequence);
        running.is_some_and(|running| running.table.is_open() && running.table.published() < leader.until)
    }

    /// Blocks that are not for new sequences: those that running ones need to catch up, and the reserve.
    fn promised(&self) -> Blocks {
        if self.running.is_empty() {
            return Blocks::ZERO;
        }
        let shape = self.cache.shape();
        let mut promised = Blocks((shape.blocks.0 / RESERVE_SHARE).max(1));
        for running in self.running.values() {
            let wanted = running.wanted_context().blocks_ceil(shape.block_size);
            promised += wanted.saturating_sub(running.table.len());
        }
        promised
    }
}
