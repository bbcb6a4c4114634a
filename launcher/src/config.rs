//! What was typed, checked and complete: nothing here means "unset".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_models::ModelFiles;
use lockstep_models::hub::{self, HubError};
use lockstep_process::telemetry::LogConfig;
use lockstep_proto::Bytes;
use lockstep_router::tokenizer::Tokenizer;
use lockstep_shard::decoder::Precision;
use lockstep_shard::device::DeviceArgs;
use lockstep_shard::kv::KvCacheDtype;
use tracing::{debug, warn};

use crate::args::{DetectArgs, Origin, PlanArgs, ServeArgs};
use crate::error::LaunchError;
use crate::passthrough::RouterFlags;
use crate::supervisor::{Groups, Restarts};
use crate::topology::CpuBinding;

/// The name the embedded model is served under where nobody names it.
const DEMO_NAME: &str = "lockstep/demo";

/// What it is called on the command line.
const DEMO_ID: &str = "demo";

/// Everything a run is made of.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Where the model's files are.
    pub model: ModelFiles,
    /// The name it is served under.
    pub model_name: String,
    /// How many processes it is split over, and how often.
    pub groups: Groups,
    /// Where it is computed.
    pub placement: Placement,
    /// What weights are kept in.
    pub precision: Precision,
    /// What keys and values are kept in.
    pub kv_cache: KvCache,
    /// Where the router listens.
    pub address: SocketAddr,
    /// When processes are stopped and restarted.
    pub supervision: Supervision,
    /// How everyone logs.
    pub log: LogConfig,
    /// Handed on to the router as typed.
    pub router: RouterFlags,
    /// The binary every role is played by.
    pub program: PathBuf,
    /// Where this user's sockets belong, if the system says so.
    pub runtime_folder: Option<PathBuf>,
}

/// Where a model is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// On what.
    pub device: DeviceArgs,
    /// Whether threads that compute keep to processors of their own.
    pub cpus: CpuBinding,
}

/// When processes are stopped and restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supervision {
    /// How long running requests may take to end after a stop is asked for.
    pub grace: Duration,
    /// How often what was ready once may fall.
    pub restarts: Restarts,
    /// How long a process may give no sign of life.
    pub silence_allowed: Duration,
}

/// What keys and values are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCache {
    /// Elements of which type.
    pub held: KvCacheDtype,
    /// Over all ranks of all replicas.
    pub memory: KvCacheMemory,
}

/// How much memory the KV cache takes over all ranks of all replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvCacheMemory {
    /// So much.
    Fixed(Bytes),
    /// Enough for every permitted request at full length, or half of what is free after the weights.
    Fitting,
}

impl ServeConfig {
    /// Checks what was typed, and claims the address before anything expensive: a taken port is the most
    /// common mistake.
    ///
    /// # Errors
    /// When the address cannot be had or the model cannot be found.
    pub fn from_args(args: &ServeArgs) -> Result<Self, LaunchError> {
        let groups = groups(args.replicas, args.num_shard)?;
        args.router.check()?;
        let address = free_address(SocketAddr::new(listening_ip(args), args.port))?;
        let kind = args.device.kind(groups.replicas * groups.ranks)?;
        let precision = Precision { dtype: args.dtype, quantize: args.quantize };
        precision.check(kind)?;
        args.kv_cache_dtype.check_on(kind)?;
        let (model, model_name) = find_model(args)?;
        Ok(Self {
            model,
            model_name,
            groups,
            // Settled here, so that every rank of every epoch computes on the same kind of device.
            placement: Placement { device: args.device.settled(kind), cpus: args.cpu_binding },
            precision,
            kv_cache: KvCache {
                held: args.kv_cache_dtype,
                memory: args
                    .kv_cache_memory
                    .map_or(KvCacheMemory::Fitting, |memory| KvCacheMemory::Fixed(memory.0)),
            },
            address,
            supervision: supervision(args),
            log: args.log.config(),
            router: args.router.clone(),
            // Names this very file even when a newer one has taken its place on disk: roles of one run are
            // of one version.
            program: PathBuf::from("/proc/self/exe"),
            runtime_folder: args.xdg_runtime_dir.clone().filter(|folder| folder.is_dir()),
        })
    }
}

/// At least one of each.
///
/// # Errors
/// When there is none of one.
pub fn groups(replicas: u32, ranks: u32) -> Result<Groups, LaunchError> {
    match (replicas, ranks) {
        (_, 0) => Err(LaunchError::NoShards),
        (0, _) => Err(LaunchError::NoReplicas),
        (replicas, ranks) => Ok(Groups { replicas, ranks }),
    }
}

fn supervision(args: &ServeArgs) -> Supervision {
    let window = Duration::from_secs(args.restart_window);
    Supervision {
        grace: Duration::from_secs(args.graceful_termination_timeout),
        restarts: args.max_restarts.map_or(Restarts::Endless, |count| Restarts::AtMost { count, window }),
        silence_allowed: Duration::from_secs(args.liveness_timeout),
    }
}

/// Containers set `HOSTNAME` to a name; a server in one listens on every address.
fn listening_ip(args: &ServeArgs) -> IpAddr {
    let hostname = args.hostname.as_str();
    if hostname == "localhost" {
        return IpAddr::V4(Ipv4Addr::LOCALHOST);
    }
    hostname.parse().unwrap_or_else(|_| {
        let address = every_address();
        match args.hostname_origin() {
            Origin::Environment => debug!(hostname, %address, "HOSTNAME is this host's name"),
            Origin::CommandLine => {
                warn!(hostname, %address, "not an IP address; listening on every address");
            }
        }
        address
    })
}

/// Every address of both families where one socket has them, else every one of IPv4.
fn every_address() -> IpAddr {
    let is_ipv6_there = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    // A port that a socket of IPv6 has for both cannot be had for IPv4.
    let takes_ipv4 = |socket: &TcpListener| {
        let port = socket.local_addr().map(|address| address.port());
        port.and_then(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).is_err()
    };
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(socket) if is_ipv6_there && takes_ipv4(&socket) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        Ok(_) | Err(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    }
}

/// The same address, with a free port in place of port 0, if it can be listened on.
fn free_address(address: SocketAddr) -> Result<SocketAddr, LaunchError> {
    match TcpListener::bind(address).and_then(|listener| listener.local_addr()) {
        Ok(address) => Ok(address),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Err(LaunchError::PortTaken { address })
        }
        Err(source) => Err(LaunchError::Listen { address, source }),
    }
}

fn find_model(args: &ServeArgs) -> Result<(ModelFiles, String), LaunchError> {
    let Some(id) = args.model_id.as_ref() else {
        return Ok((ModelFiles::EmbeddedDemo, DEMO_NAME.to_owned()));
    };
    if id == DEMO_ID {
        return Ok((ModelFiles::EmbeddedDemo, id.clone()));
    }
    let model = match local_model(id)? {
        Some(model) => model,
        None => {
            let source = args.hub.source(args.log.config().format)?;
            ModelFiles::from_argument(&hub::download(id, &source)?.display().to_string())
        }
    };
    model.require("config.json")?;
    Tokenizer::find(&model)?;
    Ok((model, id.clone()))
}

/// The files of a model as far as its configuration goes.
///
/// # Errors
/// When there is no such model.
pub fn find_config(args: &PlanArgs) -> Result<ModelFiles, LaunchError> {
    let Some(id) = args.model_id.as_ref().filter(|id| *id != DEMO_ID) else {
        return Ok(ModelFiles::EmbeddedDemo);
    };
    if let Some(model) = local_model(id)? {
        return Ok(model);
    }
    let place = hub::download_config(id, &args.hub.source(args.log.config().format)?)?;
    Ok(ModelFiles::from_argument(&place.display().to_string()))
}

/// The files of a model whose tokenizer is wanted.
///
/// # Errors
/// When there is no such model.
pub fn find_tokenizer(args: &DetectArgs) -> Result<ModelFiles, LaunchError> {
    let Some(id) = args.model_id.as_ref().filter(|id| *id != DEMO_ID) else {
        return Ok(ModelFiles::EmbeddedDemo);
    };
    if let Some(model) = local_model(id)? {
        return Ok(model);
    }
    let place = hub::download(id, &args.hub.source(args.log.config().format)?)?;
    Ok(ModelFiles::from_argument(&place.display().to_string()))
}

/// The local model `id` names: a GGUF file by its ending, or a folder; `None` where it can only be a name on the
/// Hub.
fn local_model(id: &str) -> Result<Option<ModelFiles>, LaunchError> {
    let path = Path::new(id);
    if lockstep_models::is_named_gguf(path) && !path.is_dir() {
        return Ok(Some(ModelFiles::Gguf(absolute(path))));
    }
    match local_folder(id) {
        Some(folder) if folder.exists() => Ok(Some(ModelFiles::Folder(folder))),
        Some(_) => Err(HubError::Name { name: id.to_owned() }.into()),
        None => Ok(None),
    }
}

/// The folder `id` names: an existing one, or one that is written like a path and nothing else.
fn local_folder(id: &str) -> Option<PathBuf> {
    let path = Path::new(id);
    let written_like_a_path = path.is_absolute() || id.starts_with('.') || id.matches('/').count() != 1;
    if path.is_dir() || written_like_a_path {
        return Some(absolute(path));
    }
    None
}

/// Roles may be looked at from elsewhere.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_with_a_hint() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("it is bound");
        let error = free_address(address).expect_err("it is taken");
        let expected = format!(
            "listen on {address}: the port is taken; stop what has it or choose another with --port"
        );
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn every_address_is_one_of_each_family_there_is() {
        let listener = TcpListener::bind((every_address(), 0)).expect("it can be listened on");
        let port = listener.local_addr().expect("it is bound").port();
        for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            if TcpListener::bind((loopback, 0)).is_ok() {
                let reached = std::net::TcpStream::connect((loopback, port));
                assert!(reached.is_ok(), "{loopback}: {reached:?}");
            }
        }
    }

    #[test]
    fn port_0_becomes_a_free_one() {
        let address = free_address(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("one is free");
        assert_ne!(address.port(), 0);
    }

    #[test]
    fn a_hub_name_is_no_path() {
        assert_eq!(local_folder("org/name"), None);
        for path in ["./dir", "/models/a", "../b", "a/b/c", "folder"] {
            assert!(local_folder(path).is_some_and(|folder| folder.is_absolute()), "{path}");
        }
    }

    #[test]
    fn a_gguf_file_is_known_by_its_ending() {
        for path in ["model.gguf", "./dir/model.gguf", "/models/a.gguf"] {
            let model = local_model(path);
            assert!(matches!(&model, Ok(Some(ModelFiles::Gguf(file))) if file.is_absolute()), "{path}");
        }
        assert!(matches!(local_model("org/name"), Ok(None)));
        assert!(matches!(local_model("./src"), Ok(Some(ModelFiles::Folder(_)))));
    }
}
