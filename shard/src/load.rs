//! Joins the group and loads this rank's part of the model.

#[cfg(feature = "cuda")]
mod device_memory;
#[cfg(feature = "cuda")]
pub(crate) mod warm_up;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_process::reports::Progress;
use lockstep_proto::{Blocks, Bytes, Tokens};
use thiserror::Error;
use tracing::info;

use crate::batch::{BLOCK_SIZE, Batch};
#[cfg(feature = "cuda")]
use crate::comm::Nccl;
use crate::comm::{CommError, Communicator, SharedMemory, Solo, Tcp, Timed};
use crate::config::{CommunicatorAddress, Config};
use crate::decoder::{self, Decoder, Hidden, Logits, ModelSpec, SpecError};
#[cfg(feature = "cuda")]
use crate::decoder::{Asking, DeviceAsked};
#[cfg(feature = "cuda")]
use crate::device::gpus;
use crate::device::{DeviceError, DeviceKind, Target};
#[cfg(not(feature = "cuda"))]
use crate::engine::NeverAsked;
#[cfg(feature = "cuda")]
use crate::engine::RowAnswer;
use crate::engine::{Engine, Group, LogitRows, Model, ModelError};
use crate::kv::KvPool;
#[cfg(feature = "cuda")]
use crate::sampling::RowAsk;

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
    /// Its device cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It cannot compute.
    #[error("warm up: {source}")]
    WarmUp {
        /// Why.
        source: ModelError,
    },
    /// The device is too small for the weights.
    #[error(
        "load {weights} of weights onto the GPU: {free} of its {total} are free; split the model over more GPUs with \
         --num-shard"
    )]
    NoRoomForWeights {
        /// Bytes this rank's weights take at least.
        weights: Bytes,
        /// Bytes nobody has.
        free: Bytes,
        /// The device's.
        total: Bytes,
    },
    /// The device's memory is full before any KV block is in it.
    #[error(
        "keep a KV cache on the GPU: {free} of its {total} are free after the weights and a step of {rows} tokens, of \
         which {kept} are left to the driver and {block} is one KV block; split the model over more GPUs with \
         --num-shard, or lower --max-batch-prefill-tokens"
    )]
    NoRoom {
        /// Bytes nobody has.
        free: Bytes,
        /// The device's.
        total: Bytes,
        /// Tokens of the step.
        rows: Tokens,
        /// Bytes that are not for KV blocks.
        kept: Bytes,
        /// Of one KV block.
        block: Bytes,
    },
    /// More than one rank, and no way to exchange data.
    #[error("join a group of {world_size} ranks alone: give --communicator shm:… or tcp:…")]
    Alone {
        /// The group's size.
        world_size: u32,
    },
}

/// Why a step has KV blocks.
const NO_KV: &str = "the engine takes no step before it has allocated KV blocks";

/// A decoder with the KV blocks it works on.
pub struct Loaded {
    /// Goes first: recordings over it may hold the group that the decoder has.
    kv: Option<KvPool>,
    decoder: Decoder,
    #[cfg(feature = "cuda")]
    asking: Asking,
}

/// Joins the group and loads the model. Each piece of it advances `progress`.
///
/// # Errors
/// When the group cannot be joined or the model not be served.
pub(crate) fn load(config: &Config, progress: Progress) -> Result<Engine<Loaded>, LoadError> {
    let target = Target::open(config.device, config.joining.membership)?;
    check_precision(config, &target)?;
    let comm = Arc::new(Timed::new(join_devices(config, &target, join(config)?)?));
    let start = Instant::now();
    let rank = config.joining.membership.rank();
    info!(rank = rank.0, model = %config.model, precision = %config.precision, "loading");
    let spec = ModelSpec::read(&config.model)?;
    let group = Arc::clone(&comm) as Arc<dyn Communicator>;
    check_weights_fit(config, &target, &spec)?;
    progress.advance();
    let of = (&spec, config.precision);
    let decoder = Decoder::load_onto((&target, group), &config.model, of, progress)?
        .with_kv_cache(config.kv_cache.held);
    info!(rank = rank.0, weights = %decoder.weight_bytes(), seconds = start.elapsed().as_secs_f32(), "loaded");
    let mut loaded = Loaded::new(decoder);
    let kv_budget = match target.kind() {
        DeviceKind::Cpu => config.kv_cache.budget,
        DeviceKind::Cuda => budget_on_device(&mut loaded, (&target, comm.as_ref()), config)?,
    };
    let group = Group { comm, epoch: config.joining.epoch, kv_budget };
    Ok(Engine::new(loaded, group))
}

/// What the device has not is refused before anything is loaded.
fn check_precision(config: &Config, target: &Target) -> Result<(), DeviceError> {
    config.precision.check(target.kind())?;
    config.kv_cache.held.check_on(target.kind())
}

#[cfg(feature = "cuda")]
use device_memory::{budget_on_device, check_weights_fit};

#[cfg(not(feature = "cuda"))]
fn budget_on_device(
    _: &mut Loaded,
    _: (&Target, &dyn Communicator),
    _: &Config,
) -> Result<Bytes, LoadError> {
    Err(LoadError::Device(DeviceError::NotBuilt))
}

#[cfg(not(feature = "cuda"))]
#[expect(clippy::unnecessary_wraps, reason = "its twin of binaries that know GPUs may fail")]
fn check_weights_fit(_: &Config, _: &Target, _: &ModelSpec) -> Result<(), LoadError> {
    Ok(())
}

#[cfg(not(feature = "cuda"))]
#[expect(clippy::unnecessary_wraps, reason = "its twin of binaries that know GPUs may fail")]
fn join_devices(
    _: &Config,
    _: &Target,
    host: Arc<dyn Communicator>,
) -> Result<Arc<dyn Communicator>, LoadError> {
    Ok(host)
}

/// Connects the ranks' devices where there are several, each with a GPU of its own, and all of them have NCCL.
#[cfg(feature = "cuda")]
fn join_devices(
    config: &Config,
    target: &Target,
    host: Arc<dyn Communicator>,
) -> Result<Arc<dyn Communicator>, LoadError> {
    let Some(device) = target.gpu() else { return Ok(host) };
    let ranks = host.world_size();
    if ranks == 1 {
        return Ok(host);
    }
    if config.device.ranks_per_gpu > 1 && !gpus::does_nccl_share() {
        tracing::warn!(
            "ranks exchange through main memory: they share GPUs, which NCCL does not take by default"
        );
        return Ok(host);
    }
    let mut with_nccl = [if gpus::have_nccl() { 1.0 } else { 0.0 }];
    host.all_reduce(&mut with_nccl)?;
    if with_nccl[0] < ranks as f32 {
        tracing::warn!("ranks exchange through main memory: not all of them can open libnccl.so.2");
        return Ok(host);
    }
    Ok(Arc::new(Nccl::join(host, device.clone(), config.joining, target.order())?))
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
        Self {
            decoder,
            kv: None,
            #[cfg(feature = "cuda")]
            asking: Asking::default(),
        }
    }
}

impl Model for Loaded {
    type Hidden = Hidden;
    type Logits = Logits;
    #[cfg(feature = "cuda")]
    type Asked = DeviceAsked;
    #[cfg(not(feature = "cuda"))]
    type Asked = NeverAsked;

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

    fn may_overflow(&self) -> bool {
        self.decoder.may_overflow()
    }

    #[cfg(feature = "cuda")]
    fn is_asynchronous(&self) -> bool {
        self.decoder.is_all_on_device()
    }

    #[cfg(feature = "cuda")]
    fn forward(&mut self, batch: &Batch, before: Option<&DeviceAsked>) -> Result<Hidden, ModelError> {
        let kv = self.kv.as_mut().expect(NO_KV);
        let chosen = before.and_then(|before| self.asking.chosen(before));
        self.decoder.forward_fed((batch, chosen), kv).map_err(boxed)
    }

    #[cfg(not(feature = "cuda"))]
    fn forward(&mut self, batch: &Batch, _: Option<&NeverAsked>) -> Result<Hidden, ModelError> {
        let kv = self.kv.as_mut().expect(NO_KV);
        self.decoder.forward(batch, kv).map_err(boxed)
    }

    #[cfg(feature = "cuda")]
    fn ask(
        &mut self,
        hidden: &Hidden,
        asks: &[RowAsk<'_>],
        before: Option<&DeviceAsked>,
    ) -> Result<Option<DeviceAsked>, ModelError> {
        self.asking.ask(&self.decoder, (hidden, asks), before).map_err(boxed)
    }

    #[cfg(feature = "cuda")]
    fn is_answered(&mut self, asked: &DeviceAsked) -> Result<bool, ModelError> {
        self.asking.is_answered(&self.decoder, asked).map_err(boxed)
    }

    #[cfg(feature = "cuda")]
    fn answers(&mut self, asked: DeviceAsked) -> Result<Vec<RowAnswer>, ModelError> {
        self.asking.answers(&self.decoder, asked).map_err(boxed)
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
