//! Whole plans as snapshots.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lockstep_launcher::config::{KvCache, KvCacheMemory, Placement, ServeConfig, Supervision};
use lockstep_launcher::passthrough::RouterFlags;
use lockstep_launcher::plan::{self, CommandLine, Communicator, Place, ShardIncarnation};
use lockstep_launcher::supervisor::{Groups, Restarts};
use lockstep_launcher::topology::CpuBinding;
use lockstep_models::ModelFiles;
use lockstep_process::telemetry::{LogConfig, LogFormat};
use lockstep_proto::{Bytes, Epoch, Rank, ReplicaId, Tokens};
use lockstep_shard::decoder::{Dtype, Precision, Quantize};
use lockstep_shard::device::{CudaGraphs, DeviceArgs, DeviceChoice};
use lockstep_shard::kv::KvCacheDtype;

fn config(ranks: u32) -> ServeConfig {
    ServeConfig {
        model: ModelFiles::EmbeddedDemo,
        model_name: "lockstep/demo".to_owned(),
        groups: Groups { replicas: 1, ranks },
        placement: Placement {
            device: DeviceArgs {
                device: DeviceChoice::Auto,
                ranks_per_gpu: 1,
                exact: false,
                cuda_graphs: CudaGraphs::Auto,
                places_taken: 0,
            },
            cpus: CpuBinding::Auto,
        },
        precision: Dtype::Bfloat16.into(),
        kv_cache: KvCache { held: KvCacheDtype::Auto, memory: KvCacheMemory::Fitting },
        address: SocketAddr::from(([0, 0, 0, 0], 3000)),
        supervision: Supervision {
            grace: Duration::from_secs(90),
            restarts: Restarts::Endless,
            silence_allowed: Duration::from_secs(120),
        },
        log: LogConfig { filter: "info".to_owned(), format: LogFormat::Text },
        router: RouterFlags {
            typed: vec![],
            max_concurrent_requests: 128,
            max_batch_prefill_tokens: Tokens(4096),
            max_total_tokens: None,
            step_timeout_s: 60,
            otlp_endpoint: None,
            otlp_service_name: None,
        },
        program: PathBuf::from("/proc/self/exe"),
        runtime_folder: None,
    }
}

fn place() -> Place {
    Place {
        sockets: PathBuf::from("/run/user/1000/lockstep-x"),
        launcher: 42,
        threads_per_rank: 2,
        cpus: Vec::new(),
        kv_cache_per_rank: Bytes(1 << 30),
        context: Tokens(2048),
    }
}

/// One option a line, as a person would write it.
fn written(line: &CommandLine) -> String {
    let mut text = line.process.clone() + ":";
    for argument in &line.arguments {
        let argument = argument.to_string_lossy();
        text += if argument.starts_with("--") { "\n  " } else { " " };
        text += &argument;
    }
    text
}

#[test]
fn a_router_and_its_shards() {
    let config = config(2);
    insta::assert_snapshot!(written(&plan::router(&config, &place())), @r"
    router: router
      --model demo
      --model-id lockstep/demo
      --max-positions 2048
      --shard unix:/run/user/1000/lockstep-x/replica-0-shard-0.sock
      --shard unix:/run/user/1000/lockstep-x/replica-0-shard-1.sock
      --replicas 1
      --hostname 0.0.0.0
      --port 3000
      --reports /run/user/1000/lockstep-x/reports.sock
      --orders /run/user/1000/lockstep-x/orders.sock
      --graceful-termination-timeout 90
      --parent 42
      --log-level info
    ");
    let communicator = Communicator::SharedMemory { descriptor: 9 };
    let shard = ShardIncarnation { replica: ReplicaId(0), rank: Rank(1), epoch: Epoch(3), communicator };
    insta::assert_snapshot!(written(&plan::shard(&config, &place(), &shard)), @r"
    shard-1: shard
      --model demo
      --rank 1
      --world-size 2
      --epoch 3
      --listen unix:/run/user/1000/lockstep-x/replica-0-shard-1.sock
      --communicator shm:/proc/42/fd/9
      --dtype bfloat16
      --quantize as-stored
      --kv-cache-dtype auto
      --kv-cache-bytes 1073741824
      --max-step-tokens 4096
      --threads 2
      --step-timeout 60
      --reports /run/user/1000/lockstep-x/replica-0-reports.sock
      --parent 42
      --log-level info
    ");
}

/// Everything is other than usual.
fn typed() -> ServeConfig {
    let mut config = config(1);
    config.model = ModelFiles::Folder(PathBuf::from("/models/small"));
    config.model_name = "org/small".to_owned();
    config.address = SocketAddr::from(([127, 0, 0, 1], 8080));
    config.placement.device = DeviceArgs {
        device: DeviceChoice::Cuda,
        ranks_per_gpu: 2,
        exact: true,
        cuda_graphs: CudaGraphs::Off,
        places_taken: 0,
    };
    config.precision = Precision { dtype: Dtype::Float32, quantize: Quantize::Int8 };
    config.kv_cache.held = KvCacheDtype::Int8;
    config.log = LogConfig { filter: "debug".to_owned(), format: LogFormat::Json };
    config.router.typed = vec!["--max-best-of".into(), "3".into()];
    config.router.otlp_endpoint = Some("http://collector:4317".to_owned());
    config.router.otlp_service_name = Some("shop".to_owned());
    config
}

#[test]
fn what_was_typed_reaches_the_roles() {
    let config = typed();
    insta::assert_snapshot!(written(&plan::router(&config, &place())), @r"
    router: router
      --model /models/small
      --model-id org/small
      --max-positions 2048
      --shard unix:/run/user/1000/lockstep-x/replica-0-shard-0.sock
      --replicas 1
      --hostname 127.0.0.1
      --port 8080
      --reports /run/user/1000/lockstep-x/reports.sock
      --orders /run/user/1000/lockstep-x/orders.sock
      --graceful-termination-timeout 90
      --max-best-of 3
      --parent 42
      --log-level debug
      --json-output
    ");
    let shard = ShardIncarnation {
        replica: ReplicaId(0),
        rank: Rank(0),
        epoch: Epoch(1),
        communicator: Communicator::Solo,
    };
    insta::assert_snapshot!(written(&plan::shard(&config, &place(), &shard)), @r"
    shard-0: shard
      --model /models/small
      --rank 0
      --world-size 1
      --epoch 1
      --listen unix:/run/user/1000/lockstep-x/replica-0-shard-0.sock
      --communicator solo
      --device cuda
      --ranks-per-gpu 2
      --exact
      --cuda-graphs off
      --dtype float32
      --quantize int8
      --kv-cache-dtype int8
      --kv-cache-bytes 1073741824
      --max-step-tokens 4096
      --threads 2
      --step-timeout 60
      --reports /run/user/1000/lockstep-x/replica-0-reports.sock
      --otlp-endpoint http://collector:4317
      --otlp-service-name shop
      --parent 42
      --log-level debug
      --json-output
    ");
}

#[test]
fn two_replicas_share_a_router_and_nothing_else() {
    let mut config = config(2);
    config.groups.replicas = 2;
    let router = written(&plan::router(&config, &place()));
    let of_groups = router.lines().filter(|line| line.contains("--shard") || line.contains("--replicas"));
    insta::assert_snapshot!(of_groups.collect::<Vec<_>>().join("\n"), @r"
      --shard unix:/run/user/1000/lockstep-x/replica-0-shard-0.sock
      --shard unix:/run/user/1000/lockstep-x/replica-0-shard-1.sock
      --shard unix:/run/user/1000/lockstep-x/replica-1-shard-0.sock
      --shard unix:/run/user/1000/lockstep-x/replica-1-shard-1.sock
      --replicas 2
    ");
    let communicator = Communicator::SharedMemory { descriptor: 9 };
    let shard = ShardIncarnation { replica: ReplicaId(1), rank: Rank(0), epoch: Epoch(1), communicator };
    let shard = written(&plan::shard(&config, &place(), &shard));
    let own = shard.lines().filter(|line| line.contains("replica-1"));
    insta::assert_snapshot!(own.collect::<Vec<_>>().join("\n"), @r"
    replica-1-shard-0: shard
      --listen unix:/run/user/1000/lockstep-x/replica-1-shard-0.sock
      --reports /run/user/1000/lockstep-x/replica-1-reports.sock
    ");
}

#[test]
fn each_rank_of_each_replica_has_processors_of_its_own() {
    let mut config = config(2);
    config.groups.replicas = 2;
    let cpus = ["0-1", "2-3", "4-5", "6-7"].map(|list| list.parse().unwrap());
    let place = Place { cpus: cpus.to_vec(), ..place() };
    let given = |replica, rank| {
        let (replica, rank) = (ReplicaId(replica), Rank(rank));
        let shard = ShardIncarnation { replica, rank, epoch: Epoch(1), communicator: Communicator::Solo };
        let shard = written(&plan::shard(&config, &place, &shard));
        shard.lines().find_map(|line| line.trim().strip_prefix("--cpus ").map(str::to_owned))
    };
    let given = [given(0, 0), given(0, 1), given(1, 0), given(1, 1)];
    assert_eq!(given.map(Option::unwrap), ["0-1", "2-3", "4-5", "6-7"]);
}

#[test]
fn ranks_share_the_cores_and_each_has_one() {
    let cases = [
        (2, (1, 1), 2),
        (2, (1, 2), 1),
        (2, (1, 4), 1),
        (16, (1, 4), 4),
        (7, (1, 2), 3),
        (16, (2, 2), 4),
        (2, (2, 1), 1),
        (2, (2, 2), 1),
    ];
    for (cores, (replicas, ranks), threads) in cases {
        let groups = Groups { replicas, ranks };
        assert_eq!(plan::threads_per_rank(cores, groups), threads, "{cores} cores, {groups:?}");
    }
}
