//! A router over a fake group, without sockets.
#![expect(dead_code, unreachable_pub, reason = "each suite uses its part")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

pub mod log;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use http_body_util::BodyExt;
use lockstep_process::tasks::Tasks;
use lockstep_process::traces::Traces;
use lockstep_proto::{TokenId, Tokens, Watermark};
use lockstep_router::app::{App, AppConfig, KeptAnswers, Patience};
use lockstep_router::chat::{ChatTemplate, TemplateTokens};
use lockstep_router::engine::EngineConfig;
use lockstep_router::http::auth::AccessConfig;
use lockstep_router::http::fields::UnknownFields;
use lockstep_router::model::Model;
use lockstep_router::shards::fake::{FakeControl, FakeGroup, FakeModel, FakeShape};
use lockstep_router::testing::{TEMPLATE, VOCABULARY_SIZE, byte_level_tokenizer, ids};
use lockstep_router::tokenizer::Tokenizer;
use lockstep_router::tools::CallSupport;
use lockstep_router::validation::{RequestLimits, SamplingDefaults};
use lockstep_scheduler::{Limits, PrefixCaching, RunAhead};
use serde_json::Value;
use tower::ServiceExt;

/// Blocks of the fake group; each holds four tokens.
pub const BLOCKS: u32 = 64;

pub struct Server {
    pub app: Arc<App>,
    pub control: FakeControl,
    pub tasks: Tasks,
}

/// An answer that came whole.
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

pub fn config() -> AppConfig {
    AppConfig {
        max_concurrent_requests: 8,
        max_client_batch_size: 4,
        payload_limit_bytes: 20_000,
        validation_workers: 1,
        limits: RequestLimits {
            max_best_of: 2,
            max_stop_sequences: 4,
            max_top_n_tokens: 5,
            max_input_tokens: Tokens(199),
            max_total_tokens: Tokens(200),
            default_max_new_tokens: Tokens(u32::MAX),
            vocabulary_size: u32::MAX,
            watermark: Watermark::USUAL,
        },
        engine: EngineConfig {
            limits: Limits {
                max_requests: 16,
                max_queue_tokens: Tokens(1_000),
                max_running: 8,
                max_step_tokens: Tokens(64),
                max_total: Tokens(200),
                prefix_cache: PrefixCaching::Enabled,
            },
            step_timeout: Duration::from_secs(60),
            min_step_timeout: Duration::from_secs(60),
            group_loss_timeout: Duration::from_secs(120),
            run_ahead: RunAhead::Allowed,
        },
        patience: Patience {
            request_timeout: None,
            queue_timeout: None,
            client_timeout: Duration::from_secs(60),
            resume_window: None,
        },
        kept: KeptAnswers::default(),
        unknown_fields: UnknownFields::Ignore,
        access: AccessConfig::default(),
        compute_type: None,
        traces: Traces::default(),
    }
}

pub fn model() -> Model {
    let tokens = TemplateTokens { eos: Some("<|im_end|>".to_owned()), ..TemplateTokens::default() };
    let tokenizer = Tokenizer::from_bytes(byte_level_tokenizer().as_bytes()).unwrap();
    let template = ChatTemplate::compile(TEMPLATE, tokens).unwrap();
    Model {
        id: "test/model".to_owned(),
        sha: None,
        calls: CallSupport::of(Some(&template), &tokenizer, None),
        tokenizer: Arc::new(tokenizer),
        template: Some(template),
        end_tokens: vec![TokenId(ids::IM_END)],
        max_positions: Some(Tokens(200)),
        sampling_defaults: SamplingDefaults::default(),
    }
}

impl Server {
    /// A server whose group is not there yet.
    pub fn loading(fake: FakeModel, config: AppConfig, model: Model) -> Self {
        Self::loading_rows(fake, config, model, VOCABULARY_SIZE)
    }

    /// The same, whose model knows so many ids.
    pub fn loading_rows(fake: FakeModel, config: AppConfig, model: Model, vocabulary_size: u32) -> Self {
        let max_positions = Tokens(200);
        let shape = FakeShape { vocabulary_size, max_positions, block_size: Tokens(4), blocks: BLOCKS };
        Self::loading_shape(fake, config, model, shape)
    }

    /// The same, of this shape.
    pub fn loading_shape(fake: FakeModel, config: AppConfig, model: Model, shape: FakeShape) -> Self {
        let (group, control) = FakeGroup::new(fake, shape);
        let tasks = Tasks::new();
        let app = App::start(config, model, vec![group], &tasks).unwrap();
        Self { app, control, tasks }
    }

    /// A server that is ready.
    pub async fn start_with(fake: FakeModel, config: AppConfig) -> Self {
        let server = Self::loading(fake, config, model());
        server.control.come_back();
        server.app.wait_until_ready().await.unwrap();
        server
    }

    /// A server whose model always answers with these tokens.
    pub async fn answering(tokens: &[u32]) -> Self {
        let script = tokens.iter().map(|id| TokenId(*id)).collect();
        Self::start_with(FakeModel::Script(script), config()).await
    }

    /// A server whose model always answers with this text.
    pub async fn saying(text: &str) -> Self {
        Self::answering(&tokens_of(text)).await
    }

    pub fn router(&self) -> Router {
        self.app.router()
    }

    pub async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Reply { status, headers, text: String::from_utf8(body.to_vec()).unwrap() }
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(post(path, &body)).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// The data of each event of a stream.
    pub async fn stream(&self, path: &str, body: Value) -> Vec<String> {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.events()
    }

    /// A number from `/metrics`.
    pub async fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").await.text;
        let line = page.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in\n{page}"))
    }

    /// Lets the runtime run until `condition` holds; a minute of real time is a failure, not a verdict on
    /// speed.
    pub async fn until(&self, condition: impl AsyncFn(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self).await {
            assert!(begun.elapsed() < Duration::from_secs(60), "the condition never holds");
            tokio::task::yield_now().await;
        }
    }
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn events(&self) -> Vec<String> {
        let events = self.text.split_terminator("\n\n");
        events
            .map(|event| event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}")).to_owned())
            .collect()
    }
}

pub fn post(path: &str, body: &Value) -> Request<Body> {
    Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

/// One token a byte, then the end of the answer.
pub fn tokens_of(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).chain([ids::IM_END]).collect()
}
