//! Steps in which every sequence has one row: the pass of each size is recorded once, and replayed.
//!
//! A batch is padded to a size there may be a recording of. Tokens and where rows stand change from step to step and are
//! written to one place, which the recording reads; all else in it stays as it was. How attention is cut follows from the
//! longest context the recording is for, and its bits do not depend on that. Rows of padding are written to a block
//! nobody has.

mod padding;

use candle_core::{DType, Device, Tensor};
use tracing::{debug, warn};

pub(crate) use self::padding::MOST_ROWS;
use self::padding::Padded;
use super::fed::{feed, token_words};
use super::forward::{by_itself, through_layers};
use super::stream::ForwardResult;
use super::{ChosenOnDevice, Decoder, ForwardError, Hidden};
use crate::batch::{BLOCK_SIZE, Batch};
use crate::comm::Nccl;
use crate::kv::{KvDtype, KvPool, LayerKv};
use crate::ops::cuda::attention::{Cut, HostRows, SPLIT, Tile};
use crate::ops::cuda::copies::Copy;
use crate::ops::cuda::recording::{Kept, Key, Recording, Turn};
use crate::ops::cuda::words::Words;
use crate::ops::placed::{DeviceRows, Placed};

/// Most words that change from step to step: 8 MiB.
const MOST_WORDS: usize = 2 << 20;

/// Words of a row beside its block table: token, position, slot and tile.
const ROW_WORDS: usize = 3 + size_of::<Tile>() / size_of::<u32>();

/// What was recorded over the blocks of a pool.
#[derive(Default)]
pub(crate) enum Recordings {
    /// Nothing yet.
    #[default]
    None,
    /// Nothing ever: something cannot be recorded. Batches are padded all the same, since other ranks may record them.
    Off,
    /// Some.
    Some(Box<Recorded>),
}

/// Recordings, and what they read and write.
pub(crate) struct Recorded {
    kept: Kept<Recording>,
    words: Words,
    /// ([`MOST_ROWS`], hidden): what a recording leaves.
    output: Tensor,
    replays: u64,
}

impl Recordings {
    /// How often one was replayed.
    pub(crate) fn replays(&self) -> u64 {
        match self {
            Self::Some(recorded) => recorded.replays,
            Self::None | Self::Off => 0,
        }
    }

    /// What there is, made where there is nothing yet.
    fn of(&mut self, decoder: &Decoder) -> Option<&mut Recorded> {
        if let Self::None = self {
            *self = match Recorded::new(decoder) {
                Ok(recorded) => Self::Some(Box::new(recorded)),
                Err(error) => Self::off(&error),
            };
        }
        match self {
            Self::Some(recorded) => Some(recorded),
            Self::None | Self::Off => None,
        }
    }

    fn off(error: &dyn std::error::Error) -> Self {
        warn!(%error, "decode steps are not recorded: the host starts each of their kernels by itself");
        Self::Off
    }
}

impl Recorded {
    /// Words there is room for, the same on every rank.
    fn room(decoder: &Decoder) -> usize {
        let table = decoder.spec.max_positions().blocks_ceil(BLOCK_SIZE).len();
        MOST_ROWS.saturating_mul(ROW_WORDS + table).min(MOST_WORDS)
    }

    fn new(decoder: &Decoder) -> candle_core::Result<Self> {
        let Device::Cuda(device) = &decoder.target.device else {
            candle_core::bail!("record steps: they are not on a device")
        };
        let words = Self::room(decoder);
        let output = (MOST_ROWS, decoder.spec.shape.hidden);
        Ok(Self {
            kept: Kept::new(),
            words: Words::new(device, words)?,
            output: Tensor::zeros(output, DType::F32, &decoder.target.device)?,
            replays: 0,
        })
    }
}

/// The same rows as a pass by itself computes, where the batch is one of a kind that is recorded.
pub(super) fn replayed(
    decoder: &Decoder,
    (batch, chosen): (&Batch, Option<ChosenOnDevice>),
    kv: &mut KvPool,
) -> ForwardResult<Option<Hidden>> {
    if !decoder.target.records || !decoder.is_all_on_device() {
        return Ok(None);
    }
    let Some(padded) = Padded::of(batch, kv.spare()) else { return Ok(None) };
    let KvPool { layers, recordings, .. } = kv;
    let step = Step::new(decoder, &padded, layers);
    let (words, asked) = (step.words(), batch.token_ids.len());
    if words.len() > Recorded::room(decoder) {
        return Ok(None);
    }
    let Some(recorded) = recordings.of(decoder) else {
        return padded_pass(decoder, (&padded, chosen), layers, asked).map(Some);
    };
    recorded.words.write(&words)?;
    if let Some(device) = decoder.target.gpu() {
        feed(device, (&padded.batch, chosen), recorded.words.address())?;
    }
    match step.compute(recorded, asked) {
        Ok(hidden) => Ok(Some(hidden)),
        Err(Failed::Pass(error)) => Err(error),
        Err(Failed::Recording(error)) => {
            *recordings = Recordings::off(&error);
            padded_pass(decoder, (&padded, chosen), layers, asked).map(Some)
        }
    }
}

/// A padded batch kernel by kernel, as recordings of other ranks have it: what ranks exchange must have one size.
fn padded_pass(
    decoder: &Decoder,
    (padded, chosen): (&Padded, Option<ChosenOnDevice>),
    layers: &[LayerKv],
    asked: usize,
) -> ForwardResult<Hidden> {
    Ok(by_itself(decoder, (&padded.batch, chosen), layers)?.first(asked)?)
}

/// Why a step was not computed.
enum Failed {
    /// It failed, as every other would.
    Pass(ForwardError),
    /// It cannot be recorded. Nothing was computed.
    Recording(ForwardError),
}

/// A padded batch, and how it is cut.
struct Step<'a> {
    decoder: &'a Decoder,
    padded: &'a Padded,
    layers: &'a [LayerKv],
    held: KvDtype,
    tiles: Vec<Tile>,
    key: Key,
}

impl<'a> Step<'a> {
    fn new(decoder: &'a Decoder, padded: &'a Padded, layers: &'a [LayerKv]) -> Self {
        let rows = padded.batch.token_ids.len();
        let held = decoder.kv_cache.beside(decoder.precision.dtype);
        // As many splits as any row that sees no more positions has, whatever the window: where the last one has but one
        // position, a window reaches into the most.
        let first_position = padded.context.next_multiple_of(SPLIT).saturating_sub(SPLIT) as u32;
        let tile = |row: usize| Tile { first_row: row as u32, rows: 1, first_position, table: 0 };
        let tiles: Vec<Tile> = (0..rows).map(tile).collect();
        let is_cut = |shape| Cut::of(shape, held, &tiles).splits > 0;
        let context_matters = decoder.layers.iter().any(|layer| is_cut(layer.attention.shape));
        let key = Key { rows, context: if context_matters { padded.context } else { 0 } };
        Self { decoder, padded, layers, held, tiles, key }
    }

    /// The tokens, and [`HostRows::words`].
    fn words(&self) -> Vec<u32> {
        let Batch { sequences, .. } = &self.padded.batch;
        let shape = self.decoder.shape;
        let rows = HostRows::new(sequences, shape.query_heads / shape.kv.kv_heads.max(1), self.held);
        let mut words = token_words(&self.padded.batch);
        words.extend(rows.words());
        words
    }

    /// Runs, records or replays it, over words that were written.
    fn compute(&self, recorded: &mut Recorded, asked: usize) -> Result<Hidden, Failed> {
        let Recorded { kept, words, output, replays } = recorded;
        let recording = match kept.turn(self.key) {
            Turn::Run => {
                return self.pass(words).and_then(|hidden| Ok(hidden.first(asked)?)).map_err(Failed::Pass);
            }
            Turn::Replay(recording) => recording,
            Turn::Record => {
                debug!(rows = self.key.rows, context = self.key.context, "recording a decode step");
                let recording = self.record(words, output).map_err(Failed::Recording)?;
                kept.keep(self.key, recording)
            }
        };
        let group = self.decoder.communicator.nccl().map_or(Ok(()), Nccl::check);
        group.map_err(|error| Failed::Pass(error.into()))?;
        *replays += 1;
        let replayed = recording.replay().and_then(|()| output.narrow(0, 0, asked));
        let copied = replayed.and_then(|rows| rows.apply_op1_no_bwd(&Copy));
        copied.map(Hidden::new).map_err(|error| Failed::Pass(error.into()))
    }

    fn record(&self, words: &Words, output: &Tensor) -> ForwardResult<Recording> {
        let Device::Cuda(device) = &self.decoder.target.device else {
            return Err(candle_core::Error::msg("record a step: it is not on a device").into());
        };
        Recording::of(device, || {
            let hidden = self.pass(words)?;
            Ok(hidden.copy_into(output)?)
        })
    }

    fn pass(&self, words: &Words) -> ForwardResult<Hidden> {
        let rows = self.key.rows;
        let tokens = words.address();
        let placed =
            DeviceRows::at(tokens.plus(rows * size_of::<u32>()), rows, [self.tiles.clone(), Vec::new()]);
        let placed = placed.with_tokens(tokens).with_padding(self.padded.spare_slot);
        let Batch { sequences, .. } = &self.padded.batch;
        through_layers(self.decoder, &self.padded.batch, (Placed::there(sequences, placed), self.layers))
    }
}
