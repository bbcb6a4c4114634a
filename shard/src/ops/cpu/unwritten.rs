//! Memory for what operators compute, which nobody clears before it is written: clearing is done by one thread
//! while the others wait, and for a prompt takes as long as a twentieth of its computation.

use std::mem::MaybeUninit;

use super::parallel::SharedSlice;

/// Numbers that are still to be written, by several threads, each to places of its own.
#[derive(Clone, Copy)]
pub(crate) struct Unwritten<'a, T: Copy = f32> {
    numbers: SharedSlice<'a, MaybeUninit<T>>,
    len: usize,
}

impl<'a, T: Copy + Default> Unwritten<'a, T> {
    fn new(numbers: &'a mut [MaybeUninit<T>]) -> Self {
        Self { len: numbers.len(), numbers: SharedSlice::new(numbers) }
    }

    /// Numbers that are there already, to be written over.
    #[cfg(test)]
    pub(crate) fn over(numbers: &'a mut [T]) -> Self {
        let (start, len) = (numbers.as_mut_ptr().cast(), numbers.len());
        // SAFETY: it is the same slice, and nothing but numbers is written to it through this type.
        Self::new(unsafe { std::slice::from_raw_parts_mut(start, len) })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The numbers from `first` on, to be written as numbers.
    ///
    /// # Safety
    /// No other reference to any of them is alive while the result is.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, first: usize, count: usize) -> &'a mut [MaybeUninit<T>] {
        // SAFETY: by this function's contract.
        unsafe { self.numbers.part(first, count) }
    }

    /// The numbers from `first` on, zero: for kernels that work on few enough of them for the nearest cache.
    ///
    /// # Safety
    /// No other reference to any of them is alive while the result is.
    #[inline(always)]
    pub(crate) unsafe fn cleared(&self, first: usize, count: usize) -> &'a mut [T] {
        // SAFETY: by this function's contract.
        let part = unsafe { self.numbers.part(first, count) };
        part.fill(MaybeUninit::new(T::default()));
        // SAFETY: all of them are numbers by now.
        unsafe { part.assume_init_mut() }
    }
}

/// So many numbers, each of which `write` writes.
///
/// # Safety
/// When `write` returns, it has written every one of them.
pub(crate) unsafe fn written<T: Copy + Default>(
    count: usize,
    write: impl FnOnce(Unwritten<'_, T>),
) -> Vec<T> {
    let mut numbers = Vec::with_capacity(count);
    write(Unwritten::new(&mut numbers.spare_capacity_mut()[..count]));
    // SAFETY: there is room for so many, and by this function's contract all were written.
    unsafe { numbers.set_len(count) };
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_there() {
        for count in [0, 1, 7, 100] {
            // SAFETY: the first half and the second are all there is.
            let numbers = unsafe {
                written(count, |numbers| {
                    assert_eq!((numbers.len(), numbers.is_empty()), (count, count == 0));
                    let half = count / 2;
                    numbers.part(0, half).iter_mut().for_each(|number| _ = number.write(1.0));
                    let rest = numbers.cleared(half, count - half);
                    assert!(rest.iter().all(|number| *number == 0.0));
                    rest.fill(2.0);
                })
            };
            let expected: Vec<f32> = (0..count).map(|at| if at < count / 2 { 1.0 } else { 2.0 }).collect();
            assert_eq!(numbers, expected);
        }
    }
}
