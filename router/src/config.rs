//! What was typed, checked and complete: no `Option` that means "default".

use std::path::PathBuf;
use std::time::Duration;

use lockstep_models::ModelFiles;
use lockstep_process::telemetry::{LogConfig, LogFormat};
use lockstep_process::traces::{Role, TraceConfig, Traces};
use lockstep_proto::{Tokens, Watermark};
use lockstep_scheduler::{Limits, PrefixCaching, RunAhead};
use thiserror::Error;

use crate::app::{AppConfig, KeptAnswers, Patience};
use crate::args::{GenerationConfig, RouterArgs, ToolCallStyle};
use crate::engine::EngineConfig;
use crate::http::admission::parse_timeout;
use crate::http::auth::{AccessConfig, MetricsAccess};
use crate::http::cors::OriginError;
use crate::http::fields::UnknownFields;
use crate::journal::JournalConfig;
use crate::shards::{AddressError, ShardAddress};
use crate::validation::{OutOfRange, RequestLimits, UNLIMITED, check_watermark};

/// A flag has a value that makes no sense.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// An address of no known kind.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Groups of different sizes.
    #[error(
        "accept --replicas {replicas}: {ranks} ranks cannot be divided into so many groups of the same size; give --shard once for each rank of each replica"
    )]
    UnevenReplicas {
        /// How many groups.
        replicas: usize,
        /// How many ranks.
        ranks: usize,
    },
    /// A number is too small.
    #[error("accept --{flag} {found}: it must be at least {least}")]
    TooSmall {
        /// The flag.
        flag: &'static str,
        /// Its value.
        found: u64,
        /// The smallest that works.
        least: u64,
    },
    /// A watermark that marks nothing.
    #[error("accept --watermark-{name} {found}: it must be {rule}")]
    Watermark {
        /// `gamma` or `delta`.
        name: &'static str,
        /// Its value.
        found: f32,
        /// What it may be.
        rule: &'static str,
    },
    /// Nobody could come back for what is written down.
    #[error(
        "accept --journal without --resume-window: give the seconds that a stream waits for its client"
    )]
    JournalWithoutWindow,
    /// No time for a request.
    #[error("accept --request-timeout {found}: it must be a number of seconds above 0")]
    NoTimeout {
        /// Its value.
        found: f64,
    },
    /// An origin that no browser sends.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// Prompts may be as long as the whole context.
    #[error(
        "accept --max-input-tokens {input}: it must be less than --max-total-tokens {total}, to leave room for an answer"
    )]
    NoRoom {
        /// `--max-input-tokens`.
        input: u32,
        /// `--max-total-tokens`.
        total: u32,
    },
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Address or name.
    pub hostname: String,
    /// Port.
    pub port: u16,
    /// Connections of clients at most.
    pub most_connections: usize,
}

/// How the model is talked to in chats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatConfig {
    /// What chat requests leave open.
    pub generation_config: GenerationConfig,
    /// How the model writes calls.
    pub tool_call_style: ToolCallStyle,
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopping {
    /// How long running requests may take to finish.
    pub drain_timeout: Duration,
    /// Process to die with.
    pub parent: Option<u32>,
}

/// Whose names metrics have besides ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricAliases {
    /// Nobody's.
    None,
    /// vLLM's, where an endpoint picker reads them.
    Vllm,
}

/// Where router and launcher talk to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LauncherSockets {
    /// The launcher hears of groups and of signs of life.
    pub reports: Option<PathBuf>,
    /// The router hears which groups are to leave.
    pub orders: Option<PathBuf>,
}

/// Everything the router is told.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// The model's files.
    pub files: ModelFiles,
    /// The name clients see.
    pub model_id: String,
    /// The ranks of each replica, in order.
    pub replicas: Vec<Vec<ShardAddress>>,
    /// Where to listen.
    pub listen: Listen,
    /// What the parts are configured with.
    pub app: AppConfig,
    /// The longest context the shards compute, where it is not what the model's files say.
    pub max_positions: Option<Tokens>,
    /// How the model is talked to in chats.
    pub chats: ChatConfig,
    /// Whose names metrics have besides ours.
    pub aliases: MetricAliases,
    /// What there is to tell the launcher and to hear of it.
    pub launcher: LauncherSockets,
    /// How the process ends.
    pub stopping: Stopping,
    /// How to log.
    pub log: LogConfig,
    /// Where spans go and which.
    pub traces: TraceConfig,
}

impl RouterConfig {
    /// Checks and completes what was typed.
    ///
    /// # Errors
    /// When a value makes no sense.
    pub fn from_args(args: RouterArgs) -> Result<Self, ConfigError> {
        let replicas = replicas(&args)?;
        let app = app_config(&args)?;
        let endpoint = args
            .otlp_endpoint
            .or(args.otel_exporter_otlp_traces_endpoint)
            .or(args.otel_exporter_otlp_endpoint);
        let service = args.otlp_service_name.or(args.otel_service_name);
        let traces = TraceConfig::new(Role::Router, endpoint, service, args.trace_sampling_ratio);
        let format = if args.json_output { LogFormat::Json } else { LogFormat::Text };
        Ok(Self {
            files: ModelFiles::from_argument(&args.model),
            model_id: args.model_id,
            replicas,
            listen: Listen {
                hostname: args.hostname,
                port: args.port,
                most_connections: args.max_connections,
            },
            app,
            max_positions: args.max_positions.map(Tokens),
            chats: ChatConfig {
                generation_config: args.generation_config,
                tool_call_style: args.tool_call_style,
            },
            aliases: if args.vllm_metrics { MetricAliases::Vllm } else { MetricAliases::None },
            launcher: LauncherSockets { reports: args.reports, orders: args.orders },
            stopping: Stopping {
                drain_timeout: Duration::from_secs(args.graceful_termination_timeout),
                parent: args.parent,
            },
            log: LogConfig { filter: args.log_level, format },
            traces,
        })
    }
}

/// The ranks in as many groups of the same size as there are replicas.
fn replicas(args: &RouterArgs) -> Result<Vec<Vec<ShardAddress>>, ConfigError> {
    let addresses: Vec<ShardAddress> =
        args.shards.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
    let (ranks, replicas) = (addresses.len(), args.replicas);
    match ranks.checked_div(replicas) {
        Some(size) if size > 0 && size * replicas == ranks => {
            Ok(addresses.chunks(size).map(<[ShardAddress]>::to_vec).collect())
        }
        Some(_) | None => Err(ConfigError::UnevenReplicas { replicas, ranks }),
    }
}

fn app_config(args: &RouterArgs) -> Result<AppConfig, ConfigError> {
    let at_least_one = [
        ("client-timeout", args.client_timeout),
        ("max-concurrent-requests", u64::from(args.max_concurrent_requests)),
        ("max-batch-prefill-tokens", u64::from(args.max_batch_prefill_tokens)),
        ("max-batch-size", u64::from(args.max_batch_size.unwrap_or(1))),
        ("max-best-of", u64::from(args.max_best_of)),
        ("default-max-new-tokens", u64::from(args.default_max_new_tokens.unwrap_or(1))),
        ("max-connections", size(args.max_connections)),
        ("validation-workers", size(args.validation_workers)),
        ("payload-limit", size(args.payload_limit)),
        ("step-timeout", args.step_timeout),
        ("min-step-timeout", args.min_step_timeout),
    ];
    if let Some((flag, found)) = at_least_one.into_iter().find(|(_, found)| *found == 0) {
        return Err(ConfigError::TooSmall { flag, found, least: 1 });
    }
    Ok(AppConfig {
        max_concurrent_requests: args.max_concurrent_requests as usize,
        max_client_batch_size: args.max_client_batch_size,
        payload_limit_bytes: args.payload_limit,
        validation_workers: args.validation_workers,
        limits: request_limits(args)?,
        engine: EngineConfig {
            limits: scheduler_limits(args),
            step_timeout: Duration::from_secs(args.step_timeout),
            min_step_timeout: Duration::from_secs(args.min_step_timeout),
            group_loss_timeout: Duration::from_secs(args.group_loss_timeout),
            run_ahead: RunAhead::Allowed,
        },
        patience: Patience {
            request_timeout: args.request_timeout.map(request_timeout).transpose()?,
            queue_timeout: (args.max_queue_time > 0).then(|| Duration::from_secs(args.max_queue_time)),
            client_timeout: Duration::from_secs(args.client_timeout),
            resume_window: (args.resume_window > 0).then(|| Duration::from_secs(args.resume_window)),
        },
        kept: KeptAnswers {
            response_cache_bytes: args.response_cache_bytes,
            journal: journal_config(args)?,
        },
        unknown_fields: if args.strict { UnknownFields::Refuse } else { UnknownFields::Ignore },
        access: access_config(args)?,
        compute_type: args.compute_type.clone(),
        traces: Traces::default(),
    })
}

/// A journal of streams that end with their connection has nothing to tell the next process.
fn journal_config(args: &RouterArgs) -> Result<Option<JournalConfig>, ConfigError> {
    match (&args.journal, args.resume_window) {
        (None, _) => Ok(None),
        (Some(_), 0) => Err(ConfigError::JournalWithoutWindow),
        (Some(folder), _) => Ok(Some(JournalConfig { folder: folder.clone(), fsync: args.journal_fsync })),
    }
}

fn access_config(args: &RouterArgs) -> Result<AccessConfig, ConfigError> {
    let origins = args.cors_allow_origins.iter().map(|origin| origin.parse()).collect::<Result<_, _>>()?;
    Ok(AccessConfig {
        keys: args.api_keys.clone(),
        key_file: args.api_key_file.clone(),
        metrics: if args.protect_metrics { MetricsAccess::Keyed } else { MetricsAccess::Open },
        origins,
    })
}

fn request_timeout(seconds: f64) -> Result<Duration, ConfigError> {
    parse_timeout(seconds).ok_or(ConfigError::NoTimeout { found: seconds })
}

fn request_limits(args: &RouterArgs) -> Result<RequestLimits, ConfigError> {
    let total = args.max_total_tokens.unwrap_or(UNLIMITED);
    if total < 2 {
        return Err(ConfigError::TooSmall { flag: "max-total-tokens", found: u64::from(total), least: 2 });
    }
    let input = args.max_input_tokens.unwrap_or(total - 1);
    if input == 0 {
        return Err(ConfigError::TooSmall { flag: "max-input-tokens", found: 0, least: 1 });
    }
    if input >= total {
        return Err(ConfigError::NoRoom { input, total });
    }
    let watermark = Watermark { gamma: args.watermark_gamma, delta: args.watermark_delta };
    let watermark = check_watermark(watermark)
        .map_err(|OutOfRange { name, found, rule }| ConfigError::Watermark { name, found, rule })?;
    Ok(RequestLimits {
        max_best_of: args.max_best_of,
        max_stop_sequences: args.max_stop_sequences,
        max_top_n_tokens: args.max_top_n_tokens,
        max_input_tokens: Tokens(input),
        max_total_tokens: Tokens(total),
        default_max_new_tokens: Tokens(args.default_max_new_tokens.unwrap_or(UNLIMITED)),
        vocabulary_size: UNLIMITED,
        watermark,
    })
}

fn scheduler_limits(args: &RouterArgs) -> Limits {
    Limits {
        // The permits of the HTTP side are the limit. A cancelled sequence may be known a step longer than
        // its permit is held, so the scheduler's own limit is twice that and never bites first.
        max_requests: args.max_concurrent_requests.saturating_mul(2),
        max_queue_tokens: Tokens(args.max_queue_tokens),
        max_running: args.max_batch_size.unwrap_or(args.max_concurrent_requests),
        max_step_tokens: Tokens(args.max_batch_prefill_tokens),
        max_total: Tokens(args.max_total_tokens.unwrap_or(UNLIMITED)),
        prefix_cache: if args.prefix_caching { PrefixCaching::Enabled } else { PrefixCaching::Disabled },
    }
}

fn size(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        router: RouterArgs,
    }

    fn config(flags: &[&str]) -> Result<RouterConfig, ConfigError> {
        let words = ["router", "--shard", "unix:/tmp/a.sock"].iter().chain(flags);
        RouterConfig::from_args(Cli::try_parse_from(words).unwrap().router)
    }

    #[test]
    fn defaults_are_the_reference_servers() {
        let config = config(&[]).unwrap();
        assert_eq!(config.app.max_concurrent_requests, 128);
        assert_eq!(config.app.payload_limit_bytes, 2_000_000);
        assert_eq!((config.app.limits.max_best_of, config.app.limits.max_stop_sequences), (2, 4));
        assert_eq!(config.stopping.drain_timeout, Duration::from_secs(90));
    }

    #[test]
    fn ranks_are_dealt_out_in_their_order() {
        let flags = ["--shard", "unix:/b", "--shard", "unix:/c", "--shard", "unix:/d", "--replicas", "2"];
        let replicas = config(&flags).unwrap().replicas;
        let written =
            replicas.iter().map(|group| group.iter().map(ToString::to_string).collect::<Vec<_>>());
        let expected = [["unix:/tmp/a.sock", "unix:/b"], ["unix:/c", "unix:/d"]];
        assert_eq!(written.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let cases: [(&[&str], &str); 9] = [
            (&["--max-concurrent-requests", "0"], "--max-concurrent-requests 0"),
            (&["--max-total-tokens", "1"], "--max-total-tokens 1"),
            (&["--max-total-tokens", "10", "--max-input-tokens", "10"], "--max-input-tokens 10"),
            (&["--watermark-gamma", "1"], "--watermark-gamma 1"),
            (&["--watermark-delta", "101"], "--watermark-delta 101"),
            (&["--journal", "/tmp"], "--resume-window"),
            (&["--shard", "nowhere"], "\"nowhere\""),
            (&["--replicas", "2"], "--replicas 2: 1 ranks"),
            (&["--replicas", "0"], "--replicas 0"),
        ];
        for (flags, expected) in cases {
            let error = config(flags).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
