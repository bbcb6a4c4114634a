//! How long one tenant waits while another floods: simulations with a clock that counts steps.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lockstep_proto::{
    Blocks, Epoch, Outcome, PromptLogprobs, ReplicaId, Sampling, SamplingParams, SequenceId,
    SequenceResult, StepOutput, StepTimings, TokenId, TokenLogprobs, Tokens,
};

use super::generator::Generator;
use crate::{
    CacheSalt, CacheShape, Limits, PrefixCaching, RunAhead, Scheduler, SequenceEvent, Service, Submission,
    Tenant,
};

/// Longest prompt and longest output.
const LONGEST: u32 = 40;
const RUNNING: u32 = 4;
const STEP_TOKENS: u32 = 16;
const ONLY: ReplicaId = ReplicaId(0);

/// A scheduler whose steps each take a tick.
struct Simulation {
    random: Generator,
    scheduler: Scheduler,
    began: Instant,
    ticks: u32,
    next: u64,
    /// By sequence that waits: who sent it and when.
    waiting: BTreeMap<SequenceId, (&'static str, u32)>,
    /// By tenant: ticks that each of its sequences waited.
    waited: BTreeMap<&'static str, Vec<u32>>,
    /// By tenant: tokens computed for it.
    tokens: BTreeMap<&'static str, u32>,
    tenants: BTreeMap<SequenceId, &'static str>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut scheduler = Scheduler::new(Limits {
            max_requests: 10_000,
            max_queue_tokens: Tokens(u32::MAX),
            max_running: RUNNING,
            max_step_tokens: Tokens(STEP_TOKENS),
            max_total: Tokens(2 * LONGEST),
            prefix_cache: PrefixCaching::Disabled,
        });
        let cache = CacheShape { blocks: Blocks(200), block_size: Tokens(4) };
        assert!(scheduler.on_group_ready(ONLY, Epoch(1), cache).is_empty());
        Self {
            random: Generator::new(seed),
            scheduler,
            began: Instant::now(),
            ticks: 0,
            next: 1,
            waiting: BTreeMap::new(),
            waited: BTreeMap::new(),
            tokens: BTreeMap::new(),
            tenants: BTreeMap::new(),
        }
    }

    fn now(&self) -> Instant {
        self.began + Duration::from_millis(self.ticks.into())
    }

    fn submit(&mut self, tenant: &'static str) {
        let id = SequenceId(self.next);
        self.next += 1;
        let submission = Submission {
            prompt: (0..self.random.between(1, LONGEST)).map(TokenId).collect(),
            forced: Vec::new(),
            sampling: SamplingParams::greedy(),
            max_new_tokens: Tokens(self.random.between(1, LONGEST)),
            stop_tokens: Vec::new(),
            prompt_logprobs: PromptLogprobs::Skip,
            cache_salt: CacheSalt(0),
            run_ahead: RunAhead::Allowed,
            service: Service { tenant: Tenant::named(tenant), ..Service::default() },
        };
        self.scheduler.on_submit(id, submission, self.now()).unwrap();
        self.waiting.insert(id, (tenant, self.ticks));
        self.tenants.insert(id, tenant);
    }

    fn step(&mut self) {
        let step = self.scheduler.plan_step(ONLY, self.now());
        self.ticks += 1;
        let Some(step) = step else { return };
        for start in &step.starts {
            if let Some((tenant, since)) = self.waiting.remove(&start.sequence) {
                self.waited.entry(tenant).or_default().push(self.ticks - 1 - since);
            }
        }
        let results = step.work.iter().map(|work| {
            *self.tokens.entry(self.tenants[&work.sequence]).or_default() += work.tokens.count().0;
            let outcome = match work.sampling {
                Sampling::Skip => Outcome::Computed,
                Sampling::Sample => {
                    Outcome::Sampled(TokenLogprobs { token: TokenId(3), logprob: 0.0, top: Vec::new() })
                }
            };
            SequenceResult { sequence: work.sequence, prompt: Vec::new(), outcome }
        });
        let results = results.collect();
        let output = StepOutput {
            epoch: step.epoch,
            step_id: step.step_id,
            results,
            timings: StepTimings::default(),
        };
        let events = self.scheduler.on_step_done(ONLY, &output, self.now()).unwrap();
        assert!(!events.iter().any(|event| matches!(event, SequenceEvent::Failed { .. })));
    }

    /// A quiet tenant sends one request at a time, `times` times, while `floods` send `flood` requests each
    /// before it begins and keep that many waiting. Returns the longest wait of the quiet one.
    fn longest_wait(mut self, floods: &[&'static str], flood: usize, times: usize) -> u32 {
        for _ in 0..times {
            for &name in floods {
                let waiting = self.waiting.values().filter(|(tenant, _)| *tenant == name).count();
                (waiting..flood).for_each(|_| self.submit(name));
            }
            for _ in 0..self.random.between(0, 2 * LONGEST) {
                self.step();
            }
            self.submit("quiet");
            while self.waiting.values().any(|(tenant, _)| *tenant == "quiet") {
                self.step();
            }
        }
        self.waited["quiet"].iter().copied().max().unwrap()
    }
}

/// A tenant that sends one request at a time waits for a place and for the prompts that were let in before
/// it, never for what others have in the queue: the bound is the same for 10 and for 1,000 waiting requests.
#[test]
fn a_flood_does_not_delay_others() {
    // Until one of those that run has ended: each may have its prompt and its output to go.
    let prompts = (RUNNING * LONGEST).div_ceil(STEP_TOKENS - RUNNING);
    let bound = prompts + LONGEST;
    for seed in 0..30 {
        for flood in [10, 100, 1_000] {
            let waited = Simulation::new(seed).longest_wait(&["flood"], flood, 12);
            assert!(waited <= bound, "seed {seed}: waited {waited} steps behind {flood} requests");
        }
        let waited = Simulation::new(seed).longest_wait(&["flood", "torrent", "deluge"], 100, 12);
        assert!(waited <= 3 * bound, "seed {seed}: waited {waited} steps behind three floods");
    }
}

/// Tenants that always have something waiting get the same number of tokens, give or take what a few
/// sequences need, whatever the number of their requests.
#[test]
fn tenants_that_want_more_get_the_same() {
    for seed in 0..20 {
        let mut simulation = Simulation::new(seed);
        let sizes = [("few", 3), ("some", 30), ("many", 300)];
        for _ in 0..2_000 {
            for (name, size) in sizes {
                let waiting = simulation.waiting.values().filter(|(tenant, _)| *tenant == name).count();
                (waiting..size).for_each(|_| simulation.submit(name));
            }
            simulation.step();
        }
        let least = simulation.tokens.values().min().unwrap();
        let most = simulation.tokens.values().max().unwrap();
        // What each has running may be ahead or behind of the other's.
        let bound = 2 * RUNNING * 2 * LONGEST;
        assert!(most - least <= bound, "seed {seed}: {:?}", simulation.tokens);
    }
}
