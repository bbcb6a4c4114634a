//! The one task that owns the scheduler and the groups.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use lockstep_process::traces::Traces;
use lockstep_proto::{Epoch, ReplicaId, Step, StepOutput};
use lockstep_scheduler::{Limits, RunAhead};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::core::Core;
use super::deliver::Deliveries;
use super::masks::Found;
use super::replicas::{Happened, Replicas};
use super::states::States;
use super::traces::SequenceTraces;
use super::vitals::Vitals;
use super::watchdog::Watchdog;
use super::{Command, Engine, EngineError, GroupEnd};
use crate::clock;
use crate::metrics::Metrics;
use crate::shards::{GroupFacts, ShardError, ShardGroup};
use crate::tokenizer::Vocabulary;

/// How long the next step waits for masks. A sequence whose mask takes longer skips a step.
const MASK_PATIENCE: Duration = Duration::from_millis(2);

/// How the engine is run.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// What the scheduler is allowed.
    pub limits: Limits,
    /// A step that takes longer is a dead group, however large it is.
    pub step_timeout: Duration,
    /// So long may every step take, however small it is.
    pub min_step_timeout: Duration,
    /// How long sequences wait for a group where all are lost.
    pub group_loss_timeout: Duration,
    /// Whether a step may be planned before the one before it is done. Answers are the same.
    pub run_ahead: RunAhead,
}

/// The engine's task; see [`Self::run`].
pub struct EngineTask<G> {
    config: EngineConfig,
    core: Core,
    replicas: Replicas<G>,
    inputs: Inputs,
    states: States,
    hope: Hope,
    vitals: Arc<Vitals>,
}

/// What the task listens to.
struct Inputs {
    commands: mpsc::Receiver<Command>,
    wake: Arc<Notify>,
    stop: CancellationToken,
}

/// How long sequences wait for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hope {
    /// As long as it takes: there is one, or was none yet, and nobody is served before the first.
    Endless,
    /// Until the time that is configured is over.
    Until(Instant),
    /// No longer.
    Over,
}

/// What happens to the task.
enum Turn<G> {
    /// The process stops.
    Stop,
    /// Something with a group.
    Happened(Happened<G>),
    /// Someone wants something.
    Command(Command),
    /// It was found out what may follow a sequence.
    Mask(Found),
    /// There is time to hand on what the last step brought.
    Deliver,
    /// Some may have left.
    Woken,
    /// A deadline has come.
    Expired,
    /// Masks were waited for long enough.
    Settled,
    /// A step is about to be done.
    AheadDue,
    /// Groups were waited for long enough.
    Hopeless,
    /// It is time to show that the task runs.
    BeatDue,
}

impl<G: ShardGroup> EngineTask<G> {
    /// The task that drives `groups`, the replicas of one model, and the way to it. It ends when `stop` is cancelled.
    pub fn new(
        groups: Vec<G>,
        config: EngineConfig,
        vocabulary: Arc<Vocabulary>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> (Self, Engine) {
        // Every sequence holds a permit and is submitted once, so this many wait at most.
        let capacity_submissions = (config.limits.max_requests as usize).max(1);
        let (commands, queue) = mpsc::channel(capacity_submissions);
        let wake = Arc::new(Notify::new());
        let (states, told) = States::new(groups.len());
        metrics.expect_replicas(groups.len());
        let deliveries = Deliveries::new(vocabulary, Arc::clone(&metrics));
        let core = Core::new(config.limits, deliveries, metrics);
        let vitals = Arc::new(Vitals::new(groups.len(), clock::now()));
        let engine = Engine {
            commands,
            wake: Arc::clone(&wake),
            next_sequence: Arc::new(AtomicU64::new(1)),
            queue_time_ms: core.queue_time_ms(),
            told,
            vitals: Arc::clone(&vitals),
        };
        let inputs = Inputs { commands: queue, wake, stop };
        let watchdog = Watchdog::new(config.min_step_timeout, config.step_timeout);
        let replicas = Replicas::new(groups, &watchdog, config.limits.max_step_tokens.0);
        (Self { config, core, replicas, inputs, states, hope: Hope::Endless, vitals }, engine)
    }

    /// Tells `traces` what becomes of sampled sequences.
    pub fn with_traces(mut self, traces: Traces) -> Self {
        *self.core.traces() = SequenceTraces::new(traces);
        self
    }

    /// Serves until the process stops, through any number of groups.
    pub async fn run(mut self) {
        self.replicas.ids().for_each(|replica| self.replicas.join(replica, None));
        loop {
            self.vitals.beat(clock::now());
            self.begin_steps();
            match self.turn().await {
                Turn::Stop => break,
                Turn::Happened(happened) => self.on_happened(happened),
                Turn::Command(command) => {
                    self.on_command(command);
                    self.drain_inputs();
                }
                Turn::Mask(found) => self.core.on_mask(found),
                Turn::Deliver => self.core.deliver(),
                Turn::Woken => self.core.sweep(),
                Turn::Expired => self.core.expire(clock::now()),
                Turn::Settled => self.settle(),
                Turn::AheadDue => self.drain_inputs(),
                Turn::Hopeless => self.give_up(),
                // Shown by each turn, this one as well.
                Turn::BeatDue => {}
            }
        }
        self.core.fail_all(&EngineError::Stopping);
    }

    /// Waits for what happens next.
    async fn turn(&mut self) -> Turn<G> {
        let Self { config, core, replicas, inputs, hope, vitals, .. } = self;
        let (deadline, settled) = (core.next_deadline(), replicas.next_settled());
        let ahead = replicas.next_ahead().filter(|_| config.run_ahead == RunAhead::Allowed);
        let is_undelivered = core.is_undelivered();
        let hopeless = match hope {
            Hope::Until(at) => Some(*at),
            Hope::Endless | Hope::Over => None,
        };
        tokio::select! {
            biased;
            () = inputs.stop.cancelled() => Turn::Stop,
            happened = replicas.next() => Turn::Happened(happened),
            // Steps are on their way: the shards do not wait for this.
            () = std::future::ready(()), if is_undelivered => Turn::Deliver,
            found = core.masks().next() => Turn::Mask(found),
            () = until(settled) => Turn::Settled,
            () = until(ahead) => Turn::AheadDue,
            // Before arrivals: who has left makes room for them.
            () = inputs.wake.notified() => Turn::Woken,
            () = until(deadline) => Turn::Expired,
            command = inputs.commands.recv() => command.map_or(Turn::Stop, Turn::Command),
            () = until(hopeless) => Turn::Hopeless,
            () = vitals.beat_due() => Turn::BeatDue,
        }
    }

    /// Gives each group that is at nothing its next step, and each whose step is about to be done the one to go on with,
    /// if there is something to compute.
    fn begin_steps(&mut self) {
        for replica in self.replicas.ids() {
            if self.replicas.is_idle(replica) {
                self.begin_step(replica);
            }
            if self.config.run_ahead == RunAhead::Allowed
                && self.replicas.take_due_ahead(replica, clock::now())
            {
                // Who ends by its text has no row in this step.
                self.core.deliver();
                let step = self.core.plan_ahead(replica, clock::now());
                step.into_iter().for_each(|step| self.send(replica, step));
            }
        }
    }

    /// Gives a group that is at nothing its next step.
    fn begin_step(&mut self, replica: ReplicaId) {
        if self.replicas.settles_until(replica).is_some() && self.core.awaits_masks(replica) {
            return;
        }
        self.replicas.settle(replica);
        if self.replicas.is_leaving(replica) {
            self.on_group_end(replica, GroupEnd::Drained);
        } else if let Some(step) = self.core.plan(replica, clock::now()) {
            self.send(replica, step);
        }
    }

    fn send(&mut self, replica: ReplicaId, step: Step) {
        let traces = self.core.traces().parents();
        match self.replicas.begin(replica, step, &traces) {
            Ok(Some(limit)) => self.vitals.on_step_begun(replica, clock::now(), limit),
            Ok(None) => {}
            Err(error) => self.on_lost(replica, &error),
        }
    }

    fn on_happened(&mut self, happened: Happened<G>) {
        match happened {
            Happened::Joined(replica, group, facts) => self.on_joined(replica, group, facts),
            Happened::Stepped(replica, output) => self.on_stepped(replica, output),
            Happened::Lost(replica, error) => self.on_lost(replica, &error),
        }
    }

    fn on_joined(&mut self, replica: ReplicaId, group: G, facts: GroupFacts) {
        let epoch = facts.epoch;
        self.replicas.on_joined(replica, group, epoch);
        if let Some(other) = self.states.first_ready().filter(|other| !other.computes_like(&facts)) {
            let (here, there) = (facts.arithmetic.as_str(), other.arithmetic.as_str());
            error!(
                replica = replica.0,
                here, there, "another model or arithmetic than that of the other replicas"
            );
            self.replicas.join(replica, Some(epoch));
            return;
        }
        self.hope = Hope::Endless;
        self.core.on_group_ready(replica, &facts, clock::now());
        self.states.on_ready(replica, facts);
    }

    fn on_stepped(&mut self, replica: ReplicaId, output: Result<StepOutput, ShardError>) {
        let now = clock::now();
        self.vitals.on_step_over(replica);
        let taken_in = output.and_then(|output| {
            self.core.on_ranks_done(replica, self.replicas.timings(replica));
            let taken_in = self.core.on_step_done(replica, &output, now);
            taken_in.map_err(|error| ShardError::NoGroup(error.to_string()))
        });
        if let Err(error) = taken_in {
            return self.on_lost(replica, &error);
        }
        let settles_until = self.core.masks().are_pending().then(|| clock::now() + MASK_PATIENCE);
        if let Some(limit) = self.replicas.on_stepped(replica, now, settles_until) {
            self.vitals.on_step_begun(replica, now, limit);
        }
        self.drain_inputs();
    }

    fn on_lost(&mut self, replica: ReplicaId, error: &ShardError) {
        let epoch = self.replicas.epoch(replica).unwrap_or(Epoch(0));
        error!(%error, replica = replica.0, epoch = epoch.0, "group lost");
        self.on_group_end(replica, GroupEnd::Lost);
    }

    /// A group that serves does not serve any more; a newer one is waited for.
    fn on_group_end(&mut self, replica: ReplicaId, end: GroupEnd) {
        let Some(epoch) = self.replicas.epoch(replica) else { return };
        self.states.on_away(replica);
        self.vitals.on_step_over(replica);
        self.core.on_group_end(replica, epoch, end, clock::now());
        if !self.states.is_any_ready() {
            self.hope = Hope::Until(clock::now() + self.config.group_loss_timeout);
        }
        self.replicas.join(replica, Some(epoch));
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Submit(submit) if self.hope == Hope::Over => {
                submit.refuse(EngineError::GroupLost { waited: self.config.group_loss_timeout });
            }
            Command::Submit(submit) => self.core.on_submit(submit, clock::now()),
            Command::Drain { replica, epoch, reply } => {
                if self.replicas.ask_to_leave(replica, epoch, reply) {
                    info!(replica = replica.0, epoch = epoch.0, "group is to leave");
                    self.core.on_drain(replica);
                }
            }
        }
    }

    /// Takes in everything that has arrived, so that the next step is planned with it.
    fn drain_inputs(&mut self) {
        self.core.sweep();
        self.core.expire(clock::now());
        while let Ok(command) = self.inputs.commands.try_recv() {
            self.on_command(command);
        }
    }

    fn settle(&mut self) {
        let now = clock::now();
        for replica in self.replicas.ids() {
            if self.replicas.settles_until(replica).is_some_and(|until| until <= now) {
                self.replicas.settle(replica);
            }
        }
    }

    fn give_up(&mut self) {
        let waited = self.config.group_loss_timeout;
        self.hope = Hope::Over;
        warn!(waited_s = waited.as_secs(), sequences = self.core.count(), "shards did not come back");
        self.core.fail_all(&EngineError::GroupLost { waited });
    }
}

/// Until a deadline comes; without one, for ever.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
