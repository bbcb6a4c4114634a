//! What was typed: flags, environment names, defaults, help. Nothing is checked here that clap does not check.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::BoolishValueParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use lockstep_process::telemetry::{LogConfig, LogFormat};
use lockstep_proto::{Bytes, Watermark};
use lockstep_shard::decoder::{Dtype, Quantize};
use lockstep_shard::device::DeviceArgs;
use lockstep_shard::kv::KvCacheDtype;
use thiserror::Error;

use crate::hub::HubArgs;
use crate::passthrough::RouterFlags;
use crate::topology::CpuBinding;
use crate::{environment, foreign};

/// Serves text generation from a model split over shard processes.
///
/// Without a subcommand it serves; without a model it serves the demo model that is part of this binary.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, args_conflicts_with_subcommands = true, args_override_self = true)]
pub struct Cli {
    /// Which role to play.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What `serve` takes.
    #[command(flatten)]
    pub serve: ServeArgs,
}

impl Cli {
    /// What this process was started with. Ends it where that makes no sense, or asks for help.
    pub fn read() -> Self {
        let mut command = environment::without_empty(Self::command());
        let matches = command.try_get_matches_from_mut(std::env::args_os());
        let read = matches.and_then(|matches| Self::from_arg_matches(&matches));
        read.unwrap_or_else(|error| foreign::explained(error, &command).with_cmd(&command).exit())
    }

    /// How what is said to standard error is written.
    pub fn log_format(&self) -> LogFormat {
        let is_json = match &self.command {
            None => self.serve.log.json_output,
            Some(Command::Serve(args)) => args.log.json_output,
            Some(Command::Router(args)) => args.json_output,
            Some(Command::Shard(args)) => args.json_output,
            Some(Command::Download(args)) => args.log.json_output,
            Some(Command::Plan(args)) => args.log.json_output,
            Some(Command::DetectWatermark(args)) => args.log.json_output,
            Some(Command::Bench(_)) => false,
        };
        if is_json { LogFormat::Json } else { LogFormat::Text }
    }
}

/// The roles of the binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model: start its shards and a router and keep them alive (the default).
    Serve(Box<ServeArgs>),
    /// Speak HTTP and drive the shards of every replica; `serve` starts it.
    Router(Box<lockstep_router::args::RouterArgs>),
    /// Hold one slice of a model and compute steps; `serve` starts them.
    Shard(lockstep_shard::args::ShardArgs),
    /// Download a model from the Hub, and print the folder it is in.
    Download(DownloadArgs),
    /// Print how a model would be split over shards and what each would hold, without its weights.
    Plan(PlanArgs),
    /// Tell whether a text carries a watermark, from its tokens alone.
    DetectWatermark(DetectArgs),
    /// Drive a running server and print latencies and throughput.
    Bench(lockstep_bench::args::BenchArgs),
}

/// What `serve` takes.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// A local folder, or the name of a model on the Hub; absent or `demo`: the demo model in this binary.
    #[arg(long, env)]
    pub model_id: Option<String>,
    /// What to download from the Hub with.
    #[command(flatten)]
    pub hub: HubArgs,
    /// How many processes each replica of the model is split over.
    #[arg(long, env, default_value_t = 1)]
    pub num_shard: u32,
    /// How many replicas of the model are served side by side, each in processes of its own. Requests go to the one
    /// that has most of them cached among the least loaded; those of one that is lost or restarted go on with another.
    /// With several, SIGHUP restarts one after the other while the others serve.
    #[arg(long, env, default_value_t = 1)]
    pub replicas: u32,
    /// Where it is computed.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Whether each thread that computes keeps to a processor of its own, and each shard's to those beside one memory;
    /// auto: on hosts with several memory nodes. A shard a node, --num-shard or --replicas, has its weights beside its
    /// processors.
    #[arg(long, env, value_enum, default_value_t = CpuBinding::Auto)]
    pub cpu_binding: CpuBinding,
    /// What weights and KV cache are kept in.
    #[arg(long, env, default_value = "bfloat16")]
    pub dtype: Dtype,
    /// What the weights of linear layers are quantized to; absent: as the model's files have them.
    #[arg(long, env, default_value = "as-stored")]
    pub quantize: Quantize,
    /// What keys and values are kept in; auto: as the weights.
    #[arg(long, env, default_value = "auto")]
    pub kv_cache_dtype: KvCacheDtype,
    /// Memory for the KV cache over all shards of all replicas, such as 4GiB; absent: enough for every permitted request at
    /// full length, or half of what is free after the weights; on GPUs what is free.
    #[arg(long, env)]
    pub kv_cache_memory: Option<Memory>,
    /// The IP address to listen on; what is none means every address.
    #[arg(long, env, default_value = "0.0.0.0")]
    pub hostname: String,
    /// The port to listen on; 0 takes a free one.
    #[arg(long, short, env, default_value_t = 3000)]
    pub port: u16,
    /// Seconds that running requests may take to end after a stop is asked for.
    #[arg(long, short, env, default_value_t = 90)]
    pub graceful_termination_timeout: u64,
    /// How often shards or router may fall within --restart-window once the service was ready; one time more ends
    /// the server with an error [default: they are restarted whenever they fall].
    #[arg(long, env)]
    pub max_restarts: Option<usize>,
    /// Seconds within which falls are counted.
    #[arg(long, env, default_value_t = 3600)]
    pub restart_window: u64,
    /// Seconds without a sign of life after which shards or router count as hung and are restarted. A shard that
    /// loads gives one with each part of the weights.
    #[arg(long, env, default_value_t = 120, value_parser = clap::value_parser!(u64).range(3..))]
    pub liveness_timeout: u64,
    /// Where this user's sockets belong.
    #[arg(long, env, hide = true)]
    pub xdg_runtime_dir: Option<PathBuf>,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Handed on to the router as typed.
    #[command(flatten)]
    pub router: RouterFlags,
}

/// Who said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Whoever started this process.
    CommandLine,
    /// A variable, which may be about something else.
    Environment,
}

impl ServeArgs {
    /// Who named the host: shells and containers set `HOSTNAME` to its name.
    pub fn hostname_origin(&self) -> Origin {
        match std::env::var_os("HOSTNAME") {
            Some(name) if name == *self.hostname => Origin::Environment,
            Some(_) | None => Origin::CommandLine,
        }
    }
}

/// What `plan` takes.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// A local folder, or the name of a model on the Hub; absent: the demo model in this binary.
    #[arg(long, env)]
    pub model_id: Option<String>,
    /// What to download its config.json with.
    #[command(flatten)]
    pub hub: HubArgs,
    /// How many processes each replica of the model is split over.
    #[arg(long, env, default_value_t = 1)]
    pub num_shard: u32,
    /// How many replicas of the model are served side by side.
    #[arg(long, env, default_value_t = 1)]
    pub replicas: u32,
    /// What weights and KV cache are kept in.
    #[arg(long, env, default_value = "bfloat16")]
    pub dtype: Dtype,
    /// What the weights of linear layers are quantized to; absent: as the model's files have them.
    #[arg(long, env, default_value = "as-stored")]
    pub quantize: Quantize,
    /// What keys and values are kept in; auto: as the weights.
    #[arg(long, env, default_value = "auto")]
    pub kv_cache_dtype: KvCacheDtype,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What `download` takes.
#[derive(Args, Debug)]
pub struct DownloadArgs {
    /// The name of a model on the Hub, such as org/name.
    #[arg(value_name = "MODEL_ID", required_unless_present = "model_id")]
    pub model: Option<String>,
    /// The same.
    #[arg(long, env)]
    pub model_id: Option<String>,
    /// What to download with.
    #[command(flatten)]
    pub hub: HubArgs,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What `detect-watermark` takes.
#[derive(Args, Debug)]
pub struct DetectArgs {
    /// The file that holds the text; absent: standard input.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The model whose tokenizer is used: a local folder or the name of a model on the Hub; absent: the demo model.
    #[arg(long, env)]
    pub model_id: Option<String>,
    /// The share of the vocabulary that the watermark favours, as the server was told.
    #[arg(long, env = "WATERMARK_GAMMA", default_value_t = Watermark::USUAL.gamma)]
    pub gamma: f32,
    /// The score above which a text counts as watermarked. At 4, one text in 30,000 without one does.
    #[arg(long, default_value_t = 4.0)]
    pub threshold: f64,
    /// How often a pair of tokens counts that comes again. Texts repeat themselves, and repeats are no evidence.
    #[arg(long, value_enum, default_value_t = Repeats::Once)]
    pub repeats: Repeats,
    /// Print a line of JSON.
    #[arg(long)]
    pub json: bool,
    /// What to fetch the model with.
    #[command(flatten)]
    pub hub: HubArgs,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// How often a pair of tokens counts that comes again in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Repeats {
    /// The first time.
    Once,
    /// Each time.
    Each,
}

/// How to log.
#[derive(Args, Debug)]
pub struct LogArgs {
    /// error, warn, info, debug, trace, off, or a filter such as `info,lockstep_router=debug`.
    #[arg(long, env, default_value = "info")]
    pub log_level: String,
    /// Log one JSON object a line; `plan` prints its plan as one as well.
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub json_output: bool,
}

/// An amount of memory as typed: `4GiB`, `512MB`, `1000000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory(pub Bytes);

/// What was typed is no amount of memory.
#[derive(Debug, Error)]
#[error("read {found:?} as an amount of memory; write a whole number with B, KB, MB, GB, KiB, MiB or GiB")]
pub struct MemoryError {
    found: String,
}

impl FromStr for Memory {
    type Err = MemoryError;

    fn from_str(text: &str) -> Result<Self, MemoryError> {
        let failed = || MemoryError { found: text.to_owned() };
        let digits = text.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = text.trim()[digits.len()..].to_ascii_lowercase();
        let factor: u64 = match unit.as_str() {
            "" | "b" => 1,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "kib" | "k" => 1 << 10,
            "mib" | "m" => 1 << 20,
            "gib" | "g" => 1 << 30,
            _ => return Err(failed()),
        };
        let count: u64 = digits.trim().parse().map_err(|_| failed())?;
        count.checked_mul(factor).map(|bytes| Self(Bytes(bytes))).ok_or_else(failed)
    }
}

impl LogArgs {
    /// The same as telemetry takes it.
    pub fn config(&self) -> LogConfig {
        let format = if self.json_output { LogFormat::Json } else { LogFormat::Text };
        LogConfig { filter: self.log_level.clone(), format }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_what_happens_without_a_subcommand() {
        let cli = Cli::parse_from(["lockstep", "--port", "8080", "--num-shard", "2"]);
        assert!(cli.command.is_none());
        assert_eq!((cli.serve.port, cli.serve.num_shard), (8080, 2));
    }

    #[test]
    fn switches_of_the_environment_are_read_as_templates_write_them() {
        let command = Cli::command();
        let args =
            command.get_arguments().chain(command.get_subcommands().flat_map(clap::Command::get_arguments));
        let is_switch = |arg: &&Arg| {
            let flag = matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse);
            arg.get_env().is_some() && (flag || arg.get_long() == Some("prefix-caching"))
        };
        let switches: Vec<&Arg> = args.filter(is_switch).collect();
        assert!(switches.len() > 6, "{switches:?}");
        for switch in switches {
            for (word, expected) in [
                ("1", true),
                ("yes", true),
                ("true", true),
                ("On", true),
                ("0", false),
                ("no", false),
                ("FALSE", false),
            ] {
                // A variable is read by the same parser as a value.
                let taking = switch.clone().action(ArgAction::Set).num_args(1).default_value(None);
                let flag = format!("--{}", switch.get_long().unwrap());
                let command = clap::Command::new("one").arg(taking);
                let matches = command.try_get_matches_from(["one", &flag, word]).unwrap();
                assert_eq!(matches.get_one(switch.get_id().as_str()), Some(&expected), "{flag} {word}");
            }
        }
    }

    #[test]
    fn amounts_of_memory_read_as_written() {
        let cases = [
            ("1", Some(1)),
            ("4GiB", Some(4 << 30)),
            ("512mb", Some(512_000_000)),
            ("2 GiB", Some(2 << 30)),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<Memory>().ok().map(|memory| memory.0.0), bytes, "{text}");
        }
        for text in ["", "GiB", "4GX", "-1", "1.5GiB", "99999999999999GiB"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
    }
}
