//! Answers byte for byte, with what differs from one run to the next made equal: ids and times.

use std::pin::Pin;

use futures::{Stream, StreamExt};

/// Server-sent events as they were sent, each with its field names and without the empty line after it. Comments, which
/// only say that a connection lives, are left out. Dropping them hangs up.
pub struct Frames {
    pieces: Pin<Box<dyn Stream<Item = Result<Vec<u8>, String>> + Send>>,
    unread: Vec<u8>,
}

impl Frames {
    /// Of a body that comes in these pieces.
    pub fn new(pieces: impl Stream<Item = Result<Vec<u8>, String>> + Send + 'static) -> Self {
        Self { pieces: Box::pin(pieces), unread: Vec::new() }
    }

    /// The next event; `None` at the end; an error where the connection breaks, also in the middle of an event.
    pub async fn next(&mut self) -> Option<Result<String, String>> {
        loop {
            while let Some(end) = self.unread.windows(2).position(|pair| pair == b"\n\n") {
                let frame: Vec<u8> = self.unread.drain(..end + 2).take(end).collect();
                if !frame.starts_with(b":") {
                    return Some(String::from_utf8(frame).map_err(|error| error.to_string()));
                }
            }
            match self.pieces.next().await {
                Some(Ok(piece)) => self.unread.extend(piece),
                Some(Err(error)) => return Some(Err(error)),
                None if self.unread.is_empty() => return None,
                None => {
                    let rest = String::from_utf8_lossy(&std::mem::take(&mut self.unread)).into_owned();
                    return Some(Err(format!("the body ends within an event: {rest:?}")));
                }
            }
        }
    }

    /// All that is left.
    ///
    /// # Errors
    /// Where the connection breaks.
    pub async fn rest(mut self) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        while let Some(frame) = self.next().await {
            all.push(frame?);
        }
        Ok(all)
    }
}

/// The text of an answer or of an event without what is drawn or told by a clock for each request: the values of string
/// `id`s, of an answer and of its tool calls, and of `created`. Numbers that are called `id`, as tokens' are, stay.
pub fn without_ids_and_times(text: &str) -> String {
    let masked = masked(text, "\"id\":\"", |character| character != '"');
    masked_numbers(&masked)
}

fn masked_numbers(text: &str) -> String {
    masked(text, "\"created\":", |character| character.is_ascii_digit())
}

/// Every run of characters that `is_part`s and follows `mark` becomes a star.
fn masked(text: &str, mark: &str, is_part: impl Fn(char) -> bool) -> String {
    let mut parts = text.split(mark);
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        masked.push_str(mark);
        masked.push('*');
        masked.push_str(part.trim_start_matches(&is_part));
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_times_are_masked_and_nothing_else() {
        let text = r#"data: {"id":"cmpl-1f","created":1790000000,"token":{"id":17},"calls":[{"id":"call_x","name":"a"}],"text":"\"id\":\"b\""}"#;
        let expected = r#"data: {"id":"*","created":*,"token":{"id":17},"calls":[{"id":"*","name":"a"}],"text":"\"id\":\"b\""}"#;
        assert_eq!(without_ids_and_times(text), expected);
    }

    async fn frames(pieces: &[&str]) -> Vec<Result<String, String>> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(piece.as_bytes().to_vec())).collect();
        let mut frames = Frames::new(futures::stream::iter(pieces));
        let mut found = Vec::new();
        while let Some(frame) = frames.next().await {
            found.push(frame);
        }
        found
    }

    #[tokio::test]
    async fn events_are_what_is_between_empty_lines_however_they_are_cut() {
        let found = frames(&["data: 1\n", "\ndata: 2\n\n: still here\n\nid: 4\nda", "ta: 3\n\n"]).await;
        let expected = ["data: 1", "data: 2", "id: 4\ndata: 3"];
        assert_eq!(found, expected.map(|frame| Ok(frame.to_owned())));
        assert!(frames(&["data: 1\n\ndata: 2"]).await.last().is_some_and(Result::is_err), "half an event");
    }
}
