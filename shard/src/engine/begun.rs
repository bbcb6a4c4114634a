//! A step between its beginning and its end, and which step may be begun before that.

use std::time::Instant;

use lockstep_proto::{Step, StepId, StepTimings, Work, WorkTokens};

use super::choose::Found;
use super::model::Model;
use super::plan::{Entry, Plan};
use super::sequences::Sequences;
use crate::sampling::is_for_devices;

/// A step that was begun and whose results are not taken note of yet.
pub struct Begun<M: Model> {
    pub(super) plan: Plan,
    pub(super) rows: Rows<M::Asked>,
    pub(super) timings: StepTimings,
}

/// What is known of the wanted rows of a step that was begun.
pub(super) enum Rows<A> {
    /// What the host has found in them, on rank 0.
    Found(Vec<Found>),
    /// The device answers.
    Asked(A),
}

impl<M: Model> Begun<M> {
    /// Which step it is.
    pub fn step(&self) -> StepId {
        self.plan.step
    }

    /// The answers on their way.
    pub(super) fn asked(&self) -> Option<&M::Asked> {
        match &self.rows {
            Rows::Asked(asked) => Some(asked),
            Rows::Found(_) => None,
        }
    }

    /// Whether the device alone computes `next`, once it has computed this.
    pub(super) fn feeds(&self, next: &Step, sequences: &Sequences) -> bool {
        let Step { epoch: _, step_id: _, starts, work, masks: _, releases: _ } = next;
        let is_computed = |sequence| {
            self.plan.entries.iter().any(|entry| match entry {
                Entry::Computed(computed) => computed.sequence == sequence,
                Entry::Failed(..) => false,
            })
        };
        // One that begins anew under its name would be taken for the one this step computes.
        let can_start =
            starts.iter().all(|start| is_for_devices(&start.sampling) && !is_computed(start.sequence));
        let can_work = |work: &Work| {
            starts.iter().any(|start| start.sequence == work.sequence) || can_go_on(work, sequences)
        };
        self.asked().is_some() && self.plan.is_for_devices && can_start && work.iter().all(can_work)
    }
}

/// Whether the host need not know what `work` has as its token, or chooses.
fn can_go_on(work: &Work, sequences: &Sequences) -> bool {
    let Ok(sequence) = sequences.get(work.sequence) else { return false };
    let knows_tokens = match work.tokens {
        WorkTokens::LastSampled => work.appended.is_empty(),
        WorkTokens::Ids(_) => false,
    };
    is_for_devices(sequence.sampler.params()) && (sequence.awaited.is_none() || knows_tokens)
}

/// Tells the times between two moments.
pub(super) struct Lap(Instant);

impl Lap {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// Since the last call.
    pub(super) fn next_ns(&mut self) -> u64 {
        let since = std::mem::replace(&mut self.0, Instant::now());
        u64::try_from((self.0 - since).as_nanos()).unwrap_or(u64::MAX)
    }
}
