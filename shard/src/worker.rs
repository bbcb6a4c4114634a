//! The thread that owns model, KV and samplers; the panic boundary.
//!
//! Commands reach it over one bounded channel and are done in order; a step may be begun before the one before it is
//! answered. Whatever ends it ends the process: a
//! rank that cannot compute must not look alive.

mod turns;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use lockstep_process::traces::Traces;
use lockstep_proto::{ShardDescription, Step, StepId, StepOutput, TraceParent, WireError};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use self::turns::Turns;
use crate::comm::{Communicator, Timed};
use crate::engine::{Configuration, ConfigureError, Engine, FatalError, InvalidStep, Model};

/// Commands that wait for the worker. Each stream has at most [`STEPS_IN_FLIGHT`] steps on their way; two
/// streams, of which one takes over from the other, and some calls of `Configure` fit without waiting.
const COMMANDS: usize = 2 * STEPS_IN_FLIGHT + 16;

/// Steps of one stream that were read and whose answers were not sent yet. A router runs one or two steps
/// ahead of the answers.
pub(crate) const STEPS_IN_FLIGHT: usize = 8;

/// Tells the streams of a process apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamId(pub(crate) u64);

/// What the worker is asked to do.
pub(crate) enum Command {
    /// Fix the size of the KV cache; steps of every stream there is are refused from here on. Answered with the
    /// number of steps that were begun.
    Configure(Configuration, oneshot::Sender<Result<u64, ConfigureError>>),
    /// Say when everything that was asked before is done.
    CatchUp(oneshot::Sender<()>),
    /// A router begins to send steps; those of earlier streams are refused from here on.
    OpenStream(StreamId),
    /// Compute a step, whose span hangs on `traces`. The permit is the place its answer goes to, so that answering never waits.
    Step { stream: StreamId, step: Step, traces: Vec<TraceParent>, answer: Answer },
}

/// Where the answer to a step goes.
pub(crate) type Answer = mpsc::OwnedPermit<Result<StepOutput, StepRefusal>>;

/// A step without an output.
#[derive(Debug, Error)]
pub(crate) enum StepRefusal {
    /// The stream is not the one steps are taken from.
    #[error("take a step from this stream: it has ended, or another has taken over")]
    StreamEnded,
    /// The engine refused it.
    #[error("run step {step}: {reason}")]
    Invalid { step: StepId, reason: Arc<InvalidStep> },
    /// The message is not one of this release.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// This rank broke while it computed the step.
    #[error("run step {step}: this rank cannot go on")]
    RankLost { step: StepId },
    /// The process was told to stop.
    #[error("take another step: this rank is leaving")]
    Leaving,
}

/// Why the worker ended.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// It panicked.
    #[error("compute: the worker panicked: {0}")]
    Panicked(String),
    /// The router sent a step that makes no sense. It has been told, and waits for the next epoch.
    #[error("run step {step}: {reason}")]
    Refused {
        /// Which step.
        step: StepId,
        /// What is wrong with it.
        reason: Arc<InvalidStep>,
    },
    /// The model or the group broke.
    #[error("run step {step}: {reason}")]
    Fatal {
        /// Which step.
        step: StepId,
        /// What broke.
        reason: FatalError,
    },
}

/// The running worker, from outside.
pub(crate) struct Worker {
    /// Takes commands; the worker ends when every clone is dropped.
    pub(crate) commands: mpsc::Sender<Command>,
    /// What it has loaded.
    pub(crate) loaded: Loaded,
    /// Resolves when the worker ends.
    pub(crate) end: oneshot::Receiver<Result<(), WorkerError>>,
}

/// What a worker has loaded.
pub(crate) struct Loaded {
    /// What the rank is.
    pub(crate) description: ShardDescription,
    /// Its group, to be aborted from outside.
    pub(crate) comm: Arc<Timed>,
}

/// A worker that has been started and is loading.
pub(crate) struct Starting<E> {
    commands: mpsc::Sender<Command>,
    loaded: oneshot::Receiver<Result<Loaded, E>>,
    end: oneshot::Receiver<Result<(), WorkerError>>,
}

/// Why there is no worker.
#[derive(Debug)]
pub(crate) enum StartError<E> {
    /// Loading failed.
    Load(E),
    /// Loading panicked.
    Worker(WorkerError),
}

/// Starts the worker; `load` runs on its thread, so that a model never changes threads. Spans of sampled steps go
/// to `traces`.
///
/// # Errors
/// When the system has no thread left.
pub(crate) fn start<M, E>(
    load: impl FnOnce() -> Result<Engine<M>, E> + Send + 'static,
    traces: Traces,
) -> std::io::Result<Starting<E>>
where
    M: Model + 'static,
    E: Send + 'static,
{
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (loaded_tx, loaded) = oneshot::channel();
    let (end_tx, end) = oneshot::channel();
    let work = move || {
        // Nobody listens to the end only where the process is ending anyway.
        let _ = end_tx.send(live(load, loaded_tx, inbox, &traces));
    };
    std::thread::Builder::new().name("engine".to_owned()).spawn(work)?;
    Ok(Starting { commands, loaded, end })
}

impl<E> Starting<E> {
    /// Waits until the model is loaded.
    pub(crate) async fn loaded(self) -> Result<Worker, StartError<E>> {
        let Self { commands, loaded, end } = self;
        match loaded.await {
            Ok(Ok(loaded)) => Ok(Worker { commands, loaded, end }),
            Ok(Err(error)) => Err(StartError::Load(error)),
            Err(_) => Err(StartError::Worker(match end.await {
                Ok(Err(error)) => error,
                Ok(Ok(())) | Err(_) => WorkerError::Panicked("it left without a word".to_owned()),
            })),
        }
    }
}

/// The worker's life: load, then do as told. No panic leaves it.
fn live<M: Model, E>(
    load: impl FnOnce() -> Result<Engine<M>, E>,
    loaded: oneshot::Sender<Result<Loaded, E>>,
    inbox: mpsc::Receiver<Command>,
    traces: &Traces,
) -> Result<(), WorkerError> {
    let loading =
        catch_unwind(AssertUnwindSafe(load)).map_err(|panic| WorkerError::Panicked(message(&*panic)))?;
    // Nobody waits for the model only where the process is ending anyway.
    let mut engine = match loading {
        Ok(engine) => engine,
        Err(error) => {
            let _ = loaded.send(Err(error));
            return Ok(());
        }
    };
    let comm = engine.comm();
    let _ = loaded.send(Ok(Loaded { description: engine.describe(), comm: Arc::clone(&comm) }));
    let end = catch_unwind(AssertUnwindSafe(|| Turns::new(&mut engine, inbox, traces).run()))
        .unwrap_or_else(|panic| Err(WorkerError::Panicked(message(&*panic))));
    // The other ranks wait for this one in vain: they are told before anybody is.
    if end.is_err() {
        comm.abort();
    }
    end
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
