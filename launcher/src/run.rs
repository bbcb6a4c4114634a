//! The shell around the supervisor: turns the world's events into its events, and carries out what it says.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::time::{Duration, Instant};

use lockstep_process::datagrams::send;
use lockstep_process::orders::Order;
use lockstep_process::reports::Report;
use lockstep_process::tasks::Tasks;
use lockstep_process::telemetry::LogFormat;
use lockstep_proto::{Epoch, Rank, ReplicaId};
use lockstep_shard::batch::BLOCK_SIZE;
use lockstep_shard::decoder::{ModelSpec, check_weights};
use lockstep_shard::device::{DeviceChoice, DeviceKind};
use lockstep_shard::plan::MemoryPlan;
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tracing::{error, info, warn};

use crate::budget::{MemoryBudget, ModelSizes, Wish};
use crate::config::ServeConfig;
use crate::error::{LastWords, LaunchError};
use crate::memory;
use crate::news;
use crate::plan::{self, Communicator, Place, ShardIncarnation};
use crate::process::{Exited, Process, Starter};
use crate::readiness;
use crate::reports::Reports;
use crate::signals::{Asked, Signals};
use crate::sockets::SocketFolder;
use crate::supervisor::{Action, Event, Groups, Incarnation, Member, Outcome, Policy, Supervisor, UnitId};
use crate::topology;

/// Every process reports its end once, and is started again only after that was read: as many as there can
/// be ranks on a host, and the router.
const EXITS_WAITING: usize = 64;
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
const FAILURES_ALLOWED: u32 = 5;
/// The router counts the grace itself; it is killed only where it fails to.
const ROUTER_MARGIN: Duration = Duration::from_secs(5);
/// How often the router is asked to let a group leave that is to be restarted.
const ORDER_AGAIN: Duration = Duration::from_secs(1);
/// The router's watchdog ends a step that takes too long; this is what it may need besides.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);
/// A rank that is asked to leave ends its step and goes.
const SHARDS_GRACE: Duration = Duration::from_secs(10);
/// How often to say that the service is not ready yet.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until it is asked to stop.
///
/// # Errors
/// When the model does not fit, the process cannot be set up, or a unit never comes up.
pub fn serve(config: &ServeConfig, started: Instant) -> Result<(), LaunchError> {
    let wish = Wish {
        kv_cache: config.kv_cache.memory,
        requests: config.router.max_concurrent_requests,
        context: config.router.max_total_tokens,
    };
    // A GPU's memory is dealt out by the ranks on it, once their weights are there.
    let available = match config.placement.device.device {
        DeviceChoice::Cuda => None,
        DeviceChoice::Auto | DeviceChoice::Cpu => memory::available(),
    };
    let budget = MemoryBudget::new(model_sizes(config)?, wish, available)?;
    announce(config, &budget.to_string());
    // One thread, and the main one: the kernel tells a child of its parent's death when the thread that
    // made it ends.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(LaunchError::SetUp)?;
    runtime.block_on(async {
        let sockets = SocketFolder::create(config.runtime_folder.as_deref())?;
        let reports = Reports::bind(&sockets, config.groups.replicas).map_err(LaunchError::SetUp)?;
        let shell = Shell::new(config, &budget, (&sockets, reports), started);
        shell.run().await
    })
}

/// What the model takes, read from its configuration and the headers of its files: no weight is touched. What is
/// wrong with them is said here, once, before any process is started.
fn model_sizes(config: &ServeConfig) -> Result<ModelSizes, LaunchError> {
    let spec = ModelSpec::read(&config.model)?;
    check_weights(&config.model, &spec)?;
    let on = match config.placement.device.device {
        DeviceChoice::Cuda => DeviceKind::Cuda,
        DeviceChoice::Auto | DeviceChoice::Cpu => DeviceKind::Cpu,
    };
    let plan = MemoryPlan::on(&spec, (config.precision, on), config.groups.ranks)?
        .with_kv_cache(config.kv_cache.held);
    Ok(ModelSizes {
        groups: config.groups,
        weights: plan.weights,
        activations: plan.activations(config.router.max_batch_prefill_tokens),
        block_bytes: plan.block,
        block_size: BLOCK_SIZE,
        max_positions: spec.max_positions(),
    })
}

struct Shell<'a> {
    config: &'a ServeConfig,
    place: Place,
    supervisor: Supervisor,
    starter: Starter,
    exits: mpsc::Receiver<Exited>,
    reports: Reports,
    processes: BTreeMap<Member, Process>,
    /// By replica: what the ranks of the current epoch talk through; gone with the epoch.
    shared_memory: BTreeMap<ReplicaId, OwnedFd>,
    /// The groups that the router computes with, as far as is known.
    serving: BTreeMap<ReplicaId, Incarnation>,
    /// Waits for the service to be ready, while it is not.
    readiness: Option<Pin<Box<dyn Future<Output = ()>>>>,
    last_words: BTreeMap<UnitId, (Incarnation, LastWords)>,
    announced: Announced,
}

/// Whether the ready line was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Announced {
    /// Not since this.
    NotYet(Instant),
    Once,
}

impl<'a> Shell<'a> {
    fn new(
        config: &'a ServeConfig,
        budget: &MemoryBudget,
        (sockets, reports): (&SocketFolder, Reports),
        started: Instant,
    ) -> Self {
        let (exits_tx, exits) = mpsc::channel(EXITS_WAITING);
        let policy = Policy {
            first_delay: FIRST_DELAY,
            longest_delay: LONGEST_DELAY,
            failures_allowed: FAILURES_ALLOWED,
            restarts: config.supervision.restarts,
            silence_allowed: config.supervision.silence_allowed,
            router_grace: config.supervision.grace + ROUTER_MARGIN,
            shards_grace: SHARDS_GRACE,
            order_again: ORDER_AGAIN,
            drain_patience: Duration::from_secs(config.router.step_timeout_s) + DRAIN_MARGIN,
        };
        let cpus = topology::cpus(config);
        let place = Place {
            sockets: sockets.path(),
            launcher: std::process::id(),
            threads_per_rank: cpus.first().map_or_else(
                || plan::threads_per_rank(topology::cores(), config.groups),
                |cpus| cpus.as_slice().len(),
            ),
            cpus,
            kv_cache_per_rank: budget.kv_cache_per_rank(),
            context: budget.context(),
        };
        let starter = Starter {
            program: config.program.clone(),
            format: config.log.format,
            tasks: Tasks::new(),
            exits: exits_tx,
        };
        Self {
            config,
            place,
            supervisor: Supervisor::new(policy, config.groups),
            starter,
            exits,
            reports,
            processes: BTreeMap::new(),
            shared_memory: BTreeMap::new(),
            serving: BTreeMap::new(),
            readiness: None,
            last_words: BTreeMap::new(),
            announced: Announced::NotYet(started),
        }
    }

    async fn run(mut self) -> Result<(), LaunchError> {
        let mut signals = Signals::listen().map_err(LaunchError::SetUp)?;
        let mut actions = self.supervisor.start(Instant::now());
        loop {
            for action in actions {
                if let Some(outcome) = self.carry_out(action) {
                    return self.leave(outcome).await;
                }
            }
            let event = self.next_event(&mut signals).await;
            actions = self.supervisor.on_event(event, Instant::now());
        }
    }

    async fn next_event(&mut self, signals: &mut Signals) -> Event {
        let deadline = self.supervisor.next_deadline();
        let reminder = tokio::time::sleep(PATIENCE);
        tokio::pin!(reminder);
        loop {
            tokio::select! {
                biased;
                asked = signals.next() => return on_asked(asked),
                Some(exited) = self.exits.recv() => return self.on_exited(exited),
                report = self.reports.next_of_router() => {
                    if let Some(event) = self.on_report(report) {
                        return event;
                    }
                }
                (replica, report) = self.reports.next_of_shards() => self.on_rank_report(replica, report),
                () = at(deadline) => {
                    self.note_hung();
                    return Event::Tick;
                }
                () = ready(&mut self.readiness) => {
                    self.on_ready();
                    return Event::Ready;
                }
                () = &mut reminder, if self.readiness.is_some() => {
                    info!("not ready yet");
                    reminder.as_mut().reset(tokio::time::Instant::now() + PATIENCE);
                }
            }
        }
    }

    /// What the router says. Most of it is that nothing has happened.
    fn on_report(&mut self, report: Report) -> Option<Event> {
        match report {
            Report::Lost { replica, epoch } => {
                let (replica, incarnation) = (ReplicaId(replica), Incarnation(epoch));
                if self.serving.get(&replica) == Some(&incarnation) {
                    self.serving.remove(&replica);
                    info!(replica = replica.0, epoch, "the router computes with these shards no more");
                }
                Some(Event::Lost(replica, incarnation))
            }
            Report::Serves { replica, epoch } => {
                let (replica, incarnation) = (ReplicaId(replica), Incarnation(epoch));
                let before = self.serving.insert(replica, incarnation);
                (before != Some(incarnation)).then(|| {
                    info!(replica = replica.0, epoch, "the router computes with these shards");
                    Event::Serves(replica, incarnation)
                })
            }
            Report::RouterLives => {
                // There is one at a time.
                let router = self.supervisor.newest(UnitId::Router, 0);
                self.supervisor.on_lives(router, Instant::now());
                None
            }
            Report::RankLives { .. } => None,
        }
    }

    /// What a rank says.
    fn on_rank_report(&mut self, replica: ReplicaId, report: Report) {
        match report {
            Report::RankLives { epoch, rank } => {
                let unit = UnitId::Shards(replica);
                let living = Member { unit, incarnation: Incarnation(epoch), index: rank };
                self.supervisor.on_lives(living, Instant::now());
            }
            Report::Lost { .. } | Report::Serves { .. } | Report::RouterLives => {}
        }
    }

    fn note_hung(&self) {
        if let Some(Member { unit, index, .. }) = self.supervisor.hung(Instant::now()) {
            let silent_s = self.config.supervision.silence_allowed.as_secs();
            warn!(
                unit = unit.name(),
                replica = unit.replica(),
                index,
                silent_s,
                "a process gives no sign of life"
            );
        }
    }

    fn on_exited(&mut self, exited: Exited) -> Event {
        let Exited { member, last_words } = exited;
        self.processes.remove(&member);
        if let UnitId::Shards(replica) = member.unit {
            self.serving.remove(&replica);
        }
        info!(who = last_words.process, end = last_words.end, "process ended");
        // The first of a unit to end is the one that has something to say; the others were killed for it.
        let known = self.last_words.get(&member.unit);
        if known.is_none_or(|(incarnation, _)| *incarnation != member.incarnation) {
            self.last_words.insert(member.unit, (member.incarnation, last_words));
        }
        Event::Exited(member)
    }

    fn on_ready(&mut self) {
        self.readiness = None;
        match self.announced {
            Announced::NotYet(started) => {
                announce(self.config, &ready_lines(self.config, started.elapsed()))
            }
            Announced::Once => info!("the service is ready again"),
        }
        self.announced = Announced::Once;
    }

    fn carry_out(&mut self, action: Action) -> Option<Outcome> {
        match action {
            Action::Spawn(unit, incarnation) => self.spawn(unit, incarnation),
            Action::Terminate(unit) => {
                info!(unit = unit.name(), replica = unit.replica(), "asking to end");
                self.of(unit).for_each(Process::terminate);
            }
            Action::Kill(unit) => {
                warn!(unit = unit.name(), replica = unit.replica(), "killing what is left");
                self.of(unit).for_each(Process::kill);
            }
            Action::Drain(replica, incarnation) => self.order(replica, incarnation),
            Action::Tell(news) => news::tell(news),
            Action::Finish(outcome) => return Some(outcome),
        }
        None
    }

    fn spawn(&mut self, unit: UnitId, incarnation: Incarnation) {
        info!(unit = unit.name(), replica = unit.replica(), incarnation = incarnation.0, "starting");
        let member = |index| Member { unit, incarnation, index };
        match unit {
            UnitId::Router => {
                let line = plan::router(self.config, &self.place);
                self.processes.insert(member(0), self.starter.start(&line, member(0)));
            }
            UnitId::Shards(replica) => {
                let communicator = self.communicator(replica);
                let epoch = Epoch(incarnation.0);
                for rank in 0..self.config.groups.ranks {
                    let shard = ShardIncarnation { replica, rank: Rank(rank), epoch, communicator };
                    let line = plan::shard(self.config, &self.place, &shard);
                    self.processes.insert(member(rank), self.starter.start(&line, member(rank)));
                }
            }
        }
        // Beside a group that serves, another one changes nothing about whether the service is ready.
        if unit == UnitId::Router || self.config.groups.replicas == 1 || self.serving.is_empty() {
            self.readiness = Some(Box::pin(readiness::until_ready(self.config.address)));
        }
    }

    /// A router that is not there or busy is asked again.
    fn order(&self, replica: ReplicaId, incarnation: Incarnation) {
        let order = Order::Drain { replica: replica.0, epoch: incarnation.0 };
        if let Err(error) = send(&plan::orders_of(&self.place.sockets), order) {
            warn!(%error, %order, "the router does not hear");
        }
    }

    /// A fresh one for each epoch: what a dead rank left half written is gone.
    fn communicator(&mut self, replica: ReplicaId) -> Communicator {
        self.shared_memory.remove(&replica);
        let ranks = self.config.groups.ranks;
        if ranks == 1 {
            return Communicator::Solo;
        }
        match lockstep_shard::comm::shared_memory::create(ranks) {
            Ok(file) => {
                let descriptor = file.as_raw_fd();
                self.shared_memory.insert(replica, file);
                Communicator::SharedMemory { descriptor }
            }
            Err(error) => {
                // The ranks will say that they cannot open it, and the group is tried again.
                error!(%error, "no shared memory");
                Communicator::SharedMemory { descriptor: -1 }
            }
        }
    }

    fn of(&self, unit: UnitId) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(move |(member, _)| member.unit == unit).map(|(_, process)| process)
    }

    async fn leave(mut self, outcome: Outcome) -> Result<(), LaunchError> {
        self.starter.tasks.stop_and_wait().await;
        match outcome {
            Outcome::Stopped => {
                info!("stopped");
                Ok(())
            }
            Outcome::GaveUp(unit) => {
                let last = self.take_last_words(unit);
                Err(LaunchError::GaveUp { unit, attempts: FAILURES_ALLOWED, last })
            }
            Outcome::FellTooOften(unit) => {
                let last = self.take_last_words(unit);
                Err(LaunchError::FellTooOften { unit, restarts: self.config.supervision.restarts, last })
            }
        }
    }

    fn take_last_words(&mut self, unit: UnitId) -> LastWords {
        self.last_words.remove(&unit).map(|(_, words)| words).unwrap_or_default()
    }
}

fn on_asked(asked: Asked) -> Event {
    match asked {
        Asked::Stop => {
            info!("asked to stop");
            Event::StopRequested
        }
        Asked::Restart => {
            info!("asked for a rolling restart");
            Event::RestartRequested
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn ready(readiness: &mut Option<Pin<Box<dyn Future<Output = ()>>>>) {
    match readiness {
        Some(readiness) => readiness.await,
        None => std::future::pending().await,
    }
}

/// What tells a person that the service is there and what to do with it.
fn ready_lines(config: &ServeConfig, took: Duration) -> String {
    let address = readiness::reachable(config.address);
    let version = env!("CARGO_PKG_VERSION");
    let model = match &config.model {
        lockstep_models::ModelFiles::EmbeddedDemo => "the demo model",
        lockstep_models::ModelFiles::Folder(_) | lockstep_models::ModelFiles::Gguf(_) => &config.model_name,
    };
    let Groups { replicas, ranks } = config.groups;
    let shards = if ranks == 1 { "1 shard".to_owned() } else { format!("{ranks} shards") };
    let shards = if replicas == 1 { shards } else { format!("{replicas} replicas of {shards}") };
    format!(
        "lockstep {version} serves {model} on http://{address} ({shards}, {}, ready in {:.1} s)\n  \
         curl http://{address}/generate_stream -H 'content-type: application/json' \
         -d '{{\"inputs\":\"Once upon a time\",\"parameters\":{{\"max_new_tokens\":60}}}}'",
        config.precision,
        took.as_secs_f64(),
    )
}

/// Says it on standard output to a person, in the log to a machine.
fn announce(config: &ServeConfig, text: &str) {
    match config.log.format {
        // Where nobody listens, serving goes on all the same.
        LogFormat::Text => drop(writeln!(std::io::stdout().lock(), "{text}")),
        LogFormat::Json => info!("{text}"),
    }
}
