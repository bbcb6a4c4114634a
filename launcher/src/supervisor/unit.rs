//! The life of one unit: processes that are started together, and all ended when one of them ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::{Incarnation, Member, Policy, Restarts};

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
    /// The same of any incarnation.
    ever_served: Served,
    /// When it fell, lately, where that is counted.
    falls: VecDeque<Instant>,
    state: State,
}

/// Why a unit is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    NeverReady,
    TooOften,
}

/// Whether a unit was ready.
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
        /// By index: when it was last known to live.
        heard: BTreeMap<u32, Instant>,
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
        then: Then,
    },
    GivenUp(Why),
    Ended,
}

/// What follows once a unit has ended as it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    Restart,
}

impl Unit {
    pub(super) fn new(size: u32) -> Self {
        Self {
            size,
            incarnation: Incarnation(0),
            failures: 0,
            started: None,
            served: Served::No,
            ever_served: Served::No,
            falls: VecDeque::new(),
            state: State::NotStarted,
        }
    }

    pub(super) fn start(&mut self, now: Instant) -> UnitAction {
        self.incarnation = Incarnation(self.incarnation.0 + 1);
        self.started = Some(now);
        self.served = Served::No;
        self.state = State::Up { heard: (0..self.size).map(|index| (index, now)).collect() };
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
            State::Up { heard } => {
                heard.remove(&member.index)?;
                let rest = !heard.is_empty();
                self.fell();
                self.back_off_once_reaped(policy, now);
                rest.then_some(UnitAction::Kill)
            }
            State::Felled { alive } => {
                alive.remove(&member.index);
                self.back_off_once_reaped(policy, now);
                None
            }
            State::Stopping { alive, then, .. } => {
                alive.remove(&member.index);
                if alive.is_empty() {
                    self.state = match then {
                        Then::Nothing => State::Ended,
                        Then::Restart => State::BackingOff { until: self.next_start(policy, now) },
                    };
                }
                None
            }
            State::NotStarted | State::BackingOff { .. } | State::GivenUp(_) | State::Ended => None,
        }
    }

    /// Whoever needs the unit has given this incarnation up, though its processes live.
    pub(super) fn on_lost(&mut self, incarnation: Incarnation) -> Option<UnitAction> {
        if incarnation != self.incarnation || !self.is_up() {
            return None;
        }
        self.fell();
        Some(UnitAction::Kill)
    }

    /// A process gets on with its work. What is said of an earlier incarnation changes nothing.
    pub(super) fn on_lives(&mut self, member: Member, now: Instant) {
        if let State::Up { heard } = &mut self.state
            && member.incarnation == self.incarnation
            && let Some(last) = heard.get_mut(&member.index)
        {
            *last = now;
        }
    }

    /// Asks the unit to end by `kill_at`, to be started again once it has. That is no fall.
    pub(super) fn restart(&mut self, kill_at: Instant) -> Option<UnitAction> {
        let State::Up { heard } = &self.state else { return None };
        let alive = heard.keys().copied().collect();
        self.state = State::Stopping { alive, kill_at: Some(kill_at), then: Then::Restart };
        Some(UnitAction::Terminate)
    }

    /// A unit of the same kind was ready: what it is made of can be.
    pub(super) fn on_sibling_ready(&mut self) {
        self.ever_served = Served::Yes;
    }

    pub(super) fn on_ready(&mut self) {
        if self.is_up() {
            self.failures = 0;
            self.served = Served::Yes;
            self.ever_served = Served::Yes;
        }
    }

    pub(super) fn on_tick(&mut self, policy: &Policy, now: Instant) -> Option<UnitAction> {
        match &mut self.state {
            State::BackingOff { until } if now >= *until => Some(self.start(now)),
            State::Stopping { kill_at, .. } if kill_at.is_some_and(|at| now >= at) => {
                *kill_at = None;
                Some(UnitAction::Kill)
            }
            State::Up { heard } => {
                let deadline = silence_ends(heard, policy)?;
                if now < deadline {
                    return None;
                }
                if now > deadline + policy.silence_allowed / 2 {
                    // Nobody listened either: the whole host stood still, or this process did.
                    heard.values_mut().for_each(|last| *last = now);
                    return None;
                }
                self.fell();
                Some(UnitAction::Kill)
            }
            State::NotStarted
            | State::Felled { .. }
            | State::BackingOff { .. }
            | State::Stopping { .. }
            | State::GivenUp(_)
            | State::Ended => None,
        }
    }

    /// Asks the unit to end by `kill_at`.
    pub(super) fn stop(&mut self, kill_at: Instant) -> Option<UnitAction> {
        match &mut self.state {
            State::Up { heard } => {
                let alive = heard.keys().copied().collect();
                self.state = State::Stopping { alive, kill_at: Some(kill_at), then: Then::Nothing };
                Some(UnitAction::Terminate)
            }
            State::Stopping { then, .. } => {
                *then = Then::Nothing;
                None
            }
            State::Felled { .. } => self.kill(),
            State::NotStarted | State::BackingOff { .. } | State::GivenUp(_) => {
                self.state = State::Ended;
                None
            }
            State::Ended => None,
        }
    }

    /// Ends the unit at once.
    pub(super) fn kill(&mut self) -> Option<UnitAction> {
        match &mut self.state {
            State::Up { heard } => {
                let alive = heard.keys().copied().collect();
                self.state = State::Stopping { alive, kill_at: None, then: Then::Nothing };
                Some(UnitAction::Kill)
            }
            State::Felled { alive } | State::Stopping { alive, .. } => {
                let alive = std::mem::take(alive);
                self.state = State::Stopping { alive, kill_at: None, then: Then::Nothing };
                Some(UnitAction::Kill)
            }
            State::NotStarted | State::BackingOff { .. } | State::GivenUp(_) => {
                self.state = State::Ended;
                None
            }
            State::Ended => None,
        }
    }

    pub(super) fn deadline(&self, policy: &Policy) -> Option<Instant> {
        match &self.state {
            State::Up { heard } => silence_ends(heard, policy),
            State::BackingOff { until } => Some(*until),
            State::Stopping { kill_at, .. } => *kill_at,
            State::NotStarted | State::Felled { .. } | State::GivenUp(_) | State::Ended => None,
        }
    }

    /// The process, if any, that has been silent for too long.
    pub(super) fn hung(&self, policy: &Policy, now: Instant) -> Option<u32> {
        let State::Up { heard } = &self.state else { return None };
        let silent = heard.iter().min_by_key(|(_, last)| **last);
        silent.filter(|(_, last)| now >= **last + policy.silence_allowed).map(|(index, _)| *index)
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Whether it is ready, as far as is known.
    pub(super) fn serves(&self) -> bool {
        self.is_up() && self.served == Served::Yes
    }

    /// Whether it fell since it was ready.
    pub(super) fn has_fallen(&self) -> bool {
        self.failures > 0
    }

    pub(super) fn given_up(&self) -> Option<Why> {
        match self.state {
            State::GivenUp(why) => Some(why),
            State::NotStarted
            | State::Up { .. }
            | State::Felled { .. }
            | State::BackingOff { .. }
            | State::Stopping { .. }
            | State::Ended => None,
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    fn back_off_once_reaped(&mut self, policy: &Policy, now: Instant) {
        let State::Felled { alive } = &self.state else { return };
        if !alive.is_empty() {
            return;
        }
        self.state = match self.hopeless(policy, now) {
            Some(why) => State::GivenUp(why),
            None => State::BackingOff { until: self.next_start(policy, now) },
        };
    }

    /// Why it is not worth another start. A model that never loads should be heard of; one that did load is
    /// waited for, unless someone wants to hear of that too.
    fn hopeless(&mut self, policy: &Policy, now: Instant) -> Option<Why> {
        match (self.ever_served, policy.restarts) {
            (Served::No, _) => (self.failures >= policy.failures_allowed).then_some(Why::NeverReady),
            (Served::Yes, Restarts::Endless) => None,
            (Served::Yes, Restarts::AtMost { count, window }) => {
                self.falls.push_back(now);
                while self.falls.front().is_some_and(|fall| now > *fall + window) {
                    self.falls.pop_front();
                }
                (self.falls.len() > count).then_some(Why::TooOften)
            }
        }
    }

    /// Those of it that live are to be killed.
    fn fell(&mut self) {
        if let State::Up { heard } = &self.state {
            self.failures = self.failures.saturating_add(1);
            self.state = State::Felled { alive: heard.keys().copied().collect() };
        }
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

/// When whoever was silent longest has been so for too long.
fn silence_ends(heard: &BTreeMap<u32, Instant>, policy: &Policy) -> Option<Instant> {
    heard.values().min().map(|last| *last + policy.silence_allowed)
}

/// Doubles from the first delay to the longest.
pub(super) fn delay_after(failures: u32, policy: &Policy) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    policy.first_delay.saturating_mul(1 << doublings).min(policy.longest_delay)
}
