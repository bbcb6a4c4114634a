//! The groups of all replicas, and what each of them is at: coming up, computing a step or two, or nothing.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use lockstep_proto::{Epoch, ReplicaId, Step, StepOutput, StepTimings, TraceParent};
use tokio::sync::oneshot;

use super::step_times::StepTimes;
use super::watchdog::{StepWork, Watchdog};
use crate::clock;
use crate::shards::{GroupFacts, ShardError, ShardGroup, bring_up};

/// All replicas, in their order.
pub(super) struct Replicas<G> {
    places: Vec<Place<G>>,
    /// The groups that are coming up.
    joining: FuturesUnordered<BoxFuture<'static, Happened<G>>>,
    max_step_tokens: u32,
    /// Whose turn to be attended to comes first: were it always the same one's, the last might wait for ever.
    first_attended: usize,
}

struct Place<G> {
    watchdog: Watchdog,
    times: StepTimes,
    /// The incarnation that serves, while one does.
    epoch: Option<Epoch>,
    /// The group, unless it is coming up.
    group: Option<G>,
    /// The step it computes.
    under_way: Option<UnderWay>,
    /// The step it goes on with.
    queued: Option<StepWork>,
    /// Until when its next step waits for masks.
    settles_until: Option<Instant>,
    /// Who wants it to leave.
    drains: Vec<oneshot::Sender<()>>,
}

/// A step that a group computes.
struct UnderWay {
    work: StepWork,
    /// It was begun, or the one before it was done.
    since: Instant,
    limit: Duration,
    following: Following,
}

/// When the step after the one under way is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Following {
    /// Once this one is done: it is not known when that is.
    Afterwards,
    /// Before, at this time.
    At(Instant),
    /// From now on.
    Due,
}

/// What became of a group.
pub(super) enum Happened<G> {
    /// Its ranks are ready.
    Joined(ReplicaId, G, GroupFacts),
    /// Its step is done, or it is lost.
    Stepped(ReplicaId, Result<StepOutput, ShardError>),
    /// It is lost while it was at nothing.
    Lost(ReplicaId, ShardError),
}

impl<G: ShardGroup> Replicas<G> {
    /// Replicas of these groups; [`Self::join`] brings each up.
    pub(super) fn new(groups: Vec<G>, watchdog: &Watchdog, max_step_tokens: u32) -> Self {
        let place = |group| Place {
            watchdog: watchdog.clone(),
            times: StepTimes::default(),
            epoch: None,
            group: Some(group),
            under_way: None,
            queued: None,
            settles_until: None,
            drains: Vec::new(),
        };
        let places = groups.into_iter().map(place).collect();
        Self { places, joining: FuturesUnordered::new(), max_step_tokens, first_attended: 0 }
    }

    /// All of them.
    pub(super) fn ids(&self) -> impl Iterator<Item = ReplicaId> + use<G> {
        (0..self.places.len()).map(|place| ReplicaId(u32::try_from(place).unwrap_or(u32::MAX)))
    }

    /// Waits for a group newer than `lost` in a replica. Steps of the one that was there are void.
    pub(super) fn join(&mut self, replica: ReplicaId, lost: Option<Epoch>) {
        let max_step_tokens = self.max_step_tokens;
        let Some(place) = self.places.get_mut(replica.index()) else { return };
        place.epoch = None;
        (place.under_way, place.queued) = (None, None);
        place.settles_until = None;
        place.watchdog.forget();
        place.times.forget();
        // Nobody has to wait any more for it to leave; who asked may have left meanwhile.
        for asked in place.drains.drain(..) {
            let _ = asked.send(());
        }
        let Some(mut group) = place.group.take() else { return };
        self.joining.push(Box::pin(async move {
            let facts = bring_up(&mut group, lost, max_step_tokens).await;
            Happened::Joined(replica, group, facts)
        }));
    }

    /// A group has joined: it serves from here on, and is at nothing.
    pub(super) fn on_joined(&mut self, replica: ReplicaId, group: G, epoch: Epoch) {
        if let Some(place) = self.places.get_mut(replica.index()) {
            (place.group, place.epoch) = (Some(group), Some(epoch));
        }
    }

    /// A group has done a step; where it has no other, its next one waits for masks until `settles_until`. Where it has,
    /// it is under way now: returns how long that may take.
    pub(super) fn on_stepped(
        &mut self,
        replica: ReplicaId,
        now: Instant,
        settles_until: Option<Instant>,
    ) -> Option<Duration> {
        self.first_attended = replica.index() + 1;
        let place = self.places.get_mut(replica.index())?;
        let UnderWay { work, since, .. } = place.under_way.take()?;
        let took = now.saturating_duration_since(since);
        place.watchdog.on_step(work, took);
        place.times.on_step(work, took);
        let Some(queued) = place.queued.take() else {
            place.settles_until = settles_until;
            return None;
        };
        Some(place.compute(queued, now))
    }

    /// Hands a step to a replica's group. Returns how long it may take, unless another is under way.
    ///
    /// # Errors
    /// When the group is lost.
    pub(super) fn begin(
        &mut self,
        replica: ReplicaId,
        step: Step,
        traces: &[TraceParent],
    ) -> Result<Option<Duration>, ShardError> {
        let Some(place) = self.places.get_mut(replica.index()) else { return Ok(None) };
        let Some(group) = &mut place.group else { return Ok(None) };
        let work = StepWork::of(&step);
        group.begin(step, traces)?;
        if place.under_way.is_some() {
            place.queued = Some(work);
            return Ok(None);
        }
        place.settles_until = None;
        Ok(Some(place.compute(work, clock::now())))
    }

    /// What the last step of a replica cost each rank, in their order.
    pub(super) fn timings(&self, replica: ReplicaId) -> &[StepTimings] {
        let group = self.places.get(replica.index()).and_then(|place| place.group.as_ref());
        group.map(ShardGroup::timings).unwrap_or_default()
    }

    /// Whether its next step is to be planned although one is under way, at `now`; from then on it is, until there is one.
    pub(super) fn take_due_ahead(&mut self, replica: ReplicaId, now: Instant) -> bool {
        let place = self.places.get_mut(replica.index()).filter(|place| place.queued.is_none());
        let Some(UnderWay { following, .. }) = place.and_then(|place| place.under_way.as_mut()) else {
            return false;
        };
        if matches!(following, Following::At(at) if *at <= now) {
            *following = Following::Due;
        }
        *following == Following::Due
    }

    /// When the first step is to be planned while one is under way.
    pub(super) fn next_ahead(&self) -> Option<Instant> {
        let free = self.places.iter().filter(|place| place.queued.is_none());
        let following = free.filter_map(|place| match place.under_way.as_ref()?.following {
            Following::At(at) => Some(at),
            Following::Afterwards | Following::Due => None,
        });
        following.min()
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

    /// Whether it is to leave once its steps are done.
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
        let Self { places, joining, first_attended, .. } = self;
        let mut turns: Vec<_> = (0..).map(ReplicaId).zip(places).collect();
        let first = *first_attended % turns.len().max(1);
        turns.rotate_left(first);
        let serving = turns.into_iter().filter(|(_, place)| place.epoch.is_some());
        let mut attended: FuturesUnordered<_> = serving.map(attend).collect();
        tokio::select! {
            biased;
            Some(joined) = joining.next() => joined,
            Some(happened) = attended.next() => happened,
            else => std::future::pending().await,
        }
    }
}

/// Waits until a group that serves has done its step, or is lost.
async fn attend<G: ShardGroup>((replica, place): (ReplicaId, &mut Place<G>)) -> Happened<G> {
    let Some(group) = &mut place.group else { return std::future::pending().await };
    match &place.under_way {
        None => Happened::Lost(replica, group.lost().await),
        Some(UnderWay { since, limit, .. }) => {
            let output = tokio::time::timeout_at((*since + *limit).into(), group.finish()).await;
            Happened::Stepped(replica, output.unwrap_or(Err(ShardError::TooSlow { limit: *limit })))
        }
    }
}

impl<G> Place<G> {
    fn is_idle(&self) -> bool {
        self.epoch.is_some() && self.under_way.is_none()
    }

    /// A step is under way from now on. Returns how long it may take.
    fn compute(&mut self, work: StepWork, now: Instant) -> Duration {
        let limit = self.watchdog.limit(work);
        let after = self.times.next_planned_after(work);
        let following = after.map_or(Following::Afterwards, |after| Following::At(now + after));
        self.under_way = Some(UnderWay { work, since: now, limit, following });
        limit
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::{StepId, Tokens};

    use super::*;
    use crate::shards::fake::{FakeControl, FakeGroup, FakeModel, FakeShape};

    const ONLY: ReplicaId = ReplicaId(0);
    const LIMIT: Duration = Duration::from_secs(2);

    /// One replica that serves, computes nothing unless it is told to, and has two steps.
    async fn with_two_steps() -> (Replicas<FakeGroup>, FakeControl) {
        let shape =
            FakeShape { vocabulary_size: 10, max_positions: Tokens(10), block_size: Tokens(4), blocks: 10 };
        let (group, control) = FakeGroup::new(FakeModel::Hash, shape);
        control.come_back();
        control.pause();
        let mut replicas = Replicas::new(vec![group], &Watchdog::new(LIMIT, LIMIT), 8);
        replicas.join(ONLY, None);
        let Happened::Joined(_, group, facts) = replicas.next().await else {
            panic!("it does not come up")
        };
        replicas.on_joined(ONLY, group, facts.epoch);
        let step = |id| Step {
            epoch: facts.epoch,
            step_id: StepId(id),
            starts: Vec::new(),
            work: Vec::new(),
            masks: Vec::new(),
            releases: Vec::new(),
        };
        assert_eq!(replicas.begin(ONLY, step(1), &[]).unwrap(), Some(LIMIT));
        assert_eq!(replicas.begin(ONLY, step(2), &[]).unwrap(), None, "it is not under way yet");
        (replicas, control)
    }

    async fn answered(replicas: &mut Replicas<FakeGroup>) -> Result<StepId, ShardError> {
        match replicas.next().await {
            Happened::Stepped(_, output) => output.map(|output| output.step_id),
            Happened::Joined(..) | Happened::Lost(..) => panic!("no step is over"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_step_counts_from_when_the_one_before_it_is_done() {
        let (mut replicas, control) = with_two_steps().await;
        tokio::time::advance(LIMIT * 3 / 4).await;
        control.allow_steps(1);
        assert_eq!(answered(&mut replicas).await.unwrap(), StepId(1));
        assert_eq!(replicas.on_stepped(ONLY, clock::now(), None), Some(LIMIT));
        tokio::time::advance(LIMIT * 3 / 4).await;
        assert!(futures::poll!(std::pin::pin!(replicas.next())).is_pending(), "it has more time");
        control.allow_steps(1);
        assert_eq!(answered(&mut replicas).await.unwrap(), StepId(2));
        assert_eq!(replicas.on_stepped(ONLY, clock::now(), None), None);
        assert!(replicas.is_idle(ONLY));
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_takes_too_long_ends_the_wait_for_both() {
        let (mut replicas, _control) = with_two_steps().await;
        let begun = clock::now();
        let error = answered(&mut replicas).await.unwrap_err();
        assert!(matches!(error, ShardError::TooSlow { limit } if limit == LIMIT), "{error}");
        assert_eq!(clock::since(begun), LIMIT);
        replicas.join(ONLY, None);
        assert!(!replicas.is_idle(ONLY) && replicas.next_ahead().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_is_not_lost_where_the_wait_is_broken_off() {
        let (mut replicas, control) = with_two_steps().await;
        assert!(futures::poll!(std::pin::pin!(replicas.next())).is_pending());
        control.allow_steps(2);
        assert_eq!(answered(&mut replicas).await.unwrap(), StepId(1));
        replicas.on_stepped(ONLY, clock::now(), None);
        assert_eq!(answered(&mut replicas).await.unwrap(), StepId(2));
    }
}
