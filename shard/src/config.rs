//! What the command line means: checked and complete.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use lockstep_models::ModelFiles;
use lockstep_process::cpus::CpuList;
use lockstep_process::telemetry::{LogConfig, LogFormat};
use lockstep_process::traces::{Role, TraceConfig};
use lockstep_proto::{Bytes, Epoch, Rank, Tokens};
use thiserror::Error;

use crate::args::ShardArgs;
use crate::comm::{CommError, Joining, Membership};
use crate::decoder::Precision;
use crate::device::DeviceArgs;
use crate::kv::KvCacheDtype;

/// All that decides what a shard does.
#[derive(Clone, Debug)]
pub struct Config {
    /// The model's files.
    pub model: ModelFiles,
    /// The group it joins.
    pub joining: Joining,
    /// How it exchanges data with the group.
    pub communicator: CommunicatorAddress,
    /// Where the router connects.
    pub listen: ListenAddress,
    /// Where it computes.
    pub device: DeviceArgs,
    /// What weights are held in.
    pub precision: Precision,
    /// KV blocks.
    pub kv_cache: KvConfig,
    /// What computes.
    pub threads: ThreadConfig,
    /// Where to give signs of life.
    pub reports: Option<PathBuf>,
    /// The process to die with.
    pub parent: Option<u32>,
    /// How to log.
    pub log: LogConfig,
    /// Where spans go.
    pub traces: TraceConfig,
}

/// Threads of a rank that compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadConfig {
    /// At least one.
    pub count: usize,
    /// A processor for each; `None`: wherever the system puts them.
    pub cpus: Option<CpuList>,
}

/// KV blocks of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvConfig {
    /// What keys and values are held in.
    pub held: KvCacheDtype,
    /// Memory they may take.
    pub budget: Bytes,
    /// Tokens of the largest step, which takes memory beside them.
    pub largest_step: Tokens,
}

/// Where the router connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A port.
    Tcp(SocketAddr),
}

/// How the ranks of a group exchange data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommunicatorAddress {
    /// There is one rank.
    Solo,
    /// Through a file that all ranks map.
    SharedMemory(PathBuf),
    /// Through rank 0, which listens at this `host:port`.
    Tcp(String),
}

/// An address that names nothing.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("read the address {found:?}: expected {expected}")]
pub struct AddressError {
    found: String,
    expected: &'static str,
}

impl FromStr for ListenAddress {
    type Err = AddressError;

    fn from_str(address: &str) -> Result<Self, AddressError> {
        let expected = "unix:/path.sock or tcp:ip:port";
        let unknown = || AddressError { found: address.to_owned(), expected };
        match address.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", socket)) => socket.parse().map(Self::Tcp).map_err(|_| unknown()),
            Some(_) | None => Err(unknown()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl FromStr for CommunicatorAddress {
    type Err = AddressError;

    fn from_str(address: &str) -> Result<Self, AddressError> {
        let expected = "solo, shm:/path or tcp:host:port";
        match address.split_once(':') {
            None if address == "solo" => Ok(Self::Solo),
            Some(("shm", path)) if !path.is_empty() => Ok(Self::SharedMemory(path.into())),
            Some(("tcp", host)) if host.contains(':') => Ok(Self::Tcp(host.to_owned())),
            Some(_) | None => Err(AddressError { found: address.to_owned(), expected }),
        }
    }
}

impl Config {
    /// Reads the command line.
    ///
    /// # Errors
    /// When the rank is not in its group.
    pub fn new(args: ShardArgs) -> Result<Self, CommError> {
        let membership = Membership::new(Rank(args.rank), args.world_size)?;
        let watchdog = Duration::from_secs(args.step_timeout);
        let cpus = args.cpus.filter(|cpus| !cpus.as_slice().is_empty());
        let threads = cpus.as_ref().map_or_else(cores, |cpus| cpus.as_slice().len());
        let role = Role::Shard { rank: args.rank };
        // What is sampled is the router's decision.
        let traces = TraceConfig::new(role, args.otlp_endpoint, args.otlp_service_name, 1.0);
        let format = if args.json_output { LogFormat::Json } else { LogFormat::Text };
        Ok(Self {
            model: args.model,
            joining: Joining { membership, epoch: Epoch(args.epoch), watchdog },
            communicator: args.communicator,
            listen: args.listen,
            device: args.device,
            precision: Precision { dtype: args.dtype, quantize: args.quantize },
            kv_cache: KvConfig {
                held: args.kv_cache_dtype,
                budget: Bytes(args.kv_cache_bytes),
                largest_step: Tokens(args.max_step_tokens),
            },
            threads: ThreadConfig { count: if args.threads == 0 { threads } else { args.threads }, cpus },
            reports: args.reports,
            parent: args.parent,
            log: LogConfig { filter: args.log_level, format },
            traces,
        })
    }
}

/// Processors that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_launcher_writes_them() {
        let unix = ListenAddress::Unix("/run/rank 0.sock".into());
        let tcp = ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 80)));
        for listen in [unix, tcp] {
            assert_eq!(listen.to_string().parse(), Ok(listen));
        }
        let read = |address: &str| address.parse::<CommunicatorAddress>();
        assert_eq!(read("solo"), Ok(CommunicatorAddress::Solo));
        let memory = CommunicatorAddress::SharedMemory("/proc/1/fd/3".into());
        assert_eq!(read("shm:/proc/1/fd/3"), Ok(memory));
        assert_eq!(read("tcp:host-0:29500"), Ok(CommunicatorAddress::Tcp("host-0:29500".to_owned())));
        for wrong in ["", "shm:", "tcp:host", "nccl:x", "unix:/a"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
