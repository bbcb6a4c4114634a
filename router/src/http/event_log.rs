//! The events of a kept stream, and the connections that read them.

use std::collections::VecDeque;
use std::time::Duration;

use axum::body::{Body, Bytes};
use thiserror::Error;
use tokio::sync::watch;
use uuid::Uuid;

/// Bytes of one stream's events that are kept: tens of thousands of tokens. The oldest give way to one more, once they
/// are read.
pub(super) const KEPT_BYTES: usize = 8 << 20;

/// How often a connection is told that it is alive while no token comes.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// What is told of a stream.
#[derive(Default)]
pub(super) struct Log {
    /// The last ones, as they are sent, ids included.
    events: VecDeque<Bytes>,
    bytes: usize,
    /// How many were before them and have given way.
    gone: usize,
    /// How many events the connection that is ahead of the others has read.
    read: watch::Sender<usize>,
    pub(super) is_over: bool,
}

/// A connection is further behind than the events that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("read the event after {seen} of a stream: the first that is kept is {first}")]
pub(super) struct Outrun {
    seen: usize,
    first: usize,
}

impl Log {
    /// How many events were told.
    pub(super) fn told(&self) -> usize {
        self.gone + self.events.len()
    }

    /// Bytes of those that are kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a connection that has seen so many gets every event that follows.
    ///
    /// # Errors
    /// When some of them have given way.
    pub(super) fn check_kept(&self, seen: usize) -> Result<(), Outrun> {
        if seen < self.gone { Err(Outrun { seen, first: self.gone + 1 }) } else { Ok(()) }
    }

    /// What says why nothing follows, without its id, where that is all there is beyond `seen` events of which some are
    /// missing here.
    pub(super) fn failure(&self, seen: usize) -> Option<&[u8]> {
        let last = self.events.back().filter(|_| self.told() <= seen)?;
        let end = last.iter().position(|byte| *byte == b'\n')?;
        last.get(end + 1..).filter(|data| data.starts_with(b"data: {\"error\":"))
    }

    /// How many events have given way once there is one more of so many bytes.
    fn gone_after(&self, more: usize) -> usize {
        let mut bytes = self.bytes + more;
        let giving_way = self.events.iter().take_while(|oldest| {
            let is_too_much = bytes > KEPT_BYTES;
            bytes -= oldest.len();
            is_too_much
        });
        self.gone + giving_way.count()
    }

    /// One more.
    pub(super) fn push(&mut self, event: Bytes) {
        let gone = self.gone_after(event.len());
        for oldest in self.events.drain(..gone - self.gone) {
            self.bytes -= oldest.len();
        }
        self.gone = gone;
        self.bytes += event.len();
        self.events.push_back(event);
    }

    /// A connection has read so many.
    pub(super) fn on_read(&self, seen: usize) {
        self.read.send_if_modified(|read| {
            let is_ahead = seen > *read;
            *read = seen.max(*read);
            is_ahead
        });
    }

    /// The event after the first `seen`; `None` where it has not come.
    fn after(&self, seen: usize) -> Result<Option<Bytes>, Outrun> {
        self.check_kept(seen)?;
        Ok(self.events.get(seen - self.gone).cloned())
    }
}

/// An event as it is sent.
pub(super) fn numbered(id: Uuid, number: usize, piece: &[u8]) -> Bytes {
    let mut event = format!("id: {id}:{number}\n").into_bytes();
    event.extend_from_slice(piece);
    event.into()
}

/// Until one more event takes no room from what nobody has read.
pub(super) async fn room(log: &watch::Sender<Log>, event: &Bytes) {
    let (gone, mut read) = {
        let log = log.borrow();
        (log.gone_after(event.len()), log.read.subscribe())
    };
    // The log has its other end.
    let _ = read.wait_for(|read| *read >= gone).await;
}

/// A body with everything after the first `seen` events, as it comes. Where another connection is so far ahead of this one
/// that some of them have given way, it breaks off.
pub(super) fn read(log: watch::Receiver<Log>, seen: usize) -> Body {
    let events = futures::stream::unfold(Some((log, seen)), |reading| async move {
        let (mut log, seen) = reading?;
        let (event, seen) = match tokio::time::timeout(KEEP_ALIVE, event_after(&mut log, seen)).await {
            Ok(Ok(event)) => (event?, seen + 1),
            Ok(Err(outrun)) => return Some((Err(outrun), None)),
            Err(_) => (COMMENT, seen),
        };
        Some((Ok(event), Some((log, seen))))
    });
    Body::from_stream(events)
}

/// The event after the first `seen`, once it is there; `None` if there will be none.
///
/// # Cancel safety
/// Nothing is lost.
async fn event_after(log: &mut watch::Receiver<Log>, seen: usize) -> Result<Option<Bytes>, Outrun> {
    match log.wait_for(|log| log.told() > seen || log.is_over).await {
        Ok(log) => {
            let event = log.after(seen)?;
            if event.is_some() {
                log.on_read(seen + 1);
            }
            Ok(event)
        }
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    const PIECE_BYTES: usize = 1 << 20;
    /// Ids are a few bytes.
    const MOST_PIECES: usize = KEPT_BYTES / PIECE_BYTES - 1;

    fn event(number: usize) -> Bytes {
        numbered(Uuid::nil(), number, &[b'a'; PIECE_BYTES])
    }

    fn log_of(pieces: usize) -> Log {
        let mut log = Log::default();
        (1..=pieces).for_each(|number| log.push(event(number)));
        log
    }

    #[test]
    fn the_oldest_events_give_way_and_those_that_are_left_keep_their_numbers() {
        let log = log_of(20);
        assert_eq!((log.told(), log.events.len()), (20, MOST_PIECES));
        assert_eq!(log.bytes(), log.events.iter().map(Bytes::len).sum::<usize>());
        for seen in 0..20 {
            let expected = Outrun { seen, first: 20 - MOST_PIECES + 1 };
            let is_gone = seen + MOST_PIECES < 20;
            assert_eq!(log.after(seen), if is_gone { Err(expected) } else { Ok(Some(event(seen + 1))) });
        }
        assert_eq!(log.after(20), Ok(None));
    }

    #[test]
    fn one_event_is_kept_however_long_it_is() {
        let mut log = log_of(2);
        let long = Bytes::from(vec![b'a'; 2 * KEPT_BYTES]);
        log.push(long.clone());
        assert_eq!((log.told(), log.gone, log.after(2)), (3, 2, Ok(Some(long))));
    }

    #[tokio::test]
    async fn what_nobody_has_read_does_not_give_way() {
        let log = watch::Sender::new(log_of(MOST_PIECES));
        let small = Bytes::from_static(b"a");
        assert_eq!(room(&log, &small).now_or_never(), Some(()));
        let next = event(MOST_PIECES + 1);
        assert_eq!(room(&log, &next).now_or_never(), None);
        let mut body = read(log.subscribe(), 0).into_data_stream();
        assert!(body.next().await.unwrap().is_ok());
        assert_eq!(room(&log, &next).now_or_never(), Some(()));
        // One that takes the room of two waits for both.
        let long = Bytes::from(vec![b'a'; PIECE_BYTES * 5 / 2]);
        assert_eq!(room(&log, &long).now_or_never(), None);
        // Whoever comes back has seen what went before.
        log.borrow().on_read(2);
        assert_eq!(room(&log, &long).now_or_never(), Some(()));
    }

    #[tokio::test]
    async fn a_connection_that_is_outrun_breaks_off() {
        let (log, reader) = watch::channel(log_of(2));
        let mut body = read(reader, 0).into_data_stream();
        assert!(body.next().await.unwrap().is_ok());
        log.send_modify(|log| (3..20).for_each(|number| log.push(event(number))));
        assert!(body.next().await.unwrap().is_err());
        assert!(body.next().await.is_none());
    }
}
