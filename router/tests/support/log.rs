//! What is logged, heard by a test.

use std::io;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tracing::Level;
use tracing::subscriber::DefaultGuard;

/// Lines of this thread.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Hears this thread from here on.
    pub fn listen(&self, level: Level) -> DefaultGuard {
        let log = self.clone();
        let lines = tracing_subscriber::fmt().with_max_level(level).with_ansi(false);
        tracing::subscriber::set_default(lines.with_writer(move || log.clone()).finish())
    }

    /// The same, as lines for machines.
    pub fn listen_for_json(&self, level: Level) -> DefaultGuard {
        let log = self.clone();
        let lines = tracing_subscriber::fmt().with_max_level(level).json().flatten_event(true);
        tracing::subscriber::set_default(lines.with_writer(move || log.clone()).finish())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Lines for machines that say this.
    pub fn lines(&self, message: &str) -> Vec<Value> {
        let lines = self.text();
        let parsed = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        parsed.filter(|line| line["message"] == message).collect()
    }
}
