//! What happened, in order: always as a hash, and as text where somebody wants to read it.

use std::fmt::{self, Write};
use std::time::Duration;

/// Whether lines are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Hash,
    Lines,
}

pub(crate) struct Trace {
    hash: u64,
    keep: Keep,
    text: String,
    /// Of each line.
    now: Duration,
}

impl Trace {
    pub(crate) fn new(keep: Keep) -> Self {
        // FNV-1a (Fowler, Noll and Vo).
        Self { hash: 0xCBF2_9CE4_8422_2325, keep, text: String::new(), now: Duration::ZERO }
    }

    pub(crate) fn at(&mut self, now: Duration) {
        self.now = now;
    }

    pub(crate) fn line(&mut self, what: fmt::Arguments<'_>) {
        let now = self.now;
        let written = writeln!(Both(self), "{:>11.3} {what}", now.as_secs_f64() * 1e3);
        written.expect("nothing here fails to be written");
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

struct Both<'a>(&'a mut Trace);

impl Write for Both<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0.hash = (self.0.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
        if self.0.keep == Keep::Lines {
            self.0.text.push_str(text);
        }
        Ok(())
    }
}
