//! What always holds, checked after every call where debug assertions are on.

use std::collections::BTreeSet;
use std::fmt;

use lockstep_proto::{Sampling, Tokens};

use crate::group::{Group, MAX_IN_FLIGHT};
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
        if suspects.clone().count() > 1 {
            return Err(Violation::of("several suspects run, so a lost group would not tell which"));
        }
        let is_computed = |running: &Running| {
            let id = running.sequence.id;
            self.in_flight.iter().any(|step| step.computes(id))
        };
        let chunks: usize = self.in_flight.iter().map(|step| step.chunks.len()).sum();
        if chunks > 1 && suspects.into_iter().any(is_computed) {
            return Err(Violation::of(
                "a suspect is not computed alone, so a lost group would not tell which",
            ));
        }
        Ok(())
    }

    fn check_blocks(&self) -> Result<(), Violation> {
        let left = self.in_flight.iter().flat_map(|step| &step.left);
        self.cache.check(self.running.values().map(|running| &running.table).chain(left))
    }

    /// Every chunk in flight is of a sequence that runs or that left its blocks to the last step that computes it.
    fn check_in_flight(&self) -> Result<(), Violation> {
        if self.in_flight.len() > MAX_IN_FLIGHT {
            return Err(Violation::of("more steps are in flight than allowed"));
        }
        let mut gone = BTreeSet::new();
        for step in self.in_flight.iter().rev() {
            let chunks = step.chunks.iter().filter(|chunk| !self.running.contains_key(&chunk.sequence));
            if chunks.filter(|chunk| gone.insert(chunk.sequence)).count() != step.left.len() {
                return Err(Violation::of("a sequence left a step in flight without leaving its blocks"));
            }
        }
        Ok(())
    }

    fn check_running(&self, running: &Running) -> Result<(), Violation> {
        let (id, known) = (running.sequence.id, running.sequence.known_tokens());
        let size = self.cache.shape().block_size;
        let in_flight = self.in_flight.iter().flat_map(|step| &step.chunks);
        let in_flight = in_flight.filter(|chunk| chunk.sequence == id);
        let tokens = in_flight.clone().fold(Tokens::ZERO, |sum, chunk| sum + chunk.tokens);
        let sampled = Tokens::of_len(in_flight.filter(|chunk| chunk.sampling == Sampling::Sample).count());
        if running.scheduled != running.computed + tokens || running.awaited != sampled {
            return Err(Violation::of(format!(
                "sequence {id} counts what is not in flight, or not all that is"
            )));
        }
        // The last of them is sampled after all that is computed.
        let can_be_computed = known + sampled.saturating_sub(Tokens(1));
        if running.computed >= known || running.scheduled > can_be_computed {
            return Err(Violation::of(format!("sequence {id} has computed what it does not know")));
        }
        if running.table.len() != running.scheduled.blocks_ceil(size) {
            return Err(Violation::of(format!("sequence {id} has blocks it does not use, or too few")));
        }
        let computed = &running.sequence.known[..running.computed.len()];
        self.cache.check_path(&running.table, running.sequence.salt, computed)
    }
}
