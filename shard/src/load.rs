//! Joins the group and loads this rank's part of the model.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_process::reports::Progress;
use lockstep_proto::{Blocks, Bytes, Tokens};
use thiserror::Error;
use tracing::info;

use crate::batch::{BLOCK_SIZE, Batch};
use crate::comm::{CommError, Communicator, SharedMemory, Solo, Tcp, Timed};
use crate::config::{CommunicatorAddress, Config};
use crate::decoder::{self, Decoder, Hidden, Logits, ModelSpec, SpecError};
use crate::engine::{Engine, Group, LogitRows, Model, ModelError};
use crate::kv::KvPool;

/// How long rank 0 waits for ranks on other hosts to start.
const RENDEZVOUS_LIMIT: Duration = Duration::from_secs(300);

/// A model that cannot be served.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The group cannot be joined.
    #[error(transparent)]
    Group(#[from] CommError),
    /// The model's configuration is not understood.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its weights cannot be loaded.
    #[error(transparent)]
    Weights(#[from] decoder::LoadError),
    /// More than one rank, and no way to exchange data.
    #[error("join a group of {world_size} ranks alone: give --communicator shm:… or tcp:…")]
    Alone {
        /// The group's size.
        world_size: u32,
    },
}

/// A decoder with the KV blocks it works on.
pub struct Loaded {
    decoder: Decoder,
    kv: Option<KvPool>,
}

/// Joins the group and loads the model. Each piece of it advances `progress`.
///
/// # Errors
/// When the group cannot be joined or the model not be served.
pub(crate) fn load(config: &Config, progress: Progress) -> Result<Engine<Loaded>, LoadError> {
    let comm = Arc::new(Timed::new(join(config)?));
    let start = Instant::now();
    let rank = config.joining.membership.rank();
    info!(%rank, model = %config.model, precision = %config.precision, "loading");
    let spec = ModelSpec::read(&config.model)?;
    let group = Arc::clone(&comm) as Arc<dyn Communicator>;
    progress.advance();
    let decoder = Decoder::load_telling(&config.model, &spec, config.precision, group, progress)?
        .with_kv_cache(config.kv_cache);
    info!(%rank, weights = %decoder.weight_bytes(), seconds = start.elapsed().as_secs_f32(), "loaded");
    let group = Group { comm, epoch: config.joining.epoch, kv_budget: config.kv_budget };
    Ok(Engine::new(Loaded::new(decoder), group))
}

fn join(config: &Config) -> Result<Arc<dyn Communicator>, LoadError> {
    let joining = config.joining;
    let world_size = joining.membership.world_size();
    Ok(match &config.communicator {
        CommunicatorAddress::Solo if world_size == 1 => Arc::new(Solo),
        CommunicatorAddress::Solo => return Err(LoadError::Alone { world_size }),
        CommunicatorAddress::SharedMemory(path) => Arc::new(SharedMemory::open(path, joining)?),
        CommunicatorAddress::Tcp(rendezvous) => Arc::new(Tcp::join(rendezvous, joining, RENDEZVOUS_LIMIT)?),
    })
}

impl Loaded {
    /// Without KV blocks yet.
    pub fn new(decoder: Decoder) -> Self {
        Self { decoder, kv: None }
    }
}

impl Model for Loaded {
    type Hidden = Hidden;
    type Logits = Logits;

    fn vocabulary_size(&self) -> u32 {
        self.decoder.spec().vocabulary_size()
    }

    fn max_positions(&self) -> Tokens {
        self.decoder.spec().max_positions()
    }

    fn block_size(&self) -> Tokens {
        BLOCK_SIZE
    }

    fn block_bytes(&self) -> Bytes {
        self.decoder.block_bytes()
    }

    fn weight_bytes(&self) -> Bytes {
        self.decoder.weight_bytes()
    }

    fn arithmetic(&self) -> String {
        self.decoder.arithmetic()
    }

    fn allocate_kv(&mut self, blocks: Blocks) -> Result<(), ModelError> {
        // The old pool goes first: both together may not fit.
        self.kv = None;
        self.kv = Some(self.decoder.allocate_kv(blocks).map_err(boxed)?);
        Ok(())
    }

    fn logit_rows_at_once(&self) -> usize {
        self.decoder.logit_rows_at_once()
    }

    fn forward(&mut self, batch: &Batch) -> Result<Hidden, ModelError> {
        let kv = self.kv.as_mut().expect("the engine takes no step before it has allocated KV blocks");
        self.decoder.forward(batch, kv).map_err(boxed)
    }

    fn logits(&self, hidden: &Hidden, rows: Range<usize>) -> Result<Logits, ModelError> {
        self.decoder.logits(hidden, rows).map_err(boxed)
    }
}

impl LogitRows for Logits {
    fn row(&self, index: usize) -> &[f32] {
        Logits::row(self, index)
    }
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> ModelError {
    ModelError::from(Box::<dyn std::error::Error + Send + Sync>::from(error))
}
