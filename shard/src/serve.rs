//! A shard's life: load, serve, leave.

use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_process::reports::{Progress, Report, tell_signs_of_life};
use lockstep_process::shutdown::{ParentState, die_with_parent, stop_signal};
use lockstep_process::tasks::{Fate, Tasks};
use lockstep_process::telemetry;
use lockstep_process::traces::Traces;
use lockstep_proto::wire::shard_server::ShardServer;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{error, info, warn};

use crate::args::ShardArgs;
use crate::comm::Communicator;
use crate::config::{Config, ListenAddress};
use crate::engine::{Engine, Model};
use crate::error::{ShardError, StreamEnd};
use crate::grpc::{MAX_MESSAGE_BYTES, ShardService};
use crate::lifeline::{Patience, Streams};
use crate::load::{self, LoadError};
use crate::ops::cpu::heap::keep_freed_memory;
use crate::ops::cpu::placement::{compute_on, take_place};
use crate::worker::{self, StartError, Worker, WorkerError};

/// How long a shard that was told to stop may take to finish its step and close its connections.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

/// How long the last spans may take to be sent.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// The same of a shard whose place is waited for.
const FAILED_FLUSH_LIMIT: Duration = Duration::from_millis(200);

/// How long a shard that cannot go on may take to say so. Until it has ended nothing takes its place.
const FAILED_LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// Runs one rank until it is told to stop.
///
/// # Errors
/// When it cannot start, or cannot go on.
pub fn run(args: ShardArgs) -> Result<(), ShardError> {
    let config = Config::new(args)?;
    keep_freed_memory();
    telemetry::init(&config.log)?;
    if let Some(parent) = config.parent
        && die_with_parent(parent) == ParentState::Gone
    {
        return Err(ShardError::ParentGone { parent });
    }
    if let Some(cpus) = &config.threads.cpus {
        compute_on(cpus);
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(config.threads.count).start_handler(take_place);
    let pool = pool.build_global();
    pool.map_err(|error| ShardError::Threads { source: io::Error::other(error) })?;
    let threads = |source| ShardError::Threads { source };
    // One thread moves messages; the engine computes on its own and the pool's.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(threads)?;
    let tasks = Tasks::new();
    let listen = config.listen.clone();
    runtime.block_on(async {
        let stop = tasks.stop_token().clone();
        tasks.spawn("stop signal", Fate::StopServer, async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = told_to_stop() => {}
            }
        });
        let traces = Traces::start(&config.traces)?;
        let progress = Progress::default();
        if let Some(path) = config.reports.clone() {
            let report = Report::RankLives {
                epoch: config.joining.epoch.0,
                rank: config.joining.membership.rank().0,
            };
            let stop = tasks.stop_token().clone();
            tasks.spawn(
                "signs of life",
                Fate::Log,
                tell_signs_of_life(path, report, progress.clone(), stop),
            );
        }
        let load = move || {
            // This is the engine's thread, the first of those that compute.
            take_place(0);
            let loaded = load::load(&config, progress.clone());
            progress.become_steady();
            loaded
        };
        let served = serve(listen, &tasks, (traces.clone(), Patience::USUAL), load).await;
        traces.stop(if served.is_ok() { FLUSH_LIMIT } else { FAILED_FLUSH_LIMIT });
        served
    })
}

/// # Cancel safety
/// As [`stop_signal`].
async fn told_to_stop() {
    match stop_signal().await {
        Ok(signal) => info!(%signal, "told to stop"),
        Err(error) => error!(%error, "stopping: signals cannot be heard"),
    }
}

/// Serves the engine that `load` makes at `listen`, until `tasks` are stopped or the engine ends. Spans of sampled
/// steps go to `traces`; a rank whose router goes has `patience`.
///
/// # Errors
/// When the engine cannot be loaded, cannot go on, or nothing can be served there.
pub async fn serve<M: Model + 'static>(
    listen: ListenAddress,
    tasks: &Tasks,
    (traces, patience): (Traces, Patience),
    load: impl FnOnce() -> Result<Engine<M>, LoadError> + Send + 'static,
) -> Result<(), ShardError> {
    let stop = tasks.stop_token().clone();
    let starting = worker::start(load, traces).map_err(|source| ShardError::Threads { source })?;
    let loaded = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        loaded = starting.loaded() => loaded,
    };
    let Worker { commands, loaded, mut end } = loaded.map_err(|error| match error {
        StartError::Load(error) => ShardError::Load(error),
        StartError::Worker(error) => ShardError::Worker(error),
    })?;

    let bound = Bound::new(&listen)
        .await
        .map_err(|source| ShardError::Listen { address: listen.clone(), source })?;
    let (streams, mut lifeline) = Streams::new(&commands, patience);
    let service = ShardService::new(loaded.description.clone(), commands, tasks.clone(), streams);
    let routes = routes(service).await;
    let (served_tx, mut served) = oneshot::channel();
    let until = stop.clone().cancelled_owned();
    tasks.spawn("grpc server", Fate::StopServer, async move {
        // Its result is looked at below, where this function has not returned already.
        let _ = served_tx.send(bound.serve(routes, until).await);
    });
    info!(rank = loaded.description.rank.0, epoch = loaded.description.epoch.0, %listen, "ready");

    let result = tokio::select! {
        biased;
        ended = &mut end => {
            let left = tokio::time::timeout(FAILED_LEAVE_LIMIT, tasks.stop_and_wait()).await;
            left.unwrap_or_else(|_| warn!("left with connections open"));
            flatten(ended)
        }
        () = stop.cancelled() => leave(tasks, end).await,
        why = lifeline.cut() => give_up(tasks, &*loaded.comm, end, why).await,
    };
    // Ranks that stay behind are not left to wait for this one.
    loaded.comm.abort();
    match served.try_recv() {
        Ok(Err(source)) => Err(ShardError::Serve { source }),
        Ok(Ok(())) | Err(_) => result,
    }
}

/// Answers the steps that were taken, closes the connections and waits for the worker.
async fn leave(tasks: &Tasks, end: oneshot::Receiver<Result<(), WorkerError>>) -> Result<(), ShardError> {
    let left = tokio::time::timeout(LEAVE_LIMIT, async {
        tasks.stop_and_wait().await;
        end.await
    });
    match left.await {
        Ok(ended) => flatten(ended),
        Err(_) => {
            warn!("left before the last step was done");
            Ok(())
        }
    }
}

/// Ends a rank that no router wants, even where its worker is stuck in a step: nobody waits for the answer.
/// A router that closed its stream left in good order, and so does the rank.
async fn give_up(
    tasks: &Tasks,
    comm: &dyn Communicator,
    end: oneshot::Receiver<Result<(), WorkerError>>,
    why: StreamEnd,
) -> Result<(), ShardError> {
    let closed = matches!(why, StreamEnd::Closed);
    if closed {
        info!("the router closed its stream of steps; leaving");
    } else {
        warn!(%why, "the router's stream of steps is over; leaving");
    }
    comm.abort();
    let left = tokio::time::timeout(FAILED_LEAVE_LIMIT, async {
        tasks.stop_and_wait().await;
        end.await
    });
    match left.await {
        // The worker ended by itself, which was the reason for the stream's end.
        Ok(Ok(Err(error @ (WorkerError::Refused { .. } | WorkerError::Panicked(_))))) => Err(error.into()),
        // It may be that the exchange it was in was aborted above.
        Ok(Ok(Err(error @ WorkerError::Fatal { .. }))) => {
            info!(%error, "the worker ended as well");
            Err(ShardError::StreamEnded { why })
        }
        Ok(Ok(Ok(()))) if closed => Ok(()),
        Ok(Ok(Ok(())) | Err(_)) | Err(_) => Err(ShardError::StreamEnded { why }),
    }
}

fn flatten(ended: Result<Result<(), WorkerError>, oneshot::error::RecvError>) -> Result<(), ShardError> {
    match ended {
        Ok(result) => result.map_err(ShardError::Worker),
        Err(_) => Err(ShardError::Worker(WorkerError::Panicked("it left without a word".to_owned()))),
    }
}

async fn routes(service: ShardService) -> Routes {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ShardServer<ShardService>>().await;
    let shard = ShardServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Routes::new(shard).add_service(health_service)
}

/// An address that is listened at.
enum Bound {
    Unix(UnixListener, SocketFile),
    Tcp(TcpIncoming),
}

impl Bound {
    async fn new(address: &ListenAddress) -> io::Result<Self> {
        Ok(match address {
            ListenAddress::Unix(path) => {
                let (listener, file) = SocketFile::bind(path)?;
                Self::Unix(listener, file)
            }
            ListenAddress::Tcp(socket) => {
                let listener = TcpListener::bind(socket).await?;
                Self::Tcp(TcpIncoming::from(listener).with_nodelay(Some(true)))
            }
        })
    }

    /// Until `until`, and every call that is under way then is done.
    async fn serve(
        self,
        routes: Routes,
        until: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let server = Server::builder().add_routes(routes);
        match self {
            Self::Unix(listener, _file) => {
                server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), until).await
            }
            Self::Tcp(incoming) => server.serve_with_incoming_shutdown(incoming, until).await,
        }
    }
}

/// A socket in the file system, removed when listening ends.
struct SocketFile {
    path: PathBuf,
    /// Tells it from the socket of a rank that has taken its place.
    inode: u64,
}

impl SocketFile {
    fn bind(path: &Path) -> io::Result<(UnixListener, Self)> {
        match std::fs::remove_file(path) {
            Ok(()) => info!(path = %path.display(), "removed the socket of a rank that is gone"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        let inode = std::fs::metadata(path)?.ino();
        Ok((listener, Self { path: path.to_path_buf(), inode }))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            // The folder may have been removed with all that is in it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
