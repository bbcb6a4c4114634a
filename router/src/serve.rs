//! The router as a process: runtime, listener, and the three phases of its end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockstep_process::open_files;
use lockstep_process::reports::{Progress, Report, tell_signs_of_life};
use lockstep_process::shutdown::{ParentState, StopSignal, die_with_parent};
use lockstep_process::tasks::{Fate, Tasks};
use lockstep_process::telemetry::{self, TelemetryError};
use lockstep_process::traces::{TraceError, Traces};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::app::{App, AppConfig, AppError};
use crate::args::{GenerationConfig, RouterArgs};
use crate::config::{ConfigError, Listen, MetricAliases, RouterConfig, Stopping};
use crate::http::auth::Keys;
use crate::http::connections::{self, Door};
use crate::journal::JournalConfig;
use crate::launcher;
use crate::model::{Model, ModelError};
use crate::shards::RemoteGroup;
use crate::tools::CallSupport;
use crate::validation::{Lowered, RequestLimits, SamplingDefaults};

/// How often the end of running requests is looked for while draining.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// How long connections may take to send their last bytes once all requests have ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the last spans may take to be sent.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The router cannot start or go on.
#[derive(Debug, Error)]
pub enum RouterError {
    /// A flag makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Logging cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// Spans cannot be sent.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// The launcher is gone.
    #[error("start under process {parent}: it is gone")]
    Orphaned {
        /// The launcher.
        parent: u32,
    },
    /// Another process listens there.
    #[error("listen on {address}: the port is taken; stop what uses it or choose another with --port")]
    PortTaken {
        /// Where.
        address: String,
    },
    /// Listening fails for another reason.
    #[error("listen on {address}: {source}; check --hostname and --port")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The model's text side cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The parts cannot be put together.
    #[error(transparent)]
    App(#[from] AppError),
    /// The engine or the listener ended by itself.
    #[error("go on: a vital task has ended; the log says which and why")]
    VitalTaskEnded,
    /// The runtime cannot be built or signals cannot be heard.
    #[error("serve: {0}")]
    Io(#[from] io::Error),
}

/// Serves until told to stop.
///
/// # Errors
/// When it cannot start, or the listener breaks.
pub fn run(args: RouterArgs) -> Result<(), RouterError> {
    let config = RouterConfig::from_args(args)?;
    telemetry::init(&config.log)?;
    if let Some(parent) = config.stopping.parent
        && die_with_parent(parent) == ParentState::Gone
    {
        return Err(RouterError::Orphaned { parent });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("router").build()?;
    runtime.block_on(serve(config))
}

/// Checks what was typed as [`run`] does, and starts nothing: for whoever is to start it, before anything else is.
///
/// # Errors
/// When a value makes no sense, the file of keys cannot be read, or the journal not be kept.
pub fn check(args: RouterArgs) -> Result<(), RouterError> {
    let config = RouterConfig::from_args(args)?;
    config.traces.check()?;
    Keys::open(&config.app.access).map_err(AppError::from)?;
    config.app.kept.journal.iter().try_for_each(JournalConfig::check).map_err(AppError::from)?;
    Ok(())
}

async fn serve(config: RouterConfig) -> Result<(), RouterError> {
    // Before anything slow: a taken port is told at once, and early clients wait instead of failing.
    let listener = listen(&config.listen).await?;
    open_files::outlive_full_files()?;
    let address = listener.local_addr()?;
    let tasks = Tasks::new();
    let progress = Progress::steady();
    if let Some(path) = config.launcher.reports.clone() {
        let stop = tasks.stop_token().clone();
        let signs = tell_signs_of_life(path, Report::RouterLives, progress.clone(), stop);
        tasks.spawn("signs of life", Fate::Log, signs);
    }
    let mut model = Model::load(&config.files, config.model_id)?;
    if config.chats.generation_config == GenerationConfig::Ignore {
        model.sampling_defaults = SamplingDefaults::default();
    }
    if let Some(style) = config.chats.tool_call_style.forced() {
        model.calls = CallSupport::of(model.template.as_ref(), &model.tokenizer, Some(style));
    }
    // A model whose rotation is stretched has more positions than its files name.
    model.max_positions = config.max_positions.or(model.max_positions);
    let groups = config.replicas.into_iter().map(RemoteGroup::new).collect();
    let traces = Traces::start(&config.traces)?;
    let asked = config.app.limits;
    let app = App::start(AppConfig { traces: traces.clone(), ..config.app }, model, groups, &tasks)?;
    // From here on the launcher hears of an engine that hangs, not only of a runtime that does.
    progress.become_counted();
    app.engine.vitals().tell(progress);
    if config.aliases == MetricAliases::Vllm {
        app.metrics.alias_for_vllm(&app.model.id);
    }
    launcher::begin_talking(&config.launcher, &app.engine, &tasks)?;
    let door = Door {
        most_connections: connections::within_open_files(config.listen.most_connections),
        patience: app.config.patience.client_timeout,
        metrics: Arc::clone(&app.metrics),
    };
    let connections = connections::serve(listener, app.router(), door, tasks.clone());
    tasks.spawn("http", Fate::StopServer, connections);
    tell_what_is_served(&app, asked, address);
    let cause = wait_for_stop(&app, &tasks, &config.stopping).await?;
    // Before the ranks see the router leave, and leave as well: the launcher waits for no rank that is alone.
    traces.flush(FLUSH_TIMEOUT);
    // The engine ends what still runs, which ends the streams, which lets connections close.
    if tokio::time::timeout(CLOSE_TIMEOUT, tasks.stop_and_wait()).await.is_err() {
        warn!("some connections did not close in time");
    }
    traces.stop(FLUSH_TIMEOUT);
    match cause {
        StopCause::Asked => {
            info!("stopped");
            Ok(())
        }
        StopCause::VitalTaskEnded => Err(RouterError::VitalTaskEnded),
    }
}

fn tell_what_is_served(app: &App, asked: RequestLimits, address: SocketAddr) {
    let limits = app.limits();
    for Lowered { flag, asked, in_force } in asked.lowered_to(limits) {
        warn!(flag, asked = asked.0, in_force = in_force.0, "more than model and cache hold: lowered");
    }
    let (max_input_tokens, max_total_tokens) = (limits.max_input_tokens.0, limits.max_total_tokens.0);
    info!(%address, model = app.model.id, max_input_tokens, max_total_tokens, "listening");
}

async fn listen(listen: &Listen) -> Result<TcpListener, RouterError> {
    let address = format!("{}:{}", listen.hostname, listen.port);
    match TcpListener::bind((listen.hostname.as_str(), listen.port)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(RouterError::PortTaken { address }),
        Err(source) => Err(RouterError::Listen { address, source }),
    }
}

/// Why everything may be cancelled.
enum StopCause {
    Asked,
    VitalTaskEnded,
}

/// Returns when everything may be cancelled: after a signal and the end of running requests, after a
/// second signal, after the time is up, or because a vital task has ended.
async fn wait_for_stop(
    app: &Arc<App>,
    tasks: &Tasks,
    stopping: &Stopping,
) -> Result<StopCause, RouterError> {
    let mut signals = StopSignals::new(stopping)?;
    tokio::select! {
        biased;
        () = tasks.stop_token().cancelled() => return Ok(StopCause::VitalTaskEnded),
        signal = signals.next() => info!(%signal, "draining"),
    }
    app.begin_draining();
    if stopping.parent.is_some_and(|parent| die_with_parent(parent) == ParentState::Gone) {
        // The shards die with it too: what runs cannot finish.
        return Ok(StopCause::Asked);
    }
    tokio::select! {
        biased;
        () = tasks.stop_token().cancelled() => return Ok(StopCause::VitalTaskEnded),
        signal = signals.next() => info!(%signal, "second signal: stopping at once"),
        () = drained(app) => info!("all requests have ended"),
        () = tokio::time::sleep(stopping.drain_timeout) => {
            warn!(under_way = app.requests_under_way(), "requests did not end in time");
        }
    }
    Ok(StopCause::Asked)
}

/// Signals that are meant for the router. One that comes while nobody waits is kept for the next wait.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    has_parent: bool,
}

impl StopSignals {
    fn new(stopping: &Stopping) -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { terminate, interrupt, has_parent: stopping.parent.is_some() })
    }

    /// The next one. A terminal's Ctrl-C reaches every process of the foreground; under a launcher it is
    /// the launcher's, which tells us with SIGTERM.
    ///
    /// # Cancel safety
    /// No signal is lost.
    async fn next(&mut self) -> StopSignal {
        loop {
            tokio::select! {
                biased;
                _ = self.terminate.recv() => return StopSignal::Terminate,
                _ = self.interrupt.recv() => {
                    if !self.has_parent {
                        return StopSignal::Interrupt;
                    }
                }
            }
        }
    }
}

/// Waits until no request is under way and nobody reads what is left of one.
pub async fn drained(app: &App) {
    while app.requests_under_way() > 0 || app.streams.are_read() {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terminate_this_process() {
        let id = std::process::id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    #[tokio::test]
    async fn a_signal_between_two_waits_is_not_lost() {
        let stopping = Stopping { drain_timeout: Duration::ZERO, parent: None };
        let mut signals = StopSignals::new(&stopping).unwrap();
        let mut witness = signal(SignalKind::terminate()).unwrap();
        for _ in 0..2 {
            terminate_this_process();
            // It has been delivered, and nobody waits on `signals`.
            witness.recv().await;
            assert_eq!(signals.next().await, StopSignal::Terminate);
        }
    }
}
