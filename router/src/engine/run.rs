//! The one task that owns the scheduler and the group.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use lockstep_process::traces::Traces;
use lockstep_proto::{Epoch, Step, StepOutput};
use lockstep_scheduler::Limits;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::core::Core;
use super::deliver::Deliveries;
use super::traces::SequenceTraces;
use super::vitals::Vitals;
use super::watchdog::{StepWork, Watchdog};
use super::{Command, Engine, EngineError, GroupState};
use crate::metrics::Metrics;
use crate::shards::{ShardError, ShardGroup, bring_up};
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
    /// How long sequences wait for a lost group.
    pub group_loss_timeout: Duration,
}

/// The engine's task; see [`Self::run`].
pub struct EngineTask<G> {
    group: G,
    config: EngineConfig,
    core: Core,
    watchdog: Watchdog,
    inputs: Inputs,
    state: watch::Sender<GroupState>,
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
    /// As long as it takes.
    Endless,
    /// For the time that is configured.
    Limited,
    /// No longer.
    Over,
}

/// Why the task left a phase.
enum Left {
    /// The group is gone.
    Lost(ShardError),
    /// The process stops.
    Stop,
}

impl<G: ShardGroup> EngineTask<G> {
    /// The task and the way to it. The task ends when `stop` is cancelled.
    pub fn new(
        group: G,
        config: EngineConfig,
        vocabulary: Arc<Vocabulary>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> (Self, Engine) {
        // Every sequence holds a permit and is submitted once, so this many wait at most.
        let capacity_submissions = (config.limits.max_requests as usize).max(1);
        let (commands, queue) = mpsc::channel(capacity_submissions);
        let wake = Arc::new(Notify::new());
        let (state, watched) = watch::channel(GroupState::Away { since: Instant::now() });
        let deliveries = Deliveries::new(vocabulary, Arc::clone(&metrics));
        let core = Core::new(config.limits, deliveries, metrics);
        let vitals = Arc::new(Vitals::new(Instant::now()));
        let engine = Engine {
            commands,
            wake: Arc::clone(&wake),
            next_sequence: Arc::new(AtomicU64::new(1)),
            queue_time_ms: core.queue_time_ms(),
            state: watched,
            vitals: Arc::clone(&vitals),
        };
        let inputs = Inputs { commands: queue, wake, stop };
        let watchdog = Watchdog::new(config.min_step_timeout, config.step_timeout);
        (Self { group, config, core, watchdog, inputs, state, vitals }, engine)
    }

    /// Tells `traces` what becomes of sampled sequences.
    pub fn with_traces(mut self, traces: Traces) -> Self {
        *self.core.traces() = SequenceTraces::new(traces);
        self
    }

    /// Serves until the process stops, through any number of groups.
    pub async fn run(mut self) {
        let mut lost: Option<Epoch> = None;
        while let Some(epoch) = self.join(lost).await {
            match self.serve().await {
                Left::Lost(error) => {
                    error!(%error, epoch = epoch.0, "group lost");
                    lost = Some(epoch);
                    self.state.send_replace(GroupState::Away { since: Instant::now() });
                    self.core.on_group_lost(epoch, Instant::now());
                }
                Left::Stop => break,
            }
        }
        self.core.fail_all(&EngineError::Stopping);
    }

    /// Waits for a group newer than `lost`; `None` when the process stops meanwhile.
    async fn join(&mut self, lost: Option<Epoch>) -> Option<Epoch> {
        let Self { group, config, core, watchdog, inputs, state, vitals } = self;
        watchdog.forget();
        let patience = tokio::time::sleep(config.group_loss_timeout);
        let mut patience = pin!(patience);
        // The first group may take any time: nobody is served before it.
        let mut hope = if lost.is_none() { Hope::Endless } else { Hope::Limited };
        let waited = config.group_loss_timeout;
        let mut joining = pin!(bring_up(group, lost, config.limits.max_step_tokens.0));
        let facts = loop {
            tokio::select! {
                biased;
                () = inputs.stop.cancelled() => return None,
                facts = &mut joining => break facts,
                () = vitals.beat_due() => vitals.beat(Instant::now()),
                () = inputs.wake.notified() => core.sweep(),
                () = until(core.next_deadline()) => core.expire(Instant::now()),
                command = inputs.commands.recv() => match hope {
                    Hope::Endless | Hope::Limited => core.on_command(command?, Instant::now()),
                    Hope::Over => Core::refuse(command?, EngineError::GroupLost { waited }),
                },
                () = &mut patience, if hope == Hope::Limited => {
                    hope = Hope::Over;
                    warn!(waited_s = waited.as_secs(), sequences = core.count(), "shards did not come back");
                    core.fail_all(&EngineError::GroupLost { waited });
                }
            }
        };
        core.on_group_ready(&facts, Instant::now());
        let epoch = facts.epoch;
        state.send_replace(GroupState::Ready(Arc::new(facts)));
        Some(epoch)
    }

    async fn serve(&mut self) -> Left {
        loop {
            self.vitals.beat(Instant::now());
            self.settle_masks().await;
            let Some(mut step) = self.core.plan(Instant::now()) else {
                if self.core.is_undelivered() {
                    self.core.deliver();
                    continue;
                }
                if let Some(left) = self.wait().await {
                    return left;
                }
                continue;
            };
            self.core.add_masks(&mut step);
            let output = self.step(step).await;
            self.vitals.on_step_over();
            let output = match output {
                Ok(output) => output,
                Err(left) => return left,
            };
            self.core.on_ranks_done(self.group.timings());
            if let Err(error) = self.core.on_step_done(&output, Instant::now()) {
                return Left::Lost(ShardError::NoGroup(error.to_string()));
            }
            self.inputs.drain(&mut self.core);
        }
    }

    /// Takes in the masks that come soon.
    async fn settle_masks(&mut self) {
        if !self.core.masks().are_pending() {
            return;
        }
        let patience = tokio::time::sleep(MASK_PATIENCE);
        let mut patience = pin!(patience);
        while self.core.masks().are_pending() {
            tokio::select! {
                biased;
                found = self.core.masks().next() => self.core.on_mask(found),
                () = &mut patience => return,
            }
        }
    }

    /// Nothing to compute: waits for something to happen, the loss of the group included.
    async fn wait(&mut self) -> Option<Left> {
        let Self { group, core, inputs, vitals, .. } = self;
        tokio::select! {
            biased;
            () = inputs.stop.cancelled() => Some(Left::Stop),
            // The caller's loop does it.
            () = vitals.beat_due() => None,
            () = inputs.wake.notified() => {
                core.sweep();
                None
            }
            () = until(core.next_deadline()) => {
                core.expire(Instant::now());
                None
            }
            command = inputs.commands.recv() => match command {
                Some(command) => {
                    core.on_command(command, Instant::now());
                    inputs.drain(core);
                    None
                }
                None => Some(Left::Stop),
            },
            found = core.masks().next() => {
                core.on_mask(found);
                None
            }
            error = group.lost() => Some(Left::Lost(error)),
        }
    }

    /// Computes a step, taking in what arrives meanwhile.
    async fn step(&mut self, step: Step) -> Result<StepOutput, Left> {
        let Self { group, core, watchdog, inputs, vitals, .. } = self;
        let (work, begun) = (StepWork::of(&step), Instant::now());
        let limit = watchdog.limit(work);
        vitals.on_step_begun(begun, limit);
        let traces = core.traces().parents();
        let mut computing = pin!(tokio::time::timeout(limit, group.step(step, &traces)));
        loop {
            tokio::select! {
                biased;
                () = inputs.stop.cancelled() => return Err(Left::Stop),
                output = &mut computing => {
                    let output = output.unwrap_or(Err(ShardError::TooSlow { limit }));
                    watchdog.on_step(work, begun.elapsed());
                    return output.map_err(Left::Lost);
                }
                () = vitals.beat_due() => vitals.beat(Instant::now()),
                // The step is on its way: the shards do not wait for this.
                () = std::future::ready(()), if core.is_undelivered() => core.deliver(),
                // Before arrivals: who has left makes room for them.
                () = inputs.wake.notified() => core.sweep(),
                () = until(core.next_deadline()) => core.expire(Instant::now()),
                command = inputs.commands.recv() => match command {
                    Some(command) => core.on_command(command, Instant::now()),
                    None => return Err(Left::Stop),
                },
            }
        }
    }
}

/// Until a deadline comes; without one, for ever.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

impl Inputs {
    /// Takes in everything that has arrived, so that the next step is planned with it.
    fn drain(&mut self, core: &mut Core) {
        core.sweep();
        core.expire(Instant::now());
        while let Ok(command) = self.commands.try_recv() {
            core.on_command(command, Instant::now());
        }
    }
}
