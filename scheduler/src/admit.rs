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
        let (waiting, prompt) = (self.queue.tokens(), Tokens::of_len(submission.prompt.len()));
        let limit = self.limits.max_queue_tokens;
        if !waiting.is_empty() && waiting.0.saturating_add(prompt.0) > limit.0 {
            return Err(AdmissionError::QueueFull { waiting, prompt, limit });
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

/// Whether a waiting sequence can run.
#[derive(Debug)]
enum Fit {
    /// With these blocks to begin with.
    Fits(BlockTable),
    /// Not yet: a running sequence computes what it begins with, or what follows it is being found out.
    Follows,
    /// There are too few blocks.
    Lacks,
}

impl Group {
    /// Admits in the queue's order until tokens, places or blocks run out, and plans the first chunk of
    /// each. Who waits for the blocks of a running sequence, or is held, is passed over and keeps its place.
    pub(crate) fn admit(
        &mut self,
        limits: &Limits,
        queue: &mut Queue,
        budget: &mut StepBudget,
        plan: &mut Plan,
    ) -> Vec<Admission> {
        let mut admissions = Vec::new();
        let mut passed_over = Vec::new();
        while !budget.is_spent() && self.running.len() < limits.running() {
            let Some(mut next) = queue.pop() else { break };
            match self.fit(&mut next) {
                Fit::Follows => passed_over.push(next),
                Fit::Lacks => {
                    // Nobody overtakes it: what becomes free is for it, however much it needs.
                    passed_over.push(next);
                    break;
                }
                Fit::Fits(table) => {
                    let admission = self.admit_one(next, table, budget, plan);
                    if admission.queued_since.is_some()
                        && let Some(running) = self.running.get(&admission.sequence)
                    {
                        let prompt = running.sequence.known_tokens() - admission.cached;
                        queue.charge(&running.sequence.standing.tenant, prompt);
                    }
                    admissions.push(admission);
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
        if let Fit::Fits(table) = self.fit(&mut sequence) {
            return Some(self.admit_one(sequence, table, budget, plan));
        }
        queue.put_back(sequence);
        None
    }

    /// Whether `waiting` can run now, and with which blocks.
    fn fit(&mut self, waiting: &mut Sequence) -> Fit {
        if waiting.is_held() || waiting.standing.leader.is_some_and(|leader| self.is_leading(leader)) {
            return Fit::Follows;
        }
        let table = self.cache.open(waiting.salt, waiting.reusable());
        waiting.standing.leader = self.leader_of(waiting, &table);
        let missing = waiting.wanted_context().blocks_ceil(self.cache.shape().block_size);
        let fit = if waiting.standing.leader.is_some() {
            Fit::Follows
        } else if missing.saturating_sub(table.len()) + self.promised() > self.cache.available() {
            Fit::Lacks
        } else {
            return Fit::Fits(table);
        };
        self.cache.release(table);
        fit
    }

    fn admit_one(
        &mut self,
        mut sequence: Sequence,
        mut table: BlockTable,
        budget: &mut StepBudget,
        plan: &mut Plan,
    ) -> Admission {
        let cached = table.len().tokens(self.cache.shape().block_size);
        let tokens = budget.take(sequence.known_tokens() - cached);
        self.cache.extend(&mut table, cached + tokens).expect("the missing blocks are available");
        let admission = Admission {
            sequence: sequence.id,
            queued_since: sequence.standing.queued_since.take(),
            cached,
        };
        plan.push_start(sequence.start());
        let mut running = Running::new(sequence, table, cached);
        plan.push_chunk(running.take_chunk(tokens));
        self.running.insert(admission.sequence, running);
        admission
    }

    /// A running sequence that will soon publish blocks that `waiting`, whose cached blocks are in `table`,
    /// can use. Waiting for them is cheaper than computing them twice: choices of one request and bursts
    /// with one system prompt compute it once.
    fn leader_of(&self, waiting: &Sequence, table: &BlockTable) -> Option<Leader> {
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
            running.sequence.salt == waiting.salt && running.table.is_open() && alike(running) > table.len()
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
            let wanted = running.sequence.wanted_context().blocks_ceil(shape.block_size);
            promised += wanted.saturating_sub(running.table.len());
        }
        promised
    }
}
