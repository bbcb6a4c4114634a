//! Measures what this machine can do at most: reads lines that say `bandwidth`, `bf16` or `int8` and answers
//! each with a line of JSON, in bytes or operations a second, so that limits are measured between turns of what
//! is compared with them: `limits [--threads 2] [LIMIT...]`. Null is what the machine has no instruction for.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::io::BufRead;

use clap::Parser;
use lockstep_shard::limits::{ReadProbe, bf16_operations_per_second, int8_operations_per_second};
use serde_json::json;

/// More than any cache holds.
const PROBE_BYTES: usize = 1 << 30;
/// Measurements of a turn, of which the best counts: what disturbs one is no limit.
const TRIES: usize = 5;

#[derive(Parser)]
#[command(about = "Measures read bandwidth and peaks: reads `bandwidth`, `bf16`, `int8`")]
struct Cli {
    /// What to measure in place of what standard input says.
    limits: Vec<String>,
    /// Threads that work.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    let probe = ReadProbe::new(PROBE_BYTES)?;
    println!("{}", json!({ "ready": "limits", "threads": cli.threads }));
    for limit in &cli.limits {
        measure(&probe, cli.threads, limit)?;
    }
    if cli.limits.is_empty() {
        for line in std::io::stdin().lock().lines() {
            measure(&probe, cli.threads, line?.trim())?;
        }
    }
    Ok(())
}

fn measure(probe: &ReadProbe, threads: usize, limit: &str) -> Result<(), Box<dyn Error>> {
    let mut found: Option<f64> = None;
    for _ in 0..TRIES {
        let now = match limit {
            "bandwidth" => Some(probe.bytes_per_second(threads)),
            "bf16" => bf16_operations_per_second(threads),
            "int8" => int8_operations_per_second(threads),
            other => return Err(format!("measure {other:?}: say `bandwidth`, `bf16` or `int8`").into()),
        };
        found = found.into_iter().chain(now).reduce(f64::max);
    }
    println!("{}", json!({ "work": limit, "per_second": found }));
    Ok(())
}
