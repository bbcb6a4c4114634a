//! The groups of all replicas, and what each of them is at: coming up, computing a step, or nothing.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use lockstep_proto::{Epoch, ReplicaId, Step, StepOutput, TraceParent};
use tokio::sync::oneshot;

use super::watchdog::{StepWork, Watchdog};
use crate::clock;
use crate::shards::{GroupFacts, ShardError, ShardGroup, bring_up};

/// All replicas, in their order.
pub(super) struct Replicas<G> {
    places: Vec<Place<G>>,
    /// The groups that are at something, until that is done.
    under_way: FuturesUnordered<BoxFuture<'static, Happened<G>>>,
    max_step_tokens: u32,
}

struct Place<G> {
    watchdog: Watchdog,
    /// The incarnation that serves, while one does.
    epoch: Option<Epoch>,
    /// The group, while it is at nothing.
    idle: Option<G>,
    /// Until when its next step waits for masks.
    settles_until: Option<Instant>,
    /// Who wants it to leave.
    drains: Vec<oneshot::Sender<()>>,
}

/// What became of a group that was at something.
pub(super) enum Happened<G> {
    /// Its ranks are ready.
    Joined(ReplicaId, G, GroupFacts),
    /// Its step is done, or it is lost.
    Stepped(ReplicaId, Result<StepOutput, ShardError>, Stepped<G>),
    /// It is lost while it was at nothing.
    Lost(ReplicaId, ShardError),
}

/// A group after its step.
pub(super) struct Stepped<G> {
    pub(super) group: G,
    work: StepWork,
    took: Duration,
}

impl<G: ShardGroup> Replicas<G> {
    /// Replicas of these groups; [`Self::join`] brings each up.
    pub(super) fn new(groups: Vec<G>, watchdog: &Watchdog, max_step_tokens: u32) -> Self {
        let place = |group| Place {
            watchdog: watchdog.clone(),
            epoch: None,
            idle: Some(group),
            settles_until: None,
            drains: Vec::new(),
        };
        let places = groups.into_iter().map(place).collect();
        Self { places, under_way: FuturesUnordered::new(), max_step_tokens }
    }

    /// All of them.
    pub(super) fn ids(&self) -> impl Iterator<Item = ReplicaId> + use<G> {
        (0..self.places.len()).map(|place| ReplicaId(u32::try_from(place).unwrap_or(u32::MAX)))
    }

    /// Waits for a group newer than `lost` in a replica whose group is at nothing.
    pub(super) fn join(&mut self, replica: ReplicaId, lost: Option<Epoch>) {
        let max_step_tokens = self.max_step_tokens;
        let Some(place) = self.places.get_mut(replica.index()) else { return };
        place.epoch = None;
        place.settles_until = None;
        place.watchdog.forget();
        // Nobody has to wait any more for it to leave; who asked may have left meanwhile.
        for asked in place.drains.drain(..) {
            let _ = asked.send(());
        }
        let Some(mut group) = place.idle.take() else { return };
        self.under_way.push(Box::pin(async move {
            let facts = bring_up(&mut group, lost, max_step_tokens).await;
            Happened::Joined(replica, group, facts)
        }));
    }

    /// A group has joined: it serves from here on, and is at nothing.
    pub(super) fn on_joined(&mut self, replica: ReplicaId, group: G, epoch: Epoch) {
        if let Some(place) = self.places.get_mut(replica.index()) {
            (place.idle, place.epoch) = (Some(group), Some(epoch));
        }
    }

    /// A group is at nothing again; its next step waits for masks until `settles_until`.
    pub(super) fn on_stepped(
        &mut self,
        replica: ReplicaId,
        stepped: Stepped<G>,
        settles_until: Option<Instant>,
    ) {
        if let Some(place) = self.places.get_mut(replica.index()) {
            place.watchdog.on_step(stepped.work, stepped.took);
            (place.idle, place.settles_until) = (Some(stepped.group), settles_until);
        }
    }

    /// Computes a step on a replica whose group is at nothing. Returns how long it may take.
    pub(super) fn begin(
        &mut self,
        replica: ReplicaId,
        step: Step,
        traces: Vec<TraceParent>,
    ) -> Option<Duration> {
        let place = self.places.get_mut(replica.index())?;
        let mut group = place.idle.take()?;
        place.settles_until = None;
        let (work, begun) = (StepWork::of(&step), clock::now());
        let limit = place.watchdog.limit(work);
        self.under_way.push(Box::pin(async move {
            let output = tokio::time::timeout(limit, group.step(step, &traces)).await;
            let output = output.unwrap_or(Err(ShardError::TooSlow { limit }));
            let took = clock::since(begun);
            Happened::Stepped(replica, output, Stepped { group, work, took })
        }));
        Some(limit)
    }

    /// Someone wants the incarnation `epoch` to leave. It is told once it has, or that it is not there.
    pub(super) fn ask_to_leave(
        &mut self,
        replica: ReplicaId,
        epoch: Epoch,
        asked: oneshot::Sender<()>,
    ) -> bool {
        match self.places.get_mut(replica.index()).filter(|place| place.epoch == Some(epoch)) {
            Some(place) => {
                place.drains.push(asked);
                true
            }
            None => {
                // Whoever asked may have left meanwhile.
                let _ = asked.send(());
                false
            }
        }
    }

    /// Whether it is to leave once its step is done.
    pub(super) fn is_leaving(&self, replica: ReplicaId) -> bool {
        self.places.get(replica.index()).is_some_and(|place| !place.drains.is_empty())
    }

    /// Whether it serves and is at nothing.
    pub(super) fn is_idle(&self, replica: ReplicaId) -> bool {
        self.places.get(replica.index()).is_some_and(Place::is_idle)
    }

    /// The incarnation that serves.
    pub(super) fn epoch(&self, replica: ReplicaId) -> Option<Epoch> {
        self.places.get(replica.index())?.epoch
    }

    /// Until when its next step waits for masks.
    pub(super) fn settles_until(&self, replica: ReplicaId) -> Option<Instant> {
        self.places.get(replica.index())?.settles_until
    }

    /// Its next step waits for nothing.
    pub(super) fn settle(&mut self, replica: ReplicaId) {
        if let Some(place) = self.places.get_mut(replica.index()) {
            place.settles_until = None;
        }
    }

    /// When the first wait for masks is over.
    pub(super) fn next_settled(&self) -> Option<Instant> {
        self.places.iter().filter_map(|place| place.settles_until).min()
    }

    /// What happens next to any group; never anything, if there is none.
    ///
    /// # Cancel safety
    /// Nothing that happens is lost.
    pub(super) async fn next(&mut self) -> Happened<G> {
        let Self { places, under_way, .. } = self;
        if places.iter().any(Place::is_idle) {
            let mut watched: FuturesUnordered<_> = (0..).map(ReplicaId).zip(places).map(watch).collect();
            tokio::select! {
                biased;
                Some(happened) = under_way.next() => return happened,
                Some(lost) = watched.next() => return lost,
                else => {}
            }
        } else if let Some(happened) = under_way.next().await {
            return happened;
        }
        std::future::pending().await
    }
}

/// Waits until a group that is at nothing is lost.
async fn watch<G: ShardGroup>((replica, place): (ReplicaId, &mut Place<G>)) -> Happened<G> {
    match &mut place.idle {
        Some(group) if place.epoch.is_some() => Happened::Lost(replica, group.lost().await),
        Some(_) | None => std::future::pending().await,
    }
}

impl<G> Place<G> {
    fn is_idle(&self) -> bool {
        self.epoch.is_some() && self.idle.is_some()
    }
}
