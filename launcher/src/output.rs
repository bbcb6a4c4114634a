//! What the processes say: passed on line by line with who said it, and the last lines kept.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use lockstep_process::telemetry::LogFormat;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Enough for a panic with its message or an error with its hint.
const LINES_KEPT: usize = 20;

/// The last lines a process said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail {
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Tail {
    fn push(&self, line: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_KEPT {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// The lines kept, oldest first.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Passes on what `process` says until it has nothing more to say.
pub(crate) async fn forward(from: impl AsyncRead + Unpin, process: &str, format: LogFormat, tail: &Tail) {
    let mut reader = BufReader::new(from);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match reader.read_until(b'\n', &mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_end_matches(['\n', '\r']);
        tail.push(line);
        // Nobody listens any more: the process goes on all the same.
        let _ = writeln!(std::io::stderr().lock(), "{}", labelled(line, process, format));
    }
}

fn labelled(line: &str, process: &str, format: LogFormat) -> String {
    match format {
        LogFormat::Text => format!("{process} | {line}"),
        LogFormat::Json if line.starts_with('{') => line.to_owned(),
        LogFormat::Json => json!({ "level": "INFO", "process": process, "message": line }).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_whose_they_are_and_json_stays_json() {
        let cases = [
            (LogFormat::Text, "loaded", "shard-0 | loaded"),
            (LogFormat::Json, r#"{"a":1}"#, r#"{"a":1}"#),
            (LogFormat::Json, "panicked", r#"{"level":"INFO","process":"shard-0","message":"panicked"}"#),
        ];
        for (format, line, expected) in cases {
            assert_eq!(labelled(line, "shard-0", format), expected);
        }
    }

    #[tokio::test]
    async fn the_last_lines_are_kept_whatever_bytes_they_hold() {
        let mut said: Vec<u8> = (0..25).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        said.extend(b"\xff\n");
        let tail = Tail::default();
        forward(said.as_slice(), "shard-0", LogFormat::Text, &tail).await;
        let lines = tail.lines();
        assert_eq!(lines.len(), LINES_KEPT);
        assert_eq!(lines[LINES_KEPT - 2..], ["line 24".to_owned(), "\u{fffd}".to_owned()]);
    }
}
