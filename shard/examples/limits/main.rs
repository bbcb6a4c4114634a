//! Measures what this machine can do at most: reads lines that say `bandwidth`, `bf16` or `int8` and answers
//! each with a line of JSON, in bytes or operations a second, so that limits are measured between turns of what
//! is compared with them: `limits [--threads 2] [LIMIT...]`. Null is what the machine has no instruction for.
//!
//! `kv-bf16` and `kv-int8` are compared with the bandwidth: bytes a second at which attention of one stream reads
//! the keys and values of 8,192 positions, in the shape of Llama-3.2-1B.
//!
//! With `--device cuda`, in a build with the feature, `bandwidth` is what copying a GPU's memory reads and writes, and
//! `bf16` what its matrix products do.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

#[cfg(feature = "cuda")]
mod gpu;

use std::error::Error;
use std::io::BufRead;

use clap::Parser;
use lockstep_shard::device::{DeviceArgs, DeviceKind};
use lockstep_shard::kv::KvCacheDtype;
use lockstep_shard::limits::{ReadProbe, bf16_operations_per_second, int8_operations_per_second};
use lockstep_shard::{AttentionProbe, keep_freed_memory};
use serde_json::json;

/// More than any cache holds.
const PROBE_BYTES: usize = 1 << 30;
/// Measurements of a turn, of which the best counts: what disturbs one is no limit.
const TRIES: usize = 5;

/// Layers, query heads, KV heads and elements of a head of Llama-3.2-1B.
const SHAPE: (usize, usize, usize, usize) = (16, 32, 8, 64);
/// Positions whose keys and values attention reads.
const CONTEXT: usize = 8192;

#[derive(Parser)]
#[command(
    about = "Measures read bandwidth and peaks: reads `bandwidth`, `bf16`, `int8`, `kv-bf16`, `kv-int8`"
)]
struct Cli {
    /// What to measure in place of what standard input says.
    limits: Vec<String>,
    /// Threads that work.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    keep_freed_memory();
    rayon::ThreadPoolBuilder::new().num_threads(cli.threads).build_global()?;
    let mut machine = machine(&cli)?;
    println!("{}", json!({ "ready": "limits", "threads": cli.threads }));
    for limit in &cli.limits {
        measure(machine.as_mut(), limit)?;
    }
    if cli.limits.is_empty() {
        for line in std::io::stdin().lock().lines() {
            measure(machine.as_mut(), line?.trim())?;
        }
    }
    Ok(())
}

fn measure(machine: &mut dyn Machine, limit: &str) -> Result<(), Box<dyn Error>> {
    let mut found: Option<f64> = None;
    for _ in 0..TRIES {
        found = found.into_iter().chain(machine.per_second(limit)?).reduce(f64::max);
    }
    println!("{}", json!({ "work": limit, "per_second": found }));
    Ok(())
}

/// What has limits.
trait Machine {
    /// Nothing where there is no instruction for it.
    fn per_second(&mut self, limit: &str) -> Result<Option<f64>, Box<dyn Error>>;
}

fn machine(cli: &Cli) -> Result<Box<dyn Machine>, Box<dyn Error>> {
    match cli.device.kind(1)? {
        DeviceKind::Cpu => {
            let probe = ReadProbe::new(PROBE_BYTES)?;
            Ok(Box::new(Host { threads: cli.threads, probe, attention: [None, None] }))
        }
        DeviceKind::Cuda => gpu::machine(cli.device),
    }
}

struct Host {
    threads: usize,
    probe: ReadProbe,
    /// Over blocks of bf16 and of int8, once they were asked for.
    attention: [Option<AttentionProbe>; 2],
}

impl Machine for Host {
    fn per_second(&mut self, limit: &str) -> Result<Option<f64>, Box<dyn Error>> {
        Ok(match limit {
            "bandwidth" => Some(self.probe.bytes_per_second(self.threads)),
            "bf16" => bf16_operations_per_second(self.threads),
            "int8" => int8_operations_per_second(self.threads),
            "kv-bf16" => Some(kv_bytes_per_second(&mut self.attention[0], KvCacheDtype::Bfloat16)?),
            "kv-int8" => Some(kv_bytes_per_second(&mut self.attention[1], KvCacheDtype::Int8)?),
            other => {
                let known = "`bandwidth`, `bf16`, `int8`, `kv-bf16` or `kv-int8`";
                return Err(format!("measure {other:?}: say {known}").into());
            }
        })
    }
}

fn kv_bytes_per_second(
    attention: &mut Option<AttentionProbe>,
    dtype: KvCacheDtype,
) -> Result<f64, Box<dyn Error>> {
    let attention = match attention {
        Some(attention) => attention,
        none => none.insert(AttentionProbe::new(SHAPE, CONTEXT, dtype)?),
    };
    Ok(attention.bytes().0 as f64 / attention.seconds()?)
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use lockstep_shard::device::{DeviceArgs, DeviceError};

    pub(crate) fn machine(_: DeviceArgs) -> Result<Box<dyn super::Machine>, Box<dyn std::error::Error>> {
        Err(DeviceError::NotBuilt.into())
    }
}
