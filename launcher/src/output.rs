//! What the processes say: passed on line by line with who said it, and the last lines kept.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use lockstep_process::telemetry::{self, LogFormat};
use serde::de::IgnoredAny;
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
        LogFormat::Json => marked(line, process).unwrap_or_else(|| unforeseen(line, Some(process))),
    }
}

/// A JSON object that says whose it is, its fields in their order and its numbers as they were written.
fn marked(line: &str, process: &str) -> Option<String> {
    let fields = line.strip_prefix('{')?;
    serde_json::from_str::<IgnoredAny>(line).ok()?;
    let separator = if fields.trim_start().starts_with('}') { "" } else { "," };
    Some(format!("{{\"process\":{}{separator}{fields}", json!(process)))
}

/// What is said outside of the log, such as a panic: nobody says so what goes well.
fn unforeseen(message: &str, process: Option<&str>) -> String {
    let mut line = json!({ "timestamp": telemetry::timestamp(), "level": "ERROR", "message": message });
    if let Some(process) = process {
        line["process"] = process.into();
    }
    line.to_string()
}

/// Why this process ends.
pub(crate) fn last_line(error: &impl fmt::Display, format: LogFormat) -> String {
    match format {
        LogFormat::Text => format!("lockstep: failed to {error}"),
        LogFormat::Json => unforeseen(&format!("failed to {error}"), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_whose_they_are_and_json_stays_json() {
        let cases = [
            (LogFormat::Text, "loaded", "shard-0 | loaded"),
            (LogFormat::Json, r#"{"a":1.50}"#, r#"{"process":"shard-0","a":1.50}"#),
            (LogFormat::Json, "{}", r#"{"process":"shard-0"}"#),
        ];
        for (format, line, expected) in cases {
            assert_eq!(labelled(line, "shard-0", format), expected);
        }
    }

    #[test]
    fn what_is_no_json_is_an_error_of_its_own() {
        for line in ["panicked", "{ panicked", "[1]"] {
            let written = labelled(line, "shard-0", LogFormat::Json);
            let fields: serde_json::Value = serde_json::from_str(&written).expect("JSON");
            let expected = json!({
                "timestamp": fields["timestamp"], "level": "ERROR", "message": line, "process": "shard-0",
            });
            assert_eq!(fields, expected);
            assert!(fields["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{written}");
        }
    }

    #[test]
    fn why_a_process_ends_is_written_as_its_log() {
        assert_eq!(last_line(&"be", LogFormat::Text), "lockstep: failed to be");
        let written: serde_json::Value =
            serde_json::from_str(&last_line(&"be", LogFormat::Json)).expect("JSON");
        assert_eq!((&written["level"], &written["message"]), (&"ERROR".into(), &"failed to be".into()));
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
