//! The router with a group in its own process: what it costs without the way to a rank and back.

use std::collections::VecDeque;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use lockstep_process::tasks::Tasks;
use lockstep_proto::{
    Bytes, Epoch, Outcome, Rank, Sampling, SequenceResult, ShardDescription, Step, StepOutput, StepTimings,
    TokenId, TokenLogprobs, Tokens, TraceParent, Work,
};
use lockstep_router::RouterArgs;
use lockstep_router::app::App;
use lockstep_router::config::RouterConfig;
use lockstep_router::http::connections::{self, Door};
use lockstep_router::model::Model;
use lockstep_router::shards::{GroupConfig, ShardError, ShardGroup};
use tokio::net::TcpListener;

use crate::shard::TOKEN;

/// Answers every step with the same token, at once.
#[derive(Default)]
struct AtOnce {
    begun: VecDeque<Step>,
}

impl ShardGroup for AtOnce {
    async fn describe(&mut self, _lost: Option<Epoch>) -> Result<Vec<ShardDescription>, ShardError> {
        Ok(vec![ShardDescription {
            rank: Rank(0),
            world_size: 1,
            epoch: Epoch(1),
            vocabulary_size: 4_096,
            max_positions: Tokens(2_048),
            block_size: Tokens(16),
            block_bytes: Bytes(1 << 10),
            kv_budget: Bytes(1 << 26),
            weights: Bytes(1 << 20),
            arithmetic: "none".to_owned(),
        }])
    }

    async fn configure(&mut self, _: GroupConfig) -> Result<(), ShardError> {
        Ok(())
    }

    fn begin(&mut self, step: Step, _: &[TraceParent]) -> Result<(), ShardError> {
        self.begun.push_back(step);
        Ok(())
    }

    async fn finish(&mut self) -> Result<StepOutput, ShardError> {
        let oldest = self.begun.pop_front();
        let step = oldest.ok_or_else(|| ShardError::NoGroup("no step was begun".to_owned()))?;
        let result = |work: &Work| SequenceResult {
            sequence: work.sequence,
            prompt: Vec::new(),
            outcome: match work.sampling {
                Sampling::Sample => Outcome::Sampled(TokenLogprobs {
                    token: TokenId(TOKEN),
                    logprob: -0.5,
                    top: Vec::new(),
                }),
                Sampling::Skip => Outcome::Computed,
            },
        };
        Ok(StepOutput {
            epoch: step.epoch,
            step_id: step.step_id,
            results: step.work.iter().map(result).collect(),
            timings: StepTimings::default(),
        })
    }

    fn timings(&self) -> &[StepTimings] {
        &[]
    }

    async fn lost(&mut self) -> ShardError {
        std::future::pending().await
    }
}

/// Serves for as long as the process lives; returns where.
pub(crate) fn serve(args: RouterArgs) -> Result<SocketAddr, Box<dyn Error>> {
    let config = RouterConfig::from_args(args)?;
    let model = Model::load(&config.files, config.model_id)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("router alone").build()?;
    let (listener, app, tasks) = runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let tasks = Tasks::new();
        let app = App::start(config.app, model, vec![AtOnce::default()], &tasks)?;
        Ok::<_, Box<dyn Error>>((listener, app, tasks))
    })?;
    let address = listener.local_addr()?;
    let door = Door {
        most_connections: connections::within_open_files(config.listen.most_connections),
        patience: app.config.patience.client_timeout,
        metrics: Arc::clone(&app.metrics),
    };
    std::thread::spawn(move || runtime.block_on(connections::serve(listener, app.router(), door, tasks)));
    Ok(address)
}
