//! Where the ranks of a group wait for each other: briefly awake, then asleep.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::futex;

use super::map::{GENERATION_STEP, Map, wake_all};
use crate::comm::{CommError, Joining, Membership};

/// How long a waiting rank stays awake when every rank can have a core to itself: about what going to sleep
/// and being woken costs.
const SPIN: Duration = Duration::from_micros(20);

/// How long a rank sleeps before it looks whether its peers still live.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// How a rank waits.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    membership: Membership,
    watchdog: Duration,
    spin: Duration,
}

impl Patience {
    pub(super) fn new(joining: Joining) -> Self {
        let Joining { membership, epoch: _, watchdog } = joining;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // A rank that waits awake keeps a core from the rank it waits for, where there are not enough.
        let spin = match membership.ranks().cmp(&cores) {
            std::cmp::Ordering::Less => SPIN,
            std::cmp::Ordering::Equal => SPIN / 2,
            std::cmp::Ordering::Greater => Duration::ZERO,
        };
        Self { membership, watchdog, spin }
    }
}

/// Returns once every rank of the group has come.
///
/// The last one to come opens the meeting by raising the generation. What a rank wrote before it came is
/// visible to all when they leave.
pub(super) fn meet(map: &Map, patience: Patience) -> Result<(), CommError> {
    let header = map.header();
    let generation = &header.generation.0;
    // Read before arriving: afterwards the meeting may be over at any moment.
    let before = map.generation();
    let arrived = header.arrivals.0.fetch_add(1, Ordering::SeqCst) + 1;
    if arrived < patience.membership.world_size() {
        return wait(map, patience, before);
    }
    header.arrivals.0.store(0, Ordering::SeqCst);
    generation.fetch_add(GENERATION_STEP, Ordering::SeqCst);
    // A rank that is about to sleep counts itself first and looks at the generation afterwards, so either it
    // sees the new one or it is seen here.
    if header.sleepers.0.load(Ordering::SeqCst) > 0 {
        wake_all(generation);
    }
    Ok(())
}

fn wait(map: &Map, patience: Patience, before: u32) -> Result<(), CommError> {
    let start = Instant::now();
    while start.elapsed() < patience.spin {
        if is_over(map, before)? {
            return Ok(());
        }
        std::hint::spin_loop();
    }
    loop {
        let slept = sleep(map, patience, before);
        if is_over(map, before)? {
            return Ok(());
        }
        if start.elapsed() >= patience.watchdog {
            return Err(CommError::TimedOut { waited: patience.watchdog });
        }
        if let (Err(Errno::TIMEDOUT), Some(rank)) = (slept, map.first_lost()) {
            return Err(CommError::PeerLost { rank });
        }
    }
}

/// Whether the meeting that began at generation `before` has been held. One that was held before the group
/// was aborted counts for every rank.
fn is_over(map: &Map, before: u32) -> Result<bool, CommError> {
    if map.generation() == before { map.check_alive().map(|()| false) } else { Ok(true) }
}

/// Sleeps until the generation changes, for [`LOOK_AROUND`] or the watchdog at most.
fn sleep(map: &Map, patience: Patience, before: u32) -> rustix::io::Result<()> {
    let header = map.header();
    let limit = LOOK_AROUND.min(patience.watchdog);
    let timeout =
        futex::Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: i64::from(limit.subsec_nanos()) };
    header.sleepers.0.fetch_add(1, Ordering::SeqCst);
    map.process(patience.membership.index()).sleeps.fetch_add(1, Ordering::Relaxed);
    let slept = futex::wait(&header.generation.0, futex::Flags::empty(), before, Some(&timeout));
    header.sleepers.0.fetch_sub(1, Ordering::SeqCst);
    slept
}
