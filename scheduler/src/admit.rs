//! Who may enter the queue, and who leaves it: waiting → running, with what is cached of it.

use std::time::Instant;

use lockstep_proto::{Blocks, SequenceId, Tokens};

use crate::blocks::BlockTable;
use crate::budget::StepBudget;
use crate::event::SequenceEvent;
use crate::group::{Group, Plan};
use crate::limits::{Limits, PrefixCaching};
use crate::queue::Queue;
use crate::scheduler::Scheduler;
use crate::sequence::{Running, Sequence};
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
        if let Some(group) = &self.group {
            let shape = group.cache.shape();
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
        Ok(())
    }

    pub(crate) fn note_admitted(&mut self, admissions: Vec<Admission>, now: Instant) {
        for Admission { sequence, queued_since, cached } in admissions {
            self.totals.prefix_hit_tokens += u64::from(cached.0);
            if let Some(since) = queued_since {
                let queued = now.saturating_duration_since(since);
                self.events.push(SequenceEvent::Admitted { sequence, queued, cached });
            }
        }
    }
}

impl Group {
    /// Admits from the front of the queue until tokens, places or blocks run out, and plans the first chunk
    /// of each.
    pub(crate) fn admit(
        &mut self,
        limits: &Limits,
        queue: &mut Queue,
        budget: &mut StepBudget,
        plan: &mut Plan,
    ) -> Vec<Admission> {
        let mut admissions = Vec::new();
        while !budget.is_spent() && self.running.len() < limits.running() {
            let Some(admission) = self.admit_first(queue, budget, plan) else { break };
            admissions.push(admission);
        }
        admissions
    }

    fn admit_first(
        &mut self,
        queue: &mut Queue,
        budget: &mut StepBudget,
        plan: &mut Plan,
    ) -> Option<Admission> {
        let first = queue.first()?;
        let mut table = self.cache.open(first.salt, first.reusable());
        let block_size = self.cache.shape().block_size;
        if self.is_computing_more_of(first, &table) {
            self.cache.release(table);
            return None;
        }
        let missing = first.wanted_context().blocks_ceil(block_size).saturating_sub(table.len());
        if missing + self.promised() > self.cache.available() {
            self.cache.release(table);
            return None;
        }
        let mut sequence = queue.pop_first()?;
        let cached = table.len().tokens(block_size);
        let tokens = budget.take(sequence.known_tokens() - cached);
        self.cache.extend(&mut table, cached + tokens).expect("the missing blocks are available");
        let admission =
            Admission { sequence: sequence.id, queued_since: sequence.queued_since.take(), cached };
        plan.push_start(sequence.start());
        let mut running = Running::new(sequence, table, cached);
        plan.push_chunk(running.take_chunk(tokens));
        self.running.insert(admission.sequence, running);
        Some(admission)
    }

    /// Whether a running sequence will soon publish blocks that `waiting`, whose cached blocks are in
    /// `table`, can use. Waiting for them is cheaper than computing them twice: choices of one request and
    /// bursts with one system prompt compute it once. What waits behind waits too, in its order.
    fn is_computing_more_of(&self, waiting: &Sequence, table: &BlockTable) -> bool {
        let reusable = waiting.reusable();
        self.cache.caching() == PrefixCaching::Enabled
            && self.running.values().any(|running| {
                let sequence = &running.sequence;
                let alike = || reusable.iter().zip(&sequence.known).take_while(|(a, b)| a == b).count();
                sequence.salt == waiting.salt
                    && running.table.is_open()
                    && Tokens::of_len(alike()).blocks_floor(self.cache.shape().block_size) > table.len()
            })
    }

    /// Blocks that are not for new sequences: those that running ones need to catch up, and the reserve.
    fn promised(&self) -> Blocks {
        if self.running.is_empty() {
            return Blocks::ZERO;
        }
        let shape = self.cache.shape();
        let mut promised = Blocks((shape.blocks.0 / RESERVE_SHARE).max(1));
        for running in self.running.values() {
            let wanted = running.sequence.wanted_context().blocks_ceil(shape.block_size);
            promised += wanted.saturating_sub(running.table.len());
        }
        promised
    }
}
