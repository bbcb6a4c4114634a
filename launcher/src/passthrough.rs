//! The router's own flags, offered by `serve` as well and handed on as typed: declared once, in the router.

use std::ffi::OsString;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use lockstep_proto::Tokens;
use lockstep_router::args::RouterArgs;

use crate::environment;
use crate::error::LaunchError;

/// Flags of the router that `serve` sets itself, by their long names.
const SET_BY_SERVE: &[&str] = &[
    "model",
    "model-id",
    "max-positions",
    "shard",
    "replicas",
    "hostname",
    "port",
    "graceful-termination-timeout",
    "parent",
    "reports",
    "orders",
    "log-level",
    "json-output",
];

/// What these flags stand under in the help.
const HEADING: &str = "Requests and limits";

/// The flags whose values the memory plan needs as well.
const MAX_CONCURRENT_REQUESTS: &str = "max_concurrent_requests";
const MAX_BATCH_PREFILL_TOKENS: &str = "max_batch_prefill_tokens";
const MAX_TOTAL_TOKENS: &str = "max_total_tokens";

/// The flags whose values the shards need as well.
const STEP_TIMEOUT: &str = "step_timeout";
/// By falling weight, as the router takes them.
const OTLP_ENDPOINT: [&str; 3] =
    ["otlp_endpoint", "otel_exporter_otlp_traces_endpoint", "otel_exporter_otlp_endpoint"];
const OTLP_SERVICE_NAME: [&str; 2] = ["otlp_service_name", "otel_service_name"];

/// What was typed for the router, ready for its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterFlags {
    /// `--flag value …` as typed. What comes from the environment is not here: the router inherits it.
    pub typed: Vec<OsString>,
    /// How many requests the router permits at once.
    pub max_concurrent_requests: u32,
    /// How many tokens a step carries at most.
    pub max_batch_prefill_tokens: Tokens,
    /// The longest context that was asked for.
    pub max_total_tokens: Option<Tokens>,
    /// Seconds after which a step counts as hung, for the router and for the ranks that wait for each other.
    pub step_timeout_s: u64,
    /// Where spans go, if anywhere.
    pub otlp_endpoint: Option<String>,
    /// What the router calls itself on spans.
    pub otlp_service_name: Option<String>,
}

impl RouterFlags {
    /// Checks by the router's own rules what was typed for it and what the environment tells it.
    ///
    /// # Errors
    /// What the router would end with.
    pub fn check(&self) -> Result<(), LaunchError> {
        let command = RouterArgs::augment_args(Command::new("router").no_binary_name(true));
        // For these the environment speaks to `serve`, which checks them itself.
        let deaf = |arg: Arg| if is_set_by_serve(&arg) { arg.env(None::<&'static str>) } else { arg };
        let command = environment::without_empty(command.mut_args(deaf));
        let one_rank = ["--shard", "unix:rank.sock"].map(OsString::from);
        let matches = command.try_get_matches_from(one_rank.iter().chain(&self.typed))?;
        Ok(lockstep_router::check(RouterArgs::from_arg_matches(&matches)?)?)
    }
}

impl Args for RouterFlags {
    fn augment_args(command: Command) -> Command {
        offered().into_iter().fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RouterFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut typed = Vec::new();
        for arg in offered() {
            let source = matches.value_source(arg.get_id().as_str());
            if source == Some(ValueSource::CommandLine) {
                typed.extend(as_typed(&arg, matches));
            }
        }
        Ok(Self {
            typed,
            max_concurrent_requests: number(matches, MAX_CONCURRENT_REQUESTS)?,
            max_batch_prefill_tokens: Tokens(number(matches, MAX_BATCH_PREFILL_TOKENS)?),
            max_total_tokens: match matches.get_raw(MAX_TOTAL_TOKENS) {
                Some(_) => Some(Tokens(number(matches, MAX_TOTAL_TOKENS)?)),
                None => None,
            },
            step_timeout_s: number(matches, STEP_TIMEOUT)?,
            otlp_endpoint: first_text(matches, &OTLP_ENDPOINT),
            otlp_service_name: first_text(matches, &OTLP_SERVICE_NAME),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn number<T: FromStr>(matches: &ArgMatches, id: &str) -> Result<T, clap::Error> {
    let raw = matches.get_raw(id).and_then(|mut values| values.next());
    raw.and_then(|raw| raw.to_str()?.parse().ok()).ok_or_else(|| {
        let flag = id.replace('_', "-");
        clap::Error::raw(ErrorKind::ValueValidation, format!("read --{flag}: a whole number is needed\n"))
    })
}

fn first_text(matches: &ArgMatches, ids: &[&str]) -> Option<String> {
    let raw = ids.iter().find_map(|id| matches.get_raw(id).and_then(|mut values| values.next()));
    raw.map(|raw| raw.to_string_lossy().into_owned())
}

fn offered() -> Vec<Arg> {
    let router = RouterArgs::augment_args(Command::new("router"));
    let handed_on = router.get_arguments().filter(|arg| !is_set_by_serve(arg));
    handed_on.map(|arg| arg.clone().help_heading(HEADING)).collect()
}

fn is_set_by_serve(arg: &Arg) -> bool {
    arg.get_long().is_none_or(|long| SET_BY_SERVE.contains(&long))
}

fn as_typed(arg: &Arg, matches: &ArgMatches) -> Vec<OsString> {
    let flag = OsString::from(format!("--{}", arg.get_long().unwrap_or_default()));
    if matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse) {
        return vec![flag];
    }
    let values = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
    values.flat_map(|value| [flag.clone(), value.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(typed: &[&str]) -> RouterFlags {
        let command = RouterFlags::augment_args(Command::new("serve").no_binary_name(true));
        let matches = command.try_get_matches_from(typed).expect("they are the router's flags");
        RouterFlags::from_arg_matches(&matches).expect("they are whole")
    }

    #[test]
    fn what_was_typed_is_handed_on_and_nothing_else() {
        let typed =
            ["--max-concurrent-requests", "7", "--step-timeout", "9", "--max-batch-prefill-tokens", "64"];
        let flags = parse(&typed);
        assert_eq!((flags.max_concurrent_requests, flags.step_timeout_s), (7, 9));
        assert_eq!(flags.max_batch_prefill_tokens, Tokens(64));
        let mut pairs: Vec<_> = flags.typed.chunks(2).map(|pair| pair.to_vec()).collect();
        pairs.sort();
        let handed_on = [
            ["--max-batch-prefill-tokens", "64"],
            ["--max-concurrent-requests", "7"],
            ["--step-timeout", "9"],
        ];
        assert_eq!(pairs, handed_on);
        assert_eq!(parse(&[]).typed, Vec::<OsString>::new());
    }

    #[test]
    fn what_the_router_would_refuse_is_refused_before_it_is_started() {
        assert!(parse(&[]).check().is_ok());
        let cases = [
            (&["--max-best-of", "0"][..], "accept --max-best-of 0: it must be at least 1"),
            (&["--journal", "/tmp"], "accept --journal without --resume-window"),
            (
                &["--journal", "/dev/null/journal", "--resume-window", "9"],
                "keep a journal in /dev/null/journal: ",
            ),
            (&["--api-key-file", "/nonexistent"], "read --api-key-file /nonexistent: No such file"),
            (&["--cors-allow-origin", "shop"], "\"shop\""),
            (&["--trace-sampling-ratio", "2"], "2"),
        ];
        for (typed, expected) in cases {
            let error = parse(typed).check().expect_err("it makes no sense").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn shards_learn_where_spans_go_by_any_name() {
        let named = parse(&["--otel-exporter-otlp-endpoint", "http://a:1", "--otel-service-name", "shop"]);
        assert_eq!(named.otlp_endpoint.as_deref(), Some("http://a:1"));
        assert_eq!(named.otlp_service_name.as_deref(), Some("shop"));
        let both = parse(&["--otel-exporter-otlp-endpoint", "http://a:1", "--otlp-endpoint", "http://b:1"]);
        assert_eq!(both.otlp_endpoint.as_deref(), Some("http://b:1"));
    }

    #[test]
    fn what_serve_sets_itself_is_not_offered_twice() {
        let offered = offered();
        let doubled = offered.iter().filter_map(Arg::get_long).find(|long| SET_BY_SERVE.contains(long));
        assert_eq!(doubled, None);
    }
}
