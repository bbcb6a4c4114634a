//! The life of one unit: processes that are started together, and all ended when one of them ends.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Incarnation, Member, Policy};

/// What a unit asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnitAction {
    /// Start all its processes.
    Spawn(Incarnation),
    /// Ask those alive to end.
    Terminate,
    /// End those alive.
    Kill,
}

#[derive(Debug)]
pub(super) struct Unit {
    size: u32,
    incarnation: Incarnation,
    /// In a row, without being ready in between.
    failures: u32,
    /// When the incarnation was started.
    started: Option<Instant>,
    served: Served,
    state: State,
}

/// Whether an incarnation was ever ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    No,
    Yes,
}

/// Indices of processes that were started and have not been reaped.
type Alive = BTreeSet<u32>;

#[derive(Debug)]
enum State {
    NotStarted,
    Up {
        alive: Alive,
    },
    /// One has ended, the others are killed; restarts once all are reaped.
    Felled {
        alive: Alive,
    },
    BackingOff {
        until: Instant,
    },
    /// Asked to end; killed at the deadline.
    Stopping {
        alive: Alive,
        kill_at: Option<Instant>,
    },
    GivenUp,
    Ended,
}

impl Unit {
    pub(super) fn new(size: u32) -> Self {
        Self {
            size,
            incarnation: Incarnation(0),
            failures: 0,
            started: None,
            served: Served::No,
            state: State::NotStarted,
        }
    }

    pub(super) fn start(&mut self, now: Instant) -> UnitAction {
        self.incarnation = Incarnation(self.incarnation.0 + 1);
        self.started = Some(now);
        self.served = Served::No;
        self.state = State::Up { alive: (0..self.size).collect() };
        UnitAction::Spawn(self.incarnation)
    }

    /// A process was reaped. A report about an earlier incarnation changes nothing.
    pub(super) fn on_exited(
        &mut self,
        member: Member,
        policy: &Policy,
        now: Instant,
    ) -> Option<UnitAction> {
        if member.incarnation != self.incarnation {
            return None;
        }
        match &mut self.state {
            State::Up { alive } => {
                if !alive.remove(&member.index) {
                    return None;
                }
                let alive = std::mem::take(alive);
                self.failures += 1;
                let rest = !alive.is_empty();
                self.state = State::Felled { alive };
                self.back_off_once_reaped(policy, now);
                rest.then_some(UnitAction::Kill)
            }
            State::Felled { alive } => {
                alive.remove(&member.index);
                self.back_off_once_reaped(policy, now);
                None
            }
            State::Stopping { alive, .. } => {
                alive.remove(&member.index);
                if alive.is_empty() {
                    self.state = State::Ended;
                }
                None
            }
            State::NotStarted | State::BackingOff { .. } | State::GivenUp | State::Ended => None,
        }
    }

    /// Whoever needs the unit has given this incarnation up, though its processes live.
    pub(super) fn on_lost(&mut self, incarnation: Incarnation) -> Option<UnitAction> {
        let State::Up { alive } = &mut self.state else { return None };
        if incarnation != self.incarnation {
            return None;
        }
        let alive = std::mem::take(alive);
        self.failures += 1;
        self.state = State::Felled { alive };
        Some(UnitAction::Kill)
    }

    pub(super) fn on_ready(&mut self) {
        if self.is_up() {
            self.failures = 0;
            self.served = Served::Yes;
        }
    }

    pub(super) fn on_tick(&mut self, now: Instant) -> Option<UnitAction> {
        match &mut self.state {
            State::BackingOff { until } if now >= *until => Some(self.start(now)),
            State::Stopping { kill_at, .. } if kill_at.is_some_and(|at| now >= at) => {
                *kill_at = None;
                Some(UnitAction::Kill)
            }
            State::NotStarted
            | State::Up { .. }
            | State::Felled { .. }
            | State::BackingOff { .. }
            | State::Stopping { .. }
            | State::GivenUp
            | State::Ended => None,
        }
    }

    /// Asks the unit to end by `kill_at`.
    pub(super) fn stop(&mut self, kill_at: Instant) -> Option<UnitAction> {
        match &mut self.state {
            State::Up { alive } => {
                let alive = std::mem::take(alive);
                self.state = State::Stopping { alive, kill_at: Some(kill_at) };
                Some(UnitAction::Terminate)
            }
            State::Felled { .. } => self.kill(),
            State::NotStarted | State::BackingOff { .. } | State::GivenUp => {
                self.state = State::Ended;
                None
            }
            State::Stopping { .. } | State::Ended => None,
        }
    }

    /// Ends the unit at once.
    pub(super) fn kill(&mut self) -> Option<UnitAction> {
        match &mut self.state {
            State::Up { alive } | State::Felled { alive } | State::Stopping { alive, .. } => {
                let alive = std::mem::take(alive);
                self.state = State::Stopping { alive, kill_at: None };
                Some(UnitAction::Kill)
            }
            State::NotStarted | State::BackingOff { .. } | State::GivenUp => {
                self.state = State::Ended;
                None
            }
            State::Ended => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::BackingOff { until } => Some(*until),
            State::Stopping { kill_at, .. } => *kill_at,
            State::NotStarted | State::Up { .. } | State::Felled { .. } | State::GivenUp | State::Ended => {
                None
            }
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    pub(super) fn is_given_up(&self) -> bool {
        matches!(self.state, State::GivenUp)
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    fn back_off_once_reaped(&mut self, policy: &Policy, now: Instant) {
        let State::Felled { alive } = &self.state else { return };
        if !alive.is_empty() {
            return;
        }
        self.state = if self.failures >= policy.failures_allowed {
            State::GivenUp
        } else {
            State::BackingOff { until: self.next_start(policy, now) }
        };
    }

    /// What served until now is wanted back at once, unless it was started a moment ago; what never came up
    /// is left alone for longer and longer.
    fn next_start(&self, policy: &Policy, now: Instant) -> Instant {
        match (self.served, self.started) {
            (Served::Yes, Some(started)) => now.max(started + policy.first_delay),
            (Served::Yes | Served::No, _) => now + delay_after(self.failures, policy),
        }
    }
}

/// Doubles from the first delay to the longest.
pub(super) fn delay_after(failures: u32, policy: &Policy) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    policy.first_delay.saturating_mul(1 << doublings).min(policy.longest_delay)
}
