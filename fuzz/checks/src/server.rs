//! A whole router over a group in memory, without sockets, threads or chance.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use lockstep_process::tasks::Tasks;
use lockstep_process::traces::Traces;
use lockstep_proto::{TokenId, Tokens, Watermark};
use lockstep_router::app::{App, AppConfig, KeptAnswers, Patience};
use lockstep_router::chat::{ChatTemplate, TemplateTokens};
use lockstep_router::draws::Draws;
use lockstep_router::engine::EngineConfig;
use lockstep_router::http::auth::AccessConfig;
use lockstep_router::http::fields::UnknownFields;
use lockstep_router::journal::{Fsync, Medium, Stored};
use lockstep_router::model::Model;
use lockstep_router::shards::fake::{FakeGroup, FakeModel, FakeShape};
use lockstep_router::testing::{TEMPLATE, VOCABULARY_SIZE, byte_level_tokenizer, ids};
use lockstep_router::tokenizer::Tokenizer;
use lockstep_router::tools::CallSupport;
use lockstep_router::validation::{RequestLimits, SamplingDefaults};
use lockstep_scheduler::{Limits, PrefixCaching, RunAhead};
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// Longest context: answers are short, so that most of the time goes to reading requests.
const MAX_TOKENS: Tokens = Tokens(64);

pub(crate) struct Server {
    runtime: Runtime,
    app: Arc<App>,
    routes: Router,
}

/// An answer that came whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) is_stream: bool,
    pub(crate) body: Vec<u8>,
}

/// No journal is kept.
enum Nowhere {}

impl Server {
    /// One that is ready; `window` is how long streams wait for their clients.
    pub(crate) fn start(window: Option<Duration>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime needs no more than memory");
        let max_positions = MAX_TOKENS;
        let block_size = Tokens(4);
        let shape = FakeShape { vocabulary_size: VOCABULARY_SIZE, max_positions, block_size, blocks: 64 };
        let (group, control) = FakeGroup::new(FakeModel::Hash, shape);
        control.come_back();
        let app = runtime.block_on(async {
            let ground = (vec![group], None::<(Nowhere, Fsync)>, Draws::repeatable(1));
            let app = App::start_repeatable(config(window), model(), ground, &Tasks::new());
            let app = app.expect("nothing is asked of the system");
            app.wait_until_ready().await.expect("the group is there");
            app
        });
        let routes = app.router();
        Self { runtime, app, routes }
    }

    /// Sends a request and waits for the end of its answer.
    pub(crate) fn send(&self, request: Request<Body>) -> Answer {
        self.runtime.block_on(async {
            let response: Result<_, Infallible> = self.routes.clone().oneshot(request).await;
            let Ok(response) = response;
            let kind = response.headers().get("content-type");
            let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
            let status = response.status();
            let body = response.into_body().collect().await.expect("bodies in memory come whole");
            Answer { status, is_stream, body: body.to_bytes().to_vec() }
        })
    }

    pub(crate) fn requests_under_way(&self) -> usize {
        self.app.requests_under_way()
    }
}

fn config(resume_window: Option<Duration>) -> AppConfig {
    AppConfig {
        max_concurrent_requests: 16,
        max_client_batch_size: 4,
        payload_limit_bytes: 100_000,
        validation_workers: 1,
        limits: RequestLimits {
            max_best_of: 2,
            max_stop_sequences: 4,
            max_top_n_tokens: 5,
            max_input_tokens: Tokens(MAX_TOKENS.0 - 1),
            max_total_tokens: MAX_TOKENS,
            default_max_new_tokens: Tokens(4),
            vocabulary_size: u32::MAX,
            watermark: Watermark::USUAL,
        },
        engine: EngineConfig {
            limits: Limits {
                max_requests: 32,
                max_queue_tokens: Tokens(10_000),
                max_running: 16,
                max_step_tokens: Tokens(128),
                max_total: MAX_TOKENS,
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
            resume_window,
        },
        kept: KeptAnswers::default(),
        unknown_fields: UnknownFields::Ignore,
        access: AccessConfig::default(),
        compute_type: None,
        traces: Traces::default(),
    }
}

/// A small model that can chat.
fn model() -> Model {
    let tokens = TemplateTokens { eos: Some("<|im_end|>".to_owned()), ..TemplateTokens::default() };
    let tokenizer = tokenizer();
    let template = ChatTemplate::compile(TEMPLATE, tokens).expect("it is a template");
    Model {
        id: "fuzzed".to_owned(),
        sha: None,
        calls: CallSupport::of(Some(&template), &tokenizer, None),
        tokenizer: Arc::new(tokenizer),
        template: Some(template),
        end_tokens: vec![TokenId(ids::IM_END)],
        max_positions: Some(MAX_TOKENS),
        sampling_defaults: SamplingDefaults::default(),
    }
}

/// A token for each byte and a few longer ones.
pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(byte_level_tokenizer().as_bytes()).expect("it is a tokenizer")
}

impl Medium for Nowhere {
    fn segments(&self) -> io::Result<Vec<Stored>> {
        match *self {}
    }

    fn begin(&mut self, _number: u64) -> io::Result<()> {
        match *self {}
    }

    fn append(&mut self, _bytes: &[u8]) -> io::Result<()> {
        match *self {}
    }

    fn sync(&mut self) -> io::Result<()> {
        match *self {}
    }

    fn delete(&mut self, _number: u64) -> io::Result<()> {
        match *self {}
    }
}
