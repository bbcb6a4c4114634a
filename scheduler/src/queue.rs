//! The order of waiting: by arrival, oldest first.
//!
//! Priorities, deadlines and fair shares are another order here; nothing outside relies on more than
//! "the next one" and "these come back".

use std::collections::VecDeque;

use lockstep_proto::{SequenceId, Tokens};

use crate::sequence::Sequence;

/// Sequences without blocks, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: VecDeque<Sequence>,
}

impl Queue {
    /// A new arrival goes to the end.
    pub(crate) fn push(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// A sequence that ran is older than all that wait, so it goes to the front. Several come back newest
    /// first.
    pub(crate) fn push_preempted(&mut self, sequence: Sequence) {
        self.waiting.push_front(sequence);
    }

    /// The one to be admitted next.
    pub(crate) fn first(&self) -> Option<&Sequence> {
        self.waiting.front()
    }

    pub(crate) fn pop_first(&mut self) -> Option<Sequence> {
        self.waiting.pop_front()
    }

    /// Forgets `sequence`, if it waits.
    pub(crate) fn remove(&mut self, sequence: SequenceId) -> Option<Sequence> {
        let index = self.waiting.iter().position(|waiting| waiting.id == sequence)?;
        self.waiting.remove(index)
    }

    /// Takes out those for which `keep` does not hold.
    pub(crate) fn extract(&mut self, keep: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let (kept, extracted) = self.waiting.drain(..).partition(keep);
        self.waiting = kept;
        Vec::from(extracted)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.waiting.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Tokens known of all of them.
    pub(crate) fn tokens(&self) -> Tokens {
        Tokens::of_len(self.waiting.iter().map(|sequence| sequence.known.len()).sum())
    }
}
