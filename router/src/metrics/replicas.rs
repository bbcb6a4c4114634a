//! Which groups serve, how often they came and went.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_proto::ReplicaId;
use metrics::Label;

use super::{Metrics, counter, gauge};
use crate::engine::GroupEnd;
use crate::shards::GroupFacts;

/// The gauge by replica.
pub(super) const READY: &str = "lockstep_replica_ready";

/// What is known of the replicas.
#[derive(Default)]
pub(super) struct Replicas {
    count: usize,
    /// Those that serve, with their ranks.
    serving: BTreeMap<ReplicaId, u32>,
    /// Those that have ever served.
    served: BTreeSet<ReplicaId>,
}

impl Replicas {
    /// Whether it is worth telling which one is meant.
    pub(super) fn are_several(&self) -> bool {
        self.count > 1
    }
}

/// Which replica is meant.
pub(super) fn label(replica: ReplicaId) -> Label {
    Label::new("replica", replica.to_string())
}

impl Metrics {
    /// A replica's group serves from here on.
    pub fn on_group_ready(&self, replica: ReplicaId, facts: &GroupFacts) {
        let mut seen = self.seen();
        seen.block_size = facts.block_size;
        seen.replicas.serving.insert(replica, facts.world_size);
        if !seen.replicas.served.insert(replica) {
            counter(&self.recorder, "lockstep_group_restarts_total", &[]).increment(1);
        }
        self.show_replicas(&seen.replicas);
    }

    /// A group serves no more, because it was asked to leave or by itself.
    pub fn on_group_end(&self, replica: ReplicaId, end: GroupEnd) {
        let name = match end {
            GroupEnd::Lost => "lockstep_group_losses_total",
            GroupEnd::Drained => "lockstep_group_drains_total",
        };
        counter(&self.recorder, name, &[]).increment(1);
        let mut seen = self.seen();
        seen.replicas.serving.remove(&replica);
        self.show_replicas(&seen.replicas);
    }

    /// How many replicas there are.
    pub fn expect_replicas(&self, replicas: usize) {
        let mut seen = self.seen();
        seen.replicas.count = replicas;
        self.show_replicas(&seen.replicas);
    }

    fn show_replicas(&self, replicas: &Replicas) {
        let ranks: u32 = replicas.serving.values().sum();
        gauge(&self.recorder, "lockstep_ranks_ready", &[]).set(ranks);
        gauge(&self.recorder, "lockstep_replicas_ready", &[]).set(replicas.serving.len() as f64);
        for replica in (0..).map(ReplicaId).take(replicas.count) {
            let is_ready = replicas.serving.contains_key(&replica);
            gauge(&self.recorder, READY, &[label(replica)]).set(f64::from(u8::from(is_ready)));
        }
    }
}
