//! Restart, back-off and give-up rules as a state machine. Never spawns, never waits, never reads a clock.

mod rolling;
mod unit;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lockstep_proto::ReplicaId;
use rolling::{Due, Rolling};
use unit::{Unit, UnitAction, Why};

/// A set of processes that live and die together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnitId {
    /// Every rank of a replica's group.
    Shards(ReplicaId),
    /// The one router.
    Router,
}

impl UnitId {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shards(_) => "shards",
            Self::Router => "router",
        }
    }

    /// The number of the replica it is.
    pub fn replica(self) -> Option<u32> {
        match self {
            Self::Shards(replica) => Some(replica.0),
            Self::Router => None,
        }
    }
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
    /// The router has given this start of a replica's shards up: one of them hangs or answers nonsense, or they were
    /// to be drained.
    Lost(ReplicaId, Incarnation),
    /// The router computes with this start of a replica's shards.
    Serves(ReplicaId, Incarnation),
    /// The router answers that the service is ready: it is, and a group is.
    Ready,
    /// Someone asks for a rolling restart.
    RestartRequested,
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
    /// Ask the router to let this start of a replica's shards leave, and to say that it is [`Event::Lost`] once it has.
    Drain(ReplicaId, Incarnation),
    /// Tell people of a rolling restart.
    Tell(RollingNews),
    /// Nothing is left alive and nothing will be started: leave.
    Finish(Outcome),
}

/// What people hear of a rolling restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RollingNews {
    /// It is not begun.
    Refused(Refusal),
    /// It is the turn of this replica.
    Begun(ReplicaId),
    /// Every group was restarted and serves.
    Done,
    /// This group does not serve; those whose turn has not come are left as they are.
    Abandoned(ReplicaId),
}

/// Why a rolling restart is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody would serve meanwhile.
    OneReplica,
    /// This group does not serve.
    Down(ReplicaId),
    /// There is one already.
    UnderWay,
    /// The server stops.
    Stopping,
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
    /// How long the shards may take to leave once the router has, or has let them go.
    pub shards_grace: Duration,
    /// After how long the router is asked once more to let a group leave.
    pub order_again: Duration,
    /// How long the router may take to let a group leave.
    pub drain_patience: Duration,
}

/// How many groups of shards there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// One a replica.
    pub replicas: u32,
    /// Processes of each.
    pub ranks: u32,
}

/// Keeps the groups of shards of all replicas and one router alive.
///
/// Call [`start`](Self::start) once, then [`on_event`](Self::on_event) for each event, and with
/// [`Event::Tick`] whenever [`next_deadline`](Self::next_deadline) has come. Carry out the returned actions
/// in order. After [`Action::Finish`] nothing more is asked for.
#[derive(Debug)]
pub struct Supervisor {
    policy: Policy,
    /// By replica.
    shards: Vec<Unit>,
    router: Unit,
    phase: Phase,
    rolling: Option<Rolling>,
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
    /// Watches over these groups of shards, at least one, and one router; starts nothing yet.
    pub fn new(policy: Policy, groups: Groups) -> Self {
        let shards = (0..groups.replicas.max(1)).map(|_| Unit::new(groups.ranks)).collect();
        Self { policy, shards, router: Unit::new(1), phase: Phase::Running, rolling: None }
    }

    /// Starts all units, at `now`.
    pub fn start(&mut self, now: Instant) -> Vec<Action> {
        self.ids().into_iter().map(|id| named(id, self.unit_mut(id).start(now))).collect()
    }

    /// Takes in what happened at `now`.
    pub fn on_event(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase == Phase::Finished {
            return actions;
        }
        match event {
            Event::Exited(member) => self.on_exited(member, now, &mut actions),
            Event::Lost(replica, incarnation) if self.has(replica) => {
                self.on_lost((replica, incarnation), now, &mut actions);
            }
            Event::Serves(replica, incarnation) if self.has(replica) => {
                self.on_serves((replica, incarnation), now, &mut actions);
            }
            Event::Lost(..) | Event::Serves(..) => {}
            Event::Ready => self.on_ready(),
            Event::RestartRequested => self.on_restart_requested(now, &mut actions),
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
        let units = self.shards.iter().chain([&self.router]);
        let units = units.filter_map(|unit| unit.deadline(&self.policy));
        units.chain(self.rolling.iter().filter_map(Rolling::deadline)).min()
    }

    /// The process, if any, that has given no sign of life for too long at `now`.
    pub fn hung(&self, now: Instant) -> Option<Member> {
        self.ids().into_iter().find_map(|id| {
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

    /// Every unit, the router last.
    fn ids(&self) -> Vec<UnitId> {
        self.replicas().map(UnitId::Shards).chain([UnitId::Router]).collect()
    }

    fn replicas(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        (0..u32::try_from(self.shards.len()).unwrap_or(u32::MAX)).map(ReplicaId)
    }

    fn has(&self, replica: ReplicaId) -> bool {
        replica.index() < self.shards.len()
    }

    fn on_exited(&mut self, member: Member, now: Instant, actions: &mut Vec<Action>) {
        if let UnitId::Shards(replica) = member.unit
            && self.rolling.as_ref().is_some_and(|rolling| rolling.drains(replica, member.incarnation))
        {
            // It was to leave, and has before it was told.
            self.restart(replica, now, actions);
        }
        let policy = self.policy;
        let unit = self.unit_mut(member.unit);
        actions.extend(unit.on_exited(member, &policy, now).map(|action| named(member.unit, action)));
    }

    fn on_lost(
        &mut self,
        (replica, incarnation): (ReplicaId, Incarnation),
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if self.rolling.as_ref().is_some_and(|rolling| rolling.drains(replica, incarnation)) {
            self.restart(replica, now, actions);
            return;
        }
        let action = self.unit_mut(UnitId::Shards(replica)).on_lost(incarnation);
        actions.extend(action.map(|action| named(UnitId::Shards(replica), action)));
    }

    fn on_serves(
        &mut self,
        (replica, incarnation): (ReplicaId, Incarnation),
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let unit = self.unit_mut(UnitId::Shards(replica));
        if unit.incarnation() != incarnation || !unit.is_up() {
            return;
        }
        unit.on_ready();
        // They are made of the same files.
        self.shards.iter_mut().for_each(Unit::on_sibling_ready);
        if self.rolling.as_ref().is_some_and(|rolling| rolling.awaits(replica)) {
            self.restart_next(now, actions);
        }
    }

    /// One group is ready at least. Which, where there are several, [`Event::Serves`] tells.
    fn on_ready(&mut self) {
        self.router.on_ready();
        if let [only] = &mut self.shards[..] {
            only.on_ready();
        }
    }

    fn on_restart_requested(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let refusal = match self.phase {
            Phase::Running if self.rolling.is_some() => Some(Refusal::UnderWay),
            Phase::Running if self.shards.len() == 1 => Some(Refusal::OneReplica),
            Phase::Running => self.down().map(Refusal::Down),
            Phase::DrainingRouter | Phase::StoppingShards | Phase::Killing(_) | Phase::Finished => {
                Some(Refusal::Stopping)
            }
        };
        match refusal {
            Some(refusal) => actions.push(Action::Tell(RollingNews::Refused(refusal))),
            None => self.roll(self.replicas().collect(), now, actions),
        }
    }

    /// The turn of the group that was restarted is over.
    fn restart_next(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(rolling) = self.rolling.take() else { return };
        match self.down() {
            Some(down) => actions.push(Action::Tell(RollingNews::Abandoned(down))),
            None => self.roll(rolling.into_left(), now, actions),
        }
    }

    /// It is the turn of the first of `left`, if there is one.
    fn roll(&mut self, left: VecDeque<ReplicaId>, now: Instant, actions: &mut Vec<Action>) {
        let incarnation = |replica| self.unit(UnitId::Shards(replica)).incarnation();
        self.rolling = Rolling::begin(left, incarnation, (&self.policy, now));
        let Some(turn) = self.rolling.as_ref().map(Rolling::current) else {
            actions.push(Action::Tell(RollingNews::Done));
            return;
        };
        actions.push(Action::Tell(RollingNews::Begun(turn.replica)));
        actions.push(Action::Drain(turn.replica, turn.incarnation));
    }

    /// Restarts the group whose turn it is: nobody needs it any more.
    fn restart(&mut self, replica: ReplicaId, now: Instant, actions: &mut Vec<Action>) {
        let id = UnitId::Shards(replica);
        let kill_at = now + self.policy.shards_grace;
        actions.extend(self.unit_mut(id).restart(kill_at).map(|action| named(id, action)));
        if let Some(rolling) = &mut self.rolling {
            rolling.on_restart();
        }
    }

    /// A group that does not serve.
    fn down(&self) -> Option<ReplicaId> {
        self.replicas().find(|replica| !self.unit(UnitId::Shards(*replica)).serves())
    }

    fn on_stop_requested(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.rolling = None;
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
        for id in self.ids() {
            let action = self.unit_mut(id).on_tick(&policy, now);
            actions.extend(action.map(|action| named(id, action)));
        }
        let Some(rolling) = &mut self.rolling else { return };
        let turn = rolling.current();
        match rolling.on_tick(&policy, now) {
            Some(Due::AskAgain) if self.is_up(UnitId::Shards(turn.replica)) => {
                actions.push(Action::Drain(turn.replica, turn.incarnation));
            }
            Some(Due::Restart) => self.restart(turn.replica, now, actions),
            // Nobody need let go what has just been found hanging, and is killed.
            Some(Due::AskAgain) | None => {}
        }
    }

    /// Moves on to the next phase where the units allow it.
    fn advance(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.abandon_if_it_falls(actions);
        if self.phase == Phase::Running {
            let lost = self.ids().into_iter().find_map(|id| {
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
            let kill_at = now + self.policy.shards_grace;
            for id in self.replicas().map(UnitId::Shards) {
                actions.extend(self.unit_mut(id).stop(kill_at).map(|action| named(id, action)));
            }
        }
        if !self.router.is_ended() || !self.shards.iter().all(Unit::is_ended) {
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

    /// A group that falls where it should come back is not waited for by the others: it may fall again and again.
    fn abandon_if_it_falls(&mut self, actions: &mut Vec<Action>) {
        let Some(replica) = self.rolling.as_ref().map(|rolling| rolling.current().replica) else { return };
        if self.unit(UnitId::Shards(replica)).has_fallen() {
            self.rolling = None;
            actions.push(Action::Tell(RollingNews::Abandoned(replica)));
        }
    }

    fn kill_all(&mut self, outcome: Outcome, actions: &mut Vec<Action>) {
        self.phase = Phase::Killing(outcome);
        self.rolling = None;
        for id in self.ids().into_iter().rev() {
            let action = self.unit_mut(id).kill();
            actions.extend(action.map(|action| named(id, action)));
        }
    }

    fn unit(&self, id: UnitId) -> &Unit {
        match id {
            UnitId::Shards(replica) => &self.shards[replica.index()],
            UnitId::Router => &self.router,
        }
    }

    fn unit_mut(&mut self, id: UnitId) -> &mut Unit {
        match id {
            UnitId::Shards(replica) => &mut self.shards[replica.index()],
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
