//! Splits work over the process's threads. Where it is split never shows in a result: every item is
//! computed whole, by one thread.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::team::together;

/// Scalar operations below which waking another thread costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 19;

/// Ranges that what is left is worth for each thread: a thread that is held up does not hold up the others for long,
/// and at the end, where the ranges are single items, all are done at much the same time.
const RANGES_PER_THREAD: usize = 4;

/// Calls `work` with ranges that cover `0..items`, on as many threads as the work is worth.
/// `operations` says how many scalar operations all items take together.
pub(crate) fn for_each_range(items: usize, operations: usize, work: impl Fn(Range<usize>) + Sync + Send) {
    for_each_range_in(items, operations, || (), |(), range| work(range));
}

/// [`for_each_range`] where each thread has what `room` makes, for all of its ranges. The calling thread makes all of it:
/// threads that take memory at the same time would wait for each other.
pub(crate) fn for_each_range_in<R: Send>(
    items: usize,
    operations: usize,
    room: impl Fn() -> R,
    work: impl Fn(&mut R, Range<usize>) + Sync + Send,
) {
    let all = rayon::current_num_threads();
    let threads = all.min(operations / WORTH_A_THREAD + 1).min(items);
    if threads <= 1 {
        work(&mut room(), 0..items);
        return;
    }
    let mut rooms: Vec<R> = (0..threads).map(|_| room()).collect();
    let (shared, taken, next) = (SharedSlice::new(&mut rooms), AtomicUsize::new(0), AtomicUsize::new(0));
    together((threads, all), &|| {
        let room = taken.fetch_add(1, Ordering::Relaxed);
        if room >= threads {
            // In place of one that has left, for which there was nothing to do any more.
            return;
        }
        // SAFETY: no other thread has the same one.
        let [room] = (unsafe { shared.part(room, 1) }) else { return };
        while let Some(range) = take(&next, items, threads) {
            work(room, range);
        }
    });
}

/// The next range of `0..items`, all before `next` having been taken.
fn take(next: &AtomicUsize, items: usize, threads: usize) -> Option<Range<usize>> {
    let mut first = next.load(Ordering::Relaxed);
    while first < items {
        let end = first + (items - first).div_ceil(threads * RANGES_PER_THREAD);
        match next.compare_exchange_weak(first, end, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Some(first..end),
            Err(other) => first = other,
        }
    }
    None
}

/// What `of` makes of each of `0..items`, in this order, on as many threads as the work is worth.
/// `operations` says how many scalar operations all items take together.
pub(crate) fn map_each<T: Send>(
    items: usize,
    operations: usize,
    of: impl Fn(usize) -> T + Sync + Send,
) -> Vec<T> {
    let mut found: Vec<Option<T>> = (0..items).map(|_| None).collect();
    let shared = SharedSlice::new(&mut found);
    for_each_range(items, operations, |range| {
        // SAFETY: no two ranges have an item in common.
        let found = unsafe { shared.part(range.start, range.len()) };
        for (item, found) in range.zip(found) {
            *found = Some(of(item));
        }
    });
    found.into_iter().flatten().collect()
}

/// A slice that several threads write, each to places of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, whose parts may be written from any thread; that no two threads hold
// the same part is the contract of `part`.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _borrow: std::marker::PhantomData }
    }

    /// The elements from `first` on.
    ///
    /// # Safety
    /// No other reference to any of these elements is alive while the result is.
    pub(crate) unsafe fn part(&self, first: usize, count: usize) -> &'a mut [T] {
        assert!(first <= self.len && count <= self.len - first, "a part lies within its slice");
        // SAFETY: within the slice, by the check; not shared, by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_each_other_and_end_in_single_items() {
        for (items, threads) in [(0, 2), (1, 2), (7, 2), (28, 2), (1000, 2), (1000, 7)] {
            let next = AtomicUsize::new(0);
            let ranges: Vec<Range<usize>> = std::iter::from_fn(|| take(&next, items, threads)).collect();
            assert_eq!(ranges.iter().flat_map(Clone::clone).collect::<Vec<_>>(), Vec::from_iter(0..items));
            assert!(ranges.is_sorted_by(|a, b| a.len() >= b.len()), "{ranges:?}");
            assert!(ranges.last().is_none_or(|last| last.len() == 1), "{ranges:?}");
        }
    }

    #[test]
    fn what_is_made_of_items_is_in_their_order() {
        for items in [0, 1, 2, 7, 64, 1000] {
            let expected: Vec<String> = (0..items).map(|item| item.to_string()).collect();
            assert_eq!(map_each(items, usize::MAX / 2, |item| item.to_string()), expected);
        }
    }

    #[test]
    fn every_thread_has_a_room_of_its_own_which_the_caller_makes() {
        struct Room {
            made_by: std::thread::ThreadId,
            worked_by: Option<std::thread::ThreadId>,
        }
        let current = || std::thread::current().id();
        let (caller, done) = (current(), AtomicUsize::new(0));
        let room = || Room { made_by: current(), worked_by: None };
        for _ in 0..100 {
            for_each_range_in(50, usize::MAX / 2, room, |room, range| {
                assert_eq!(room.made_by, caller);
                assert_eq!(*room.worked_by.get_or_insert(current()), current());
                done.fetch_add(range.len(), Ordering::Relaxed);
            });
        }
        assert_eq!(done.into_inner(), 5_000);
    }

    #[test]
    fn every_item_is_worked_on_once() {
        for items in [0, 1, 2, 7, 64, 1000] {
            let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            for_each_range(items, usize::MAX / 2, |range| {
                for count in &counts[range] {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{items}");
        }
    }
}
