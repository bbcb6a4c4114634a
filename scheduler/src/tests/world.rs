//! A scheduler with its clients and the fake shards of its replicas, and one random thing after another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use lockstep_proto::{
    Blocks, Epoch, Outcome, ReplicaId, Sampling, SequenceId, Step, StepOutput, TokenId, Tokens, WorkTokens,
};

use super::client::{Client, grammar_of, random_submission, salt_of};
use super::coverage::{Coverage, Met};
use super::fake_shard::{Alone, FakeShard, Grammar};
use super::generator::Generator;
use super::tables::Tables;
use crate::{
    AdmissionError, CacheShape, ExpiredWhile, Limits, PrefixCaching, RunAhead, Scheduler, SequenceEvent,
    StepMismatch, TokenOrigin,
};

/// One history.
pub(super) struct World {
    random: Generator,
    limits: Limits,
    scheduler: Scheduler,
    places: Vec<Place>,
    /// Where things happen at the moment.
    at: ReplicaId,
    now: Instant,
    clients: BTreeMap<SequenceId, Client>,
    /// What clients got, prompt and output, to be a prompt's beginning.
    texts: Vec<Vec<TokenId>>,
    pub(super) coverage: Coverage,
    run_ahead: RunAhead,
}

/// Where a replica's groups come and go.
struct Place {
    shard: Option<FakeShard>,
    cache: CacheShape,
    epoch: Epoch,
    /// The oldest first.
    in_flight: VecDeque<Step>,
    /// What the steps that were sent say of blocks.
    tables: Tables,
    is_draining: bool,
    /// An output that was too late.
    stale: Option<StepOutput>,
}

impl Place {
    fn new(random: &mut Generator) -> Self {
        let cache = random_cache(random);
        Self {
            shard: None,
            cache,
            epoch: Epoch(0),
            in_flight: VecDeque::new(),
            tables: Tables::new(cache.block_size),
            is_draining: false,
            stale: None,
        }
    }

    fn is_serving(&self) -> bool {
        self.shard.is_some() && !self.is_draining
    }

    fn holds(&self, client: &Client) -> bool {
        self.is_serving() && self.cache.holds(client.submission.max_context())
    }
}

impl World {
    pub(super) fn new(seed: u64, run_ahead: RunAhead) -> Self {
        let mut random = Generator::new(seed);
        let prefix_cache = if random.once_in(5) { PrefixCaching::Disabled } else { PrefixCaching::Enabled };
        let limits = Limits {
            max_requests: random.between(1, 10),
            max_queue_tokens: Tokens(random.between(20, 400)),
            max_running: random.between(1, 6),
            max_step_tokens: Tokens(random.between(1, 24)),
            max_total: Tokens(48),
            prefix_cache,
        };
        let replicas = if random.once_in(2) { 1 } else { random.between(2, 3) };
        let places = (0..replicas).map(|_| Place::new(&mut random)).collect();
        Self {
            random,
            limits,
            scheduler: Scheduler::new(limits),
            places,
            at: ReplicaId(0),
            now: Instant::now(),
            clients: BTreeMap::new(),
            texts: Vec::new(),
            coverage: Coverage::default(),
            run_ahead,
        }
    }

    /// Something happens.
    pub(super) fn act(&mut self) {
        self.now += Duration::from_millis(1);
        self.at = ReplicaId(self.random.between(0, self.places.len() as u32 - 1));
        match self.random.between(0, 24) {
            24 => self.drain_sometimes(),
            21..=23 => self.resume(),
            20 => self.expire(),
            0..=3 => self.submit(),
            4 => self.cancel(),
            5 => self.lose_group_sometimes(),
            6 => self.answer_wrongly(),
            7 if self.place().shard.is_none() => self.make_group_ready(),
            // Sometimes the answer comes first.
            _ if self.place().in_flight.len() == 1 && self.random.once_in(2) => self.plan_ahead(),
            _ if !self.place().in_flight.is_empty() => self.answer(),
            _ if self.place().is_draining => self.leave(),
            _ => self.plan(),
        }
    }

    /// From here on nothing goes wrong: every sequence must end, the oldest one advancing in every step.
    pub(super) fn settle(&mut self) {
        for replica in self.replicas() {
            self.at = replica;
            self.answer_all();
            self.leave();
            if self.place().shard.is_none() {
                self.make_group_ready();
            }
        }
        // Those under suspicion may be computed once more, one after the other.
        let most_steps: u32 =
            self.clients.values().map(|client| 2 * client.submission.max_context().0).sum();
        for _ in 0..most_steps {
            if self.clients.is_empty() {
                break;
            }
            while self.clients.values().any(|client| client.held) {
                self.resume();
            }
            self.compute_everywhere();
        }
        assert!(self.clients.is_empty(), "{} sequences did not end", self.clients.len());
        for replica in self.replicas() {
            assert_eq!(self.scheduler.plan_step(replica, self.now), None);
        }
        let stats = self.scheduler.stats();
        assert_eq!((stats.waiting, stats.running, stats.queue_tokens), (0, 0, Tokens::ZERO));
        assert_eq!(stats.blocks_used, Blocks::ZERO);
        let blocks = self.places.iter().fold(Blocks::ZERO, |sum, place| sum + place.cache.blocks);
        assert_eq!(stats.blocks_cached + stats.blocks_free, blocks);
        self.coverage.count(Met::PrefixHitTokens, stats.prefix_hit_tokens_total);
        self.coverage.count(Met::Moves, stats.moves_total);
    }

    fn compute_everywhere(&mut self) {
        for replica in self.replicas() {
            self.at = replica;
            self.plan();
            self.plan_ahead();
        }
        for replica in self.replicas() {
            self.at = replica;
            self.answer_all();
        }
    }

    fn replicas(&self) -> Vec<ReplicaId> {
        (0..self.places.len() as u32).map(ReplicaId).collect()
    }

    fn place(&mut self) -> &mut Place {
        &mut self.places[self.at.index()]
    }

    /// A group is to leave, and does once its step is done.
    fn drain_sometimes(&mut self) {
        if self.place().is_serving() && self.random.once_in(4) {
            self.scheduler.on_drain(self.at);
            self.place().is_draining = true;
            assert_eq!(self.scheduler.plan_step(self.at, self.now), None);
        }
    }

    fn leave(&mut self) {
        if self.place().is_draining && self.place().shard.is_some() {
            assert!(self.place().in_flight.is_empty());
            let left = self.scheduler.running_on(self.at).count();
            let before = self.scheduler.stats();
            self.scheduler.on_group_drained(self.at);
            assert_eq!(
                self.scheduler.stats().waiting,
                before.waiting + left,
                "all of them go on elsewhere"
            );
            self.place().shard = None;
            self.coverage.count(Met::Drained, left as u64);
        }
    }

    fn submit(&mut self) {
        let id = self.coverage.next_sequence();
        let submission = random_submission(&mut self.random, &self.texts, id, self.now);
        let requests = self.clients.len();
        match self.scheduler.on_submit(id, submission.clone(), self.now) {
            Ok(()) => {
                self.clients.insert(id, Client::new(submission, grammar_of(id)));
            }
            Err(AdmissionError::Full { limit }) => {
                assert_eq!(requests, limit as usize);
                self.coverage.count(Met::RefusedFull, 1);
            }
            Err(AdmissionError::QueueFull { waiting, prompt, limit }) => {
                assert!(!waiting.is_empty() && waiting + prompt > limit);
                self.coverage.count(Met::RefusedTokens, 1);
            }
            Err(AdmissionError::TooLate { wait, left }) => {
                assert!(left.is_zero() || wait >= left);
                self.coverage.count(Met::RefusedTooLate, 1);
            }
            Err(AdmissionError::TooLong { requested, limit }) => assert!(requested > limit),
            Err(AdmissionError::CannotFit { needed, blocks }) => assert!(needed > blocks),
            Err(error @ (AdmissionError::EmptyPrompt | AdmissionError::Duplicate { .. })) => {
                panic!("{error}")
            }
        }
    }

    fn cancel(&mut self) {
        let ids: Vec<_> = self.clients.keys().copied().collect();
        let Some(&id) = self.random.pick(&ids) else { return };
        let before = self.scheduler.stats();
        self.scheduler.on_cancel(id);
        let after = self.scheduler.stats();
        self.clients.remove(&id);
        let steps = self.places.iter().flat_map(|place| &place.in_flight);
        if steps.flat_map(|step| &step.work).any(|work| work.sequence == id) {
            assert_eq!(before.blocks_used, after.blocks_used, "blocks came back while they may be written");
            self.coverage.count(Met::CancelledInFlight, 1);
        } else if before.running > after.running {
            self.coverage.count(Met::CancelledBetween, 1);
        } else {
            self.coverage.count(Met::CancelledWaiting, 1);
        }
    }

    /// An owner has found out what follows.
    fn resume(&mut self) {
        let held = self.clients.iter().filter(|(_, client)| client.held);
        let ids: Vec<_> = held.map(|(id, _)| *id).collect();
        let Some(&id) = self.random.pick(&ids) else { return };
        let client = self.clients.get_mut(&id).unwrap();
        client.held = false;
        let forced = client.forced();
        self.coverage.count(Met::Forced, forced.len() as u64);
        let is_running = self.scheduler.replicas.group_of(id).is_some();
        self.coverage.count(Met::ResumedWaiting, u64::from(!is_running && !forced.is_empty()));
        self.scheduler.on_resume(id, &forced);
    }

    /// Every deadline that has come ends its sequence, and no other does.
    fn expire(&mut self) {
        let due = |client: &Client| client.submission.service.deadline.is_some_and(|at| at <= self.now);
        let due: BTreeSet<_> =
            self.clients.iter().filter(|(_, client)| due(client)).map(|(id, _)| *id).collect();
        let first = self.clients.values().filter_map(|client| client.submission.service.deadline).min();
        assert_eq!(self.scheduler.next_deadline(), first);
        let mut expired = BTreeSet::new();
        for event in self.scheduler.on_time(self.now) {
            let SequenceEvent::Expired { sequence, state } = event else { panic!("{event:?}") };
            self.clients.remove(&sequence);
            expired.insert(sequence);
            self.coverage.count(
                match state {
                    ExpiredWhile::Waiting => Met::ExpiredWaiting,
                    ExpiredWhile::Running => Met::ExpiredRunning,
                },
                1,
            );
        }
        assert_eq!(expired, due);
    }

    fn lose_group_sometimes(&mut self) {
        if self.place().shard.is_none() || !self.random.once_in(4) {
            return;
        }
        self.lose_group();
        // Sometimes the next groups fall with the first step they get.
        if self.random.once_in(4) {
            for _ in 0..self.random.between(1, 3) {
                self.make_group_ready();
                self.plan();
                self.lose_group();
            }
        }
    }

    fn lose_group(&mut self) {
        let mut expected = BTreeSet::new();
        let in_flight = std::mem::take(&mut self.place().in_flight);
        if let Some(step) = in_flight.front() {
            self.coverage.count(Met::LossesInFlight, 1);
            self.coverage.count(Met::LossesAhead, in_flight.len() as u64 - 1);
            self.place().stale = Some(self.compute(step, &BTreeSet::new()));
            expected = self.note_losses(&in_flight);
        } else {
            self.coverage.count(Met::LossesBetween, 1);
        }
        let mut failed = BTreeSet::new();
        for event in self.scheduler.on_group_lost(self.at) {
            if let SequenceEvent::Failed { sequence, .. } = &event {
                failed.insert(*sequence);
            }
            self.take_event(event);
        }
        assert_eq!(failed, expected, "who ends with a lost group");
        assert!(failed.len() <= 1, "bystanders end with a lost group");
        self.coverage.count(Met::LostTooOften, failed.len() as u64);
        self.place().shard = None;
        assert_eq!(self.scheduler.plan_step(self.at, self.now), None);
    }

    /// Who ends because its group is the third in a row that is lost while it computes the sequence.
    fn note_losses(&mut self, in_flight: &VecDeque<Step>) -> BTreeSet<SequenceId> {
        let work = in_flight.iter().flat_map(|step| &step.work);
        let computed: BTreeSet<_> = work.map(|work| work.sequence).collect();
        let mut ending = BTreeSet::new();
        for id in computed {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            client.losses += 1;
            if client.losses == 3 {
                client.told_to_fail = true;
                ending.insert(id);
            }
        }
        ending
    }

    fn note_progress(&mut self, step: &Step) {
        for work in &step.work {
            let Some(client) = self.clients.get_mut(&work.sequence) else { continue };
            let end = Tokens(work.first_position.0) + work.tokens.count();
            if end > client.furthest {
                (client.furthest, client.losses) = (end, 0);
            }
        }
    }

    fn make_group_ready(&mut self) {
        if self.random.once_in(4) {
            self.place().cache = random_cache(&mut self.random);
        }
        let place = self.place();
        (place.epoch, place.is_draining) = (Epoch(place.epoch.0 + 1), false);
        place.shard = Some(FakeShard::new(place.cache));
        place.tables = Tables::new(place.cache.block_size);
        let (epoch, cache) = (place.epoch, place.cache);
        for event in self.scheduler.on_group_ready(self.at, epoch, cache) {
            if let SequenceEvent::Failed { sequence, .. } = &event {
                let client = self.clients.remove(sequence).unwrap();
                assert!(!self.places.iter().any(|place| place.holds(&client)));
                self.coverage.count(Met::Outgrown, 1);
            } else {
                self.take_event(event);
            }
        }
    }

    /// What a replica leaves undone another one does.
    fn plan(&mut self) {
        let planned = self.plan_here();
        let is_busy = self.places.iter().any(|place| !place.in_flight.is_empty());
        // Others may wait for the blocks of one that is held.
        let is_held = self.clients.values().any(|client| client.held);
        if planned || is_busy || is_held || !self.can_any_go_on() {
            return;
        }
        let here = self.at;
        for replica in self.replicas().into_iter().filter(|replica| *replica != here) {
            self.at = replica;
            if self.plan_here() {
                self.coverage.count(Met::LeftToSibling, 1);
                return;
            }
        }
        panic!("nothing is computed");
    }

    /// Whether there is a sequence that some replica can hold and that is not kept by one that is to leave.
    fn can_any_go_on(&self) -> bool {
        let leaving = self.replicas().into_iter().filter(|at| !self.places[at.index()].is_serving());
        let kept: BTreeSet<_> = leaving.flat_map(|replica| self.scheduler.running_on(replica)).collect();
        let is_held_by_any = |client: &Client| self.places.iter().any(|place| place.holds(client));
        self.clients.iter().any(|(id, client)| !kept.contains(id) && is_held_by_any(client))
    }

    fn plan_here(&mut self) -> bool {
        let Some(step) = self.scheduler.plan_step(self.at, self.now) else { return false };
        assert_eq!(self.scheduler.plan_step(self.at, self.now), None, "two steps in flight");
        assert!(self.place().in_flight.is_empty());
        let is_suspect = |id: &SequenceId| self.clients[id].losses >= 2;
        let working: BTreeSet<_> = step.work.iter().map(|work| work.sequence).collect();
        if working.iter().any(is_suspect) {
            assert_eq!(working.len(), 1, "a suspect is computed together with others");
            assert_eq!(self.scheduler.plan_ahead(self.at, self.now), None, "a suspect is run ahead of");
            self.coverage.count(Met::ComputedAlone, 1);
        } else {
            let mut running = self.scheduler.running_on(self.at);
            let first = running.find(|id| !self.clients[id].held);
            assert!(working.contains(&first.unwrap()), "what runs longest does not advance");
        }
        self.send(step);
        true
    }

    /// The next step goes to the shards before they answer this one.
    fn plan_ahead(&mut self) {
        if self.run_ahead == RunAhead::Never {
            return;
        }
        let Some(before) = self.place().in_flight.front().cloned() else { return };
        let preemptions = self.scheduler.stats().preemptions_total;
        let Some(step) = self.scheduler.plan_ahead(self.at, self.now) else {
            self.coverage.count(Met::AheadRefused, 1);
            return;
        };
        assert_eq!(self.scheduler.plan_ahead(self.at, self.now), None, "three steps in flight");
        assert_eq!(self.scheduler.stats().preemptions_total, preemptions, "preempted while it is computed");
        self.check_ahead(&before, &step);
        self.coverage.count(Met::AheadAdmitted, step.starts.len() as u64);
        self.send(step);
    }

    /// Every sequence that `before` samples and that may go on does, with a token nobody knows yet.
    fn check_ahead(&mut self, before: &Step, step: &Step) {
        let working: BTreeMap<_, _> = step.work.iter().map(|work| (work.sequence, work)).collect();
        for work in &before.work {
            let Some(client) = self.clients.get(&work.sequence) else { continue };
            let ahead = working.get(&work.sequence);
            if work.sampling == Sampling::Skip {
                self.coverage.count(Met::AheadOfChunks, u64::from(ahead.is_some()));
                continue;
            }
            let end = work.first_position.0 + work.tokens.count().0;
            let ends = end + 1 == client.submission.max_context().0;
            assert!(client.grammar == Grammar::None || ends, "what follows is its owner's to find out");
            assert_eq!(ahead.is_some(), !ends, "{} is computed {before:?} {step:?}", work.sequence);
            if let Some(ahead) = ahead {
                assert_eq!((&ahead.tokens, ahead.first_position.0), (&WorkTokens::LastSampled, end));
                self.coverage.count(Met::RunAhead, 1);
            }
        }
    }

    fn send(&mut self, step: Step) {
        assert!(self.place().is_serving());
        let tokens = step.work.iter().fold(Tokens::ZERO, |sum, work| sum + work.tokens.count());
        assert!(tokens <= self.limits.max_step_tokens, "{tokens} tokens in a step");
        let working: BTreeSet<_> = step.work.iter().map(|work| work.sequence).collect();
        assert_eq!(working.len(), step.work.len(), "two chunks of one sequence");
        assert!(working.iter().all(|id| self.clients.contains_key(id)), "work for a sequence that ended");
        assert!(working.iter().all(|id| !self.clients[id].held), "work for a sequence that is held");
        let long = step.work.iter().filter(|work| !work.appended.is_empty()).count();
        self.coverage.count(Met::ForcedChunks, long as u64);
        for start in &step.starts {
            let client = self.clients.get_mut(&start.sequence).unwrap();
            let emitted = client.tokens.iter().map(|token| token.token);
            let known: Vec<_> = client.submission.prompt.iter().copied().chain(emitted).collect();
            // What is forced and not told yet comes after.
            assert_eq!(start.context[..known.len()], known);
            assert!(start.context.len() == known.len() || client.grammar == Grammar::Forcing);
            client.started += 1;
            self.coverage.count(Met::Restarts, u64::from(client.started > 1));
        }
        let last_sampled = step.work.iter().filter(|work| work.tokens == WorkTokens::LastSampled).count();
        self.coverage.count(Met::LastSampled, last_sampled as u64);
        let place = self.place();
        place.tables.on_step(&step, &place.in_flight);
        place.in_flight.push_back(step);
    }

    fn answer_all(&mut self) {
        while !self.place().in_flight.is_empty() {
            self.answer();
        }
    }

    fn answer(&mut self) {
        let Some(step) = self.place().in_flight.pop_front() else { return };
        let ids: Vec<_> = step.work.iter().map(|work| work.sequence).collect();
        let mut failing = BTreeSet::new();
        if self.random.once_in(40) {
            failing.extend(self.random.pick(&ids).copied());
        }
        for id in &failing {
            if let Some(client) = self.clients.get_mut(id) {
                client.told_to_fail = true;
            }
        }
        let output = self.compute(&step, &failing);
        let events = self.scheduler.on_step_done(self.at, &output, self.now).expect("it answers the step");
        self.check_ends(&events);
        self.note_ended_ahead(&events);
        for event in events {
            self.take_event(event);
        }
        self.note_progress(&step);
        self.place().stale = Some(output);
    }

    /// Sequences that end although the step ahead computes them too.
    fn note_ended_ahead(&mut self, events: &[SequenceEvent]) {
        let Some(ahead) = self.place().in_flight.front() else { return };
        let is_computed =
            |event: &&SequenceEvent| ahead.work.iter().any(|work| work.sequence == event.sequence());
        let is_end = |event: &&SequenceEvent| {
            matches!(event, SequenceEvent::Finished { .. } | SequenceEvent::Failed { .. })
        };
        let count = events.iter().filter(is_end).filter(is_computed).count();
        self.coverage.count(Met::EndedAhead, count as u64);
    }

    /// What a step finishes it also brings the last token of, if there is one: whoever reads knows which is the last.
    fn check_ends(&self, events: &[SequenceEvent]) {
        let of = |wanted: fn(&SequenceEvent) -> bool| -> BTreeSet<SequenceId> {
            events.iter().filter(|event| wanted(event)).map(SequenceEvent::sequence).collect()
        };
        let with_tokens = of(|event| matches!(event, SequenceEvent::Token { .. }));
        for id in of(|event| matches!(event, SequenceEvent::Finished { .. })).difference(&with_tokens) {
            assert!(self.clients[id].tokens.is_empty(), "{id} is finished a step after its last token");
        }
    }

    /// An output that is late, of another epoch, or not an answer, changes nothing.
    fn answer_wrongly(&mut self) {
        let Some(mut output) = self.place().stale.clone() else { return };
        let mut malformed = false;
        let in_flight: Vec<Step> = self.place().in_flight.iter().cloned().collect();
        if let Some(step) = in_flight.first() {
            let variant = self.random.between(0, 3);
            malformed = variant == 0;
            if variant < 2 {
                (output.epoch, output.step_id) = (step.epoch, step.step_id);
            }
            match (variant, in_flight.get(1)) {
                (1, _) => output.epoch = Epoch(output.epoch.0 + 1),
                (3, Some(ahead)) => (output.epoch, output.step_id) = (ahead.epoch, ahead.step_id),
                _ => {}
            }
            output.results.truncate(step.work.len() - 1);
        }
        let before = format!("{:?}", self.scheduler);
        let error = self.scheduler.on_step_done(self.at, &output, self.now).unwrap_err();
        assert_eq!(matches!(error, StepMismatch::Malformed { .. }), malformed, "{error}");
        assert_eq!(before, format!("{:?}", self.scheduler));
        self.coverage.count(Met::Mismatches, 1);
    }

    fn take_event(&mut self, event: SequenceEvent) {
        let id = event.sequence();
        let client = self.clients.get_mut(&id).expect("an event of a sequence that ended or was cancelled");
        if !matches!(event, SequenceEvent::Admitted { .. } | SequenceEvent::Preempted { .. }) {
            assert!(client.admitted, "{event:?} before it was admitted");
        }
        match event {
            SequenceEvent::Admitted { queued, cached, .. } => {
                assert!(!std::mem::replace(&mut client.admitted, true), "admitted twice");
                assert!(queued < Duration::from_secs(3600));
                assert!(cached < Tokens::of_len(client.submission.prompt.len()));
            }
            SequenceEvent::Preempted { .. } => self.coverage.count(Met::Preemptions, 1),
            SequenceEvent::PromptLogprobs { tokens, .. } => {
                assert!(client.tokens.is_empty() && !tokens.is_empty());
                client.prompt_logprobs.extend(tokens);
            }
            SequenceEvent::Token { token, origin, .. } => {
                client.tokens.push(token);
                if (client.grammar, origin) == (Grammar::Forcing, TokenOrigin::Sampled) {
                    self.scheduler.on_hold(id);
                    client.held = true;
                }
            }
            SequenceEvent::Finished { reason, .. } => {
                let client = self.clients.remove(&id).unwrap();
                let (prompt_logprobs, tokens) = (client.prompt_logprobs, client.tokens);
                assert_eq!(
                    Alone { prompt_logprobs, tokens: tokens.clone(), reason },
                    Alone::run(&client.submission, client.grammar)
                );
                let output = tokens.iter().map(|token| token.token);
                self.texts.push(client.submission.prompt.into_iter().chain(output).collect());
                self.coverage.count(Met::Finished, 1);
            }
            SequenceEvent::Expired { .. } => panic!("{event:?} without a look at the clock"),
            SequenceEvent::Failed { .. } => {
                assert!(client.told_to_fail);
                self.clients.remove(&id);
                self.coverage.count(Met::Failed, 1);
            }
        }
    }

    fn compute(&mut self, step: &Step, failing: &BTreeSet<SequenceId>) -> StepOutput {
        let salts = step.work.iter().map(|work| (work.sequence, salt_of(work.sequence))).collect();
        let output = self.place().shard.as_mut().unwrap().run(step, &salts, failing);
        assert!(output.results.iter().all(|result| !matches!(&result.outcome, Outcome::Failed(_))
            || failing.contains(&result.sequence)
            || !self.clients.contains_key(&result.sequence)));
        output
    }
}

fn random_cache(random: &mut Generator) -> CacheShape {
    let block_size = Tokens(random.between(1, 5));
    let tokens = Tokens(random.between(16, 60));
    CacheShape { blocks: tokens.blocks_ceil(block_size), block_size }
}
