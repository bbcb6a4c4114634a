//! Logging set-up, the same for every role.

use std::io::IsTerminal;

use thiserror::Error;
use tracing_subscriber::EnvFilter;

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or any `tracing` filter such as `info,lockstep_router=debug`. The bare levels `debug` and
    /// `trace` are about Lockstep's own code: every frame of every connection would drown one request's life.
    pub filter: String,
    /// Lines for people or for machines.
    pub format: LogFormat,
}

/// Lines for people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line an event.
    Text,
    /// One JSON object an event, its fields and its spans' flattened into it.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("parse the log filter {filter:?}: {source}; try \"info\" or \"debug\"")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something else in this process logs already.
    #[error("set up logging twice in one process")]
    Twice,
}

/// Sends every event of this process to standard error.
///
/// # Errors
/// When the filter does not parse or logging is set up already.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(directives(&config.filter))
        .map_err(|source| TelemetryError::Filter { filter: config.filter.clone(), source })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Standard error may be a pipe to a process that has died. Reporting that there would panic, in the
        // very moment this process has to leave in good order.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let installed = match config.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    installed.map_err(|_| TelemetryError::Twice)
}

fn directives(filter: &str) -> String {
    match filter {
        "debug" | "trace" => format!("info,lockstep={filter}"),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_levels_are_about_our_own_code() {
        let cases = [
            ("info", "info"),
            ("debug", "info,lockstep=debug"),
            ("trace", "info,lockstep=trace"),
            ("h2=debug,warn", "h2=debug,warn"),
        ];
        for (given, meant) in cases {
            assert_eq!(directives(given), meant);
            assert!(EnvFilter::try_new(directives(given)).is_ok(), "{given}");
        }
    }
}
