//! Streams that outlive their connection: every event has an id, and a client that comes back within the
//! window with the last one it saw (`Last-Event-ID`) gets the rest, each event once.
//!
//! The answer is generated for as long as somebody reads it or may come back; only then is it cancelled. With a
//! journal that holds for the next process as well, which begins with the streams this one leaves.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use lockstep_process::tasks::{Fate, Tasks};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::auth::KeyName;
use super::event_log::{KEPT_BYTES, Log, numbered, read, room};
use super::excerpt::excerpt;
use super::frame::{REQUEST_ID, RequestId};
use super::tape::{Journaling, new_origin};
use crate::app::App;
use crate::error::{ApiError, ErrorKind};
use crate::journal::{Journal, KeptRequest, READINGS_PER_WINDOW, between_readings};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Bytes of answers that have ended and may still be asked for; the oldest give way to one more.
const ENDED_BYTES: usize = 64 << 20;

/// The streams that can be taken up again.
pub struct Streams {
    /// How long a stream waits for its client; none does where this is absent.
    window: Option<Duration>,
    journal: Option<Journal>,
    /// Whether those of an earlier process are among them.
    are_complete: watch::Sender<bool>,
    tasks: Tasks,
    kept: Mutex<KeptStreams>,
}

#[derive(Default)]
struct KeptStreams {
    by_id: BTreeMap<Uuid, Arc<Kept>>,
    /// Oldest first, with their bytes.
    ended: VecDeque<(Uuid, usize)>,
    ended_bytes: usize,
}

/// One stream.
struct Kept {
    id: Uuid,
    /// Whose it is: nobody else may take it up.
    owner: Option<KeyName>,
    headers: HeaderMap,
    begun: Begun,
    /// How many connections have read it.
    readers: AtomicU64,
    /// Its receivers are the connections that read it.
    log: watch::Sender<Log>,
}

/// Which process told a stream first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// This one.
    Here,
    /// An earlier one, which may have told more of it than its journal outlived its machine with.
    Earlier,
}

/// Why nothing more comes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It was told to its end.
    Told,
    /// Nobody came back for it.
    Abandoned,
}

/// Who reads a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// How many connections have read it.
    readers: u64,
    /// Whether one does.
    is_read: bool,
}

impl Kept {
    fn reading(&self) -> Reading {
        let readers = self.readers.load(Ordering::Relaxed);
        Reading { readers, is_read: self.log.receiver_count() > 0 }
    }
}

impl KeptStreams {
    /// One is told to its end. Returns those that give way to it.
    fn on_ended(&mut self, id: Uuid, bytes: usize) -> Vec<Uuid> {
        self.ended.push_back((id, bytes));
        self.ended_bytes += bytes;
        let mut given_up = Vec::new();
        while self.ended_bytes > ENDED_BYTES
            && let Some((oldest, bytes)) = self.ended.pop_front()
        {
            self.ended_bytes -= bytes;
            self.by_id.remove(&oldest);
            given_up.push(oldest);
        }
        given_up
    }

    fn remove(&mut self, id: Uuid) {
        self.by_id.remove(&id);
        if let Some(place) = self.ended.iter().position(|(ended, _)| *ended == id)
            && let Some((_, bytes)) = self.ended.remove(place)
        {
            self.ended_bytes -= bytes;
        }
    }
}

/// Ends a stream's log, however its task ends: nobody waits for what will not come.
struct EndsLog<'a>(&'a Kept);

impl Drop for EndsLog<'_> {
    fn drop(&mut self) {
        self.0.log.send_modify(|log| log.is_over = true);
    }
}

impl Streams {
    /// None yet. Streams wait for their clients for `window`. With a journal there may be some of an earlier process,
    /// until [`Self::on_complete`].
    pub fn new(window: Option<Duration>, journal: Option<Journal>, tasks: Tasks) -> Arc<Self> {
        let are_complete = watch::Sender::new(journal.is_none());
        Arc::new(Self { window, journal, are_complete, tasks, kept: Mutex::default() })
    }

    /// Where they are written down.
    pub(super) fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref()
    }

    /// How long they wait for their clients.
    pub(super) fn window(&self) -> Option<Duration> {
        self.window
    }

    /// Those of an earlier process are there.
    pub(super) fn on_complete(&self) {
        self.are_complete.send_replace(true);
    }

    /// Generates on behalf of whoever reads, and answers the first reader.
    pub(super) fn keep(
        self: &Arc<Self>,
        (id, owner, begun): (Uuid, Option<KeyName>, Begun),
        window: Duration,
        response: Response,
    ) -> Response {
        let (parts, body) = response.into_parts();
        let (log, reader) = watch::channel(Log::default());
        let kept = Arc::new(Kept {
            id,
            owner,
            begun,
            headers: parts.headers.clone(),
            readers: AtomicU64::new(1),
            log,
        });
        self.kept().by_id.insert(kept.id, Arc::clone(&kept));
        let streams = Arc::clone(self);
        let read = read(reader, 0);
        self.tasks.spawn("stream", Fate::Log, async move {
            let id = kept.id;
            if streams.fill(&kept, body, window).await == End::Abandoned {
                return;
            }
            streams.on_ended(&kept).await;
            // What gives way before its time is gone at once.
            drop(kept);
            tokio::select! {
                biased;
                () = streams.tasks.stop_token().cancelled() => {}
                () = streams.unread(id, window) => {}
            }
        });
        Response::from_parts(parts, read)
    }

    /// The rest of a stream after the event that `last` names.
    async fn resume(&self, last: &str, asking: Option<&KeyName>) -> Result<Response, ApiError> {
        let Some(window) = self.window else {
            let message = "Streams are not kept here; start the server with --resume-window SECONDS";
            return Err(ApiError::new(ErrorKind::NotFound, message));
        };
        let named =
            last.split_once(':').and_then(|(id, seen)| Some((id.parse().ok()?, seen.parse().ok()?)));
        let unknown = || {
            let message = format!(
                "There is no stream with an event {:?}: it was never sent, or nobody came back for its stream within {} s",
                excerpt(last),
                window.as_secs()
            );
            ApiError::new(ErrorKind::NotFound, message)
        };
        let (id, seen): (Uuid, usize) = named.ok_or_else(unknown)?;
        let mut are_complete = self.are_complete.subscribe();
        if !*are_complete.borrow() {
            // This process may die as well before it has them. Whose it is is not known yet.
            let _ = self.held(id, window, are_complete.wait_for(|are_complete| *are_complete)).await;
        }
        let (headers, begun, mut log) = {
            // Under the lock: it is not given up meanwhile.
            let streams = self.kept();
            let kept = streams.by_id.get(&id).ok_or_else(unknown)?;
            if kept.owner.as_ref() != asking {
                return Err(unknown());
            }
            kept.readers.fetch_add(1, Ordering::Relaxed);
            (kept.headers.clone(), kept.begun, kept.log.subscribe())
        };
        if let Some(noted) = self.note_read(id).await {
            // From here on the next process knows of it. A journal that failed says so itself.
            let _ = noted.await;
        }
        log.borrow().on_read(seen);
        // What an earlier process told is on its way into the log.
        let told = log.wait_for(|log| log.told() >= seen || log.is_over).await;
        let lacks = told.is_ok_and(|log| log.told() < seen);
        let failure = match begun {
            Begun::Here => None,
            Begun::Earlier => log.borrow().failure(seen).map(|failure| numbered(id, seen + 1, failure)),
        };
        match failure {
            // It fails before it is where it was when its client heard of it last.
            Some(failure) => Ok((headers, Body::from(failure)).into_response()),
            None if lacks => Err(unknown()),
            None if log.borrow().check_kept(seen).is_err() => Err(gone(seen)),
            None => Ok((headers, read(log, seen)).into_response()),
        }
    }

    /// Whether a connection reads any of them.
    pub fn are_read(&self) -> bool {
        self.kept().by_id.values().any(|kept| kept.log.receiver_count() > 0)
    }

    /// Takes in what the body brings until it ends or nobody has read for `window`. Dropping the body cancels
    /// the request; a server that stops ends it with a word of its own.
    async fn fill(&self, kept: &Kept, body: Body, window: Duration) -> End {
        let _ends = EndsLog(kept);
        let mut pieces = body.into_data_stream();
        let mut abandoned = pin!(self.unread(kept.id, window));
        loop {
            let piece = tokio::select! {
                biased;
                () = &mut abandoned => return End::Abandoned,
                piece = pieces.next() => piece,
            };
            let Some(Ok(piece)) = piece else { return End::Told };
            // A comment keeps a connection alive and says nothing.
            if piece.starts_with(b":") {
                continue;
            }
            let event = numbered(kept.id, kept.log.borrow().told() + 1, &piece);
            tokio::select! {
                biased;
                () = &mut abandoned => return End::Abandoned,
                // Its last word is for whoever is there.
                () = self.tasks.stop_token().cancelled() => {}
                () = room(&kept.log, &event) => {}
            }
            kept.log.send_modify(|log| log.push(event));
        }
    }

    /// Its client is there while it waits, and may come back later.
    async fn held<T>(&self, id: Uuid, window: Duration, waiting: impl Future<Output = T>) -> T {
        let mut waiting = pin!(waiting);
        loop {
            self.note_read(id).await;
            if let Ok(done) = tokio::time::timeout(between_readings(window), &mut waiting).await {
                return done;
            }
        }
    }

    /// Until nobody has read a stream for `window`, or a quarter longer; then it is forgotten. Meanwhile the journal is
    /// told when somebody does.
    async fn unread(&self, id: Uuid, window: Duration) {
        let Some(mut before) = self.reading(id) else { return };
        let mut quiet = 0;
        loop {
            tokio::time::sleep(between_readings(window)).await;
            // Others needed its room, if it is gone.
            let Some(now) = self.reading(id) else { return };
            quiet = if now == before && !now.is_read { quiet + 1 } else { 0 };
            before = now;
            if quiet == 0 {
                self.note_read(id).await;
            } else if quiet >= READINGS_PER_WINDOW && self.remove_unread(id, now) {
                return self.forget_for_good(id).await;
            }
        }
    }

    fn reading(&self, id: Uuid) -> Option<Reading> {
        self.kept().by_id.get(&id).map(|kept| kept.reading())
    }

    /// Unless somebody has come meanwhile.
    fn remove_unread(&self, id: Uuid, unread: Reading) -> bool {
        let mut streams = self.kept();
        let is_unread = streams.by_id.get(&id).is_none_or(|kept| kept.reading() == unread);
        if is_unread {
            streams.remove(id);
        }
        is_unread
    }

    async fn on_ended(&self, kept: &Kept) {
        let bytes = kept.log.borrow().bytes();
        let given_up = self.kept().on_ended(kept.id, bytes);
        for oldest in given_up {
            self.forget_for_good(oldest).await;
        }
    }

    /// The next process knows that its client may come back, once what comes back is told.
    async fn note_read(&self, id: Uuid) -> Option<oneshot::Receiver<()>> {
        match &self.journal {
            Some(journal) => Some(journal.note_read(id).await),
            None => None,
        }
    }

    /// The next process need not know of it.
    pub(super) async fn forget_for_good(&self, id: Uuid) {
        if let Some(journal) = &self.journal {
            journal.forget(id).await;
        }
    }

    fn kept(&self) -> MutexGuard<'_, KeptStreams> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a stream up again, or lets the route answer and keeps what it streams.
pub(super) async fn resume(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let key = request.extensions().get::<KeyName>().cloned();
    if let Some(last) = request.headers().get(LAST_EVENT_ID) {
        let last = last.to_str().unwrap_or_default();
        return app.streams.resume(last, key.as_ref()).await.into_response();
    }
    let Some(window) = app.streams.window else { return next.run(request).await };
    let mut id = app.draws().uuid();
    let request = match app.streams.journal() {
        Some(journal) if request.method() == Method::POST => {
            let journal = journal.clone();
            let (parts, body) = request.into_parts();
            let whole = Bytes::from_request(Request::from_parts(parts.clone(), body), &()).await;
            let body = match whole {
                Ok(body) => body,
                Err(rejection) => {
                    return ApiError::of_body(&rejection, app.config.payload_limit_bytes).into_response();
                }
            };
            let mut request = Request::from_parts(parts, Body::from(body.clone()));
            let kept = Arc::new(kept_request(&request, &body));
            let journaling =
                Journaling { journal, origin: new_origin(app.draws()), request: kept, past: None };
            id = journaling.origin.stream;
            request.extensions_mut().insert(journaling);
            request
        }
        Some(_) | None => request,
    };
    let response = next.run(request).await;
    if is_stream(response.headers()) {
        app.streams.keep((id, key, Begun::Here), window, response)
    } else {
        response
    }
}

/// What follows the first `seen` events has given way to later ones.
fn gone(seen: usize) -> ApiError {
    let most = KEPT_BYTES >> 20;
    let message = format!(
        "What follows event {seen} of the stream is not kept any more: its last {most} MiB are; send the request anew"
    );
    ApiError::new(ErrorKind::NotFound, message)
}

/// What is written down of a request: no secret.
fn kept_request(request: &Request, body: &Bytes) -> KeptRequest {
    let secret = [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];
    let of_connection =
        [header::CONTENT_LENGTH, header::HOST, header::CONNECTION, header::TRANSFER_ENCODING];
    let left_out = |name: &HeaderName| secret.contains(name) || of_connection.contains(name);
    let headers = request.headers().iter().filter(|(name, _)| !left_out(name));
    let mut headers: Vec<(String, Vec<u8>)> =
        headers.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect();
    if let Some(id) = request.extensions().get::<RequestId>() {
        headers.retain(|(name, _)| name != REQUEST_ID.as_str());
        headers.push((REQUEST_ID.as_str().to_owned(), id.0.as_bytes().to_vec()));
    }
    KeptRequest {
        owner: request.extensions().get::<KeyName>().map(|key| key.0.to_string()),
        path: request.uri().path().to_owned(),
        headers,
        body: body.to_vec(),
    }
}

/// Whether an answer with these headers is told as it comes.
pub(super) fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECES: usize = 20;
    const PIECE_BYTES: usize = 1 << 20;

    #[tokio::test]
    async fn a_stream_keeps_its_last_events_and_says_so() {
        let window = Duration::from_secs(600);
        let streams = Streams::new(Some(window), None, Tasks::new());
        let pieces = (0..PIECES).map(|_| Ok::<_, std::io::Error>(vec![b'a'; PIECE_BYTES]));
        let response = Response::new(Body::from_stream(futures::stream::iter(pieces)));
        let id = Uuid::nil();
        let told = streams.keep((id, None, Begun::Here), window, response);
        // However far ahead the answer could be, its reader gets all of it.
        let whole = axum::body::to_bytes(told.into_body(), usize::MAX).await.unwrap();
        assert_eq!(whole.windows(4).filter(|window| window == b"id: ").count(), PIECES);
        let refused = streams.resume(&format!("{id}:1"), None).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::NotFound);
        assert!(refused.message.contains("its last 8 MiB are"), "{}", refused.message);
        let rest = streams.resume(&format!("{id}:{}", PIECES - 1), None).await.unwrap();
        let rest = axum::body::to_bytes(rest.into_body(), usize::MAX).await.unwrap();
        assert!(rest.starts_with(format!("id: {id}:{PIECES}\n").as_bytes()));
    }
}
