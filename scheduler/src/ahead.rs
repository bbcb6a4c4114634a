//! Run ahead: the next step is planned while one is in flight, so that the shards go on at once when that one is done.
//!
//! Nothing is guessed. What the step in flight samples the shards know, and are told to go on with it; a sequence that
//! it turns out to end has been computed once too often, and what came of that is dropped. Where the answer decides who
//! is computed at all, it is waited for.

use std::time::Instant;

use lockstep_proto::{Blocks, ReplicaId, Step, Tokens};

use crate::budget::StepBudget;
use crate::group::{Group, MAX_IN_FLIGHT};
use crate::scheduler::{Doors, Scheduler};

impl Scheduler {
    /// The step that follows the one in flight on a replica, ready to send before that one is answered. The shards
    /// answer in order.
    ///
    /// A sequence that the step in flight samples gets the token after that one, unless it ends there by its length;
    /// what waits is admitted as by [`plan_step`](Self::plan_step). `None` where there is nothing to compute, and where
    /// it is better to have the answer first: a sequence would have to wait for its owner or be preempted, or one is
    /// to be computed alone.
    pub fn plan_ahead(&mut self, replica: ReplicaId, now: Instant) -> Option<Step> {
        self.replicas.get(replica).filter(|group| group.can_run_ahead())?;
        let mut group = self.replicas.take(replica)?;
        let tokens = self.limits.step_tokens();
        let grants = StepBudget::new(tokens).grant(group.running.values());
        let is_clear = self.suspect(&group).is_none() && group.has_blocks_for(&grants);
        let planned =
            is_clear.then(|| self.plan_all(&mut group, Doors::Open, &mut StepBudget::new(tokens)));
        let step = planned.and_then(|planned| self.launch(&mut group, planned, now));
        self.replicas.put(group);
        self.assert_invariants();
        step
    }
}

impl Group {
    /// Whether a step could be planned while one is in flight. Whoever waits for its owner would miss it, and have its
    /// turn half as often. Where nobody waits any more for what is in flight, it may be a suspect who has left and was
    /// computed alone.
    fn can_run_ahead(&self) -> bool {
        let has_room = (1..MAX_IN_FLIGHT).contains(&self.in_flight.len());
        let is_awaited = self.running.keys().any(|running| self.computes(*running));
        self.admits()
            && has_room
            && is_awaited
            && !self.running.values().any(|running| running.waits_for_owner())
    }

    /// Whether all that runs can be given what it is granted without taking blocks from any of it.
    fn has_blocks_for(&self, grants: &[Tokens]) -> bool {
        let size = self.cache.shape().block_size;
        let missing = self.running.values().zip(grants).map(|(running, tokens)| {
            (running.scheduled + *tokens).blocks_ceil(size).saturating_sub(running.table.len())
        });
        missing.fold(Blocks::ZERO, |sum, blocks| sum + blocks) <= self.cache.available()
    }
}
