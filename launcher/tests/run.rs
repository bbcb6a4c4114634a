//! The shell with a program that is no role: how a unit that never comes up ends.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_launcher::config::{KvCache, KvCacheMemory, Placement, ServeConfig, Supervision};
use lockstep_launcher::passthrough::RouterFlags;
use lockstep_launcher::run;
use lockstep_launcher::supervisor::{Groups, Restarts};
use lockstep_launcher::topology::CpuBinding;
use lockstep_models::ModelFiles;
use lockstep_process::telemetry::{LogConfig, LogFormat};
use lockstep_proto::{Bytes, Tokens};
use lockstep_shard::decoder::Dtype;
use lockstep_shard::device::{CudaGraphs, DeviceArgs, DeviceChoice};
use lockstep_shard::kv::KvCacheDtype;

fn script(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("role");
    std::fs::write(&path, text).expect("a file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

fn config(program: PathBuf, runtime_folder: PathBuf) -> ServeConfig {
    ServeConfig {
        model: ModelFiles::EmbeddedDemo,
        model_name: "none".to_owned(),
        groups: Groups { replicas: 1, ranks: 2 },
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
        kv_cache: KvCache { held: KvCacheDtype::Auto, memory: KvCacheMemory::Fixed(Bytes(1 << 20)) },
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9)),
        supervision: Supervision {
            grace: Duration::from_secs(90),
            restarts: Restarts::Endless,
            silence_allowed: Duration::from_secs(120),
        },
        log: LogConfig { filter: "info".to_owned(), format: LogFormat::Text },
        router: RouterFlags {
            max_total_tokens: None,
            typed: vec![],
            max_concurrent_requests: 1,
            max_batch_prefill_tokens: Tokens(4096),
            step_timeout_s: 60,
            otlp_endpoint: None,
            otlp_service_name: None,
        },
        program,
        runtime_folder: Some(runtime_folder),
    }
}

fn left_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn shards_that_never_come_up_are_given_up_with_their_last_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let sockets = tempfile::tempdir().expect("a folder");
    // The router and rank 1 would run for ever.
    let text = "#!/bin/sh\n\
                case \"$*\" in *'--rank 0'*) echo 'no such luck' >&2; exit 3;; esac\n\
                exec sleep 1000\n";
    let config = config(script(folder.path(), text), sockets.path().to_path_buf());
    let error = run::serve(&config, Instant::now()).expect_err("nothing comes up").to_string();
    assert_eq!(
        error,
        "start the shards: gave up after 5 attempts; the last shard-0 ended with exit code 3 and said last:\
         \n  no such luck"
    );
    assert_eq!(left_in(sockets.path()), Vec::<String>::new());
}

#[test]
fn a_program_that_is_not_there_is_given_up_too() {
    let sockets = tempfile::tempdir().expect("a folder");
    let config = config(PathBuf::from("/nonexistent/lockstep"), sockets.path().to_path_buf());
    let error = run::serve(&config, Instant::now()).expect_err("nothing comes up").to_string();
    assert!(error.contains("not started: No such file or directory"), "{error}");
}
