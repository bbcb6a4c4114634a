//! The composition root: the parts of a router over any group of shards, without a socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use lockstep_process::tasks::{Fate, Tasks};
use lockstep_process::traces::Traces;
use lockstep_proto::ReplicaId;
use lockstep_scheduler::Tenant;
use metrics_exporter_prometheus::BuildError;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cpu_pool::CpuPool;
use crate::draws::Draws;
use crate::engine::{Engine, EngineConfig, EngineTask, GroupState};
use crate::error::ApiError;
use crate::grammar::Grammars;
use crate::http::admission::{Place, Places, retry_after_s};
use crate::http::auth::{AccessConfig, Keys, KeysError};
use crate::http::fields::UnknownFields;
use crate::http::response_cache::ResponseCache;
use crate::http::resume::Streams;
use crate::http::{self, Registry, Salts, Uploads};
use crate::journal::{Fsync, Journal, JournalConfig, JournalError, Left, Medium};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::shards::ShardGroup;
use crate::validation::RequestLimits;

/// Bytes of a segment where a test is to see many of them.
const SMALL_SEGMENT_BYTES: usize = 2_000;

/// How often histogram samples are folded away.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// How long a model usually takes to load, for the guess that clients are given.
const USUAL_LOADING: Duration = Duration::from_secs(10);

/// What the parts are configured with.
#[derive(Clone, Debug)]
pub struct AppConfig {
    /// Requests under way at most; one more is answered 429.
    pub max_concurrent_requests: usize,
    /// Prompts of one request at most, on routes that take several.
    pub max_client_batch_size: usize,
    /// Body size at most.
    pub payload_limit_bytes: usize,
    /// Threads of the CPU pool.
    pub validation_workers: usize,
    /// What one request may ask for.
    pub limits: RequestLimits,
    /// How the engine is run.
    pub engine: EngineConfig,
    /// How patient to be.
    pub patience: Patience,
    /// What is kept of answers.
    pub kept: KeptAnswers,
    /// What becomes of fields that no interface has, and of names of models that are not served.
    pub unknown_fields: UnknownFields,
    /// Who may ask.
    pub access: AccessConfig,
    /// Value of `x-compute-type`; absent means what the shards say of themselves.
    pub compute_type: Option<String>,
    /// Where the spans of sampled requests go.
    pub traces: Traces,
}

/// What is kept of answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptAnswers {
    /// Bytes of answers that are kept for equal requests; 0 keeps none.
    pub response_cache_bytes: usize,
    /// Where streams are written down that clients may come back for.
    pub journal: Option<JournalConfig>,
}

/// How long requests and their clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// A request that names no time itself; absent means as long as it takes.
    pub request_timeout: Option<Duration>,
    /// To be admitted; absent means as long as it takes.
    pub queue_timeout: Option<Duration>,
    /// To send a head, the next piece of a body or a whole small one, and to read the next piece of an answer.
    pub client_timeout: Duration,
    /// To come back for a stream whose connection broke; absent where its request ends with it.
    pub resume_window: Option<Duration>,
}

/// Requests of `/tokenize` and `/chat_tokenize` under way; one more is answered 429. Enough to keep every
/// thread of the pool busy, and at a few milliseconds each no generation waits long behind them.
const TOKENIZE_PLACES: usize = 16;

/// The parts cannot be put together.
#[derive(Debug, Error)]
pub enum AppError {
    /// A histogram's buckets are refused.
    #[error("set up metrics: {0}")]
    Metrics(#[from] BuildError),
    /// The file of keys cannot be read.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Streams cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The system starts no more threads.
    #[error("start the CPU pool: {0}")]
    Pool(std::io::Error),
}

/// The parts, as routes see them.
pub struct App {
    /// What they are configured with.
    pub config: AppConfig,
    /// The model's text side.
    pub model: Arc<Model>,
    /// Where templates and tokenizers run.
    pub pool: CpuPool,
    /// What answers may be held to.
    pub grammars: Grammars,
    /// Where sequences are computed.
    pub engine: Engine,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Running requests by id.
    pub requests: Registry,
    /// Answers that are kept.
    pub responses: ResponseCache,
    /// Streams that can be taken up again.
    pub streams: Arc<Streams>,
    /// How long requests take, lately.
    pub load: Load,
    /// Who may ask.
    pub keys: Arc<Keys>,
    /// Whose prefixes are found again by whom.
    pub salts: Salts,
    life: Life,
}

/// What is there before the parts are put together.
struct Ground {
    pool: CpuPool,
    grammars: Grammars,
    /// The journal, and the streams an earlier process left in it.
    kept: (Option<Journal>, Vec<Left>),
    draws: Draws,
    metrics: Arc<Metrics>,
}

/// Where the server stands between its start and its end, and how full it is.
struct Life {
    rooms: Rooms,
    group: watch::Receiver<GroupState>,
    draining: CancellationToken,
    draws: Draws,
}

/// Places for what is under way.
struct Rooms {
    requests: Arc<Places>,
    tokenizing: Arc<Semaphore>,
    /// Bodies that have not come whole.
    uploads: Arc<Uploads>,
}

impl App {
    /// Puts the parts together and starts their tasks. `groups` are the replicas of the model, at least one.
    ///
    /// # Errors
    /// When metrics or threads cannot be set up.
    pub fn start<G: ShardGroup>(
        config: AppConfig,
        model: Model,
        groups: Vec<G>,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, AppError> {
        let metrics = Arc::new(Metrics::new()?);
        let grammars = Grammars::start(
            Arc::clone(&model.tokenizer),
            model.end_tokens.clone(),
            config.engine.limits.max_requests as usize,
        );
        let kept = open_journal(&config, &metrics, tasks)?;
        let ground = Ground {
            pool: start_pool(&config).map_err(AppError::Pool)?,
            grammars: grammars.map_err(AppError::Pool)?,
            kept,
            draws: Draws::System,
            metrics,
        };
        Self::assemble(config, model, groups, (ground, tasks))
    }

    /// The same with nothing that differs from one time to the next: no threads, and what is drawn is repeatable.
    /// The journal, where there is one, is kept on a medium instead of in a folder, in segments of `SMALL_SEGMENT_BYTES`.
    ///
    /// # Errors
    /// When metrics cannot be set up or the medium fails.
    pub fn start_repeatable<G: ShardGroup, M: Medium>(
        config: AppConfig,
        model: Model,
        (groups, journal, draws): (Vec<G>, Option<(M, Fsync)>, Draws),
        tasks: &Tasks,
    ) -> Result<Arc<Self>, AppError> {
        let metrics = Arc::new(Metrics::new()?);
        let kept = match (journal, config.patience.resume_window) {
            (Some((medium, fsync)), Some(window)) => {
                let opened = Journal::over(
                    (medium, SMALL_SEGMENT_BYTES),
                    (window, fsync),
                    Arc::clone(&metrics),
                    tasks,
                );
                let (journal, recovered) = opened.map_err(JournalError::Medium)?;
                (Some(journal), recovered)
            }
            (Some(_) | None, _) => (None, Vec::new()),
        };
        let grammars = Grammars::inline(Arc::clone(&model.tokenizer), model.end_tokens.clone());
        let ground = Ground { pool: CpuPool::inline(), grammars, kept, draws, metrics };
        Self::assemble(config, model, groups, (ground, tasks))
    }

    fn assemble<G: ShardGroup>(
        mut config: AppConfig,
        model: Model,
        groups: Vec<G>,
        (ground, tasks): (Ground, &Tasks),
    ) -> Result<Arc<Self>, AppError> {
        let Ground { pool, grammars, kept: (journal, recovered), draws, metrics } = ground;
        let vocabulary_size = u32::try_from(model.tokenizer.vocabulary().len()).unwrap_or(u32::MAX);
        let max_context = model.max_positions.unwrap_or(config.limits.max_total_tokens);
        config.limits = RequestLimits { vocabulary_size, ..config.limits.within(max_context) };
        let vocabulary = Arc::clone(model.tokenizer.vocabulary());
        let stop = tasks.stop_token().clone();
        let (task, engine) = EngineTask::new(groups, config.engine, vocabulary, Arc::clone(&metrics), stop);
        tasks.spawn("engine", Fate::StopServer, task.with_traces(config.traces.clone()).run());
        tasks.spawn("metrics upkeep", Fate::Log, upkeep(Arc::clone(&metrics), tasks.stop_token().clone()));
        let keys = Arc::new(Keys::open(&config.access)?);
        tasks.spawn("api keys", Fate::Log, Arc::clone(&keys).watch(tasks.stop_token().clone()));
        let responses = ResponseCache::new(config.kept.response_cache_bytes);
        let rooms = Rooms {
            requests: Places::new(config.max_concurrent_requests),
            tokenizing: Arc::new(Semaphore::new(TOKENIZE_PLACES)),
            uploads: Uploads::new(config.payload_limit_bytes),
        };
        let app = Arc::new(Self {
            keys,
            salts: Salts::default(),
            model: Arc::new(model),
            pool,
            grammars,
            metrics,
            requests: Registry::default(),
            responses,
            streams: Streams::new(config.patience.resume_window, journal, tasks.clone()),
            load: Load::default(),
            config,
            life: Life { rooms, group: engine.state(), draining: CancellationToken::new(), draws },
            engine,
        });
        let (replaying, stop) = (http::replay(Arc::clone(&app), recovered), tasks.stop_token().clone());
        tasks.spawn("replay", Fate::Log, async move {
            let _ = stop.run_until_cancelled(replaying).await;
        });
        Ok(app)
    }

    /// Room for bodies that have not come whole.
    pub fn uploads(&self) -> &Arc<Uploads> {
        &self.life.rooms.uploads
    }

    /// Where what is drawn for requests comes from.
    pub fn draws(&self) -> &Draws {
        &self.life.draws
    }

    /// Every route.
    pub fn router(self: &Arc<Self>) -> Router {
        http::router(Arc::clone(self))
    }

    /// Places among the requests under way, one for each sequence.
    ///
    /// # Errors
    /// When this tenant may not have so many, or the server is stopping.
    pub fn admit(&self, tenant: &Tenant, sequences: u32) -> Result<Place, ApiError> {
        if self.is_draining() {
            return Err(ApiError::draining());
        }
        let taken = self.life.rooms.requests.take(tenant, sequences as usize, clock::now());
        taken.ok_or_else(|| self.overloaded())
    }

    /// The same for a request that had its places in an earlier process: it is not refused for want of room.
    ///
    /// # Errors
    /// When the server is stopping.
    pub fn admit_again(&self, tenant: &Tenant, sequences: u32) -> Result<Place, ApiError> {
        if self.is_draining() {
            return Err(ApiError::draining());
        }
        Ok(self.life.rooms.requests.take_again(tenant, sequences as usize, clock::now()))
    }

    /// A place among the prompts that are only tokenized.
    ///
    /// # Errors
    /// When all are taken.
    pub fn admit_tokenizing(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.life.rooms.tokenizing).try_acquire_owned().map_err(|_| self.overloaded())
    }

    /// Requests under way.
    pub fn requests_under_way(&self) -> usize {
        self.life.rooms.requests.taken()
    }

    /// Too many requests, and when to try again.
    pub fn overloaded(&self) -> ApiError {
        let place_s = self.load.retry_after_s(self.config.max_concurrent_requests);
        ApiError::overloaded(retry_after_s(self.engine.queue_time()).max(place_s))
    }

    /// The model is not there, and when it should be.
    pub fn loading(&self) -> ApiError {
        let elapsed = match &*self.life.group.borrow() {
            GroupState::Away { since } => clock::since(*since),
            GroupState::Ready(_) => Duration::ZERO,
        };
        let estimate = USUAL_LOADING.saturating_sub(elapsed).max(Duration::from_secs(1));
        ApiError::loading(&self.model.id, estimate.as_secs_f32().ceil())
    }

    /// Whether the shards of a replica can be asked.
    pub fn is_ready(&self) -> bool {
        matches!(&*self.life.group.borrow(), GroupState::Ready(_))
    }

    /// How many replicas there are, and how many of them can be asked.
    pub fn replicas(&self) -> (usize, usize) {
        let states = self.engine.replica_states();
        let states = states.borrow();
        let ready = states.iter().filter(|state| matches!(state, GroupState::Ready(_)));
        (states.len(), ready.count())
    }

    /// Whether the shards of any replica can be asked, and its step under way, if any, does not overrun what steps
    /// like it take.
    pub fn is_getting_on(&self) -> bool {
        let (states, now) = (self.engine.replica_states(), clock::now());
        let states = states.borrow();
        let mut replicas = (0..).map(ReplicaId).zip(states.iter());
        replicas.any(|(replica, state)| {
            matches!(state, GroupState::Ready(_)) && !self.engine.vitals().is_late(replica, now)
        })
    }

    /// Whether they could be asked once.
    pub fn was_ready(&self) -> bool {
        self.engine.last_group().is_some()
    }

    /// Waits until the shards can be asked.
    ///
    /// # Errors
    /// When the server begins to stop.
    pub async fn wait_until_ready(&self) -> Result<(), ApiError> {
        let mut group = self.life.group.clone();
        tokio::select! {
            biased;
            () = self.life.draining.cancelled() => Err(ApiError::draining()),
            state = group.wait_for(|state| matches!(state, GroupState::Ready(_))) => {
                state.map(|_| ()).map_err(|_| ApiError::draining())
            }
        }
    }

    /// Takes no new requests from here on.
    pub fn begin_draining(&self) {
        self.life.draining.cancel();
    }

    /// Whether no new requests are taken.
    pub fn is_draining(&self) -> bool {
        self.life.draining.is_cancelled()
    }

    /// What one request may ask for, as configured and as the shards allow.
    pub fn limits(&self) -> RequestLimits {
        match self.engine.last_group() {
            Some(facts) => {
                self.config.limits.within(facts.max_context()).within_vocabulary(facts.vocabulary_size)
            }
            None => self.config.limits,
        }
    }

    /// The value of `x-compute-type`.
    pub fn compute_type(&self) -> String {
        match (&self.config.compute_type, self.engine.last_group()) {
            (Some(configured), _) => configured.clone(),
            (None, Some(facts)) => format!("{}-{}", facts.world_size, facts.arithmetic),
            (None, None) => "unknown".to_owned(),
        }
    }

    /// Names version, model revision and arithmetic: equal names mean equal bytes for equal seeds.
    pub fn fingerprint(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        let revision = self.model.sha.as_deref().unwrap_or("local");
        let arithmetic =
            self.engine.last_group().map_or_else(|| "unknown".to_owned(), |facts| facts.arithmetic.clone());
        format!("lockstep-{version}-{revision}-{arithmetic}")
    }
}

/// A running mean of how long requests take.
#[derive(Debug, Default)]
pub struct Load {
    mean_micros: AtomicU64,
}

impl Load {
    /// A request was answered.
    pub fn on_finished(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = self.mean_micros.load(Ordering::Relaxed);
        // Each request counts for an eighth. Two at once may lose one's share: it is an estimate.
        let mean = if before == 0 { micros } else { before - before / 8 + micros / 8 };
        self.mean_micros.store(mean, Ordering::Relaxed);
    }

    /// When one of `places` should be free: each is taken for the mean time.
    pub fn retry_after_s(&self, places: usize) -> u32 {
        let micros = self.mean_micros.load(Ordering::Relaxed) / (places.max(1) as u64);
        retry_after_s(Duration::from_micros(micros))
    }
}

fn start_pool(config: &AppConfig) -> std::io::Result<CpuPool> {
    // A request has at most one job in the pool, and every one that may have a job holds a permit; the same room
    // again is for jobs whose clients have left, which are skipped when their turn comes. Tokenizing has places of
    // its own, so it never takes those.
    let queue_capacity_jobs =
        config.max_concurrent_requests.saturating_mul(2).saturating_add(TOKENIZE_PLACES);
    CpuPool::start(config.validation_workers, queue_capacity_jobs)
}

/// The journal, where one is kept, and the streams an earlier process left in it.
fn open_journal(
    config: &AppConfig,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
) -> Result<(Option<Journal>, Vec<Left>), JournalError> {
    match (&config.kept.journal, config.patience.resume_window) {
        (Some(journal), Some(window)) => {
            let (journal, recovered) = Journal::open(journal, window, Arc::clone(metrics), tasks)?;
            Ok((Some(journal), recovered))
        }
        (Some(_) | None, _) => Ok((None, Vec::new())),
    }
}

async fn upkeep(metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => metrics.run_upkeep(),
        }
    }
}
