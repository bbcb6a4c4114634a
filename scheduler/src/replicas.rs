//! The places of the groups: who serves where, and who has left.

use std::collections::BTreeMap;

use lockstep_proto::{ReplicaId, SequenceId, StepId, Tokens};

use crate::group::Group;
use crate::sequence::{Running, Sequence};

/// Every replica there ever was, with its group while it has one.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    places: BTreeMap<ReplicaId, Place>,
}

#[derive(Debug)]
struct Place {
    /// Absent until a group is ready and after it is lost.
    group: Option<Group>,
    /// Goes on over incarnations.
    next_step: StepId,
}

impl Default for Place {
    fn default() -> Self {
        Self { group: None, next_step: StepId(1) }
    }
}

impl Replicas {
    /// The groups that are there.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &Group> + Clone {
        self.places.values().filter_map(|place| place.group.as_ref())
    }

    pub(crate) fn get(&self, replica: ReplicaId) -> Option<&Group> {
        self.places.get(&replica)?.group.as_ref()
    }

    pub(crate) fn get_mut(&mut self, replica: ReplicaId) -> Option<&mut Group> {
        self.places.get_mut(&replica)?.group.as_mut()
    }

    /// A group takes its place.
    pub(crate) fn put(&mut self, group: Group) {
        let replica = group.replica;
        self.places.entry(replica).or_default().group = Some(group);
    }

    /// A group leaves its place, for good or to be looked at beside the others.
    pub(crate) fn take(&mut self, replica: ReplicaId) -> Option<Group> {
        self.places.get_mut(&replica)?.group.take()
    }

    /// What runs anywhere.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Running> + Clone {
        self.groups().flat_map(|group| group.running.values())
    }

    /// The group that computes a sequence.
    pub(crate) fn group_of(&mut self, sequence: SequenceId) -> Option<&mut Group> {
        let mut groups = self.places.values_mut().filter_map(|place| place.group.as_mut());
        groups.find(|group| group.running.contains_key(&sequence))
    }

    /// A sequence that runs.
    pub(crate) fn running_mut(&mut self, sequence: SequenceId) -> Option<&mut Running> {
        self.group_of(sequence)?.running.get_mut(&sequence)
    }

    /// Whether any group that is there can hold the whole of `sequence`; where there is none, nobody knows.
    pub(crate) fn hold(&self, sequence: &Sequence) -> bool {
        let context = sequence.max_context();
        self.groups().next().is_none() || self.groups().any(|group| group.cache.shape().holds(context))
    }

    /// The most tokens that one sequence may have, in the largest cache there is.
    pub(crate) fn largest(&self) -> Option<&Group> {
        let tokens = |group: &&Group| -> Tokens {
            let shape = group.cache.shape();
            shape.blocks.tokens(shape.block_size)
        };
        self.groups().max_by_key(tokens)
    }

    pub(crate) fn take_step_id(&mut self, replica: ReplicaId) -> StepId {
        let place = self.places.entry(replica).or_default();
        let step = place.next_step;
        place.next_step = StepId(step.0 + 1);
        step
    }
}
