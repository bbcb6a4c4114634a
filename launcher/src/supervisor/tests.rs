//! The rules one by one, and all of them against random crashes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const POLICY: Policy = Policy {
    first_delay: Duration::from_millis(200),
    longest_delay: Duration::from_secs(10),
    failures_allowed: 5,
    restarts: Restarts::Endless,
    // Longer than any test here takes that is not about silence.
    silence_allowed: Duration::from_secs(7200),
    router_grace: Duration::from_secs(90),
    shards_grace: Duration::from_secs(10),
    order_again: Duration::from_secs(1),
    drain_patience: Duration::from_secs(70),
};

const FIRST: ReplicaId = ReplicaId(0);
const SECOND: ReplicaId = ReplicaId(1);
/// The only group, where there is one.
const GROUP: UnitId = UnitId::Shards(FIRST);

/// Carries out actions on paper: which processes live, and what was asked of them.
struct World {
    supervisor: Supervisor,
    groups: Groups,
    now: Instant,
    alive: BTreeSet<Member>,
    told_to_end: BTreeSet<Member>,
    spawns: Vec<(UnitId, Instant)>,
    finished: Option<Outcome>,
}

impl World {
    fn start(ranks: u32) -> Self {
        Self::start_with(POLICY, ranks)
    }

    fn start_with(policy: Policy, ranks: u32) -> Self {
        Self::start_groups(policy, Groups { replicas: 1, ranks })
    }

    fn start_groups(policy: Policy, groups: Groups) -> Self {
        let mut world = Self {
            supervisor: Supervisor::new(policy, groups),
            groups,
            now: Instant::now(),
            alive: BTreeSet::new(),
            told_to_end: BTreeSet::new(),
            spawns: Vec::new(),
            finished: None,
        };
        let actions = world.supervisor.start(world.now);
        world.carry_out(&actions);
        world
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        let actions = self.supervisor.on_event(event, self.now);
        self.carry_out(&actions);
        actions
    }

    fn exit(&mut self, member: Member) -> Vec<Action> {
        assert!(self.alive.remove(&member), "{member:?} is not alive");
        self.told_to_end.remove(&member);
        self.event(Event::Exited(member))
    }

    fn exit_all_told(&mut self) {
        while let Some(member) = self.told_to_end.first().copied() {
            self.exit(member);
        }
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.event(Event::Tick)
    }

    fn carry_out(&mut self, actions: &[Action]) {
        for action in actions {
            assert_eq!(self.finished, None, "{action:?} after the end");
            match *action {
                Action::Spawn(unit, incarnation) => self.spawn(unit, incarnation),
                Action::Terminate(unit) | Action::Kill(unit) => {
                    self.told_to_end.extend(self.alive.iter().filter(|member| member.unit == unit));
                }
                Action::Drain(replica, incarnation) => self.check_drain(replica, incarnation),
                Action::Tell(RollingNews::Begun(replica)) => self.check_siblings(replica),
                Action::Tell(_) => {}
                Action::Finish(outcome) => {
                    assert!(self.alive.is_empty(), "left behind: {:?}", self.alive);
                    self.finished = Some(outcome);
                }
            }
        }
    }

    fn spawn(&mut self, unit: UnitId, incarnation: Incarnation) {
        let others = self.of(unit);
        assert!(others.is_empty(), "{unit:?} started beside {others:?}");
        let size = match unit {
            UnitId::Shards(_) => self.groups.ranks,
            UnitId::Router => 1,
        };
        self.alive.extend((0..size).map(|index| Member { unit, incarnation, index }));
        self.spawns.push((unit, self.now));
    }

    /// When it is a group's turn, its siblings serve.
    fn check_siblings(&self, replica: ReplicaId) {
        assert!(self.groups.replicas > 1);
        for sibling in self.replicas().filter(|sibling| *sibling != replica) {
            assert!(self.supervisor.is_up(UnitId::Shards(sibling)), "{sibling} and {replica} are away");
        }
    }

    /// A group that is to leave is one that is up.
    fn check_drain(&self, replica: ReplicaId, incarnation: Incarnation) {
        assert_eq!(self.supervisor.newest(UnitId::Shards(replica), 0).incarnation, incarnation);
        assert!(self.supervisor.is_up(UnitId::Shards(replica)));
    }

    fn replicas(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        (0..self.groups.replicas).map(ReplicaId)
    }

    /// The router computes with whatever is up.
    fn serve(&mut self, replica: ReplicaId) -> Vec<Action> {
        let incarnation = self.supervisor.newest(UnitId::Shards(replica), 0).incarnation;
        self.event(Event::Serves(replica, incarnation))
    }

    fn lose(&mut self, replica: ReplicaId) -> Vec<Action> {
        let incarnation = self.supervisor.newest(UnitId::Shards(replica), 0).incarnation;
        self.event(Event::Lost(replica, incarnation))
    }

    /// Everyone but `silent` gives signs of life for so long.
    fn live(&mut self, time: Duration, silent: &[Member]) {
        let end = self.now + time;
        while self.now < end && self.finished.is_none() {
            self.now += Duration::from_secs(1).min(end - self.now);
            for member in self.alive.clone() {
                if !silent.contains(&member) {
                    self.supervisor.on_lives(member, self.now);
                }
            }
            self.event(Event::Tick);
        }
    }

    fn of(&self, unit: UnitId) -> Vec<Member> {
        self.alive.iter().copied().filter(|member| member.unit == unit).collect()
    }

    fn one_of(&self, unit: UnitId) -> Member {
        *self.of(unit).last().expect("the unit is up")
    }
}

#[test]
fn a_dead_rank_takes_its_group_down_and_brings_it_back() {
    let mut world = World::start(4);
    world.event(Event::Ready);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.exit(world.one_of(GROUP)), [Action::Kill(GROUP)]);
    world.exit_all_told();
    assert_eq!(world.of(GROUP), []);
    assert_eq!(world.of(UnitId::Router).len(), 1, "the router stays");
    assert_eq!(world.supervisor.next_deadline(), Some(world.now), "it is wanted back at once");
    assert_eq!(world.pass(Duration::ZERO), [Action::Spawn(GROUP, Incarnation(2))]);
}

#[test]
fn what_falls_as_soon_as_it_is_ready_is_not_restarted_in_a_frenzy() {
    let mut world = World::start(1);
    for incarnation in 2..20 {
        world.event(Event::Ready);
        world.exit(world.one_of(GROUP));
        assert_eq!(world.pass(POLICY.first_delay / 2), []);
        let started = [Action::Spawn(GROUP, Incarnation(incarnation))];
        assert_eq!(world.pass(POLICY.first_delay / 2), started);
    }
}

#[test]
fn a_group_that_is_given_up_is_killed_and_comes_back() {
    let mut world = World::start(1);
    world.event(Event::Ready);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.event(Event::Lost(FIRST, Incarnation(1))), [Action::Kill(GROUP)]);
    assert_eq!(world.event(Event::Lost(FIRST, Incarnation(1))), [], "once is enough");
    world.exit_all_told();
    assert_eq!(world.pass(Duration::ZERO), [Action::Spawn(GROUP, Incarnation(2))]);
    assert_eq!(
        world.event(Event::Lost(FIRST, Incarnation(1))),
        [],
        "what is said of an earlier one is late"
    );
    assert_eq!(world.of(GROUP).len(), 1);
}

#[test]
fn a_dead_router_comes_back_alone() {
    let mut world = World::start(2);
    assert_eq!(world.exit(world.one_of(UnitId::Router)), []);
    assert_eq!(world.pass(POLICY.first_delay), [Action::Spawn(UnitId::Router, Incarnation(2))]);
    assert_eq!(world.of(GROUP).len(), 2);
}

#[test]
fn waits_double_up_to_the_longest() {
    let delays = [(1, 200), (2, 400), (3, 800), (6, 6400), (7, 10_000), (60, 10_000)];
    for (failures, expected_ms) in delays {
        assert_eq!(unit::delay_after(failures, &POLICY), Duration::from_millis(expected_ms), "{failures}");
    }
}

#[test]
fn a_unit_that_never_comes_up_is_given_up_and_nothing_is_left() {
    let mut world = World::start(1);
    for _ in 1..POLICY.failures_allowed {
        world.exit(world.one_of(GROUP));
        world.pass(POLICY.longest_delay);
    }
    assert_eq!(world.exit(world.one_of(GROUP)), [Action::Kill(UnitId::Router)]);
    world.exit_all_told();
    assert_eq!(world.finished, Some(Outcome::GaveUp(GROUP)));
}

#[test]
fn being_ready_forgives_earlier_failures() {
    let mut world = World::start(1);
    for _ in 0..3 * POLICY.failures_allowed {
        world.event(Event::Ready);
        world.exit(world.one_of(GROUP));
        world.pass(POLICY.longest_delay);
    }
    assert_eq!(world.finished, None);
}

/// A rank that hangs, while it loads as well as later.
const WATCHFUL: Policy = Policy { silence_allowed: Duration::from_secs(60), ..POLICY };

#[test]
fn a_process_that_falls_silent_is_hung_and_its_unit_restarted() {
    for (unit, units) in [(GROUP, 3), (UnitId::Router, 1)] {
        let mut world = World::start_with(WATCHFUL, 3);
        // However long it takes, as long as it gets on.
        world.live(Duration::from_secs(3600), &[]);
        assert_eq!(world.of(unit).len(), units);
        let victim = world.one_of(unit);
        assert_eq!(world.supervisor.hung(world.now), None);
        world.live(Duration::from_secs(59), &[victim]);
        assert_eq!(world.supervisor.hung(world.now), None);
        world.now += Duration::from_secs(1);
        assert_eq!(world.supervisor.hung(world.now), Some(victim));
        assert_eq!(world.event(Event::Tick), [Action::Kill(unit)]);
        world.exit_all_told();
        let started = Action::Spawn(unit, Incarnation(2));
        assert_eq!(world.pass(WATCHFUL.first_delay), [started], "the other unit goes on");
        // What is said of an earlier one is late.
        world.supervisor.on_lives(victim, world.now + Duration::from_secs(3600));
        world.now += WATCHFUL.silence_allowed;
        assert!(world.supervisor.hung(world.now).is_some());
    }
}

#[test]
fn after_a_standstill_of_everything_nobody_is_blamed() {
    let mut world = World::start_with(WATCHFUL, 2);
    world.live(Duration::from_secs(100), &[]);
    assert_eq!(world.pass(Duration::from_secs(600)), []);
    world.live(Duration::from_secs(100), &[]);
    assert_eq!(world.of(GROUP).len(), 2);
    // It is watched as before.
    let victim = world.one_of(GROUP);
    world.live(Duration::from_secs(61), &[victim]);
    assert!(world.told_to_end.contains(&victim));
}

#[test]
fn what_was_ready_once_is_never_given_up_unless_that_is_asked_for() {
    let mut world = World::start(1);
    world.event(Event::Ready);
    for _ in 0..10 * POLICY.failures_allowed {
        world.exit(world.one_of(GROUP));
        world.pass(POLICY.longest_delay);
    }
    assert_eq!((world.finished, world.of(GROUP).len()), (None, 1));
}

#[test]
fn more_falls_than_are_allowed_within_a_window_are_the_end() {
    let window = Duration::from_secs(100);
    let policy = Policy { restarts: Restarts::AtMost { count: 2, window }, ..POLICY };
    for (pause, is_too_often) in [(30, true), (50, true), (51, false), (101, false)] {
        let mut world = World::start_with(policy, 2);
        for _ in 0..3 {
            world.event(Event::Ready);
            world.exit(world.one_of(GROUP));
            world.exit_all_told();
            world.pass(Duration::from_secs(pause));
        }
        world.exit_all_told();
        let expected = is_too_often.then_some(Outcome::FellTooOften(GROUP));
        assert_eq!(world.finished, expected, "{pause} s between falls");
    }
    let policy = Policy { restarts: Restarts::AtMost { count: 0, window }, ..POLICY };
    let mut world = World::start_with(policy, 1);
    world.event(Event::Ready);
    assert_eq!(world.exit(world.one_of(UnitId::Router)), [Action::Kill(GROUP)]);
    world.exit_all_told();
    assert_eq!(world.finished, Some(Outcome::FellTooOften(UnitId::Router)));
}

#[test]
fn a_stop_drains_the_router_before_the_shards() {
    let mut world = World::start(2);
    assert_eq!(world.event(Event::StopRequested), [Action::Terminate(UnitId::Router)]);
    assert_eq!(world.exit(world.one_of(UnitId::Router)), [Action::Terminate(GROUP)]);
    world.exit_all_told();
    assert_eq!(world.finished, Some(Outcome::Stopped));
}

#[test]
fn a_router_that_does_not_drain_in_time_is_killed() {
    let mut world = World::start(1);
    world.event(Event::StopRequested);
    assert_eq!(world.pass(POLICY.router_grace - Duration::from_millis(1)), []);
    assert_eq!(world.pass(Duration::from_millis(1)), [Action::Kill(UnitId::Router)]);
    assert!(world.supervisor.next_deadline().is_none_or(|at| at >= world.now), "asked once");
}

#[test]
fn a_second_stop_kills() {
    let mut world = World::start(2);
    world.event(Event::StopRequested);
    let actions = world.event(Event::StopRequested);
    assert_eq!(actions, [Action::Kill(UnitId::Router), Action::Kill(GROUP)]);
    world.exit_all_told();
    assert_eq!(world.finished, Some(Outcome::Stopped));
}

#[test]
fn a_stop_while_backing_off_starts_nothing_more() {
    let mut world = World::start(1);
    world.exit(world.one_of(GROUP));
    world.event(Event::StopRequested);
    world.exit_all_told();
    assert_eq!(world.finished, Some(Outcome::Stopped));
    assert_eq!(world.pass(Duration::from_secs(3600)), []);
}

#[test]
fn a_report_about_an_earlier_incarnation_changes_nothing() {
    let mut world = World::start(1);
    let first = world.one_of(GROUP);
    world.exit(first);
    world.pass(POLICY.first_delay);
    assert_eq!(world.event(Event::Exited(first)), []);
    assert_eq!(world.of(GROUP).len(), 1);
}

/// All replicas up and ready.
fn serving(replicas: u32) -> World {
    let mut world = World::start_groups(POLICY, Groups { replicas, ranks: 2 });
    world.pass(Duration::from_secs(60));
    for replica in world.replicas() {
        world.serve(replica);
    }
    world
}

#[test]
fn a_group_of_several_is_restarted_alone() {
    let mut world = serving(2);
    let second = UnitId::Shards(SECOND);
    assert_eq!(world.exit(world.one_of(second)), [Action::Kill(second)]);
    world.exit_all_told();
    assert_eq!(world.pass(Duration::ZERO), [Action::Spawn(second, Incarnation(2))]);
    assert_eq!((world.of(GROUP).len(), world.spawns.len()), (2, 4));
}

#[test]
fn a_rolling_restart_takes_one_group_at_a_time() {
    let mut world = serving(3);
    let begun = |replica, incarnation| {
        vec![Action::Tell(RollingNews::Begun(replica)), Action::Drain(replica, incarnation)]
    };
    let mut actions = world.event(Event::RestartRequested);
    for replica in world.replicas() {
        let unit = UnitId::Shards(replica);
        assert_eq!(actions, begun(replica, Incarnation(1)));
        // The router does not hear, and is asked again.
        assert_eq!(world.pass(POLICY.order_again), [Action::Drain(replica, Incarnation(1))]);
        assert_eq!(world.lose(replica), [Action::Terminate(unit)]);
        assert_eq!(world.lose(replica), [], "once is enough");
        world.exit_all_told();
        assert_eq!(world.pass(Duration::ZERO), [Action::Spawn(unit, Incarnation(2))]);
        assert_eq!(world.pass(Duration::from_secs(600)), [], "the next one waits for it");
        actions = world.serve(replica);
    }
    assert_eq!(actions, [Action::Tell(RollingNews::Done)]);
    assert_eq!(world.spawns.len(), 3 + 1 + 3);
}

#[test]
fn a_group_that_leaves_before_it_is_told_has_not_fallen() {
    let window = Duration::from_secs(3600);
    let policy = Policy { restarts: Restarts::AtMost { count: 0, window }, ..POLICY };
    let mut world = World::start_groups(policy, Groups { replicas: 2, ranks: 2 });
    world.replicas().for_each(|replica| drop(world.serve(replica)));
    world.event(Event::RestartRequested);
    assert_eq!(world.exit(world.one_of(GROUP)), [Action::Terminate(GROUP)]);
    world.exit_all_told();
    assert_eq!(world.pass(POLICY.first_delay), [Action::Spawn(GROUP, Incarnation(2))]);
    assert_eq!(world.serve(FIRST)[0], Action::Tell(RollingNews::Begun(SECOND)));
}

#[test]
fn a_router_that_does_not_let_a_group_go_is_not_waited_for() {
    let mut world = serving(2);
    world.event(Event::RestartRequested);
    let begun = world.now;
    let mut asked = 0;
    while world.told_to_end.is_empty() {
        world.now = world.supervisor.next_deadline().expect("it is asked again");
        asked += u32::from(world.event(Event::Tick).contains(&Action::Drain(FIRST, Incarnation(1))));
    }
    assert_eq!((world.now - begun, asked), (POLICY.drain_patience, 69));
    // One that does not leave is killed.
    assert_eq!(world.pass(POLICY.shards_grace), [Action::Kill(GROUP)]);
}

#[test]
fn a_group_that_hangs_while_it_is_to_leave_is_killed_and_not_asked_for_again() {
    let mut world = World::start_groups(WATCHFUL, Groups { replicas: 2, ranks: 1 });
    world.replicas().for_each(|replica| drop(world.serve(replica)));
    world.live(WATCHFUL.silence_allowed, &[]);
    let hanging = world.one_of(GROUP);
    world.live(WATCHFUL.silence_allowed - WATCHFUL.order_again, &[hanging]);
    world.event(Event::RestartRequested);
    // Both come with the same tick: that it hangs, and that the router is to be asked again.
    let actions = world.pass(WATCHFUL.order_again);
    assert_eq!(actions, [Action::Kill(GROUP), Action::Tell(RollingNews::Abandoned(FIRST))]);
}

#[test]
fn a_rolling_restart_is_refused_where_nobody_would_serve() {
    let refused = |world: &mut World, refusal| {
        let told = [Action::Tell(RollingNews::Refused(refusal))];
        assert_eq!(world.event(Event::RestartRequested), told);
    };
    refused(&mut serving(1), Refusal::OneReplica);
    let mut world = World::start_groups(POLICY, Groups { replicas: 2, ranks: 1 });
    world.serve(FIRST);
    refused(&mut world, Refusal::Down(SECOND));
    world.serve(SECOND);
    world.event(Event::RestartRequested);
    refused(&mut world, Refusal::UnderWay);
    world.event(Event::StopRequested);
    refused(&mut world, Refusal::Stopping);
}

#[test]
fn a_group_that_does_not_come_back_ends_a_rolling_restart() {
    let mut world = serving(2);
    world.event(Event::RestartRequested);
    world.lose(FIRST);
    world.exit_all_told();
    world.pass(Duration::ZERO);
    let actions = world.exit(world.one_of(GROUP));
    let abandoned = Action::Tell(RollingNews::Abandoned(FIRST));
    assert_eq!(actions, [Action::Kill(GROUP), abandoned]);
    world.exit_all_told();
    // It is started again and again; its sibling stays as it is.
    for _ in 0..3 * POLICY.failures_allowed {
        world.pass(POLICY.longest_delay);
        world.exit(world.one_of(GROUP));
        world.exit_all_told();
    }
    world.pass(POLICY.longest_delay);
    assert_eq!(world.serve(FIRST), []);
    assert_eq!(world.supervisor.newest(UnitId::Shards(SECOND), 0).incarnation, Incarnation(1));
    assert_eq!(world.finished, None);
}

#[test]
fn a_sibling_that_falls_meanwhile_ends_a_rolling_restart() {
    let mut world = serving(3);
    world.event(Event::RestartRequested);
    world.exit(world.one_of(UnitId::Shards(ReplicaId(2))));
    world.lose(FIRST);
    world.exit_all_told();
    world.pass(Duration::ZERO);
    assert_eq!(world.serve(FIRST), [Action::Tell(RollingNews::Abandoned(ReplicaId(2)))]);
    assert_eq!(world.supervisor.newest(UnitId::Shards(SECOND), 0).incarnation, Incarnation(1));
}

#[test]
fn a_stop_in_a_rolling_restart_starts_nothing_more() {
    let mut world = serving(2);
    world.event(Event::RestartRequested);
    world.lose(FIRST);
    world.event(Event::StopRequested);
    world.exit_all_told();
    assert_eq!(world.finished, Some(Outcome::Stopped));
    assert_eq!(world.spawns.len(), 3);
}

#[test]
fn a_group_beside_one_that_serves_is_not_given_up() {
    let mut world = World::start_groups(POLICY, Groups { replicas: 2, ranks: 1 });
    world.serve(SECOND);
    for _ in 0..3 * POLICY.failures_allowed {
        world.exit(world.one_of(GROUP));
        world.pass(POLICY.longest_delay);
    }
    assert_eq!(world.finished, None);
}

#[test]
fn what_is_said_of_a_replica_there_is_none_of_changes_nothing() {
    let mut world = serving(2);
    assert_eq!(world.event(Event::Lost(ReplicaId(2), Incarnation(1))), []);
    assert_eq!(world.event(Event::Serves(ReplicaId(u32::MAX), Incarnation(1))), []);
}

#[derive(Clone, Debug)]
enum Fault {
    Crash(prop::sample::Index),
    ReapOneTold,
    Ready,
    Lost(u32, u64),
    Serves(u32),
    Roll,
    Lives(prop::sample::Index),
    Stop,
    Pass(u64),
    PassToDeadline,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => any::<prop::sample::Index>().prop_map(Fault::Crash),
        6 => Just(Fault::ReapOneTold),
        2 => Just(Fault::Ready),
        2 => (0..4u32, 1..8u64).prop_map(|(replica, incarnation)| Fault::Lost(replica, incarnation)),
        4 => (0..4u32).prop_map(Fault::Serves),
        2 => Just(Fault::Roll),
        2 => any::<prop::sample::Index>().prop_map(Fault::Lives),
        1 => Just(Fault::Stop),
        4 => (0..20_000u64).prop_map(Fault::Pass),
        8 => Just(Fault::PassToDeadline),
    ]
}

fn apply(world: &mut World, fault: &Fault) {
    match fault {
        Fault::Crash(which) if !world.alive.is_empty() => {
            let members: Vec<Member> = world.alive.iter().copied().collect();
            world.exit(*which.get(&members));
        }
        Fault::Crash(_) => {}
        Fault::ReapOneTold => {
            if let Some(member) = world.told_to_end.first().copied() {
                world.exit(member);
            }
        }
        Fault::Ready => {
            let mut units = world.replicas().map(UnitId::Shards).chain([UnitId::Router]);
            if units.all(|unit| world.supervisor.is_up(unit)) {
                world.event(Event::Ready);
            }
        }
        Fault::Lost(replica, incarnation) => {
            world.event(Event::Lost(ReplicaId(*replica), Incarnation(*incarnation)));
        }
        Fault::Serves(replica) => {
            let replica = ReplicaId(*replica);
            if world.replicas().any(|known| known == replica) {
                let newest = world.supervisor.newest(UnitId::Shards(replica), 0).incarnation;
                world.event(Event::Serves(replica, newest));
            }
        }
        Fault::Roll => {
            world.event(Event::RestartRequested);
        }
        Fault::Lives(which) if !world.alive.is_empty() => {
            let members: Vec<Member> = world.alive.iter().copied().collect();
            world.supervisor.on_lives(*which.get(&members), world.now);
        }
        Fault::Lives(_) => {}
        Fault::Stop => {
            world.event(Event::StopRequested);
        }
        Fault::Pass(milliseconds) => {
            world.pass(Duration::from_millis(*milliseconds));
        }
        Fault::PassToDeadline => {
            if let Some(deadline) = world.supervisor.next_deadline() {
                world.now = world.now.max(deadline);
                world.event(Event::Tick);
            }
        }
    }
}

/// What must hold after every event: either something is awaited, or all is over.
fn check(world: &World) {
    let deadline = world.supervisor.next_deadline();
    assert!(deadline.is_none() || world.finished.is_none(), "a deadline after the end");
    let waiting = deadline.is_some() || !world.alive.is_empty();
    assert!(waiting || world.finished.is_some(), "nothing alive, nothing awaited, not finished: a zombie");
}

/// With which everything happens.
const HARD: Policy = Policy {
    restarts: Restarts::AtMost { count: 6, window: Duration::from_secs(60) },
    silence_allowed: Duration::from_secs(30),
    ..POLICY
};

proptest! {
    /// `World` asserts along the way that no unit runs twice and that nothing lives after the end.
    #[test]
    fn random_crashes_never_make_a_zombie_or_a_busy_loop(
        (replicas, ranks) in (1u32..4, 1u32..4),
        faults in prop::collection::vec(fault(), 0..200),
    ) {
        let mut world = World::start_groups(HARD, Groups { replicas, ranks });
        for fault in &faults {
            apply(&mut world, fault);
            check(&world);
        }
        for unit in world.replicas().map(UnitId::Shards).chain([UnitId::Router]) {
            let starts: Vec<Instant> =
                world.spawns.iter().filter(|(id, _)| *id == unit).map(|(_, at)| *at).collect();
            for pair in starts.windows(2) {
                prop_assert!(pair[1] - pair[0] >= POLICY.first_delay, "restarted without a wait");
            }
        }
        // However it went: asked twice to stop, and with every process reaped, it is over.
        world.event(Event::StopRequested);
        world.event(Event::StopRequested);
        world.exit_all_told();
        prop_assert!(world.finished.is_some());
        prop_assert!(world.alive.is_empty());
    }

    /// A tick at the deadline always moves it: the shell never spins.
    #[test]
    fn a_tick_at_the_deadline_moves_it(
        (replicas, ranks) in (1u32..4, 1u32..4),
        faults in prop::collection::vec(fault(), 0..100),
    ) {
        let mut world = World::start_groups(HARD, Groups { replicas, ranks });
        for fault in &faults {
            apply(&mut world, fault);
        }
        for _ in 0..8 {
            let Some(deadline) = world.supervisor.next_deadline() else { break };
            world.now = world.now.max(deadline);
            world.event(Event::Tick);
            prop_assert!(world.supervisor.next_deadline().is_none_or(|next| next > world.now));
        }
    }
}
