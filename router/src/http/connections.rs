//! Connections of clients, and what a slow one may cost: a head that does not come and an answer that nobody
//! reads end the connection, and with it the request.

use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use lockstep_process::tasks::{Fate, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, error};

/// How long to wait where the process has no file descriptor left: somebody will hang up.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Answers every connection with `routes` until the tasks are told to stop, then waits for what is being
/// answered. A client may take `patience` to send a head, and to read the next piece of an answer once its
/// socket is full.
pub async fn serve(listener: TcpListener, routes: Router, patience: Duration, tasks: Tasks) {
    let graceful = GracefulShutdown::new();
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(patience);
    loop {
        let accepted = tokio::select! {
            biased;
            () = tasks.stop_token().cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((connection, _)) => {
                let service = TowerToHyperService::new(routes.clone());
                let connection = TokioIo::new(Box::pin(bounded(connection, patience)));
                let answering = graceful.watch(protocol.serve_connection(connection, service));
                tasks.spawn("connection", Fate::Log, async move {
                    if let Err(error) = answering.await {
                        debug!(error = %with_cause(&error), "a connection broke");
                    }
                });
            }
            Err(error) => pause_after(&error).await,
        }
    }
    drop(listener);
    graceful.shutdown().await;
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

/// A connection that breaks while it is accepted is its client's business; anything else is ours.
async fn pause_after(error: &io::Error) {
    let broken = [
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionRefused,
    ];
    if !broken.contains(&error.kind()) {
        error!(%error, "no connection can be accepted; is the limit of open files (ulimit -n) too low?");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// An error with what caused it, which says whose fault it is.
fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
