//! Streams that outlive their connection: every event has an id, and a client that comes back within the
//! window with the last one it saw (`Last-Event-ID`) gets the rest, each event once.
//!
//! The answer is generated for as long as somebody reads it or may come back; only then is it cancelled.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use lockstep_process::tasks::{Fate, Tasks};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::auth::KeyName;
use crate::app::App;
use crate::error::{ApiError, ErrorKind};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Answers that have ended and may still be asked for; the oldest gives way to one more.
const MOST_ENDED: usize = 1024;

/// How often a connection is told that it is alive while no token comes.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// The streams that can be taken up again.
pub struct Streams {
    /// How long a stream waits for its client; none does where this is absent.
    window: Option<Duration>,
    tasks: Tasks,
    kept: Mutex<KeptStreams>,
}

#[derive(Default)]
struct KeptStreams {
    by_id: BTreeMap<Uuid, Arc<Kept>>,
    /// Oldest first.
    ended: VecDeque<Uuid>,
}

/// One stream.
struct Kept {
    id: Uuid,
    /// Whose it is: nobody else may take it up.
    owner: Option<KeyName>,
    headers: HeaderMap,
    /// Its receivers are the connections that read it.
    log: watch::Sender<Log>,
}

#[derive(Default)]
struct Log {
    /// As they are sent, ids included.
    events: Vec<Bytes>,
    is_over: bool,
}

impl Streams {
    /// None yet. Streams wait for their clients for `window`.
    pub fn new(window: Option<Duration>, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { window, tasks, kept: Mutex::default() })
    }

    /// Generates on behalf of whoever reads, and answers the first reader.
    fn keep(self: &Arc<Self>, owner: Option<KeyName>, window: Duration, response: Response) -> Response {
        let (parts, body) = response.into_parts();
        let (log, reader) = watch::channel(Log::default());
        let kept = Arc::new(Kept { id: Uuid::new_v4(), owner, headers: parts.headers.clone(), log });
        self.kept().by_id.insert(kept.id, Arc::clone(&kept));
        let streams = Arc::clone(self);
        let read = read(reader, 0);
        self.tasks.spawn("stream", Fate::Log, async move {
            let stop = streams.tasks.stop_token().clone();
            kept.fill(body, window, &stop).await;
            streams.on_ended(kept.id);
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(window) => streams.forget(kept.id),
            }
        });
        Response::from_parts(parts, read)
    }

    /// The rest of a stream after the event that `last` names.
    fn resume(&self, last: &str, asking: Option<&KeyName>) -> Result<Response, ApiError> {
        let Some(window) = self.window else {
            let message = "Streams are not kept here; start the server with --resume-window SECONDS";
            return Err(ApiError::new(ErrorKind::NotFound, message));
        };
        let named =
            last.split_once(':').and_then(|(id, seen)| Some((id.parse().ok()?, seen.parse().ok()?)));
        let unknown = || {
            let message = format!(
                "There is no stream with an event {last:?}: it was never sent, or its stream ended more than {} s ago",
                window.as_secs()
            );
            ApiError::new(ErrorKind::NotFound, message)
        };
        let (id, seen): (Uuid, usize) = named.ok_or_else(unknown)?;
        let kept = self.kept().by_id.get(&id).map(Arc::clone).ok_or_else(unknown)?;
        if kept.owner.as_ref() != asking || seen > kept.log.borrow().events.len() {
            return Err(unknown());
        }
        Ok((kept.headers.clone(), read(kept.log.subscribe(), seen)).into_response())
    }

    fn on_ended(&self, id: Uuid) {
        let mut kept = self.kept();
        kept.ended.push_back(id);
        if kept.ended.len() > MOST_ENDED
            && let Some(oldest) = kept.ended.pop_front()
        {
            kept.by_id.remove(&oldest);
        }
    }

    fn forget(&self, id: Uuid) {
        let mut kept = self.kept();
        kept.by_id.remove(&id);
        kept.ended.retain(|ended| *ended != id);
    }

    fn kept(&self) -> MutexGuard<'_, KeptStreams> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Takes in what the body brings until it ends or nobody has read for `window`. Dropping the body cancels
    /// the request.
    async fn fill(&self, body: Body, window: Duration, stop: &CancellationToken) {
        let mut pieces = body.into_data_stream();
        let mut abandoned = pin!(self.abandoned(window));
        loop {
            let piece = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                () = &mut abandoned => None,
                piece = pieces.next() => piece,
            };
            let Some(Ok(piece)) = piece else { break };
            // A comment keeps a connection alive and says nothing.
            if !piece.starts_with(b":") {
                self.log.send_modify(|log| log.push(self.id, &piece));
            }
        }
        self.log.send_modify(|log| log.is_over = true);
    }

    /// Until nobody has read for `window`.
    async fn abandoned(&self, window: Duration) {
        loop {
            self.log.closed().await;
            tokio::time::sleep(window).await;
            if self.log.receiver_count() == 0 {
                return;
            }
        }
    }
}

impl Log {
    fn push(&mut self, id: Uuid, piece: &[u8]) {
        let number = self.events.len() + 1;
        let mut event = format!("id: {id}:{number}\n").into_bytes();
        event.extend_from_slice(piece);
        self.events.push(event.into());
    }
}

/// A body with everything after the first `seen` events, as it comes.
fn read(log: watch::Receiver<Log>, seen: usize) -> Body {
    let events = futures::stream::unfold((log, seen), |(mut log, seen)| async move {
        let (event, seen) = match tokio::time::timeout(KEEP_ALIVE, event_after(&mut log, seen)).await {
            Ok(event) => (event?, seen + 1),
            Err(_) => (COMMENT, seen),
        };
        Some((Ok::<_, Infallible>(event), (log, seen)))
    });
    Body::from_stream(events)
}

/// The event after the first `seen`, once it is there; `None` if there will be none.
///
/// # Cancel safety
/// Nothing is lost.
async fn event_after(log: &mut watch::Receiver<Log>, seen: usize) -> Option<Bytes> {
    let news = log.wait_for(|log| log.events.len() > seen || log.is_over).await;
    news.ok()?.events.get(seen).cloned()
}

/// Takes a stream up again, or lets the route answer and keeps what it streams.
pub(super) async fn resume(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let key = request.extensions().get::<KeyName>().cloned();
    if let Some(last) = request.headers().get(LAST_EVENT_ID) {
        let last = last.to_str().unwrap_or_default();
        return app.streams.resume(last, key.as_ref()).into_response();
    }
    let response = next.run(request).await;
    match app.streams.window {
        Some(window) if is_stream(&response) => app.streams.keep(key, window, response),
        Some(_) | None => response,
    }
}

fn is_stream(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}
