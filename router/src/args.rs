//! What was typed: flags and environment names of the router.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args, ValueEnum};
use lockstep_proto::Watermark;

use crate::http::auth::ApiKey;
use crate::journal::Fsync;
use crate::tools::CallStyle;

/// What stands in for sampling parameters that a chat request leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GenerationConfig {
    /// What the model's generation_config.json says.
    Auto,
    /// Neutral values.
    Ignore,
}

/// How the model writes the calls it makes of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ToolCallStyle {
    /// As its chat template shows.
    Auto,
    /// {"name": …, "parameters": …}, alone or after <|python_tag|>.
    Llama3,
    /// <tool_call>{"name": …, "arguments": …}</tool_call>.
    Hermes,
    /// [TOOL_CALLS] [{"name": …, "arguments": …}].
    Mistral,
    /// [TOOL_CALLS]name[ARGS]{…}.
    MistralArgs,
    /// {"name": …, "arguments": …} alone, or a list of such objects.
    Json,
}

impl ToolCallStyle {
    /// The style that was typed; `None` where the template decides.
    pub fn forced(self) -> Option<CallStyle> {
        match self {
            Self::Auto => None,
            Self::Llama3 => Some(CallStyle::Llama3),
            Self::Hermes => Some(CallStyle::Hermes),
            Self::Mistral => Some(CallStyle::Mistral),
            Self::MistralArgs => Some(CallStyle::MistralArgs),
            Self::Json => Some(CallStyle::Json),
        }
    }
}

/// Serves HTTP and drives the shards of one model.
#[derive(Args, Clone, Debug)]
pub struct RouterArgs {
    /// The model's files: "demo" or a folder.
    #[arg(long, default_value = "demo")]
    pub model: String,

    /// The name clients see.
    #[arg(long, env = "MODEL_ID", default_value = "lockstep/demo")]
    pub model_id: String,

    /// Where a rank listens, once for each rank in their order: unix:/path.sock or tcp:host:port.
    #[arg(long = "shard", required = true, value_name = "ADDRESS")]
    pub shards: Vec<String>,

    /// How many replicas the ranks make up, the first ones the first replica.
    #[arg(long, env = "REPLICAS", default_value_t = 1)]
    pub replicas: usize,

    /// Address to listen on.
    #[arg(long, env = "HOSTNAME", default_value = "0.0.0.0")]
    pub hostname: String,

    /// Port to listen on.
    #[arg(long, short, env = "PORT", default_value_t = 3000)]
    pub port: u16,

    /// Requests under way at most; one more is answered 429.
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS", default_value_t = 128)]
    pub max_concurrent_requests: u32,

    /// Largest `best_of`.
    #[arg(long, env = "MAX_BEST_OF", default_value_t = 2)]
    pub max_best_of: u32,

    /// Most stop sequences of one request.
    #[arg(long, env = "MAX_STOP_SEQUENCES", default_value_t = 4)]
    pub max_stop_sequences: usize,

    /// Largest `top_n_tokens` and `top_logprobs`.
    #[arg(long, env = "MAX_TOP_N_TOKENS", default_value_t = 5)]
    pub max_top_n_tokens: u32,

    /// Share of the vocabulary that a watermark favours at each position, where a request names none.
    #[arg(long, env = "WATERMARK_GAMMA", default_value_t = Watermark::USUAL.gamma)]
    pub watermark_gamma: f32,

    /// What a watermark adds to the logits of that share, where a request names nothing.
    #[arg(long, env = "WATERMARK_DELTA", default_value_t = Watermark::USUAL.delta)]
    pub watermark_delta: f32,

    /// Tokens of a prompt at most [default: one less than --max-total-tokens].
    #[arg(long, alias = "max-input-length", env = "MAX_INPUT_TOKENS")]
    pub max_input_tokens: Option<u32>,

    /// Tokens of prompt and output together at most [default: what model and cache hold].
    #[arg(long, env = "MAX_TOTAL_TOKENS")]
    pub max_total_tokens: Option<u32>,

    /// Tokens of the longest context the shards compute [default: what the model's config.json says].
    #[arg(long)]
    pub max_positions: Option<u32>,

    /// Tokens of output where a request names no number [default: what is left of the context].
    #[arg(long, env = "DEFAULT_MAX_NEW_TOKENS")]
    pub default_max_new_tokens: Option<u32>,

    /// Tokens one step carries at most.
    #[arg(long, env = "MAX_BATCH_PREFILL_TOKENS", default_value_t = 4096)]
    pub max_batch_prefill_tokens: u32,

    /// Sequences computed at once [default: --max-concurrent-requests].
    #[arg(long, env = "MAX_BATCH_SIZE")]
    pub max_batch_size: Option<u32>,

    /// Whether KV blocks are kept for later requests that begin alike.
    #[arg(long, env = "PREFIX_CACHING", default_value_t = true, action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub prefix_caching: bool,

    /// Bytes of a request's body at most.
    #[arg(long, env = "PAYLOAD_LIMIT", default_value_t = 2_000_000)]
    pub payload_limit: usize,

    /// Prompts of one request at most.
    #[arg(long, env = "MAX_CLIENT_BATCH_SIZE", default_value_t = 4)]
    pub max_client_batch_size: usize,

    /// Threads that tokenize and render chat templates.
    #[arg(long, env = "VALIDATION_WORKERS", default_value_t = 2)]
    pub validation_workers: usize,

    /// Whether chat requests take the temperature, top_p and so on that they do not name from the model's
    /// generation_config.json. Its end tokens always count; /generate never samples unless it is asked to.
    #[arg(long, env = "GENERATION_CONFIG", value_enum, default_value_t = GenerationConfig::Auto)]
    pub generation_config: GenerationConfig,

    /// How the model writes the calls it makes of `tools`.
    #[arg(long, env = "TOOL_CALL_STYLE", value_enum, default_value_t = ToolCallStyle::Auto)]
    pub tool_call_style: ToolCallStyle,

    /// Seconds after which any step counts as hung and its shards as lost. Steps that take less time by what steps
    /// took before count as hung sooner.
    #[arg(long, env = "STEP_TIMEOUT", default_value_t = 60)]
    pub step_timeout: u64,

    /// Seconds that every step may take.
    #[arg(long, env = "MIN_STEP_TIMEOUT", default_value_t = 2)]
    pub min_step_timeout: u64,

    /// Seconds that running requests wait for lost shards.
    #[arg(long, env = "GROUP_LOSS_TIMEOUT", default_value_t = 120)]
    pub group_loss_timeout: u64,

    /// Seconds that running requests may take to finish after SIGTERM or Ctrl-C.
    #[arg(long, env = "GRACEFUL_TERMINATION_TIMEOUT", default_value_t = 90)]
    pub graceful_termination_timeout: u64,

    /// Tokens that may wait in the queue together; one request more is answered 429.
    #[arg(long, env = "MAX_QUEUE_TOKENS", default_value_t = 1_000_000)]
    pub max_queue_tokens: u32,

    /// Seconds that a request may wait in the queue, its first step included; one that waited longer is answered 429.
    /// 0: as long as it takes.
    #[arg(long, env = "MAX_QUEUE_TIME", default_value_t = 600)]
    pub max_queue_time: u64,

    /// Connections of clients at most, and no more than the limit of open files has room for; who comes later is
    /// answered 429, but for probes.
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 4096)]
    pub max_connections: usize,

    /// Seconds a request may take that has no x-request-timeout header [default: as long as it takes].
    #[arg(long, env = "REQUEST_TIMEOUT")]
    pub request_timeout: Option<f64>,

    /// Seconds a client may take to send a head, the next piece of a body or a whole small one, and to read the next
    /// piece of an answer; then its connection is closed.
    #[arg(long, env = "CLIENT_TIMEOUT", default_value_t = 90)]
    pub client_timeout: u64,

    /// Seconds a stream goes on without its connection. Its events have ids then, and a client that comes back
    /// with the last one it saw as Last-Event-ID gets the rest. 0 ends a request with its connection.
    #[arg(long, env = "RESUME_WINDOW", default_value_t = 0)]
    pub resume_window: u64,

    /// Folder to write streams down in, so that clients may come back for them after this process has died as well;
    /// needs --resume-window. It holds prompts and answers.
    #[arg(long, env = "JOURNAL", value_name = "DIR")]
    pub journal: Option<PathBuf>,

    /// When what is written down is brought to the disk. A process that dies loses nothing either way; a machine that
    /// dies loses half a minute, a second, or nothing.
    #[arg(long, env = "JOURNAL_FSYNC", value_enum, default_value_t = Fsync::Interval)]
    pub journal_fsync: Fsync,

    /// Bytes of answers kept for equal requests that sample nothing or name a seed; 0 keeps none.
    #[arg(long, env = "RESPONSE_CACHE_BYTES", default_value_t = 64 << 20)]
    pub response_cache_bytes: usize,

    /// Refuse requests with fields that no interface has, and OpenAI requests for a model that is not served.
    #[arg(long, env = "STRICT", value_parser = BoolishValueParser::new())]
    pub strict: bool,

    /// A key that clients must send as "Authorization: Bearer KEY"; may be repeated.
    #[arg(long = "api-key", env = "API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_keys: Vec<ApiKey>,

    /// File with such keys, one a line: NAME:KEY or KEY. Read again when it changes.
    #[arg(long, env = "API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Ask for a key on /metrics too.
    #[arg(long, env = "PROTECT_METRICS", value_parser = BoolishValueParser::new())]
    pub protect_metrics: bool,

    /// Origin whose pages may read answers; may be repeated [default: any].
    #[arg(
        long = "cors-allow-origin",
        env = "CORS_ALLOW_ORIGIN",
        value_delimiter = ',',
        value_name = "ORIGIN"
    )]
    pub cors_allow_origins: Vec<String>,

    /// Value of the x-compute-type header [default: ranks and arithmetic].
    #[arg(long, env = "COMPUTE_TYPE")]
    pub compute_type: Option<String>,

    /// Tell /metrics' readers a few numbers under vLLM's names as well, for endpoint pickers that know those.
    #[arg(long, env = "VLLM_METRICS", value_parser = BoolishValueParser::new())]
    pub vllm_metrics: bool,

    /// Socket of the launcher, for lost groups and signs of life.
    #[arg(long, value_name = "PATH")]
    pub reports: Option<PathBuf>,

    /// Socket to hear the launcher's orders at: groups that are to leave.
    #[arg(long, value_name = "PATH")]
    pub orders: Option<PathBuf>,

    /// Where OpenTelemetry spans go: http://host:port of a gRPC OTLP receiver [default: what
    /// OTEL_EXPORTER_OTLP_ENDPOINT says, or nowhere].
    #[arg(long, env = "OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,

    /// The same by the names of OpenTelemetry's variables.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", hide = true)]
    pub otel_exporter_otlp_traces_endpoint: Option<String>,

    /// The same for all that is exported.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide = true)]
    pub otel_exporter_otlp_endpoint: Option<String>,

    /// The router's service.name on spans; ranks have it with ".shard" in place of ".router" [default: what
    /// OTEL_SERVICE_NAME says, or lockstep.router].
    #[arg(long, env = "OTLP_SERVICE_NAME", value_name = "NAME")]
    pub otlp_service_name: Option<String>,

    /// The same by the name of OpenTelemetry's variable.
    #[arg(long, env = "OTEL_SERVICE_NAME", hide = true)]
    pub otel_service_name: Option<String>,

    /// The share of requests that are traced, from 0 to 1, among those whose traceparent does not decide it.
    #[arg(long, env = "TRACE_SAMPLING_RATIO", default_value_t = 1.0, value_name = "SHARE")]
    pub trace_sampling_ratio: f64,

    /// Process to die with.
    #[arg(long, value_name = "PID")]
    pub parent: Option<u32>,

    /// What to log: info, debug, or a filter such as info,lockstep_router=debug.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: String,

    /// Log one JSON object a line.
    #[arg(long, env = "JSON_OUTPUT", value_parser = BoolishValueParser::new())]
    pub json_output: bool,
}
