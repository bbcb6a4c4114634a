//! One router's life: it begins over what the last one left, and ends when all is told, or before.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use futures::future::join_all;
use http_body_util::BodyExt;
use lockstep_process::tasks::Tasks;
use lockstep_process::traces::Traces;
use lockstep_proto::{TokenId, Tokens, Watermark};
use lockstep_router::app::{App, AppConfig, AppError, KeptAnswers, Patience};
use lockstep_router::draws::Draws;
use lockstep_router::engine::EngineConfig;
use lockstep_router::http::auth::AccessConfig;
use lockstep_router::http::fields::UnknownFields;
use lockstep_router::model::Model;
use lockstep_router::testing::{byte_level_tokenizer, ids};
use lockstep_router::tokenizer::Tokenizer;
use lockstep_router::tools::CallSupport;
use lockstep_router::validation::{RequestLimits, SamplingDefaults};
use lockstep_scheduler::{Limits, PrefixCaching, RunAhead};
use tower::ServiceExt;

use crate::clients::drive;
use crate::disk::Drive;
use crate::plan::{GROUP_LOSS_TIMEOUT, MAX_TOKENS, ServerPlan, WINDOW};
use crate::shards::Link;
use crate::world::{Death, Shared, lock};

/// So many routers may die; the next one lives.
const MOST_DEATHS: u32 = 5;
/// Far longer than anything takes: whoever waits then waits for ever.
const ENDLESS: Duration = Duration::from_secs(7_200);

/// How a router ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything was told and nothing is left.
    Done,
    Died,
}

/// Runs a router until it ends.
pub(crate) fn live(world: &Shared, seed: u64) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    // Whatever still runs ends with the runtime, wherever it is: so does a process.
    runtime.expect("a runtime needs no more than memory").block_on(async {
        let ended = serve(world, seed).await;
        lock(world).stop_clock();
        ended
    })
}

async fn serve(world: &Shared, seed: u64) -> Ended {
    let tasks = Tasks::new();
    let died = {
        let mut world = lock(world);
        world.begin_life();
        if world.life > MOST_DEATHS {
            let faults = &mut world.plan.faults;
            (faults.router_dies, faults.dies_writing, faults.disk_fails) = (0, 0, 0);
        }
        world.died()
    };
    let app = match start(world, seed, &tasks) {
        Ok(app) => app,
        Err(error) => {
            let mut world = lock(world);
            world.die(Death::Process, &format!("as it begins: {error}"));
            return Ended::Died;
        }
    };
    let routes = app.router();
    let count = lock(world).clients.len();
    let clients = join_all((0..count).map(|index| drive(Arc::clone(world), routes.clone(), index)));
    let everything = async {
        clients.await;
        tokio::time::sleep(WINDOW * 4).await;
    };
    let ended = tokio::select! {
        biased;
        () = died.notified() => Ended::Died,
        () = fate(world) => Ended::Died,
        () = everything => Ended::Done,
        () = tokio::time::sleep(ENDLESS) => {
            lock(world).violation("somebody waits for ever".to_owned());
            Ended::Done
        }
    };
    if tasks.stop_token().is_cancelled() {
        lock(world).violation("the engine has stopped".to_owned());
    }
    if ended == Ended::Done {
        check_rest(world, &app, &routes).await;
    }
    ended
}

/// Until the router dies at a time of its own, if it does.
async fn fate(world: &Shared) {
    let (dies_after, death) = {
        let mut world = lock(world);
        let faults = world.plan.faults;
        let dies = world.random.once_in(faults.router_dies);
        let death = if world.random.once_in(faults.machine_dies) { Death::Machine } else { Death::Process };
        (dies.then(|| world.random.millis(0, 6_000)), death)
    };
    let Some(dies_after) = dies_after else { return std::future::pending().await };
    tokio::time::sleep(dies_after).await;
    lock(world).die(death, "by chance");
}

/// Nobody asks any more, so nothing is held.
async fn check_rest(world: &Shared, app: &App, routes: &Router) {
    let request = Request::get("/metrics").body(Body::empty()).expect("it is a request");
    let Ok(response) = routes.clone().oneshot(request).await;
    let page = response.into_body().collect().await.expect("bodies in memory come whole").to_bytes();
    let page = String::from_utf8_lossy(&page);
    for name in ["lockstep_kv_blocks_used", "tgi_batch_current_size", "tgi_queue_size"] {
        let line = page.lines().find(|line| line.split(' ').next() == Some(name));
        if line.is_none_or(|line| !line.ends_with(" 0")) {
            lock(world).violation(format!("in the end {name} is {line:?}"));
        }
    }
    let under_way = app.requests_under_way();
    if under_way > 0 || app.streams.are_read() {
        lock(world).violation(format!("in the end {under_way} requests are under way"));
    }
}

fn start(world: &Shared, seed: u64, tasks: &Tasks) -> Result<Arc<App>, AppError> {
    let (config, medium, life) = {
        let drive = Arc::clone(world);
        let world = lock(world);
        let medium = world.plan.server.journal.map(|fsync| (Drive::new(drive, world.life), fsync));
        (config(&world.plan.server), medium, world.life)
    };
    let draws = Draws::repeatable(seed.wrapping_mul(1 << 20).wrapping_add(u64::from(life) << 14));
    App::start_repeatable(config, model(), (vec![Link::new(Arc::clone(world))], medium, draws), tasks)
}

fn config(plan: &ServerPlan) -> AppConfig {
    let limits = Limits {
        max_requests: 2 * plan.max_concurrent as u32,
        max_queue_tokens: Tokens(1_000),
        max_running: plan.max_running,
        max_step_tokens: Tokens(plan.max_step_tokens),
        max_total: Tokens(MAX_TOKENS as u32),
        prefix_cache: if plan.caches_prefixes { PrefixCaching::Enabled } else { PrefixCaching::Disabled },
    };
    AppConfig {
        max_concurrent_requests: plan.max_concurrent,
        max_client_batch_size: 1,
        payload_limit_bytes: 20_000,
        validation_workers: 1,
        limits: RequestLimits {
            max_best_of: 1,
            max_stop_sequences: 4,
            max_top_n_tokens: 0,
            max_input_tokens: Tokens(MAX_TOKENS as u32 - 1),
            max_total_tokens: Tokens(MAX_TOKENS as u32),
            default_max_new_tokens: Tokens(u32::MAX),
            vocabulary_size: u32::MAX,
            watermark: Watermark::USUAL,
        },
        engine: EngineConfig {
            limits,
            step_timeout: Duration::from_secs(10),
            min_step_timeout: Duration::from_secs(2),
            group_loss_timeout: GROUP_LOSS_TIMEOUT,
            run_ahead: RunAhead::Allowed,
        },
        patience: Patience {
            request_timeout: None,
            queue_timeout: None,
            client_timeout: Duration::from_secs(60),
            resume_window: plan.keeps_streams.then_some(WINDOW),
        },
        kept: KeptAnswers::default(),
        unknown_fields: UnknownFields::Ignore,
        access: AccessConfig::default(),
        compute_type: None,
        traces: Traces::default(),
    }
}

thread_local! {
    // It is the same for every seed, and reading it takes longer than a seed does.
    static TOKENIZER: Arc<Tokenizer> =
        Arc::new(Tokenizer::from_bytes(byte_level_tokenizer().as_bytes()).expect("it is a tokenizer"));
}

fn model() -> Model {
    let tokenizer = TOKENIZER.with(Arc::clone);
    Model {
        id: "simulated".to_owned(),
        sha: None,
        calls: CallSupport::of(None, &tokenizer, None),
        tokenizer,
        template: None,
        end_tokens: vec![TokenId(ids::IM_END)],
        max_positions: Some(Tokens(MAX_TOKENS as u32)),
        sampling_defaults: SamplingDefaults::default(),
    }
}
