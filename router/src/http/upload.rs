//! What bodies that are under way may take: of time, each piece and the whole, so that one that sends a byte now and then
//! holds nothing for long; of memory, all of them together, since they come before their requests have a place.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt;
use thiserror::Error;
use tokio::time::Instant;

use crate::app::App;

/// Bytes a second that a body must come with, once the time that each piece has is over: a slow telephone line.
const LEAST_RATE: u64 = 4_096;

/// All bodies under way may have the bytes of so many of the largest.
const LARGEST_BODIES: usize = 32;

/// Why a body is not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum UploadError {
    /// It is not sent fast enough.
    #[error("read the request's body: it does not come in time")]
    Slow,
    /// There is no room for it beside the others.
    #[error("read the request's body: too many are under way")]
    Full,
}

/// The bytes of bodies that have not come whole.
#[derive(Debug)]
pub struct Uploads {
    held: AtomicUsize,
    most: usize,
}

impl Uploads {
    /// None yet, where one may have `largest_bytes`.
    pub(crate) fn new(largest_bytes: usize) -> Arc<Self> {
        let most = largest_bytes.saturating_mul(LARGEST_BODIES);
        Arc::new(Self { held: AtomicUsize::new(0), most })
    }
}

/// The bytes of one body; dropping it gives them back.
struct Held {
    uploads: Arc<Uploads>,
    bytes: usize,
}

impl Held {
    fn add(&mut self, bytes: usize) -> Result<(), UploadError> {
        self.bytes += bytes;
        let before = self.uploads.held.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.uploads.most { Err(UploadError::Full) } else { Ok(()) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.uploads.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bounds what a body takes. What is waited for is only what a route asks for.
pub(super) async fn bound(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let patience = app.config.patience.client_timeout;
    let held = Held { uploads: Arc::clone(app.uploads()), bytes: 0 };
    let time = Time { patience, begun: None, bytes: 0 };
    next.run(request.map(|body| bounded(body, time, held))).await
}

fn bounded(body: Body, time: Time, held: Held) -> Body {
    let upload = (body.into_data_stream(), time, held);
    let pieces = futures::stream::unfold(Some(upload), |upload| async move {
        let (mut pieces, mut time, mut held) = upload?;
        let piece = match tokio::time::timeout_at(time.ends(Instant::now()), pieces.next()).await {
            Ok(Some(Ok(piece))) => held.add(piece.len()).map(|()| piece).map_err(BoxError::from),
            Ok(Some(Err(error))) => Err(error.into()),
            Ok(None) => return None,
            Err(_) => Err(UploadError::Slow.into()),
        };
        time.bytes += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        let rest = piece.is_ok().then_some((pieces, time, held));
        Some((piece, rest))
    });
    Body::from_stream(pieces)
}

/// What is left of it to a body.
#[derive(Clone, Copy, Debug)]
struct Time {
    patience: Duration,
    /// When the first piece was asked for.
    begun: Option<Instant>,
    /// That have come.
    bytes: u64,
}

impl Time {
    /// When the next piece, which is asked for at `now`, comes too late.
    fn ends(&mut self, now: Instant) -> Instant {
        let begun = *self.begun.get_or_insert(now);
        let whole = self.patience + Duration::from_secs_f64(self.bytes as f64 / LEAST_RATE as f64);
        (now + self.patience).min(begun + whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// How many pieces of so many bytes come in time, one after each pause, of a hundred.
    fn in_time(piece: u64, pause: Duration) -> usize {
        let mut time = Time { patience: PATIENCE, begun: None, bytes: 0 };
        let mut now = Instant::now();
        let comes = |_: &usize| {
            let ends = time.ends(now);
            now += pause;
            time.bytes += piece;
            now <= ends
        };
        (0..100).take_while(comes).count()
    }

    #[test]
    fn a_body_has_time_for_each_piece_and_for_the_whole() {
        let second = Duration::from_secs(1);
        assert_eq!(in_time(1 << 20, 11 * second), 0, "a piece that takes too long");
        assert_eq!(in_time(1, second), 10, "a byte a second");
        assert_eq!(in_time(LEAST_RATE * 2, second), 100, "fast enough");
        assert_eq!(in_time(LEAST_RATE / 2, second), 19, "the first ten seconds, and half of what follows");
    }
}
