//! Random histories of arrivals, cancels, preemptions, failures and losses.

use super::coverage::Coverage;
use super::generator::Generator;
use super::world::World;
use crate::RunAhead;

const HISTORIES: u64 = 10_000;

/// Prints the seed of a history that fails, for [`replay`].
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the history of seed {} fails; run it alone with `replay`", self.0);
        }
    }
}

/// No block is leaked or wrongly shared (the invariants, checked in every call), each sequence gets the
/// tokens and log-probabilities it gets alone, each one ends, and the oldest one advances in every step: with two steps
/// in flight and with one.
#[test]
fn histories() {
    let mut total = Coverage::default();
    for seed in 0..HISTORIES {
        let run_ahead = if seed % 4 == 0 { RunAhead::Never } else { RunAhead::Allowed };
        total.add(&replay(seed, run_ahead));
    }
    assert_eq!(total.below(HISTORIES / 50), [], "these things hardly happen");
}

fn replay(seed: u64, run_ahead: RunAhead) -> Coverage {
    let guard = Seed(seed);
    let mut world = World::new(seed, run_ahead);
    for _ in 0..Generator::new(!seed).between(5, 120) {
        world.act();
    }
    world.settle();
    drop(guard);
    world.coverage
}
