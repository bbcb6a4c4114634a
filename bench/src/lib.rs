//! Drives a running server at set concurrency or rate and prints latency percentiles.
//!
//! In the order of a run: [`args`], the prompts, the load, the report.

pub mod args;
mod drive;
mod prompts;
mod report;

use std::io::Write;

use thiserror::Error;

use crate::args::BenchArgs;
use crate::report::Report;

/// Reads after "failed to".
#[derive(Debug, Error)]
pub enum BenchError {
    /// Nothing to do, or for ever.
    #[error("plan the load: --{name} is {found}, it is more than 0")]
    Argument {
        /// Which flag.
        name: &'static str,
        /// What was given.
        found: String,
    },
    /// Not a server that answers.
    #[error("warm {url} up: {reason}; is a server running there? start one with `lockstep`")]
    NoServer {
        /// Where.
        url: String,
        /// Why nothing came.
        reason: String,
    },
    /// A server that answers something else.
    #[error("warm {url} up: {reason}")]
    WarmUp {
        /// Where.
        url: String,
        /// What came instead of tokens.
        reason: String,
    },
    /// It answered the warm-up and nothing else.
    #[error("measure {url}: every request failed, the first with: {reason}")]
    NothingMeasured {
        /// Where.
        url: String,
        /// What came instead of tokens.
        reason: String,
    },
    /// No runtime or no HTTP client.
    #[error("set up the load generator: {0}")]
    SetUp(String),
}

/// Runs the load and prints what came of it.
///
/// # Errors
/// When the arguments make no load or the server answers nothing.
pub fn run(args: &BenchArgs) -> Result<(), BenchError> {
    args.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| BenchError::SetUp(error.to_string()))?;
    let run = runtime.block_on(drive::drive(args))?;
    let report = Report::of(&run);
    let text = if args.json { report.to_json(args) } else { report.to_table(args) };
    // Where nobody reads the result, there is no one to tell either.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
    match report.first_error_if_nothing_worked() {
        Some(reason) => Err(BenchError::NothingMeasured { url: args.url.clone(), reason }),
        None => Ok(()),
    }
}
