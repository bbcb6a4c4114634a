//! Server-sent events: one whole event a write, `data: ` with a space, a comment now and then.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Serialize;

use crate::error::{ApiError, ErrorKind, Family};

/// What a stream sends.
pub(super) enum Frame {
    /// A JSON value.
    Json(String),
    /// OpenAI's last word.
    Done,
}

impl Frame {
    /// `value` as JSON.
    pub(super) fn json<T: Serialize>(value: &T) -> Self {
        // Our own types have string keys and finite or null numbers, so this cannot fail.
        Self::Json(serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned()))
    }

    /// An error that ends the stream.
    pub(super) fn error(error: &ApiError, family: Family) -> Self {
        let mut error = error.clone();
        if error.kind == ErrorKind::Incomplete {
            error = ApiError::new(ErrorKind::IncompleteStream, "Incomplete generation stream");
        }
        Self::json(&error.body(family))
    }

    fn into_event(self) -> Event {
        match self {
            Self::Json(text) => Event::default().data(text),
            Self::Done => Event::default().data("[DONE]"),
        }
    }
}

/// An answer that is told in frames, some at a time.
pub(super) trait Telling: Send + 'static {
    /// What it has to say.
    fn outbox(&mut self) -> &mut Outbox;

    /// Waits for what comes next and puts it into the outbox.
    fn advance(&mut self) -> impl Future<Output = ()> + Send;
}

/// Frames that are ready to be sent, oldest first.
#[derive(Default)]
pub(super) struct Outbox {
    frames: VecDeque<Frame>,
    is_over: bool,
}

impl Outbox {
    pub(super) fn push(&mut self, frame: Frame) {
        self.frames.push_back(frame);
    }

    /// Nothing comes after `last`.
    pub(super) fn end(&mut self, last: Frame) {
        self.frames.push_back(last);
        self.is_over = true;
    }
}

/// The frames of `answer`, as they come.
pub(super) fn frames(answer: impl Telling) -> impl Stream<Item = Frame> + Send {
    futures::stream::unfold(answer, |mut answer| async move {
        loop {
            let outbox = answer.outbox();
            if let Some(frame) = outbox.frames.pop_front() {
                return Some((frame, answer));
            }
            if outbox.is_over {
                return None;
            }
            answer.advance().await;
        }
    })
}

/// The response whose body is `frames`.
pub(super) fn respond<S>(frames: S, headers: HeaderMap) -> Response
where
    S: Stream<Item = Frame> + Send + 'static,
{
    use futures::StreamExt;
    let events = frames.map(|frame| Ok::<Event, Infallible>(frame.into_event()));
    let mut response = Sse::new(events).keep_alive(KeepAlive::default()).into_response();
    response.headers_mut().extend(headers);
    // Proxies must not hold events back.
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}
