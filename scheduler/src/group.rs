//! Everything that is lost when a group of shards is lost: its cache and who holds blocks of it.

use std::time::Instant;

use indexmap::IndexMap;
use lockstep_proto::{Epoch, SequenceId, SequenceStart, Step, StepId, Work};

use crate::blocks::{BlockCache, BlockTable};
use crate::limits::{CacheShape, PrefixCaching};
use crate::scheduler::Scheduler;
use crate::sequence::{Chunk, Running, Sequence};

/// A group of shards, for one epoch.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) epoch: Epoch,
    pub(crate) cache: BlockCache,
    /// What runs longest first.
    pub(crate) running: IndexMap<SequenceId, Running>,
    pub(crate) in_flight: Option<InFlight>,
    /// Sequences for the shards to forget, with the next step.
    pub(crate) releases: Vec<SequenceId>,
}

/// The step the shards are computing.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) step: StepId,
    pub(crate) planned: Instant,
    pub(crate) chunks: Vec<Chunk>,
    /// Of sequences cancelled since: the shards may write to these blocks.
    pub(crate) cancelled: Vec<BlockTable>,
}

/// A step being planned.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    starts: Vec<SequenceStart>,
    work: Vec<Work>,
    chunks: Vec<Chunk>,
}

impl Plan {
    pub(crate) fn push_start(&mut self, start: SequenceStart) {
        self.starts.push(start);
    }

    pub(crate) fn push_chunk(&mut self, (work, chunk): (Work, Chunk)) {
        self.work.push(work);
        self.chunks.push(chunk);
    }
}

impl Group {
    pub(crate) fn new(epoch: Epoch, cache: CacheShape, caching: PrefixCaching) -> Self {
        Self {
            epoch,
            cache: BlockCache::new(cache, caching),
            running: IndexMap::new(),
            in_flight: None,
            releases: Vec::new(),
        }
    }

    /// What ran, without the blocks, which are gone. What was being computed has one loss more.
    pub(crate) fn into_sequences(mut self) -> impl Iterator<Item = Sequence> {
        for chunk in self.in_flight.iter().flat_map(|step| &step.chunks) {
            if let Some(running) = self.running.get_mut(&chunk.sequence) {
                running.sequence.losses.on_lost();
            }
        }
        self.running.into_values().map(|running| running.sequence)
    }
}

impl Scheduler {
    /// Makes a plan the step in flight.
    pub(crate) fn launch(&mut self, plan: Plan, now: Instant) -> Option<Step> {
        if plan.work.is_empty() {
            return None;
        }
        let step_id = self.take_step_id();
        let group = self.group.as_mut()?;
        group.in_flight =
            Some(InFlight { step: step_id, planned: now, chunks: plan.chunks, cancelled: Vec::new() });
        Some(Step {
            epoch: group.epoch,
            step_id,
            starts: plan.starts,
            work: plan.work,
            // Grammar masks belong to the sequences of `work` that sample; whoever owns grammars adds them.
            masks: Vec::new(),
            releases: std::mem::take(&mut group.releases),
        })
    }
}
