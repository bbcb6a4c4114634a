//! The steps that the shards have and have not answered, in order, and whose blocks they may write.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockstep_proto::{BlockId, SequenceId, Step, Work};
use tokio::time::Instant;

use crate::plan::BLOCK_TOKENS;
use crate::shards::Fate;

#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) step: Step,
    pub(crate) fate: Fate,
    /// When it is computed.
    pub(crate) until: Instant,
}

#[derive(Default)]
pub(crate) struct InFlight {
    steps: VecDeque<Sent>,
    /// Of every sequence, as the steps that were sent have them.
    tables: BTreeMap<SequenceId, Vec<BlockId>>,
}

impl InFlight {
    /// The one that is computed.
    pub(crate) fn front(&self) -> Option<&Sent> {
        self.steps.front()
    }

    /// It is answered.
    pub(crate) fn pop(&mut self) {
        self.steps.pop_front();
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(crate) fn hangs(&self) -> bool {
        self.steps.iter().any(|sent| sent.fate == Fate::Hangs)
    }

    /// When the shards have nothing to do any more.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.steps.back().map(|sent| sent.until)
    }

    /// Every sequence that is computed.
    pub(crate) fn sequences(&self) -> BTreeSet<SequenceId> {
        self.steps.iter().flat_map(|sent| &sent.step.work).map(|work| work.sequence).collect()
    }

    /// One more is sent. No block of a sequence that is being computed is given to another.
    pub(crate) fn push(&mut self, sent: Sent) -> Result<(), String> {
        let held: Vec<_> = self
            .sequences()
            .into_iter()
            .filter_map(|sequence| Some((sequence, self.tables.get(&sequence)?.clone())))
            .collect();
        for released in &sent.step.releases {
            self.tables.remove(released);
        }
        let mut shared = None;
        for work in &sent.step.work {
            let table = self.tables.entry(work.sequence).or_default();
            table.extend(&work.new_blocks);
            let others = held.iter().filter(|(sequence, _)| *sequence != work.sequence);
            let mut others = others.flat_map(|(_, blocks)| blocks);
            shared = shared.or(others.find(|block| written(table, work).contains(block)).copied());
        }
        let step = sent.step.step_id;
        self.steps.push_back(sent);
        match shared {
            None => Ok(()),
            Some(block) => {
                Err(format!("step {step} writes block {block} while another sequence is computed with it"))
            }
        }
    }
}

fn written<'a>(table: &'a [BlockId], work: &Work) -> &'a [BlockId] {
    let size = BLOCK_TOKENS as usize;
    let end = work.first_position.index() + work.tokens.count().len();
    table.get(work.first_position.index() / size..end.div_ceil(size)).unwrap_or_default()
}
