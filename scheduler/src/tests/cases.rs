//! Cases to read: `cases/*.txt`, commands at the margin, what they must print indented below them, prose
//! after `#`.
//!
//! Commands: `limits`, `group`, `lost`, `drain`, `drained`, `submit`, `cancel`, `plan`, `ahead`, `done`, `expire`,
//! `stats`, `hold`, `resume` and `wait`. A group of tokens is written `3` or `3..9`, which is 3 to 9; times are milliseconds;
//! `on=1` names a replica besides the first.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::time::{Duration, Instant};

use lockstep_proto::{
    Blocks, ContextLogprobs, Epoch, Outcome, PromptLogprobs, ReplicaId, Sampling, SamplingParams,
    SequenceId, SequenceResult, Step, StepOutput, StepTimings, TokenId, TokenLogprobs, Tokens, Work,
    WorkTokens,
};

use crate::{
    CacheSalt, CacheShape, Limits, PrefixCaching, Priority, RunAhead, Scheduler, SequenceEvent, Service,
    Submission, Tenant, TokenOrigin,
};

#[test]
fn continuous_batching() {
    check("continuous_batching.txt", include_str!("cases/continuous_batching.txt"));
}

#[test]
fn prefix_reuse() {
    check("prefix_reuse.txt", include_str!("cases/prefix_reuse.txt"));
}

#[test]
fn preemption_and_loss() {
    check("preemption_and_loss.txt", include_str!("cases/preemption_and_loss.txt"));
}

#[test]
fn repeated_loss() {
    check("repeated_loss.txt", include_str!("cases/repeated_loss.txt"));
}

#[test]
fn ends() {
    check("ends.txt", include_str!("cases/ends.txt"));
}

#[test]
fn shares() {
    check("shares.txt", include_str!("cases/shares.txt"));
}

#[test]
fn deadlines() {
    check("deadlines.txt", include_str!("cases/deadlines.txt"));
}

#[test]
fn forced() {
    check("forced.txt", include_str!("cases/forced.txt"));
}

#[test]
fn replicas() {
    check("replicas.txt", include_str!("cases/replicas.txt"));
}

#[test]
fn run_ahead() {
    check("run_ahead.txt", include_str!("cases/run_ahead.txt"));
}

#[test]
fn refusals() {
    check("refusals.txt", include_str!("cases/refusals.txt"));
}

/// Runs a file's commands and compares what they print. Shows the whole file as it would pass.
fn check(name: &str, text: &str) {
    let mut case = Case::new();
    let mut actual = String::new();
    for line in text.lines().filter(|line| !line.starts_with("  ")) {
        writeln!(actual, "{line}").unwrap();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        for printed in case.run(line).lines() {
            writeln!(actual, "  {printed}").unwrap();
        }
    }
    assert!(actual == text, "{name} prints something else; all of it:\n{actual}");
}

struct Case {
    scheduler: Scheduler,
    in_flight: BTreeMap<ReplicaId, VecDeque<Step>>,
    /// What each sequence was last started with.
    contexts: BTreeMap<SequenceId, Vec<TokenId>>,
    now: Instant,
}

/// The words of a command: `key=value` pairs and plain ones.
struct Words<'a>(Vec<&'a str>);

impl Case {
    fn new() -> Self {
        let scheduler = Scheduler::new(limits(&Words(Vec::new())));
        Self { scheduler, in_flight: BTreeMap::new(), contexts: BTreeMap::new(), now: Instant::now() }
    }

    fn run(&mut self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap();
        let words = Words(words.collect());
        match command {
            "limits" => self.scheduler = Scheduler::new(limits(&words)),
            "group" => return self.group(&words),
            "lost" => return events(self.scheduler.on_group_lost(words.replica())),
            "drain" => self.scheduler.on_drain(words.replica()),
            "drained" => self.scheduler.on_group_drained(words.replica()),
            "submit" => return self.submit(&words),
            "cancel" => self.scheduler.on_cancel(words.sequence()),
            "plan" => return self.plan(words.replica()),
            "ahead" => return self.ahead(words.replica()),
            "done" => return self.done(&words),
            "expire" => return events(self.scheduler.on_time(self.now)),
            "stats" => return self.stats(),
            "hold" => self.scheduler.on_hold(words.sequence()),
            "resume" => self.scheduler.on_resume(words.sequence(), &words.tokens("forced")),
            "wait" => self.now += Duration::from_millis(words.0[0].parse().unwrap()),
            other => panic!("unknown command {other}"),
        }
        String::new()
    }

    fn group(&mut self, words: &Words<'_>) -> String {
        let cache = CacheShape {
            blocks: Blocks(words.number("blocks", 8)),
            block_size: Tokens(words.number("size", 4)),
        };
        let epoch = Epoch(words.number("epoch", 1).into());
        events(self.scheduler.on_group_ready(words.replica(), epoch, cache))
    }

    fn submit(&mut self, words: &Words<'_>) -> String {
        let submission = Submission {
            prompt: words.tokens("prompt"),
            forced: words.tokens("forced"),
            sampling: SamplingParams::greedy(),
            max_new_tokens: Tokens(words.number("new", 4)),
            stop_tokens: words.tokens("stop"),
            prompt_logprobs: match words.number("logprobs", 0) {
                0 => PromptLogprobs::Skip,
                _ => PromptLogprobs::Return,
            },
            cache_salt: CacheSalt(words.number("salt", 0).into()),
            run_ahead: match words.number("ahead", 1) {
                0 => RunAhead::Never,
                _ => RunAhead::Allowed,
            },
            service: Service {
                tenant: Tenant::named(words.value("tenant").unwrap_or_default()),
                priority: words.value("priority").map_or(Priority::NORMAL, |word| word.parse().unwrap()),
                deadline: words
                    .value("within")
                    .map(|ms| self.now + Duration::from_millis(ms.parse().unwrap())),
            },
        };
        match self.scheduler.on_submit(words.sequence(), submission, self.now) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    fn plan(&mut self, replica: ReplicaId) -> String {
        let Some(step) = self.scheduler.plan_step(replica, self.now) else { return "nothing".to_owned() };
        // Whatever was in flight is void.
        self.in_flight.remove(&replica);
        self.send(replica, step)
    }

    fn ahead(&mut self, replica: ReplicaId) -> String {
        match self.scheduler.plan_ahead(replica, self.now) {
            Some(step) => self.send(replica, step),
            None => "nothing".to_owned(),
        }
    }

    fn send(&mut self, replica: ReplicaId, step: Step) -> String {
        let mut text = format!("step {} of epoch {}\n", step.step_id, step.epoch);
        if !step.releases.is_empty() {
            writeln!(text, "release {}", list(&step.releases)).unwrap();
        }
        for start in &step.starts {
            writeln!(text, "start {}: {}", start.sequence, list(&start.context)).unwrap();
            self.contexts.insert(start.sequence, start.context.clone());
        }
        for work in &step.work {
            writeln!(text, "{}", work_line(work)).unwrap();
            self.contexts.entry(work.sequence).or_default().extend(&work.appended);
        }
        self.in_flight.entry(replica).or_default().push_back(step);
        text
    }

    /// `done 1=20 2=.`: sequence 1 sampled 20, 2 only computed; `!` failed. Without words: all computed.
    fn done(&mut self, words: &Words<'_>) -> String {
        let replica = words.replica();
        let in_flight = self.in_flight.entry(replica).or_default();
        let Some(step) = in_flight.pop_front() else { return "no step is in flight".to_owned() };
        let prompts: Vec<_> = step.work.iter().map(|work| self.logprobs(work)).collect();
        let results = step.work.iter().zip(prompts).map(|(work, prompt)| SequenceResult {
            sequence: work.sequence,
            prompt,
            outcome: match words.value(&work.sequence.to_string()) {
                None | Some(".") => Outcome::Computed,
                Some("!") => Outcome::Failed("broken".to_owned()),
                Some(token) => {
                    let token = TokenId(token.parse().unwrap());
                    self.contexts.entry(work.sequence).or_default().push(token);
                    Outcome::Sampled(logprob_of(token))
                }
            },
        });
        let output = StepOutput {
            epoch: step.epoch,
            step_id: step.step_id,
            results: results.collect(),
            timings: StepTimings::default(),
        };
        match self.scheduler.on_step_done(replica, &output, self.now) {
            Ok(happened) => events(happened),
            Err(error) => {
                self.in_flight.entry(replica).or_default().push_front(step);
                error.to_string()
            }
        }
    }

    /// Of those positions of a chunk that a context token follows.
    fn logprobs(&self, work: &Work) -> Vec<TokenLogprobs> {
        match work.logprobs {
            ContextLogprobs::Skip => Vec::new(),
            ContextLogprobs::From(position) => {
                let skipped = position.index() - work.first_position.index();
                let following = self.contexts[&work.sequence].iter().skip(position.index() + 1);
                following.take(work.tokens.count().len() - skipped).copied().map(logprob_of).collect()
            }
        }
    }

    fn stats(&self) -> String {
        let stats = self.scheduler.stats();
        format!(
            "waiting {} ({} tokens), running {}; blocks used {}, cached {}, free {}; hits {}, preemptions {}",
            stats.waiting,
            stats.queue_tokens,
            stats.running,
            stats.blocks_used,
            stats.blocks_cached,
            stats.blocks_free,
            stats.prefix_hit_tokens_total,
            stats.preemptions_total,
        )
    }
}

impl Words<'_> {
    fn sequence(&self) -> SequenceId {
        SequenceId(self.0[0].parse().unwrap())
    }

    fn replica(&self) -> ReplicaId {
        ReplicaId(self.number("on", 0))
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.0.iter().find_map(|word| word.split_once('=').filter(|pair| pair.0 == key).map(|pair| pair.1))
    }

    fn number(&self, key: &str, or_else: u32) -> u32 {
        self.value(key).map_or(or_else, |value| value.parse().unwrap())
    }

    /// `3,5..7` is 3, 5, 6, 7.
    fn tokens(&self, key: &str) -> Vec<TokenId> {
        let parts =
            self.value(key).into_iter().flat_map(|value| value.split(',')).filter(|part| !part.is_empty());
        parts
            .flat_map(|part| {
                let (first, last) = part.split_once("..").unwrap_or((part, part));
                first.parse().unwrap()..=last.parse().unwrap()
            })
            .map(TokenId)
            .collect()
    }
}

fn limits(words: &Words<'_>) -> Limits {
    Limits {
        max_requests: words.number("requests", 8),
        max_queue_tokens: Tokens(words.number("queue", 1000)),
        max_running: words.number("running", 4),
        max_step_tokens: Tokens(words.number("step", 16)),
        max_total: Tokens(words.number("total", 64)),
        prefix_cache: match words.number("cache", 1) {
            0 => PrefixCaching::Disabled,
            _ => PrefixCaching::Enabled,
        },
    }
}

fn logprob_of(token: TokenId) -> TokenLogprobs {
    TokenLogprobs { token, logprob: -1.0, top: Vec::new() }
}

fn work_line(work: &Work) -> String {
    let tokens = match &work.tokens {
        WorkTokens::Ids(tokens) => list(tokens),
        WorkTokens::LastSampled => "last sampled".to_owned(),
    };
    let mut line = format!("work {} at {}: {tokens}", work.sequence, work.first_position.0);
    if !work.new_blocks.is_empty() {
        write!(line, "; blocks {}", list(&work.new_blocks)).unwrap();
    }
    if work.sampling == Sampling::Sample {
        line.push_str("; sample");
    }
    if !work.appended.is_empty() {
        write!(line, "; append {}", list(&work.appended)).unwrap();
    }
    if let ContextLogprobs::From(position) = work.logprobs {
        write!(line, "; logprobs from {}", position.0).unwrap();
    }
    line
}

fn events(events: Vec<SequenceEvent>) -> String {
    let lines = events.into_iter().map(|event| match event {
        SequenceEvent::Admitted { sequence, queued, cached } => {
            format!("{sequence} admitted after {} ms, {cached} tokens cached", queued.as_millis())
        }
        SequenceEvent::PromptLogprobs { sequence, tokens } => {
            format!("{sequence} prompt logprobs of {}", list(&token_ids(&tokens)))
        }
        SequenceEvent::Token { sequence, token, origin: TokenOrigin::Sampled } => {
            format!("{sequence} token {}", token.token)
        }
        SequenceEvent::Token { sequence, token, origin: TokenOrigin::Forced } => {
            format!("{sequence} forced token {}", token.token)
        }
        SequenceEvent::Finished { sequence, reason } => format!("{sequence} finished: {reason:?}"),
        SequenceEvent::Failed { sequence, reason } => format!("{sequence} failed: {reason}"),
        SequenceEvent::Expired { sequence, state } => format!("{sequence} expired: {state:?}"),
        SequenceEvent::Preempted { sequence } => format!("{sequence} preempted"),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn token_ids(tokens: &[TokenLogprobs]) -> Vec<TokenId> {
    tokens.iter().map(|token| token.token).collect()
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
