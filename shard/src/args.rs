//! What `lockstep shard` takes on its command line. The launcher writes it; people rarely do.

use std::path::PathBuf;

use clap::Args;
use lockstep_models::ModelFiles;
use lockstep_process::cpus::CpuList;

use crate::config::{CommunicatorAddress, ListenAddress};
use crate::decoder::{Dtype, Quantize};
use crate::device::DeviceArgs;
use crate::kv::KvCacheDtype;

/// Run one rank of a model.
#[derive(Args, Clone, Debug)]
pub struct ShardArgs {
    /// The model's files: "demo" or a folder in Hugging Face layout
    #[arg(long, value_name = "MODEL", default_value = "demo", value_parser = parse_model)]
    pub model: ModelFiles,

    /// This rank's place in its group
    #[arg(long, default_value_t = 0)]
    pub rank: u32,

    /// How many ranks the group has: 1, 2, 4 or more, a power of two
    #[arg(long, default_value_t = 1)]
    pub world_size: u32,

    /// Which incarnation of the group this is
    #[arg(long, default_value_t = 0)]
    pub epoch: u64,

    /// Where the router connects: unix:/path.sock or tcp:ip:port
    #[arg(long, value_name = "ADDRESS")]
    pub listen: ListenAddress,

    /// How the ranks exchange data: solo, shm:/path or tcp:host:port (where rank 0 listens)
    #[arg(long, value_name = "ADDRESS", default_value = "solo")]
    pub communicator: CommunicatorAddress,

    /// Where it computes
    #[command(flatten)]
    pub device: DeviceArgs,

    /// What weights are held in
    #[arg(long, value_enum, default_value_t = Dtype::Bfloat16)]
    pub dtype: Dtype,

    /// What keys and values are held in; auto: as the weights
    #[arg(long, value_enum, default_value_t = KvCacheDtype::Auto)]
    pub kv_cache_dtype: KvCacheDtype,
    /// How the weights of linear layers are quantized
    #[arg(long, value_enum, default_value_t = Quantize::AsStored)]
    pub quantize: Quantize,

    /// Memory for this rank's KV blocks, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20)]
    pub kv_cache_bytes: u64,

    /// Most tokens of a step: on a GPU, what is computed once before its memory is dealt out
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    pub max_step_tokens: u32,

    /// Threads that compute; 0 means one for each of --cpus, or one a core
    #[arg(long, default_value_t = 0)]
    pub threads: usize,

    /// Processors to compute on, one thread on each, such as 0-7,16; absent: wherever the system puts threads
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// How long a rank waits for the slowest of its group before it gives the group up, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub step_timeout: u64,

    /// Where OpenTelemetry spans go, as the router's
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,

    /// The router's service.name on spans; this rank's is beside it
    #[arg(long, value_name = "NAME")]
    pub otlp_service_name: Option<String>,

    /// Socket of the launcher, for signs of life
    #[arg(long, value_name = "PATH")]
    pub reports: Option<PathBuf>,

    /// End when the process of this id, which must be the parent, ends
    #[arg(long, value_name = "PID")]
    pub parent: Option<u32>,

    /// What to log: a level, or a filter such as "info,lockstep_shard=debug"
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,

    /// Log one JSON object a line
    #[arg(long)]
    pub json_output: bool,
}

#[expect(clippy::unnecessary_wraps, reason = "clap wants a fallible parser")]
fn parse_model(argument: &str) -> Result<ModelFiles, std::convert::Infallible> {
    Ok(ModelFiles::from_argument(argument))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::ShardArgs;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        shard: ShardArgs,
    }

    #[test]
    fn a_step_may_take_from_a_second_to_a_day() {
        let parse = |seconds| {
            let cli = Cli::try_parse_from(["shard", "--listen", "unix:/a", "--step-timeout", seconds]);
            cli.map(|cli| cli.shard.step_timeout).ok()
        };
        assert_eq!(parse("1"), Some(1));
        assert_eq!(parse("86400"), Some(86_400));
        for refused in ["0", "86401", "18446744073709551615", "-1"] {
            assert_eq!(parse(refused), None, "{refused}");
        }
    }
}
