//! The same model as on a device: what it chooses is not known on the host until somebody asks for it, and the next step
//! may be begun before.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use lockstep_proto::{Blocks, Bytes, Tokens};
use lockstep_shard::batch::Batch;
use lockstep_shard::comm::Communicator;
use lockstep_shard::engine::{Model, ModelError, NeverAsked, RowAnswer};
use lockstep_shard::sampling::{RowAsk, RowFound, Sampler};

use super::FakeModel;

/// What was asked of the device, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// The so-many-th step was begun.
    Begin(usize),
    /// Its answers were fetched.
    Answers(usize),
}

/// When a step is said to be done.
#[expect(dead_code, reason = "each test takes what it needs of it")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// At once.
    Instant,
    /// Once the next one was begun, and this one at once: who does not begin the next one waits for ever.
    OnceTheNextIsBegun { last: usize },
}

/// The calls of a device, to be looked at by a test.
pub(crate) type Calls = Arc<Mutex<Vec<Call>>>;

pub(crate) struct FakeDevice {
    model: FakeModel,
    calls: Calls,
    pace: Pace,
    begun: usize,
    /// Steps that asked and were not asked for their answers.
    open: usize,
}

/// A step's answers.
pub(crate) struct Asked {
    number: usize,
    found: Vec<RowFound>,
    /// Rows the host looks at.
    left: Vec<Option<Vec<f32>>>,
}

impl FakeDevice {
    pub(crate) fn new(comm: Arc<dyn Communicator>, pace: Pace) -> (Self, Calls) {
        let calls = Calls::default();
        let model = FakeModel::new(comm);
        (Self { model, calls: Arc::clone(&calls), pace, begun: 0, open: 0 }, calls)
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

/// What the step before has chosen in a row; where it could not, some token.
fn chosen(before: Option<&Asked>, row: usize) -> lockstep_proto::TokenId {
    let found = &before.expect("who is fed has a step before").found[row];
    found.as_ref().map_or(lockstep_proto::TokenId(0), |found| found.token)
}

fn answer(ask: &RowAsk<'_>, logits: &[f32], before: Option<&Asked>) -> RowFound {
    let RowAsk::Sample { sampler, allowed, output_position, fed: Some(row) } = ask else {
        return ask.answer(logits);
    };
    let mut sampler: Sampler = (*sampler).clone();
    sampler.on_emitted(chosen(before, *row));
    sampler.sample(logits, *allowed, *output_position)
}

impl Model for FakeDevice {
    type Hidden = Vec<Vec<f32>>;
    type Logits = Vec<Vec<f32>>;
    type Asked = Asked;

    fn vocabulary_size(&self) -> u32 {
        self.model.vocabulary_size()
    }

    fn max_positions(&self) -> Tokens {
        self.model.max_positions()
    }

    fn block_size(&self) -> Tokens {
        self.model.block_size()
    }

    fn block_bytes(&self) -> Bytes {
        self.model.block_bytes()
    }

    fn weight_bytes(&self) -> Bytes {
        self.model.weight_bytes()
    }

    fn arithmetic(&self) -> String {
        self.model.arithmetic()
    }

    fn allocate_kv(&mut self, blocks: Blocks) -> Result<(), ModelError> {
        self.model.allocate_kv(blocks)
    }

    fn logit_rows_at_once(&self) -> usize {
        self.model.logit_rows_at_once()
    }

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn forward(&mut self, batch: &Batch, before: Option<&Asked>) -> Result<Vec<Vec<f32>>, ModelError> {
        self.note(Call::Begin(self.begun));
        self.begun += 1;
        let mut batch = batch.clone();
        for fed in std::mem::take(&mut batch.fed) {
            batch.token_ids[fed.row] = chosen(before, fed.chosen_in);
        }
        self.model.forward(&batch, None::<&NeverAsked>)
    }

    fn ask(
        &mut self,
        hidden: &Vec<Vec<f32>>,
        asks: &[RowAsk<'_>],
        before: Option<&Asked>,
    ) -> Result<Option<Asked>, ModelError> {
        self.open += 1;
        assert!(self.open <= 2, "three steps are begun");
        let rows = self.model.logits(hidden, 0..hidden.len())?;
        let found = asks.iter().zip(&rows).map(|(ask, row)| answer(ask, row, before)).collect();
        let left = asks.iter().zip(rows).map(|(ask, row)| (!ask.is_for_devices()).then_some(row)).collect();
        Ok(Some(Asked { number: self.begun - 1, found, left }))
    }

    fn is_answered(&mut self, asked: &Asked) -> Result<bool, ModelError> {
        Ok(match self.pace {
            Pace::Instant => true,
            Pace::OnceTheNextIsBegun { last } => asked.number >= last || self.begun > asked.number + 1,
        })
    }

    fn answers(&mut self, asked: Asked) -> Result<Vec<RowAnswer>, ModelError> {
        self.note(Call::Answers(asked.number));
        self.open -= 1;
        let rows = asked.found.into_iter().zip(asked.left);
        let of = |(found, left): (RowFound, Option<Vec<f32>>)| {
            left.map_or(RowAnswer::Found(found), RowAnswer::Logits)
        };
        Ok(rows.map(of).collect())
    }

    fn logits(&self, _: &Vec<Vec<f32>>, _: Range<usize>) -> Result<Vec<Vec<f32>>, ModelError> {
        panic!("a device answers by itself")
    }
}
