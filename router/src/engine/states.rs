//! Which replicas can be asked, for those who wait for it.

use std::sync::Arc;

use lockstep_proto::ReplicaId;
use tokio::sync::watch;

use super::GroupState;
use crate::clock;
use crate::shards::GroupFacts;

/// The engine's end of what is told.
pub(super) struct States {
    /// Ready as long as one of them is.
    any: watch::Sender<GroupState>,
    /// Of each, in their order.
    each: watch::Sender<Vec<GroupState>>,
    /// What is known of the group that came last, also once it is lost: those that follow are like it.
    last: watch::Sender<Option<Arc<GroupFacts>>>,
}

/// The others' ends.
#[derive(Clone)]
pub(super) struct Told {
    pub(super) any: watch::Receiver<GroupState>,
    pub(super) each: watch::Receiver<Vec<GroupState>>,
    pub(super) last: watch::Receiver<Option<Arc<GroupFacts>>>,
}

impl States {
    /// Of so many replicas that are away.
    pub(super) fn new(replicas: usize) -> (Self, Told) {
        let away = GroupState::Away { since: clock::now() };
        let (each, each_told) = watch::channel(vec![away.clone(); replicas]);
        let (any, any_told) = watch::channel(away);
        let (last, last_told) = watch::channel(None);
        (Self { any, each, last }, Told { any: any_told, each: each_told, last: last_told })
    }

    /// A group can be asked.
    pub(super) fn on_ready(&self, replica: ReplicaId, facts: GroupFacts) {
        let facts = Arc::new(facts);
        self.last.send_replace(Some(Arc::clone(&facts)));
        self.set(replica, GroupState::Ready(facts));
    }

    /// A group cannot be asked any more.
    pub(super) fn on_away(&self, replica: ReplicaId) {
        self.set(replica, GroupState::Away { since: clock::now() });
    }

    /// Whether any can be asked.
    pub(super) fn is_any_ready(&self) -> bool {
        self.first_ready().is_some()
    }

    /// The first that can be asked.
    pub(super) fn first_ready(&self) -> Option<Arc<GroupFacts>> {
        self.each.borrow().iter().find_map(|state| match state {
            GroupState::Ready(facts) => Some(Arc::clone(facts)),
            GroupState::Away { .. } => None,
        })
    }

    fn set(&self, replica: ReplicaId, state: GroupState) {
        self.each.send_modify(|each| {
            if let Some(place) = each.get_mut(replica.index()) {
                *place = state;
            }
        });
        let any = self.first_ready().map_or(GroupState::Away { since: clock::now() }, GroupState::Ready);
        self.any.send_replace(any);
    }
}
