//! Whether a request's body was read to its end. Where it was not, its connection serves no other request: a client that
//! is not told would send the next one over it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

/// Tells whether the body it watches is read.
pub(super) struct Unread(Arc<AtomicBool>);

struct Watched {
    body: Body,
    is_read: Arc<AtomicBool>,
}

impl Unread {
    /// Watches the body of `request`.
    pub(super) fn watch(request: Request) -> (Self, Request) {
        let is_read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
        let watched = Self(Arc::clone(&is_read));
        if is_read.load(Ordering::Relaxed) {
            return (watched, request);
        }
        (watched, request.map(|body| Body::new(Watched { body, is_read })))
    }

    /// Says in `response` that its connection is closed, if it has to be.
    pub(super) fn tell(&self, response: &mut Response) {
        if !self.0.load(Ordering::Relaxed) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.is_read.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
