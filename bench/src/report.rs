//! Percentiles of what was measured, as a table for people or JSON for machines.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::drive::{Run, Sample};

/// Three digits are exact at every size.
const DIGITS: u8 = 3;

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Report {
    first_token: Percentiles,
    gap: Percentiles,
    whole: Percentiles,
    answered: u64,
    tokens: u64,
    errors: BTreeMap<String, u64>,
    took: Duration,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Percentiles {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Report {
    pub(crate) fn of(run: &Run) -> Self {
        let mut errors = BTreeMap::new();
        let mut answers = Vec::new();
        for sample in &run.samples {
            match sample {
                Sample::Answered(answer) => answers.push(answer),
                Sample::Failed(reason) => *errors.entry(reason.to_string()).or_insert(0) += 1,
            }
        }
        Self {
            first_token: Percentiles::of(answers.iter().map(|answer| answer.first_token)),
            gap: Percentiles::of(answers.iter().flat_map(|answer| answer.gaps.iter().copied())),
            whole: Percentiles::of(answers.iter().map(|answer| answer.whole)),
            answered: answers.len() as u64,
            tokens: answers.iter().map(|answer| answer.tokens).sum(),
            errors,
            took: run.took,
        }
    }

    /// A reason, where no request was answered.
    pub(crate) fn first_error_if_nothing_worked(&self) -> Option<String> {
        if self.answered > 0 { None } else { self.errors.keys().next().cloned() }
    }

    pub(crate) fn to_table(&self, args: &BenchArgs) -> String {
        let load = match args.rate {
            Some(rate) => format!("{rate} a second"),
            None => format!("{} at once", args.concurrency),
        };
        let mut text = format!(
            "{} requests to {}, {load}; about {} prompt tokens ({} shared), up to {} new tokens\n\n\
             {:<22}{:>10}{:>10}{:>10}{:>10}{:>10}\n",
            args.requests,
            args.url,
            args.prompt_tokens,
            args.shared_prefix,
            args.max_new_tokens,
            "milliseconds",
            "mean",
            "p50",
            "p90",
            "p99",
            "max",
        );
        for (name, p) in self.rows() {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{name:<22}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10.2}",
                p.mean, p.p50, p.p90, p.p99, p.max
            );
        }
        let _ = write!(
            text,
            "\n{:.1} tokens/s, {:.2} requests/s; {} answered with {} tokens in {:.1} s; {} errors",
            self.per_second(self.tokens),
            self.per_second(self.answered),
            self.answered,
            self.tokens,
            self.took.as_secs_f64(),
            self.errors.values().sum::<u64>(),
        );
        for (reason, count) in &self.errors {
            let _ = write!(text, "\n  {count} × {reason}");
        }
        text
    }

    pub(crate) fn to_json(&self, args: &BenchArgs) -> String {
        let latencies: serde_json::Map<String, Value> = self
            .rows()
            .into_iter()
            .map(|(name, p)| (format!("{}_ms", name.replace([' ', '-'], "_")), p.json()))
            .collect();
        json!({
            "load": {
                "url": args.url,
                "requests": args.requests,
                "concurrency": args.rate.is_none().then_some(args.concurrency),
                "rate": args.rate,
                "prompt_tokens": args.prompt_tokens,
                "shared_prefix": args.shared_prefix,
                "max_new_tokens": args.max_new_tokens,
                "seed": args.seed,
            },
            "latencies": latencies,
            "tokens_per_second": self.per_second(self.tokens),
            "requests_per_second": self.per_second(self.answered),
            "answered": self.answered,
            "tokens": self.tokens,
            "seconds": self.took.as_secs_f64(),
            "errors": self.errors,
        })
        .to_string()
    }

    fn rows(&self) -> [(&'static str, Percentiles); 3] {
        [
            ("time to first token", self.first_token),
            ("inter-token latency", self.gap),
            ("request latency", self.whole),
        ]
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.took.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl Percentiles {
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        let Ok(mut histogram) = Histogram::<u64>::new(DIGITS) else { return Self::default() };
        histogram.auto(true);
        for time in times {
            // In nanoseconds; a histogram that grows by itself takes every u64.
            let _ = histogram.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        Self {
            mean: histogram.mean() / 1e6,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: histogram.max() as f64 / 1e6,
        }
    }

    fn json(self) -> Value {
        json!({ "mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99, "max": self.max })
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;
    use crate::drive::{Answered, Failure};

    fn args() -> BenchArgs {
        let matches = BenchArgs::augment_args(Command::new("bench")).get_matches_from(["bench"]);
        BenchArgs::from_arg_matches(&matches).expect("every flag has a default")
    }

    fn run() -> Run {
        let milliseconds = Duration::from_millis;
        let answered = |n| {
            Sample::Answered(Answered {
                first_token: milliseconds(n),
                gaps: vec![milliseconds(2); 3],
                whole: milliseconds(n + 6),
                tokens: 4,
            })
        };
        let mut samples: Vec<Sample> = (1..=100).map(answered).collect();
        samples.push(Sample::Failed(Failure::Answer("status 429".to_owned())));
        Run { samples, took: Duration::from_secs(10) }
    }

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let report = Report::of(&run());
        let close = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 0.002, "{found} for {expected}")
        };
        close(report.first_token.p50, 50.0);
        close(report.first_token.p90, 90.0);
        close(report.first_token.p99, 99.0);
        close(report.first_token.max, 100.0);
        close(report.gap.p99, 2.0);
        close(report.whole.mean, 56.5);
        assert_eq!((report.answered, report.tokens), (100, 400));
        assert_eq!(report.first_error_if_nothing_worked(), None);
    }

    #[test]
    fn the_table_shows_errors_by_kind() {
        let table = Report::of(&run()).to_table(&args());
        assert!(
            table.contains(
                "40.0 tokens/s, 10.00 requests/s; 100 answered with 400 tokens in 10.0 s; 1 errors"
            ),
            "{table}"
        );
        assert!(table.ends_with("\n  1 × status 429"), "{table}");
    }

    #[test]
    fn the_json_names_every_latency() {
        let json: Value = serde_json::from_str(&Report::of(&run()).to_json(&args())).expect("it is JSON");
        for name in ["time_to_first_token_ms", "inter_token_latency_ms", "request_latency_ms"] {
            assert!(json["latencies"][name]["p99"].as_f64().is_some_and(|p| p > 0.0), "{name}");
        }
        assert_eq!(json["errors"]["status 429"], 1);
    }

    #[test]
    fn nothing_answered_is_a_failure_with_its_reason() {
        let run = Run {
            samples: vec![Sample::Failed(Failure::NoAnswer("refused".to_owned()))],
            took: Duration::from_secs(1),
        };
        assert_eq!(Report::of(&run).first_error_if_nothing_worked().as_deref(), Some("refused"));
    }
}
