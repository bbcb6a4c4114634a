//! What can keep a server from starting or end it, each in one line with a hint.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use lockstep_models::FileError;
use lockstep_models::hub::HubError;
use lockstep_process::telemetry::TelemetryError;
use lockstep_proto::Bytes;
use lockstep_router::tokenizer::TokenizerError;
use lockstep_shard::decoder::{SpecError, SplitError, WeightsError};
use lockstep_shard::device::DeviceError;
use thiserror::Error;

use crate::detect::DetectError;
use crate::supervisor::{Restarts, UnitId};

/// Reads after "failed to".
#[derive(Debug, Error)]
pub enum LaunchError {
    /// Someone else listens there.
    #[error("listen on {address}: the port is taken; stop what has it or choose another with --port")]
    PortTaken {
        /// Where.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("listen on {address}: {source}; choose another with --hostname and --port")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No rank at all.
    #[error("split a model over 0 shards; --num-shard is at least 1")]
    NoShards,
    /// No copy of the model at all.
    #[error("serve 0 replicas of a model; --replicas is at least 1")]
    NoReplicas,
    /// There is no device for its ranks.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A file of the model is missing or broken.
    #[error(transparent)]
    Files(#[from] FileError),
    /// The file that holds the Hub's token is there and cannot be read.
    #[error("read the token in {path}: {source}; HF_TOKEN is taken before it")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The model cannot be had from the Hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model's configuration is not understood.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its weights are not what its configuration promises.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Its tokenizer is of a kind that is not read.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A text cannot be judged.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// The model cannot be run by so many ranks.
    #[error("{0}; choose their number with --num-shard")]
    Split(#[from] SplitError),
    /// It does not fit.
    #[error("fit the model in memory: {needed} are needed ({parts}), {available} are available; {hint}")]
    NotEnoughMemory {
        /// At least.
        needed: Bytes,
        /// What for.
        parts: String,
        /// What there is.
        available: Bytes,
        /// What to do.
        hint: &'static str,
    },
    /// A KV cache without a block.
    #[error("make a KV cache of {asked}: one block takes {block} over all shards; raise --kv-cache-memory")]
    KvCacheTooSmall {
        /// What was asked for.
        asked: Bytes,
        /// What a block takes.
        block: Bytes,
    },
    /// No private folder for the sockets.
    #[error("make a folder for sockets in {place}: {source}")]
    SocketFolder {
        /// Where.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// No runtime or no signal handler.
    #[error("set up the process: {0}")]
    SetUp(#[source] io::Error),
    /// A unit never came up.
    #[error("start the {}: gave up after {attempts} attempts; {last}", unit.name())]
    GaveUp {
        /// Which.
        unit: UnitId,
        /// How often it was tried.
        attempts: u32,
        /// What the last one said.
        last: LastWords,
    },
    /// A unit fell more often than `--max-restarts` allows.
    #[error("keep the {} alive: {}; {last}", unit.name(), too_often(*restarts))]
    FellTooOften {
        /// Which.
        unit: UnitId,
        /// How often it might.
        restarts: Restarts,
        /// What the last one said.
        last: LastWords,
    },
    /// Logging.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// Flags of the router that `serve` took and the router does not.
    #[error("read the router's flags: {0}")]
    Flags(#[from] clap::Error),
    /// The router role failed, or would.
    #[error(transparent)]
    Router(#[from] lockstep_router::RouterError),
    /// The shard role failed.
    #[error(transparent)]
    Shard(#[from] lockstep_shard::ShardError),
    /// The load generator failed.
    #[error(transparent)]
    Bench(#[from] lockstep_bench::BenchError),
}

/// How a process ended and what it said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastWords {
    /// `shard-1`, `router`.
    pub process: String,
    /// `exit status: 1`, `signal: 9 (SIGKILL)`.
    pub end: String,
    /// Its last lines on standard error.
    pub lines: Vec<String>,
}

impl fmt::Display for LastWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the last {} ended with {}", self.process, self.end)?;
        if self.lines.is_empty() {
            return f.write_str(" and said nothing");
        }
        f.write_str(" and said last:")?;
        self.lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

fn too_often(restarts: Restarts) -> String {
    match restarts {
        Restarts::Endless => "they fell too often".to_owned(),
        Restarts::AtMost { count, window } => format!(
            "they fell more than {count} times within {} s, which is all that --max-restarts allows",
            window.as_secs()
        ),
    }
}
