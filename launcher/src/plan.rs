//! Which commands a run is made of. Pure: a config and a place in, command lines out.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lockstep_process::cpus::CpuList;
use lockstep_process::telemetry::{LogConfig, LogFormat};
use lockstep_proto::{Bytes, Epoch, Rank, ReplicaId, Tokens};

use crate::config::ServeConfig;
use crate::supervisor::Groups;

/// What is known of a run beside its config.
#[derive(Clone, Debug)]
pub struct Place {
    /// The private folder of this run's sockets.
    pub sockets: PathBuf,
    /// The launcher's process id: who to die with.
    pub launcher: u32,
    /// Threads each rank may use.
    pub threads_per_rank: usize,
    /// The processors of each rank of each replica, in their order; none where the system puts threads where it likes.
    pub cpus: Vec<CpuList>,
    /// KV cache of each rank.
    pub kv_cache_per_rank: Bytes,
    /// The longest context that model and cache allow.
    pub context: Tokens,
}

/// How the ranks of one epoch talk to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Communicator {
    /// One rank has nobody to talk to.
    Solo,
    /// Through shared memory that is this open file of the launcher's.
    SharedMemory {
        /// The file's descriptor in the launcher.
        descriptor: i32,
    },
}

/// What one process is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// What its lines in the log are marked with: `router`, `shard-0`; `replica-1-shard-0` where there are several replicas.
    pub process: String,
    /// After the program's name.
    pub arguments: Vec<OsString>,
}

/// Where the launcher hears of groups that serve or are lost, and that the router lives.
pub fn reports_of(sockets: &Path) -> PathBuf {
    sockets.join("reports.sock")
}

/// Where it hears that the ranks of a replica live: they know of no other replica.
pub fn reports_of_replica(sockets: &Path, replica: ReplicaId) -> PathBuf {
    sockets.join(format!("replica-{replica}-reports.sock"))
}

/// Where the router hears which groups are to leave.
pub fn orders_of(sockets: &Path) -> PathBuf {
    sockets.join("orders.sock")
}

/// Where a rank listens, the same in every epoch.
pub fn socket_of(sockets: &Path, replica: ReplicaId, rank: Rank) -> PathBuf {
    sockets.join(format!("replica-{replica}-shard-{rank}.sock"))
}

/// The router's command line.
pub fn router(config: &ServeConfig, place: &Place) -> CommandLine {
    let mut line = Builder::new("router");
    line.option("--model", config.model.to_argument());
    line.option("--model-id", &config.model_name);
    line.option("--max-positions", place.context.0.to_string());
    for replica in (0..config.groups.replicas).map(ReplicaId) {
        for rank in (0..config.groups.ranks).map(Rank) {
            line.option("--shard", unix(&socket_of(&place.sockets, replica, rank)));
        }
    }
    line.option("--replicas", config.groups.replicas.to_string());
    line.option("--hostname", config.address.ip().to_string());
    line.option("--port", config.address.port().to_string());
    line.option("--reports", reports_of(&place.sockets).display().to_string());
    line.option("--orders", orders_of(&place.sockets).display().to_string());
    line.option("--graceful-termination-timeout", config.supervision.grace.as_secs().to_string());
    line.arguments.extend(config.router.typed.iter().cloned());
    line.option("--parent", place.launcher.to_string());
    line.logging(&config.log);
    CommandLine { process: "router".to_owned(), arguments: line.arguments }
}

/// The command line of one rank in one epoch.
pub fn shard(config: &ServeConfig, place: &Place, incarnation: &ShardIncarnation) -> CommandLine {
    let ShardIncarnation { replica, rank, epoch, communicator } = *incarnation;
    let mut line = Builder::new("shard");
    line.option("--model", config.model.to_argument());
    line.option("--rank", rank.to_string());
    line.option("--world-size", config.groups.ranks.to_string());
    line.option("--epoch", epoch.to_string());
    line.option("--listen", unix(&socket_of(&place.sockets, replica, rank)));
    line.option("--communicator", communicator.to_argument(place.launcher));
    let device = config.placement.device.after(replica.0, config.groups.ranks).to_arguments();
    line.arguments.extend(device.into_iter().map(Into::into));
    line.option("--dtype", config.precision.dtype.to_string());
    line.option("--quantize", config.precision.quantize.to_string());
    line.option("--kv-cache-dtype", config.kv_cache.held.to_string());
    line.option("--kv-cache-bytes", place.kv_cache_per_rank.0.to_string());
    line.option("--max-step-tokens", config.router.max_batch_prefill_tokens.to_string());
    line.option("--threads", place.threads_per_rank.to_string());
    let index = replica.index() * config.groups.ranks as usize + rank.0 as usize;
    if let Some(cpus) = place.cpus.get(index) {
        line.option("--cpus", cpus.to_string());
    }
    line.option("--step-timeout", config.router.step_timeout_s.to_string());
    let reports = reports_of_replica(&place.sockets, replica);
    line.option("--reports", reports.display().to_string());
    for (name, value) in [
        ("--otlp-endpoint", &config.router.otlp_endpoint),
        ("--otlp-service-name", &config.router.otlp_service_name),
    ] {
        value.iter().for_each(|value| line.option(name, value));
    }
    line.option("--parent", place.launcher.to_string());
    line.logging(&config.log);
    let process = match config.groups.replicas {
        1 => format!("shard-{rank}"),
        _ => format!("replica-{replica}-shard-{rank}"),
    };
    CommandLine { process, arguments: line.arguments }
}

/// What tells the starts of a shard apart.
#[derive(Clone, Copy, Debug)]
pub struct ShardIncarnation {
    /// Whose group it belongs to.
    pub replica: ReplicaId,
    /// Its place in the group.
    pub rank: Rank,
    /// Which start of the group it is.
    pub epoch: Epoch,
    /// How the ranks of this epoch talk.
    pub communicator: Communicator,
}

/// Threads for each rank of all groups, which share `cores`.
pub fn threads_per_rank(cores: usize, groups: Groups) -> usize {
    let ranks = groups.ranks as usize * groups.replicas as usize;
    (cores / ranks.max(1)).max(1)
}

impl Communicator {
    fn to_argument(self, launcher: u32) -> String {
        match self {
            Self::Solo => "solo".to_owned(),
            Self::SharedMemory { descriptor } => format!("shm:/proc/{launcher}/fd/{descriptor}"),
        }
    }
}

struct Builder {
    arguments: Vec<OsString>,
}

impl Builder {
    fn new(role: &str) -> Self {
        Self { arguments: vec![role.into()] }
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.arguments.extend([name.into(), value.into()]);
    }

    fn logging(&mut self, log: &LogConfig) {
        self.option("--log-level", &log.filter);
        match log.format {
            LogFormat::Json => self.arguments.push("--json-output".into()),
            LogFormat::Text => {}
        }
    }
}

fn unix(socket: &Path) -> OsString {
    let mut address = OsString::from("unix:");
    address.push(socket);
    address
}
