//! The whole router (routes, engine, scheduler, journal) in a world in which everything fails that can, and nothing
//! happens by chance: time stands still unless all wait, and what is drawn comes from one seed.
//!
//! Whatever happens, every request ends exactly once: with the tokens of an undisturbed run, or with an error there
//! is a reason for. Its events come once each and in order, also to a client that comes back to another router. In
//! the end no block is held. What a client was told is in the journal. A seed that breaks one of these is printed with
//! all that happened and the command that shows it again.

mod alone;
mod clients;
mod disk;
mod in_flight;
mod plan;
mod random;
mod router;
mod shards;
mod trace;
mod world;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Once};
use std::time::Instant;

use router::Ended;
use trace::Keep;
use world::{World, lock};

/// Seeds of a run that nobody asks for more.
const USUAL_SEEDS: u64 = 300;
/// The first of them.
const FIRST_SEED: u64 = 1;

/// What came of a seed.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    violations: Vec<String>,
    hash: u64,
    text: String,
}

fn run(seed: u64, keep: Keep) -> Report {
    count_panics();
    PANICS.set(Some(Vec::new()));
    let world = Arc::new(Mutex::new(World::new(seed, keep)));
    let lives = catch_unwind(AssertUnwindSafe(|| {
        while router::live(&world, seed) == Ended::Died {
            lock(&world).end_life();
        }
    }));
    let panics = PANICS.take().unwrap_or_default();
    let mut world = lock(&world);
    panics.into_iter().for_each(|panic| world.violation(panic));
    if lives.is_err() {
        world.violation("the simulation itself panicked".to_owned());
    }
    let taken = std::mem::replace(&mut *world, World::new(seed, keep));
    let (violations, hash, text) = taken.into_report();
    Report { violations, hash, text }
}

thread_local! {
    /// Those of a seed, while one runs on this thread.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Tasks and routes catch panics; here each is one too many.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|all| match all {
                Some(all) => all.push(panic.to_string()),
                None => usual(panic),
            });
        }));
    });
}

fn number(name: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "what is asked of the tests alone")]
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}, expected a number")))
}

/// Runs the seeds on all cores; the first in order that fails.
fn first_failure(seeds: std::ops::Range<u64>) -> Option<u64> {
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let failed = Mutex::new(None::<u64>);
    let work = || loop {
        let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let found = *failed.lock().expect("nobody panics with it");
        if seed >= seeds.end || found.is_some_and(|found| found < seed) {
            return;
        }
        if !run(seed, Keep::Hash).violations.is_empty() {
            let mut failed = failed.lock().expect("nobody panics with it");
            *failed = Some(failed.map_or(seed, |found| found.min(seed)));
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    failed.into_inner().expect("nobody panics with it")
}

/// Reads `LOCKSTEP_SEED`, a seed to be shown, or `LOCKSTEP_SEEDS`, how many to try, from `LOCKSTEP_FIRST_SEED` on.
#[test]
fn every_request_ends_once_and_right_whatever_fails() {
    if let Some(seed) = number("LOCKSTEP_SEED") {
        // What the router says of it comes before.
        let logs = tracing_subscriber::fmt()
            .with_ansi(false)
            .without_time()
            .with_test_writer()
            .with_max_level(tracing::Level::INFO);
        let report = tracing::subscriber::with_default(logs.finish(), || run(seed, Keep::Lines));
        println!("{}", report.text);
        assert_eq!(report.violations, Vec::<String>::new(), "seed {seed}");
        return;
    }
    let (first, count) = (
        number("LOCKSTEP_FIRST_SEED").unwrap_or(FIRST_SEED),
        number("LOCKSTEP_SEEDS").unwrap_or(USUAL_SEEDS),
    );
    let begun = Instant::now();
    let failed = first_failure(first..first + count);
    println!("{count} seeds from {first} on in {:.1} s", begun.elapsed().as_secs_f64());
    let Some(seed) = failed else { return };
    let report = run(seed, Keep::Lines);
    panic!(
        "{}\nseed {seed} breaks: {:#?}\nshow it again: LOCKSTEP_SEED={seed} cargo test -p lockstep-router --test \
         simulation -- --nocapture",
        report.text, report.violations
    );
}

#[test]
fn a_seed_always_runs_the_same() {
    let mut ahead = 0;
    for seed in FIRST_SEED..FIRST_SEED + 20 {
        let [first, second] = [(); 2].map(|()| run(seed, Keep::Lines));
        assert_eq!(first, second, "seed {seed}");
        ahead += first.text.matches(shards::AHEAD).count();
    }
    assert!(ahead > 100, "{ahead} steps are sent before the one before them is answered");
}
