//! What a seed decides before anything happens: the server's limits, how often what fails, and who asks for what.

use std::time::Duration;

use lockstep_router::journal::Fsync;
use serde_json::{Value, json};

use crate::random::Random;

/// Tokens a block holds.
pub(crate) const BLOCK_TOKENS: u64 = 4;
/// Longest context.
pub(crate) const MAX_TOKENS: u64 = 64;
/// How long a stream waits for its client.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// How long sequences wait for a lost group.
pub(crate) const GROUP_LOSS_TIMEOUT: Duration = Duration::from_secs(20);

/// What a prompt with this byte does to whoever computes it.
pub(crate) const FELLS: u8 = b'!';
pub(crate) const BREAKS: u8 = b'?';
pub(crate) const FAILS: u8 = b'%';

pub(crate) struct Plan {
    pub(crate) server: ServerPlan,
    pub(crate) faults: Faults,
    pub(crate) requests: Vec<Request>,
}

pub(crate) struct ServerPlan {
    pub(crate) max_running: u32,
    pub(crate) max_step_tokens: u32,
    pub(crate) blocks: u32,
    pub(crate) max_concurrent: usize,
    pub(crate) caches_prefixes: bool,
    /// Whether streams wait for their clients.
    pub(crate) keeps_streams: bool,
    pub(crate) journal: Option<Fsync>,
}

/// Each happens once in so many times; 0 is never.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) bring_up: u64,
    pub(crate) step_lost: u64,
    pub(crate) step_hangs: u64,
    pub(crate) step_slow: u64,
    pub(crate) step_garbage: u64,
    pub(crate) idle_lost: u64,
    pub(crate) router_dies: u64,
    pub(crate) machine_dies: u64,
    pub(crate) dies_writing: u64,
    pub(crate) disk_fails: u64,
    pub(crate) long: LongTimes,
    pub(crate) client_leaves: u64,
}

/// How often something takes longer than others wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LongTimes {
    /// Until shards are back.
    pub(crate) away: u64,
    /// Until a router is.
    pub(crate) down: u64,
}

/// How an answer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Stream,
    Whole,
}

/// What its client does once it has so many events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    Endless,
    /// It leaves for good.
    Leaves(u64),
    /// It has its request cancelled.
    Cancels(u64),
}

pub(crate) struct Request {
    pub(crate) route: Route,
    pub(crate) prompt: String,
    pub(crate) max_new_tokens: u64,
    pub(crate) seed: Option<u64>,
    pub(crate) stop: Option<&'static str>,
    pub(crate) grammar: bool,
    pub(crate) deadline: Option<Duration>,
    pub(crate) tenant: &'static str,
    pub(crate) patience: Patience,
    pub(crate) arrives: Duration,
}

/// What answers with a grammar look like.
pub(crate) const GRAMMAR: &str = "[a-f]{3}-[0-9]{4}";
const SYLLABLES: [&str; 6] = ["ab", "cd ", "ef", "abcd", "x", "the "];

impl Plan {
    pub(crate) fn new(random: &mut Random) -> Self {
        let server = ServerPlan {
            max_running: random.between(1, 6) as u32,
            max_step_tokens: random.between(4, 48) as u32,
            blocks: random.between(MAX_TOKENS / BLOCK_TOKENS, 56) as u32,
            max_concurrent: random.between(3, 12) as usize,
            caches_prefixes: !random.once_in(4),
            keeps_streams: !random.once_in(6),
            journal: random.pick(&[
                None,
                Some(Fsync::Never),
                Some(Fsync::Interval),
                Some(Fsync::Always),
                Some(Fsync::Always),
            ]),
        };
        let faults = Faults::new(random);
        let count = random.between(2, 9);
        let requests = (0..count).map(|index| Request::new(index, random)).collect();
        Self { server, faults, requests }
    }
}

impl Faults {
    /// Most seeds have a few kinds of faults, so that each is met with and without the others.
    fn new(random: &mut Random) -> Self {
        let mut rate = |often: u64, rarely: u64| {
            let there = random.once_in(3);
            if there { random.between(often, rarely) } else { 0 }
        };
        Self {
            bring_up: rate(2, 4),
            step_lost: rate(8, 60),
            step_hangs: rate(12, 80),
            step_slow: rate(6, 20),
            step_garbage: rate(10, 60),
            idle_lost: rate(2, 6),
            router_dies: rate(1, 2),
            machine_dies: rate(2, 3),
            dies_writing: rate(10, 60),
            disk_fails: rate(20, 80),
            long: LongTimes { away: rate(3, 8), down: rate(2, 5) },
            client_leaves: rate(4, 12),
        }
    }
}

impl Request {
    fn new(index: u64, random: &mut Random) -> Self {
        let mut prompt = String::new();
        for _ in 0..random.between(0, 5) {
            prompt.push_str(random.pick(&SYLLABLES));
        }
        if random.once_in(12) {
            prompt.push(char::from(random.pick(&[FELLS, BREAKS, FAILS])));
        }
        // Shards tell clients apart by it.
        prompt.push_str(&format!("#{index:02}"));
        let patience = match random.between(0, 9) {
            0 => Patience::Leaves(random.between(0, 6)),
            1 => Patience::Cancels(random.between(0, 6)),
            _ => Patience::Endless,
        };
        let grammar = random.once_in(6);
        Self {
            route: if random.once_in(4) { Route::Whole } else { Route::Stream },
            prompt,
            max_new_tokens: random.between(1, 24),
            seed: (!random.once_in(3)).then(|| random.next()),
            stop: (!grammar && random.once_in(5)).then(|| random.pick(&["e", "ab", "q"])),
            grammar,
            deadline: random.once_in(8).then(|| random.millis(50, 20_000)),
            tenant: random.pick(&["one", "two"]),
            patience,
            arrives: if random.once_in(3) { Duration::ZERO } else { random.millis(0, 3_000) },
        }
    }

    pub(crate) fn path(&self) -> &'static str {
        match self.route {
            Route::Stream => "/generate_stream",
            Route::Whole => "/generate",
        }
    }

    pub(crate) fn body(&self) -> Value {
        let mut parameters = json!({"max_new_tokens": self.max_new_tokens, "details": true});
        let fields = parameters.as_object_mut().expect("it is an object");
        if let Some(seed) = self.seed {
            fields.insert("do_sample".to_owned(), json!(true));
            fields.insert("seed".to_owned(), json!(seed));
        }
        if let Some(stop) = self.stop {
            fields.insert("stop".to_owned(), json!([stop]));
        }
        if self.grammar {
            fields.insert("grammar".to_owned(), json!({"type": "regex", "value": GRAMMAR}));
        }
        json!({"inputs": self.prompt, "parameters": parameters})
    }

    pub(crate) fn has(&self, byte: u8) -> bool {
        self.prompt.bytes().any(|found| found == byte)
    }
}
