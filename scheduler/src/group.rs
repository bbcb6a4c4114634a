//! Everything that is lost when a group of shards is lost: its cache and who holds blocks of it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use indexmap::IndexMap;
use lockstep_proto::{Epoch, ReplicaId, SequenceId, SequenceStart, Step, StepId, Work};

use crate::blocks::{BlockCache, BlockTable};
use crate::limits::{CacheShape, Limits};
use crate::sequence::{Chunk, Running, Sequence};

/// The step the shards compute and the one they go on with. More would only put off what arrives.
pub(crate) const MAX_IN_FLIGHT: usize = 2;

/// A group of shards, for one epoch.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) replica: ReplicaId,
    pub(crate) epoch: Epoch,
    pub(crate) phase: Phase,
    limits: Limits,
    pub(crate) cache: BlockCache,
    /// What runs longest first.
    pub(crate) running: IndexMap<SequenceId, Running>,
    /// Steps that are not answered yet, at most [`MAX_IN_FLIGHT`], the oldest first.
    pub(crate) in_flight: VecDeque<InFlight>,
    /// Sequences for the shards to forget, with the next step.
    pub(crate) releases: Vec<SequenceId>,
}

/// How far a group is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It computes.
    Serving,
    /// It finishes its steps and computes no other.
    Draining,
}

/// How a group leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// As was planned.
    Drained,
    /// By itself, perhaps because of what it was computing.
    Lost,
}

/// A step the shards have.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) step: StepId,
    /// Since when they compute it: it was planned, or the one before it was done.
    pub(crate) since: Instant,
    pub(crate) chunks: Vec<Chunk>,
    /// Of sequences that have ended since and that no later step computes: the shards may write to these blocks.
    pub(crate) left: Vec<BlockTable>,
}

impl InFlight {
    pub(crate) fn computes(&self, sequence: SequenceId) -> bool {
        self.chunks.iter().any(|chunk| chunk.sequence == sequence)
    }
}

/// A step being planned.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    starts: Vec<SequenceStart>,
    work: Vec<Work>,
    chunks: Vec<Chunk>,
}

impl Plan {
    /// Whether there is nothing to compute.
    pub(crate) fn is_empty(&self) -> bool {
        self.work.is_empty()
    }

    fn computes(&self, sequence: SequenceId) -> bool {
        self.chunks.iter().any(|chunk| chunk.sequence == sequence)
    }

    pub(crate) fn push_start(&mut self, start: SequenceStart) {
        self.starts.push(start);
    }

    pub(crate) fn push_chunk(&mut self, (work, chunk): (Work, Chunk)) {
        self.work.push(work);
        self.chunks.push(chunk);
    }
}

impl Group {
    pub(crate) fn new(replica: ReplicaId, epoch: Epoch, cache: CacheShape, limits: Limits) -> Self {
        Self {
            replica,
            epoch,
            phase: Phase::Serving,
            limits,
            cache: BlockCache::new(cache, limits.prefix_cache),
            running: IndexMap::new(),
            in_flight: VecDeque::new(),
            releases: Vec::new(),
        }
    }

    /// Whether a step in flight computes a sequence, which may have left.
    pub(crate) fn computes(&self, sequence: SequenceId) -> bool {
        self.in_flight.iter().any(|step| step.computes(sequence))
    }

    /// Whether it takes sequences at all.
    pub(crate) fn admits(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Whether it could plan a step now.
    pub(crate) fn is_idle(&self) -> bool {
        self.admits() && self.in_flight.is_empty()
    }

    /// Whether so many more sequences may run. Those that end with what is in flight have left before the next step.
    pub(crate) fn has_places(&self, more: usize) -> bool {
        let staying = self.running.values().filter(|running| !running.is_ending()).count();
        staying + more <= self.limits.running()
    }

    /// How many more sequences may run in the step that is being planned so far as `plan`.
    pub(crate) fn places_beside(&self, plan: &Plan) -> usize {
        let leaving = self.running.values().filter(|running| running.is_ending());
        let leaving = leaving.filter(|running| !plan.computes(running.sequence.id)).count();
        (self.limits.running() + leaving).saturating_sub(self.running.len())
    }

    /// Sequences it computes, and one more for each step's worth of tokens they are behind.
    pub(crate) fn load(&self) -> usize {
        let behind = self.running.values().map(|running| running.behind().len()).sum::<usize>();
        self.running.len() + behind / self.limits.step_tokens().len()
    }

    /// What ran, without the blocks, which are gone. What was being computed, in however many steps, has one loss more,
    /// if it was one.
    pub(crate) fn into_sequences(mut self, leaving: Leaving) -> impl Iterator<Item = Sequence> {
        let chunks = self.in_flight.iter().flat_map(|step| &step.chunks);
        let computed: BTreeSet<SequenceId> = chunks.map(|chunk| chunk.sequence).collect();
        for sequence in computed.into_iter().filter(|_| leaving == Leaving::Lost) {
            if let Some(running) = self.running.get_mut(&sequence) {
                running.sequence.losses.on_lost();
            }
        }
        self.running.into_values().map(|running| running.sequence)
    }

    /// Makes a plan the last step in flight.
    pub(crate) fn launch(&mut self, step_id: StepId, plan: Plan, now: Instant) -> Step {
        self.in_flight.push_back(InFlight {
            step: step_id,
            since: now,
            chunks: plan.chunks,
            left: Vec::new(),
        });
        Step {
            epoch: self.epoch,
            step_id,
            starts: plan.starts,
            work: plan.work,
            // Grammar masks belong to the sequences of `work` that sample; whoever owns grammars adds them.
            masks: Vec::new(),
            releases: std::mem::take(&mut self.releases),
        }
    }
}
