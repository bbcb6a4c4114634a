//! A restart of all groups, one after the other, while their siblings serve.
//!
//! A group is drained: the router lets it end its step and gives it up, and what it computed goes on with a sibling.
//! Then it is restarted, and only when it serves again is the next one's turn. Where one does not come back the others
//! are left alone.

use std::collections::VecDeque;
use std::time::Instant;

use lockstep_proto::ReplicaId;

use super::{Incarnation, Policy};

/// A rolling restart under way.
#[derive(Clone, Debug)]
pub(super) struct Rolling {
    current: Turn,
    /// Whose turn is yet to come.
    left: VecDeque<ReplicaId>,
}

/// One group's turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) replica: ReplicaId,
    /// The incarnation that is to leave.
    pub(super) incarnation: Incarnation,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The router is asked to do without it.
    Draining {
        ask_again: Instant,
        /// From then on it is restarted whatever the router does.
        until: Instant,
    },
    /// It is restarted, and does not serve again yet.
    Returning,
}

/// What is due in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Ask the router once more.
    AskAgain,
    /// Restart it, asked or not.
    Restart,
}

impl Rolling {
    /// Begins with the first of `replicas`; nothing, where there is none.
    pub(super) fn begin(
        mut replicas: VecDeque<ReplicaId>,
        incarnation: impl FnOnce(ReplicaId) -> Incarnation,
        (policy, now): (&Policy, Instant),
    ) -> Option<Self> {
        let replica = replicas.pop_front()?;
        let incarnation = incarnation(replica);
        let stage =
            Stage::Draining { ask_again: now + policy.order_again, until: now + policy.drain_patience };
        Some(Self { current: Turn { replica, incarnation, stage }, left: replicas })
    }

    pub(super) fn current(&self) -> Turn {
        self.current
    }

    /// Those whose turn is yet to come.
    pub(super) fn into_left(self) -> VecDeque<ReplicaId> {
        self.left
    }

    /// Whether this incarnation is waited for to leave.
    pub(super) fn drains(&self, replica: ReplicaId, incarnation: Incarnation) -> bool {
        let Turn { replica: current, incarnation: leaving, stage } = self.current;
        matches!(stage, Stage::Draining { .. }) && (current, leaving) == (replica, incarnation)
    }

    /// The group whose turn it is is being restarted.
    pub(super) fn on_restart(&mut self) {
        self.current.stage = Stage::Returning;
    }

    /// Whether a group is waited for to serve again.
    pub(super) fn awaits(&self, replica: ReplicaId) -> bool {
        matches!(self.current.stage, Stage::Returning) && self.current.replica == replica
    }

    /// What is due at `now`.
    pub(super) fn on_tick(&mut self, policy: &Policy, now: Instant) -> Option<Due> {
        match &mut self.current.stage {
            Stage::Draining { until, .. } if now >= *until => Some(Due::Restart),
            Stage::Draining { ask_again, .. } if now >= *ask_again => {
                *ask_again = now + policy.order_again;
                Some(Due::AskAgain)
            }
            Stage::Draining { .. } | Stage::Returning => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.current.stage {
            Stage::Draining { ask_again, until } => Some(ask_again.min(until)),
            Stage::Returning => None,
        }
    }
}
