//! Connections of clients, and what they may cost: there is a bound on how many there are; a head that does not come
//! and an answer that nobody reads end the connection, and with it the request.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use lockstep_process::tasks::{Fate, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, error, warn};

use super::auth::{METRICS, is_probe};
use crate::error::ApiError;
use crate::metrics::Metrics;

/// How long to wait where the process has no file descriptor left: somebody will hang up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often that is said, where it lasts.
const BETWEEN_WORDS: Duration = Duration::from_secs(60);
/// Bytes of a request's head that are waited for; one that has not ended by then is answered 431. What comes at once with
/// its end may be some more. Bodies are read in pieces of this size.
const HEAD_BYTES: usize = 64 << 10;
/// Headers of a request at most; one with more is answered 431.
const HEADERS: usize = 100;
/// Connections beyond the bound that are told so, probes and scrapes answered. More are closed unheard.
const SPARE: usize = 16;
/// How long one of those may take to say what it wants.
const SPARE_PATIENCE: Duration = Duration::from_secs(2);
/// When a client that finds every connection taken is told to come back, in seconds.
const RETRY_AFTER_S: u32 = 1;

/// What clients' connections are allowed.
#[derive(Clone)]
pub struct Door {
    /// How many there may be.
    pub most_connections: usize,
    /// How long a client may take to send a head, and to read the next piece of an answer once its socket is full.
    pub patience: Duration,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
}

/// Marks requests of a connection beyond the bound.
#[derive(Clone, Copy)]
struct Crowded;

/// Answers every connection with `routes` until the tasks are told to stop, then waits for what is being answered.
pub async fn serve(listener: TcpListener, routes: Router, door: Door, tasks: Tasks) {
    let rooms = Rooms {
        usual: Arc::new(Semaphore::new(door.most_connections)),
        spare: Arc::new(Semaphore::new(SPARE)),
    };
    let graceful = GracefulShutdown::new();
    let usual = protocol(door.patience);
    let mut spare = protocol(SPARE_PATIENCE.min(door.patience));
    spare.keep_alive(false);
    let mut trouble = Trouble::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = tasks.stop_token().cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let connection = match accepted {
            Ok((connection, _)) => connection,
            Err(error) => {
                trouble.pause_after(&error).await;
                continue;
            }
        };
        let (place, protocol, routes) = match rooms.take() {
            Some((place, Room::Usual)) => (place, &usual, routes.clone()),
            Some((place, Room::Spare)) => (place, &spare, routes.clone().layer(Extension(Crowded))),
            // It is closed: whoever fills the spare ones as well is not talked to.
            None => continue,
        };
        let service = TowerToHyperService::new(routes);
        let connection = TokioIo::new(Box::pin(bounded(connection, door.patience)));
        let answering = graceful.watch(protocol.serve_connection(connection, service));
        let counted = Counted::new(Arc::clone(&door.metrics), place);
        tasks.spawn("connection", Fate::Log, async move {
            if let Err(error) = answering.await {
                debug!(error = %with_cause(&error), "a connection broke");
            }
            drop(counted);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Refuses what comes over a connection beyond the bound, unless it asks how the server is: its numbers count most where
/// it is full.
pub(super) async fn refuse_crowded(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if request.extensions().get::<Crowded>().is_none() || is_probe(path) || path == METRICS {
        return next.run(request).await;
    }
    ApiError::overloaded(RETRY_AFTER_S).into_response()
}

fn protocol(patience: Duration) -> http1::Builder {
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(patience);
    protocol.max_buf_size(HEAD_BYTES).max_headers(HEADERS);
    protocol
}

/// Where connections are counted down.
struct Rooms {
    usual: Arc<Semaphore>,
    spare: Arc<Semaphore>,
}

enum Room {
    Usual,
    Spare,
}

impl Rooms {
    fn take(&self) -> Option<(OwnedSemaphorePermit, Room)> {
        let of = |room: &Arc<Semaphore>| Arc::clone(room).try_acquire_owned().ok();
        let usual = of(&self.usual).map(|place| (place, Room::Usual));
        usual.or_else(|| of(&self.spare).map(|place| (place, Room::Spare)))
    }
}

/// A connection among those that are open.
struct Counted {
    metrics: Arc<Metrics>,
    _place: OwnedSemaphorePermit,
}

impl Counted {
    fn new(metrics: Arc<Metrics>, place: OwnedSemaphorePermit) -> Self {
        metrics.on_connections(1.0);
        Self { metrics, _place: place }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.on_connections(-1.0);
    }
}

fn bounded(connection: TcpStream, patience: Duration) -> TimeoutStream<TcpStream> {
    // A token is a small packet: none waits until the client has acknowledged the one before.
    if let Err(error) = connection.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY is refused");
    }
    let mut bounded = TimeoutStream::new(connection);
    bounded.set_write_timeout(Some(patience));
    bounded
}

/// That connections cannot be accepted, which is said now and then.
#[derive(Default)]
struct Trouble {
    told: Option<Instant>,
}

impl Trouble {
    /// A connection that breaks while it is accepted is its client's business; anything else is ours.
    async fn pause_after(&mut self, error: &io::Error) {
        let broken = [
            io::ErrorKind::ConnectionAborted,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::ConnectionRefused,
        ];
        if broken.contains(&error.kind()) {
            return;
        }
        if self.told.is_none_or(|told| told.elapsed() > BETWEEN_WORDS) {
            self.told = Some(Instant::now());
            error!(%error, "no connection can be accepted; is the limit of open files (ulimit -n) too low?");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Connections that this process can have open, of those that are `wished` for: every one takes a file, and others are
/// needed too.
pub fn within_open_files(wished: usize) -> usize {
    let files = lockstep_process::open_files::raise();
    let most = files.saturating_sub(OTHER_FILES + SPARE).max(1);
    if most < wished {
        warn!(
            files,
            most, wished, "fewer connections than wished for; raise the limit of open files (ulimit -n)"
        );
    }
    wished.min(most)
}

/// Files of the process that are no client's connection: sockets to shards, the journal, pipes, what tasks open.
const OTHER_FILES: usize = 64;

/// An error with what caused it, which says whose fault it is.
fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
