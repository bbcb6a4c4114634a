//! Everything that is not the router: time, shards, disk, clients; and what was seen that must never be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_router::engine::GenerationEvent;
use lockstep_router::journal::{Fsync, Record, parse};
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use crate::clients::Client;
use crate::disk::Disk;
use crate::plan::{Faults, Plan, WINDOW};
use crate::random::Random;
use crate::shards::Shards;
use crate::trace::{Keep, Trace};

pub(crate) type Shared = Arc<Mutex<World>>;

/// How a router ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    Process,
    /// And with it the shards and what was not brought to the disk.
    Machine,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) shards: Shards,
    pub(crate) disk: Disk,
    pub(crate) clients: Vec<Client>,
    /// Which of the routers it is.
    pub(crate) life: u32,
    /// When this router began.
    pub(crate) born: Duration,
    /// Streams that this router has found whole in the journal, or that it must have found.
    pub(crate) recoverable: BTreeSet<Uuid>,
    /// The last router whose streams may not be in the journal as they were told.
    lossy_life: u32,
    seen: Seen,
    started: Option<Instant>,
    dying: Dying,
}

/// What was seen.
struct Seen {
    /// Clients whose requests were computed when three groups in a row were lost.
    may_fail: BTreeSet<usize>,
    violations: Vec<String>,
    trace: Trace,
}

/// Whether this router is to end.
#[derive(Default)]
struct Dying {
    death: Option<Death>,
    died: Arc<Notify>,
}

pub(crate) fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn new(seed: u64, keep: Keep) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::new(&mut random);
        let clients = plan.requests.iter().map(Client::new).collect();
        Self {
            plan,
            random,
            shards: Shards::new(),
            disk: Disk::default(),
            clients,
            life: 0,
            born: Duration::ZERO,
            recoverable: BTreeSet::new(),
            lossy_life: 0,
            seen: Seen { may_fail: BTreeSet::new(), violations: Vec::new(), trace: Trace::new(keep) },
            started: None,
            dying: Dying::default(),
        }
    }

    /// Since the first router began.
    pub(crate) fn now(&self) -> Duration {
        self.born + self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }

    pub(crate) fn log(&mut self, what: std::fmt::Arguments<'_>) {
        self.seen.trace.at(self.now());
        self.seen.trace.line(what);
    }

    /// Whether a fault is met with here.
    pub(crate) fn is_met(&mut self, rate: impl Fn(&Faults) -> u64) -> bool {
        let rate = rate(&self.plan.faults);
        self.random.once_in(rate)
    }

    /// Something that must never be.
    pub(crate) fn violation(&mut self, what: String) {
        self.log(format_args!("NEVER: {what}"));
        self.seen.violations.push(what);
    }

    /// A client whose request was computed when three groups in a row were lost.
    pub(crate) fn may_fail(&mut self, client: usize) {
        self.seen.may_fail.insert(client);
    }

    pub(crate) fn has_reason_to_fail(&self, client: usize) -> bool {
        self.seen.may_fail.contains(&client)
    }

    /// A router begins; to be called on its runtime.
    pub(crate) fn begin_life(&mut self) {
        self.life += 1;
        self.started = Some(Instant::now());
        self.disk.has_failed = false;
        let life = self.life;
        self.log(format_args!("router {life} begins"));
    }

    /// Until this router dies.
    pub(crate) fn died(&self) -> Arc<Notify> {
        Arc::clone(&self.dying.died)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dying.death.is_some()
    }

    pub(crate) fn die(&mut self, death: Death, why: &str) {
        if self.dying.death.is_none() {
            let life = self.life;
            self.log(format_args!("router {life} dies with its {death:?} {why}"));
            self.dying.death = Some(death);
            self.dying.died.notify_one();
        }
    }

    /// Time is kept by the router's runtime, and goes with it.
    pub(crate) fn stop_clock(&mut self) {
        (self.born, self.started) = (self.now(), None);
    }

    /// The router and everything that ran on its runtime is gone.
    pub(crate) fn end_life(&mut self) {
        let now = self.now();
        let death = self.dying.death.take().unwrap_or(Death::Process);
        self.dying.died = Arc::default();
        let (life, is_lossy) = (self.life, self.is_lossy(death));
        self.clients.iter_mut().for_each(|client| client.on_router_gone((life, now), is_lossy));
        let is_long = self.is_met(|faults| faults.long.down);
        let down =
            if is_long { self.random.millis(10_000, 90_000) } else { self.random.millis(100, 3_000) };
        if death == Death::Machine {
            self.lose_unsynced();
        }
        self.check_told(death, now);
        self.shards.on_router_gone(now);
        if death == Death::Machine {
            self.shards.restart((now, now + down + Duration::from_secs(1)));
        }
        self.born += down;
        self.recoverable = self.in_journal().into_keys().collect();
        let streams = self.recoverable.len();
        self.log(format_args!("{streams} streams are in the journal"));
    }

    /// Whether a death may take what was written down.
    fn is_lossy(&self, death: Death) -> bool {
        self.disk.has_failed || (death == Death::Machine && self.plan.server.journal != Some(Fsync::Always))
    }

    /// What clients were told is written down first: with a journal that did not fail, every event a client has is
    /// there, whatever died, but for streams that ended with an error.
    fn check_told(&mut self, death: Death, now: Duration) {
        if self.plan.server.journal.is_none() || !self.plan.server.keeps_streams {
            return;
        }
        if self.is_lossy(death) {
            // Streams that there were may lack some of what was told, until they have ended.
            self.lossy_life = self.life;
            return;
        }
        let written = self.in_journal();
        let mut untold = Vec::new();
        for (index, client) in self.clients.iter().enumerate() {
            let Some((stream, told)) = client.open_stream((self.life, now), self.lossy_life) else {
                continue;
            };
            let found = written.get(&stream).copied();
            let is_lost = match found {
                Some(found) => found < told,
                None => !self.may_have_failed_unheard(index, now),
            };
            if is_lost {
                untold.push(format!("{stream}: {told} events were told, {found:?} were written down"));
            }
        }
        untold.into_iter().for_each(|what| self.violation(what));
    }

    /// The streams that may be taken up and how many tokens of each are written down.
    fn in_journal(&self) -> BTreeMap<Uuid, usize> {
        let mut streams = BTreeMap::new();
        for bytes in self.on_disk() {
            for record in parse(bytes).records {
                let stream = record.stream();
                match record {
                    Record::Begun(_) => {
                        streams.insert(stream, 0);
                    }
                    Record::Heard { event: GenerationEvent::Token(_), .. } => {
                        streams.entry(stream).and_modify(|tokens| *tokens += 1);
                    }
                    Record::Known(_) => {
                        // The whole of it.
                        streams.insert(stream, usize::MAX);
                    }
                    Record::Heard { .. } | Record::Read { .. } => {}
                    Record::Forgotten { .. } => {
                        streams.remove(&stream);
                    }
                }
            }
        }
        streams
    }

    /// Whether the router may have given up a stream of an earlier one whose client was away since `left`.
    pub(crate) fn may_be_forgotten(&self, stream: Uuid, left: Duration) -> bool {
        !self.recoverable.contains(&stream) || self.now().saturating_sub(left) >= WINDOW
    }

    pub(crate) fn into_report(mut self) -> (Vec<String>, u64, String) {
        let unanswered = self.clients.iter().enumerate().filter(|(_, client)| !client.has_ended());
        let unanswered: Vec<usize> = unanswered.map(|(index, _)| index).collect();
        if !unanswered.is_empty() {
            self.violation(format!("clients {unanswered:?} have no answer"));
        }
        let hash = self.seen.trace.hash();
        (self.seen.violations, hash, self.seen.trace.into_text())
    }
}
