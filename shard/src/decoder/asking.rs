//! Steps whose rows are looked at on a device: what is asked of them goes there, and what is found comes back while the
//! next step may be under way.
//!
//! There are two places for answers, taken in turn: those of a step stay where they are until the step behind it has
//! been fed by them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use candle_core::{CudaDevice, Storage};
use lockstep_proto::Rank;

use super::{ChosenOnDevice, Decoder, ForwardError, Hidden};
use crate::engine::RowAnswer;
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::sampling::{AnswerShape, Asks, SamplingAt};
use crate::ops::cuda::words::Words;
use crate::sampling::{RowAsk, on_device};

/// The two places.
#[derive(Default)]
pub(crate) struct Asking {
    places: [Option<Place>; 2],
    /// Since when somebody looks whether a step is answered.
    looking_since: Option<Instant>,
}

/// What one step asks and is answered.
struct Place {
    asks: Words,
    answers: Words,
}

/// A step that has asked.
#[derive(Debug)]
pub struct DeviceAsked {
    /// Which of the two places it has.
    place: usize,
    shape: AnswerShape,
    /// Rows the device cannot tell of, with their logits on rank 0.
    left: BTreeMap<usize, Left>,
}

/// A row's logits on rank 0.
type Left = Option<Vec<f32>>;

/// What rows are asked, as the device takes it.
struct Question<'a> {
    asks: Asks,
    rows: &'a [RowAsk<'a>],
}

impl Asking {
    /// Where the tokens are that a step chooses.
    pub(crate) fn chosen(&self, asked: &DeviceAsked) -> Option<ChosenOnDevice> {
        let place = self.places.get(asked.place)?.as_ref()?;
        Some(ChosenOnDevice { answers: place.answers.address().0, rows: asked.shape.rows })
    }

    /// Starts to answer; nothing where the decoder is not on a device, or nothing is asked.
    pub(crate) fn ask(
        &mut self,
        decoder: &Decoder,
        (hidden, rows): (&Hidden, &[RowAsk<'_>]),
        before: Option<&DeviceAsked>,
    ) -> Result<Option<DeviceAsked>, ForwardError> {
        let Some(device) = decoder.target.gpu().filter(|_| !rows.is_empty()) else { return Ok(None) };
        let question = Question { asks: on_device::asks(rows), rows };
        let shape = AnswerShape::of(&question.asks);
        let fed_by = before.and_then(|before| self.chosen(before));
        let number = before.map_or(0, |before| 1 - before.place);
        let words = question.asks.words();
        let place = self.place(number, device, (words.len(), shape.words()))?;
        place.asks.write(&words)?;
        let at = SamplingAt {
            asks: question.asks.at(place.asks.address()),
            answers: place.answers.address(),
            shape,
            before: fed_by.map_or(Address::NULL, |chosen| Address(chosen.answers)),
        };
        let mut left = BTreeMap::new();
        for first in (0..rows.len()).step_by(decoder.logit_rows_at_once().max(1)) {
            let slice = first..rows.len().min(first + decoder.logit_rows_at_once().max(1));
            left.extend(question.start(decoder, (hidden, slice), &at)?);
        }
        place.answers.start_return(shape.words())?;
        Ok(Some(DeviceAsked { place: number, shape, left }))
    }

    /// Whether the answers have come. Who asks again and again is told when that takes too long.
    pub(crate) fn is_answered(
        &mut self,
        decoder: &Decoder,
        asked: &DeviceAsked,
    ) -> Result<bool, ForwardError> {
        let Some(Some(place)) = self.places.get(asked.place) else { return Ok(true) };
        let copied = place.answers.copied();
        let Some(nccl) = decoder.communicator.nccl() else {
            return Ok(copied.try_is_complete().map_err(candle_core::Error::wrap)?);
        };
        let since = *self.looking_since.get_or_insert_with(Instant::now);
        let is_there = nccl.has_come_to(copied)?;
        if !is_there {
            nccl.check_time(since)?;
        }
        Ok(is_there)
    }

    /// Waits for the answers, but for nothing that was started after them.
    pub(crate) fn answers(
        &mut self,
        decoder: &Decoder,
        asked: DeviceAsked,
    ) -> Result<Vec<RowAnswer>, ForwardError> {
        let DeviceAsked { place, shape, mut left } = asked;
        self.looking_since = None;
        let Some(Some(place)) = self.places.get(place) else { return Ok(Vec::new()) };
        // Waiting for the event alone would wait for a lost peer for ever.
        if let Some(nccl) = decoder.communicator.nccl() {
            nccl.wait_for(place.answers.copied())?;
        }
        let answers = shape.read(place.answers.returned()?.get(..shape.words()).unwrap_or_default());
        let found = on_device::found(&answers).into_iter().enumerate();
        Ok(found
            .map(|(row, found)| match left.remove(&row) {
                None => RowAnswer::Found(found),
                Some(Some(logits)) => RowAnswer::Logits(logits),
                Some(None) => RowAnswer::LeftToRank0,
            })
            .collect())
    }

    /// A place with room for so many words there and back.
    fn place(
        &mut self,
        number: usize,
        device: &CudaDevice,
        (there, back): (usize, usize),
    ) -> candle_core::Result<&mut Place> {
        let [first, second] = &mut self.places;
        let place = if number == 0 { first } else { second };
        let kept = place.take().filter(|place| place.asks.room() >= there && place.answers.room() >= back);
        let kept = match kept {
            Some(kept) => kept,
            None => Place {
                asks: Words::new(device, there.next_power_of_two())?,
                answers: Words::new(device, back.next_power_of_two())?,
            },
        };
        Ok(place.insert(kept))
    }
}

impl Question<'_> {
    /// Starts to look at some of the rows; those that are left to the host.
    fn start(
        &self,
        decoder: &Decoder,
        (hidden, slice): (&Hidden, Range<usize>),
        at: &SamplingAt,
    ) -> Result<Vec<(usize, Left)>, ForwardError> {
        let first = slice.start;
        let logits = decoder.logits(hidden, slice.clone())?;
        let Some(rows) = logits.device_rows() else {
            return Err(candle_core::Error::msg("look at logits on a device: they are not there").into());
        };
        {
            let (storage, layout) = rows.rows.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else {
                return Err(
                    candle_core::Error::msg("look at logits on a device: they are not there").into()
                );
            };
            at.start(first, (storage, layout))?;
        }
        let left = slice.filter(|row| self.rows.get(*row).is_some_and(|ask| !ask.is_for_devices()));
        let is_rank_0 = decoder.communicator.rank() == Rank(0);
        left.map(|row| {
            let logits = is_rank_0.then(|| rows.row_on_host(row - first)).transpose()?;
            Ok((row, logits))
        })
        .collect()
    }
}
