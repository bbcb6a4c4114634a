//! Sequences that groups of shards are lost with, again and again, and how the one that fells them is found.
//!
//! Whoever was being computed when two groups in a row were lost is under suspicion and computed alone, in
//! steps of its own, until it gets further than it ever was. The third group then falls with the one that
//! fells groups and with nobody else.

use lockstep_proto::{SequenceId, Tokens};

use crate::admit::Admission;
use crate::budget::StepBudget;
use crate::group::{Group, Plan};
use crate::scheduler::Scheduler;
use crate::sequence::Running;

/// A sequence that was being computed when so many groups in a row were lost, and got no further in
/// between, ends. One loss is nobody's fault, and a second may be a host that dies while it comes up; the
/// third time at the same place the sequence is the likely cause, and every replay costs everyone a restart.
pub(crate) const MAX_LOSSES_IN_A_ROW: u32 = 3;

/// So many, and a sequence is computed alone.
const SUSPICIOUS_LOSSES_IN_A_ROW: u32 = 2;

/// How often a sequence was being computed when its group was lost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Losses {
    /// The most of its context that was ever computed, by any group.
    furthest: Tokens,
    /// Since it last got further.
    in_a_row: u32,
}

impl Losses {
    /// So much of its context is computed. Every token it gets takes it further than before.
    pub(crate) fn on_computed(&mut self, computed: Tokens) {
        if computed > self.furthest {
            *self = Self { furthest: computed, in_a_row: 0 };
        }
    }

    /// The group was lost while it computed the sequence.
    pub(crate) fn on_lost(&mut self) {
        self.in_a_row = self.in_a_row.saturating_add(1);
    }

    /// Whether the sequence is not to be tried again.
    pub(crate) fn are_too_many(self) -> bool {
        self.in_a_row >= MAX_LOSSES_IN_A_ROW
    }

    /// Whether the sequence may be what fells groups.
    pub(crate) fn are_suspicious(self) -> bool {
        self.in_a_row >= SUSPICIOUS_LOSSES_IN_A_ROW
    }
}

/// A sequence to be computed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspect {
    /// It has blocks, and what follows it is being found out; until then no other suspect may run.
    Held,
    /// It has blocks.
    Running(SequenceId),
    /// It has none yet.
    Waiting(SequenceId),
}

impl Scheduler {
    /// Who is to be computed alone next by `group`: whoever is at it, then the oldest that waits.
    pub(crate) fn suspect(&self, group: &Group) -> Option<Suspect> {
        let mut running = group.running.values();
        if let Some(suspect) = running.find(|running| running.sequence.losses.are_suspicious()) {
            let is_held = suspect.is_held();
            return Some(if is_held { Suspect::Held } else { Suspect::Running(suspect.sequence.id) });
        }
        let shape = group.cache.shape();
        let waiting = self.queue.iter().filter(|sequence| shape.holds(sequence.max_context()));
        let waiting = waiting.filter(|sequence| sequence.losses.are_suspicious() && !sequence.is_held());
        waiting.min_by_key(|sequence| sequence.arrival()).map(|sequence| Suspect::Waiting(sequence.id))
    }

    /// A plan for a running sequence and for no other.
    pub(crate) fn plan_alone(
        &mut self,
        group: &mut Group,
        suspect: SequenceId,
        budget: &mut StepBudget,
    ) -> Plan {
        let grant = |(id, running): (&SequenceId, &Running)| {
            if *id == suspect { budget.take(running.ready()) } else { Tokens::ZERO }
        };
        let grants: Vec<Tokens> = group.running.iter().map(grant).collect();
        let (plan, preempted) = group.grow(&grants);
        self.note_preempted(preempted);
        plan
    }

    /// A plan for a waiting sequence and for no other, if there is room for it.
    pub(crate) fn admit_alone(
        &mut self,
        group: &mut Group,
        suspect: SequenceId,
        budget: &mut StepBudget,
    ) -> Option<(Plan, Admission)> {
        if !group.has_places(1) {
            return None;
        }
        let mut plan = Plan::default();
        let admission = group.admit_if_it_fits(suspect, &mut self.queue, budget, &mut plan)?;
        Some((plan, admission))
    }
}
