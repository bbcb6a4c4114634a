//! Threads that help the one that calls them, many times a millisecond.
//!
//! A helper waits for work at the ready for as long as the gaps within a step last, and sleeps between steps.
//! Nothing is locked or allocated to hand work out. A helper that comes late finds the work done and is not
//! waited for, so that a thread the system holds up holds up no other.

use std::cell::{RefCell, UnsafeCell};
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::placement::take_place;

/// What one thread of the team does of the work; it is called once by each that takes part.
type Share<'a> = &'a (dyn Fn() + Sync);

/// Looks for work a helper takes one after the other before it lets other processes run.
const LOOKS: u32 = 4_000;

/// Times it lets others run before it sleeps.
const YIELDS: u32 = 64;

thread_local! {
    /// The calling thread's helpers.
    static TEAM: RefCell<Option<Team>> = const { RefCell::new(None) };
}

/// Calls `share` on this thread and, where they come in time, on up to `threads - 1` of the helpers of a team of
/// `all` threads, and returns when all calls have. A helper that calls this runs alone.
///
/// The team is made once for all sizes of work: threads are started where `all` is another than before alone.
pub(super) fn together((threads, all): (usize, usize), share: Share<'_>) {
    TEAM.with(|team| match team.try_borrow_mut() {
        Ok(mut team) => {
            let team = match &mut *team {
                Some(team) if team.threads == all => team,
                other => other.insert(Team::new(all)),
            };
            team.run(threads.saturating_sub(1), share);
        }
        // Called from within a share: every thread of the team has work already.
        Err(_) => share(),
    });
}

/// Helpers of one thread.
struct Team {
    /// How many threads were asked for, the owner among them.
    threads: usize,
    board: Arc<Board>,
    helpers: Vec<JoinHandle<()>>,
}

/// Where work is put up.
struct Board {
    state: State,
    /// Valid while the state is open, and until the last helper has left.
    share: UnsafeCell<Option<Share<'static>>>,
    /// Helpers the work has room for at one time.
    room: AtomicU64,
    asleep: AtomicUsize,
    leave: AtomicBool,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

// SAFETY: `share` is written by the team's owner alone, while the state is closed and no helper is inside, and
// read by helpers that are inside; the state's atomics order the two.
unsafe impl Sync for Board {}
// SAFETY: what it points to is `Sync`, and may be used from any thread.
unsafe impl Send for Board {}

/// Which work is up, whether it may still be joined, and how many helpers are at it.
struct State(AtomicU64);

/// What came of an attempt to join work.
enum Entered {
    /// None is up, or the state changed meanwhile.
    Nothing,
    /// Enough others are at it.
    Full(u64),
    Inside(u64),
}

impl State {
    const OPEN: u64 = 1 << 16;
    const NEXT: u64 = 1 << 17;

    /// Puts up new work. No helper is inside.
    fn open(&self) {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store((before & !Self::OPEN).wrapping_add(Self::NEXT) | Self::OPEN, Ordering::SeqCst);
    }

    /// Lets no further helper in, and waits for those inside.
    fn close(&self) {
        self.0.fetch_and(!Self::OPEN, Ordering::AcqRel);
        let mut looks = 0_u32;
        while self.0.load(Ordering::Acquire) & (Self::OPEN - 1) != 0 {
            looks += 1;
            if looks.is_multiple_of(LOOKS) { thread::yield_now() } else { hint::spin_loop() }
        }
    }

    /// Whether there is work other than `last`.
    fn is_new(&self, last: u64) -> bool {
        let state = self.0.load(Ordering::SeqCst);
        state & Self::OPEN != 0 && state / Self::NEXT != last
    }

    /// Joins work other than `last`, where it is still open and has room.
    fn enter(&self, last: u64, room: &AtomicU64) -> Entered {
        let state = self.0.load(Ordering::Acquire);
        let work = state / Self::NEXT;
        if state & Self::OPEN == 0 || work == last {
            return Entered::Nothing;
        }
        // It was said before the work was put up; where other work is up by now, the exchange fails.
        if state & (Self::OPEN - 1) >= room.load(Ordering::Relaxed) {
            return Entered::Full(work);
        }
        match self.0.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Entered::Inside(work),
            Err(_) => Entered::Nothing,
        }
    }

    fn exit(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Team {
    fn new(threads: usize) -> Self {
        let board = Arc::new(Board {
            state: State(AtomicU64::new(0)),
            share: UnsafeCell::new(None),
            room: AtomicU64::new(0),
            asleep: AtomicUsize::new(0),
            leave: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let start = |index: usize| {
            let board = Arc::clone(&board);
            // With fewer helpers than were asked for, the work is done all the same.
            thread::Builder::new()
                .name(format!("helper-{index}"))
                .spawn(move || {
                    take_place(index);
                    help(&board);
                })
                .ok()
        };
        let helpers = (1..threads).filter_map(start).collect();
        Self { threads, board, helpers }
    }

    /// Calls `share` on this thread and on at most so many helpers at one time.
    fn run(&self, room: usize, share: Share<'_>) {
        /// Closes the work even if the owner's own share panics, since helpers borrow it.
        struct Closed<'a>(&'a Board);

        impl Drop for Closed<'_> {
            fn drop(&mut self) {
                self.0.state.close();
            }
        }

        // SAFETY: helpers use it between `open` and `close`, and `close` returns before this borrow ends.
        let share_of_all = unsafe { std::mem::transmute::<Share<'_>, Share<'static>>(share) };
        // SAFETY: the state is closed and nobody is inside: every `open` was followed by a `close`.
        unsafe { *self.board.share.get() = Some(share_of_all) };
        self.board.room.store(room as u64, Ordering::Relaxed);
        self.board.state.open();
        let closed = Closed(&self.board);
        if self.board.asleep.load(Ordering::SeqCst) > 0 {
            self.helpers.iter().take(room).for_each(|helper| helper.thread().unpark());
        }
        share();
        drop(closed);
        let panic = self.board.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.board.leave.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // Its panics were the owner's already.
            let _ = helper.join();
        }
    }
}

/// A helper's life.
fn help(board: &Board) {
    // Work within work is done alone.
    TEAM.with(|team| {
        let _busy = team.borrow_mut();
        let mut last = 0;
        while !board.leave.load(Ordering::SeqCst) {
            match board.state.enter(last, &board.room) {
                Entered::Inside(work) => {
                    last = work;
                    do_share(board);
                }
                Entered::Full(work) => last = work,
                Entered::Nothing => wait(board, last),
            }
        }
    });
}

fn do_share(board: &Board) {
    // SAFETY: this helper is inside: the owner put the share up before, and waits for it to leave.
    if let Some(share) = unsafe { *board.share.get() }
        && let Err(panic) = catch_unwind(AssertUnwindSafe(share))
    {
        board.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
    board.state.exit();
}

/// Returns when there may be work: at once where it comes soon, else after a sleep.
fn wait(board: &Board, last: u64) {
    let is_over = || board.state.is_new(last) || board.leave.load(Ordering::SeqCst);
    for _ in 0..YIELDS {
        for _ in 0..LOOKS / YIELDS {
            if is_over() {
                return;
            }
            hint::spin_loop();
        }
        thread::yield_now();
    }
    // The owner opens and then looks for sleepers, a helper counts itself and then looks for work: one of them
    // sees the other.
    board.asleep.fetch_add(1, Ordering::SeqCst);
    while !is_over() {
        thread::park();
    }
    board.asleep.fetch_sub(1, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn wait_until(is_so: impl Fn() -> bool) {
        while !is_so() {
            thread::yield_now();
        }
    }

    #[test]
    fn every_share_ends_before_the_call_does() {
        for round in 0..8_000 {
            let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
            together(([1, 2, 3, 8][round % 4], 8), &|| {
                while next.fetch_add(1, Ordering::Relaxed) < 100 {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(done.load(Ordering::Relaxed), 100);
        }
    }

    #[test]
    fn helpers_take_part_after_a_sleep() {
        for _ in 0..3 {
            let seen = Mutex::new(HashSet::new());
            together((3, 3), &|| {
                seen.lock().unwrap().insert(thread::current().id());
                wait_until(|| seen.lock().unwrap().len() == 3);
            });
            let team_sleeps =
                || TEAM.with(|team| team.borrow().as_ref().map(|t| t.board.asleep.load(Ordering::SeqCst)));
            wait_until(|| team_sleeps() == Some(2));
        }
    }

    #[test]
    fn no_more_take_part_than_the_work_is_worth_and_the_team_stays() {
        let helpers = || -> Vec<_> {
            let id = |helper: &JoinHandle<()>| helper.thread().id();
            TEAM.with(|team| team.borrow().iter().flat_map(|team| team.helpers.iter().map(id)).collect())
        };
        together((4, 4), &|| {});
        let before = helpers();
        for threads in (1..=4).cycle().take(2_000) {
            let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            together((threads, 4), &|| {
                most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::yield_now();
                inside.fetch_sub(1, Ordering::SeqCst);
            });
            assert!(most.load(Ordering::SeqCst) <= threads, "{threads}");
        }
        assert_eq!(helpers(), before);
    }

    #[test]
    fn work_within_work_is_done_by_the_one_who_asks() {
        together((2, 2), &|| {
            let me = thread::current().id();
            together((2, 2), &|| assert_eq!(thread::current().id(), me));
        });
    }

    #[test]
    fn a_panic_of_any_share_is_the_callers_and_the_team_goes_on() {
        for culprit in 0..2 {
            let turn = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                together((2, 2), &|| {
                    let mine = turn.fetch_add(1, Ordering::SeqCst);
                    wait_until(|| turn.load(Ordering::SeqCst) == 2);
                    assert_ne!(mine, culprit, "the culprit");
                });
            }));
            assert!(result.is_err());
            let count = AtomicUsize::new(0);
            together((2, 2), &|| {
                count.fetch_add(1, Ordering::SeqCst);
            });
            assert!(count.load(Ordering::SeqCst) >= 1);
        }
    }
}
