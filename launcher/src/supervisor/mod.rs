//! Restart, back-off and give-up rules as a state machine. Never spawns, never waits, never reads a clock.

mod unit;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use unit::{Unit, UnitAction, Why};

/// A set of processes that live and die together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnitId {
    /// Every rank of the group.
    Shards,
    /// The one router.
    Router,
}

/// Counts how often a unit was started, from 1. The shards' incarnation is the group's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

/// One process of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Whose it is.
    pub unit: UnitId,
    /// Which start of the unit it belongs to.
    pub incarnation: Incarnation,
    /// Its place among the unit's processes, from 0: a shard's rank.
    pub index: u32,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A process ended and was reaped, or could not be started.
    Exited(Member),
    /// The router has given this start of the shards up: one of them hangs or answers nonsense.
    Lost(Incarnation),
    /// The router answers that the service is ready: every unit is.
    Ready,
    /// Someone asks to stop: the first time drain, the second time at once.
    StopRequested,
    /// Time has passed; due whenever [`Supervisor::next_deadline`] is reached.
    Tick,
}

/// What to do about it, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start every process of the unit. Each must be reported by [`Event::Exited`] once, also one that
    /// could not be started.
    Spawn(UnitId, Incarnation),
    /// Ask every living process of the unit to end.
    Terminate(UnitId),
    /// End every living process of the unit.
    Kill(UnitId),
    /// Nothing is left alive and nothing will be started: leave.
    Finish(Outcome),
}

/// Why the supervisor is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was asked to stop.
    Stopped,
    /// This unit never came up.
    GaveUp(UnitId),
    /// This unit fell more often than is allowed.
    FellTooOften(UnitId),
}

/// How often what was ready once may fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restarts {
    /// As often as it does.
    Endless,
    /// No more often within some time.
    AtMost {
        /// So often.
        count: usize,
        /// Within so much time.
        window: Duration,
    },
}

/// How patient the supervisor is.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Wait before the first restart of what was not ready yet; doubles with each failure in a row. What was
    /// ready is restarted at once, but never sooner than so long after it was last started.
    pub first_delay: Duration,
    /// No wait is longer.
    pub longest_delay: Duration,
    /// Failures in a row after which a unit that was never ready is given up.
    pub failures_allowed: u32,
    /// How often a unit that was ready once may fall.
    pub restarts: Restarts,
    /// How long a process may give no sign of life before it counts as hung.
    pub silence_allowed: Duration,
    /// How long the router may drain.
    pub router_grace: Duration,
    /// How long the shards may take to leave once the router has.
    pub shards_grace: Duration,
}

/// Keeps one group of shards and one router alive.
///
/// Call [`start`](Self::start) once, then [`on_event`](Self::on_event) for each event, and with
/// [`Event::Tick`] whenever [`next_deadline`](Self::next_deadline) has come. Carry out the returned actions
/// in order. After [`Action::Finish`] nothing more is asked for.
#[derive(Debug)]
pub struct Supervisor {
    policy: Policy,
    shards: Unit,
    router: Unit,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// The router drains; the shards serve it.
    DrainingRouter,
    /// The shards leave.
    StoppingShards,
    /// Everything is being killed.
    Killing(Outcome),
    Finished,
}

impl Supervisor {
    /// Watches over `ranks` shards and one router; starts nothing yet.
    pub fn new(policy: Policy, ranks: u32) -> Self {
        Self { policy, shards: Unit::new(ranks), router: Unit::new(1), phase: Phase::Running }
    }

    /// Starts both units, at `now`.
    pub fn start(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for id in [UnitId::Shards, UnitId::Router] {
            let action = self.unit_mut(id).start(now);
            actions.push(named(id, action));
        }
        actions
    }

    /// Takes in what happened at `now`.
    pub fn on_event(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase == Phase::Finished {
            return actions;
        }
        match event {
            Event::Exited(member) => self.on_exited(member, now, &mut actions),
            Event::Lost(incarnation) => {
                let action = self.shards.on_lost(incarnation);
                actions.extend(action.map(|action| named(UnitId::Shards, action)));
            }
            Event::Ready => self.on_ready(),
            Event::StopRequested => self.on_stop_requested(now, &mut actions),
            Event::Tick => self.on_tick(now, &mut actions),
        }
        self.advance(now, &mut actions);
        actions
    }

    /// A process gets on with its work: it does not hang at `now`.
    pub fn on_lives(&mut self, member: Member, now: Instant) {
        self.unit_mut(member.unit).on_lives(member, now);
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let units = [&self.shards, &self.router];
        units.into_iter().filter_map(|unit| unit.deadline(&self.policy)).min()
    }

    /// The process, if any, that has given no sign of life for too long at `now`.
    pub fn hung(&self, now: Instant) -> Option<Member> {
        [UnitId::Shards, UnitId::Router].into_iter().find_map(|id| {
            let unit = self.unit(id);
            let index = unit.hung(&self.policy, now)?;
            Some(Member { unit: id, incarnation: unit.incarnation(), index })
        })
    }

    /// The process of this place that was started last.
    pub fn newest(&self, unit: UnitId, index: u32) -> Member {
        Member { unit, incarnation: self.unit(unit).incarnation(), index }
    }

    /// Whether every process of the unit is up, as far as is known.
    pub fn is_up(&self, unit: UnitId) -> bool {
        self.unit(unit).is_up()
    }

    fn on_exited(&mut self, member: Member, now: Instant, actions: &mut Vec<Action>) {
        let policy = self.policy;
        let unit = self.unit_mut(member.unit);
        actions.extend(unit.on_exited(member, &policy, now).map(|action| named(member.unit, action)));
    }

    fn on_ready(&mut self) {
        self.shards.on_ready();
        self.router.on_ready();
    }

    fn on_stop_requested(&mut self, now: Instant, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Running => {
                self.phase = Phase::DrainingRouter;
                let action = self.router.stop(now + self.policy.router_grace);
                actions.extend(action.map(|action| named(UnitId::Router, action)));
            }
            Phase::DrainingRouter | Phase::StoppingShards => self.kill_all(Outcome::Stopped, actions),
            Phase::Killing(_) | Phase::Finished => {}
        }
    }

    fn on_tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let policy = self.policy;
        for id in [UnitId::Shards, UnitId::Router] {
            let action = self.unit_mut(id).on_tick(&policy, now);
            actions.extend(action.map(|action| named(id, action)));
        }
    }

    /// Moves on to the next phase where the units allow it.
    fn advance(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.phase == Phase::Running {
            let lost = [UnitId::Shards, UnitId::Router].into_iter().find_map(|id| {
                self.unit(id).given_up().map(|why| match why {
                    Why::NeverReady => Outcome::GaveUp(id),
                    Why::TooOften => Outcome::FellTooOften(id),
                })
            });
            if let Some(outcome) = lost {
                self.kill_all(outcome, actions);
            }
        }
        if self.phase == Phase::DrainingRouter && self.router.is_ended() {
            self.phase = Phase::StoppingShards;
            let action = self.shards.stop(now + self.policy.shards_grace);
            actions.extend(action.map(|action| named(UnitId::Shards, action)));
        }
        if !self.router.is_ended() || !self.shards.is_ended() {
            return;
        }
        let outcome = match self.phase {
            Phase::StoppingShards => Outcome::Stopped,
            Phase::Killing(outcome) => outcome,
            Phase::Running | Phase::DrainingRouter | Phase::Finished => return,
        };
        self.phase = Phase::Finished;
        actions.push(Action::Finish(outcome));
    }

    fn kill_all(&mut self, outcome: Outcome, actions: &mut Vec<Action>) {
        self.phase = Phase::Killing(outcome);
        for id in [UnitId::Router, UnitId::Shards] {
            let action = self.unit_mut(id).kill();
            actions.extend(action.map(|action| named(id, action)));
        }
    }

    fn unit(&self, id: UnitId) -> &Unit {
        match id {
            UnitId::Shards => &self.shards,
            UnitId::Router => &self.router,
        }
    }

    fn unit_mut(&mut self, id: UnitId) -> &mut Unit {
        match id {
            UnitId::Shards => &mut self.shards,
            UnitId::Router => &mut self.router,
        }
    }
}

fn named(id: UnitId, action: UnitAction) -> Action {
    match action {
        UnitAction::Spawn(incarnation) => Action::Spawn(id, incarnation),
        UnitAction::Terminate => Action::Terminate(id),
        UnitAction::Kill => Action::Kill(id),
    }
}
