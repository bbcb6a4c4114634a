//! Logging set-up, the same for every role.

use std::io::IsTerminal;

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or any `tracing` filter such as `info,lockstep_router=debug`; levels in any case, and `warning` is
    /// `warn`. The bare levels `debug` and `trace` are about Lockstep's own code: every frame of every connection
    /// would drown one request's life.
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
    /// A word that is no level. `tracing` would take it for the name of a target, and be silent about all others.
    #[error(
        "parse the log filter {filter:?}: found {found:?}, expected error, warn, info, debug, trace or off, or target=level"
    )]
    Level {
        /// What was given.
        filter: String,
        /// The word.
        found: String,
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
    let filter = EnvFilter::try_new(directives(&config.filter)?)
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

/// Now, as it stands in the log's lines.
pub fn timestamp() -> String {
    let mut text = String::new();
    // Writing to a string fails only where the clock cannot be written, and then the line goes without it.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

fn directives(filter: &str) -> Result<String, TelemetryError> {
    // A span's fields have words of their own.
    if filter.contains('[') {
        return Ok(filter.to_owned());
    }
    let parts = filter.split(',').map(str::trim).filter(|part| !part.is_empty());
    let read = |part| directive(part).ok_or_else(|| unknown_level(filter, part));
    let parts = parts.map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(match parts.as_slice() {
        [level] if level == "debug" || level == "trace" => format!("info,lockstep={level}"),
        _ => parts.join(","),
    })
}

/// A level, or a target with its level; `None` where it is neither.
fn directive(part: &str) -> Option<String> {
    match part.rsplit_once('=') {
        None => level(part).map(|level| level.to_string()),
        Some((target, word)) => level(word).map(|level| format!("{target}={level}")),
    }
}

fn level(word: &str) -> Option<LevelFilter> {
    let word = if word.eq_ignore_ascii_case("warning") { "warn" } else { word };
    // `tracing` reads nothing at all as a level.
    if word.is_empty() { None } else { word.parse().ok() }
}

fn unknown_level(filter: &str, part: &str) -> TelemetryError {
    TelemetryError::Level { filter: filter.to_owned(), found: part.to_owned() }
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
        check(&cases);
    }

    #[test]
    fn levels_are_read_as_people_write_them() {
        let cases = [
            ("WARNING", "warn"),
            ("Warn", "warn"),
            ("DEBUG", "info,lockstep=debug"),
            (" Info , lockstep_router=DEBUG", "info,lockstep_router=debug"),
            ("off", "off"),
            ("", ""),
            ("[step{sequences=1}]=DEBUG,info", "[step{sequences=1}]=DEBUG,info"),
        ];
        check(&cases);
    }

    #[track_caller]
    fn check(cases: &[(&str, &str)]) {
        for (given, meant) in cases {
            let read = directives(given).unwrap();
            assert_eq!(read, *meant);
            assert!(EnvFilter::try_new(read).is_ok(), "{given}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for (given, found) in [
            ("verbose", "verbose"),
            ("info,lockstep_router", "lockstep_router"),
            ("h2=loud", "h2=loud"),
            ("h2=", "h2="),
        ] {
            let error = directives(given).unwrap_err().to_string();
            let expected = format!(
                "parse the log filter {given:?}: found {found:?}, expected error, warn, info, debug, trace or off, \
                 or target=level"
            );
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn a_timestamp_is_one_of_utc() {
        let now = timestamp();
        assert!(now.len() > 20 && now.as_bytes()[10] == b'T' && now.ends_with('Z'), "{now}");
    }
}
