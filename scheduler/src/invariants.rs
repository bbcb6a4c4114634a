//! What always holds, checked after every call where debug assertions are on.

use std::collections::BTreeSet;
use std::fmt;

use lockstep_proto::Tokens;

use crate::group::Group;
use crate::scheduler::Scheduler;
use crate::sequence::Running;

/// A broken invariant: a defect of this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("keep the scheduler's books: {0}; report this as a defect")]
pub struct Violation(String);

impl Violation {
    pub(crate) fn of(what: impl fmt::Display) -> Self {
        Self(what.to_string())
    }
}

impl Scheduler {
    /// Checks everything that must hold between calls. Takes time in proportion to the blocks there are.
    ///
    /// # Errors
    /// The first thing found wrong. The scheduler should not be used any more.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        self.check_order()?;
        self.check_limits()?;
        self.check_places()?;
        self.replicas.groups().try_for_each(Group::check)
    }

    pub(crate) fn assert_invariants(&self) {
        if cfg!(debug_assertions)
            && let Err(violation) = self.check_invariants()
        {
            panic!("{violation}");
        }
    }

    /// Whatever waits is found where its turn is, and whatever runs was admitted.
    fn check_order(&self) -> Result<(), Violation> {
        if !self.queue.is_in_order() {
            return Err(Violation::of("a waiting sequence is not at its place in the queue"));
        }
        if let Some(running) = self.replicas.running().find(|running| !running.sequence.has_run()) {
            let id = running.sequence.id;
            return Err(Violation::of(format!("sequence {id} runs and was never admitted")));
        }
        Ok(())
    }

    /// A sequence has one place: in the queue or with one replica.
    fn check_places(&self) -> Result<(), Violation> {
        let mut seen = BTreeSet::new();
        match self.sequences().find(|sequence| !seen.insert(sequence.id)) {
            None => Ok(()),
            Some(twice) => Err(Violation::of(format!("sequence {} has two places", twice.id))),
        }
    }

    fn check_limits(&self) -> Result<(), Violation> {
        if self.requests() > self.limits.max_requests as usize {
            return Err(Violation::of("more requests are here than allowed"));
        }
        if self.replicas.groups().any(|group| !group.has_places(0)) {
            return Err(Violation::of("more sequences run than allowed"));
        }
        Ok(())
    }
}

impl Group {
    fn check(&self) -> Result<(), Violation> {
        self.check_blocks()?;
        self.check_in_flight()?;
        self.check_suspects()?;
        self.running.values().try_for_each(|running| self.check_running(running))
    }

    fn check_suspects(&self) -> Result<(), Violation> {
        let suspects = self.running.values().filter(|running| running.sequence.losses.are_suspicious());
        if suspects.count() > 1 {
            return Err(Violation::of("several suspects run, so a lost group would not tell which"));
        }
        Ok(())
    }

    fn check_blocks(&self) -> Result<(), Violation> {
        let cancelled = self.in_flight.iter().flat_map(|step| &step.cancelled);
        self.cache.check(self.running.values().map(|running| &running.table).chain(cancelled))
    }

    /// Every chunk in flight is of a sequence that runs or was cancelled since.
    fn check_in_flight(&self) -> Result<(), Violation> {
        let Some(step) = &self.in_flight else { return Ok(()) };
        let gone = step.chunks.iter().filter(|chunk| !self.running.contains_key(&chunk.sequence)).count();
        if gone != step.cancelled.len() {
            return Err(Violation::of("a sequence left the step in flight without leaving its blocks"));
        }
        Ok(())
    }

    fn check_running(&self, running: &Running) -> Result<(), Violation> {
        let (id, known) = (running.sequence.id, running.sequence.known_tokens());
        let size = self.cache.shape().block_size;
        let in_flight = self.in_flight.iter().flat_map(|step| &step.chunks);
        let in_flight: Tokens = in_flight
            .filter(|chunk| chunk.sequence == id)
            .fold(Tokens::ZERO, |sum, chunk| sum + chunk.tokens);
        if running.computed >= known || running.computed + in_flight > known {
            return Err(Violation::of(format!("sequence {id} has computed what it does not know")));
        }
        if running.table.len() != (running.computed + in_flight).blocks_ceil(size) {
            return Err(Violation::of(format!("sequence {id} has blocks it does not use, or too few")));
        }
        let computed = &running.sequence.known[..running.computed.len()];
        self.cache.check_path(&running.table, running.sequence.salt, computed)
    }
}
