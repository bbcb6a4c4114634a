//! Passes over a whole row of numbers, compiled for the machine's vectors. None computes anything whose bits
//! depend on them: maxima, comparisons, and what each element is on its own.

use crate::ops::cpu::isa::{Isa, Kernel};
use crate::ops::cpu::simd::{LANES, Simd};

/// Numbers looked at together.
const TOGETHER: usize = 64;

/// Numbers of which one lane's maximum is taken, where the most probable are selected.
const BLOCK: usize = 64;

/// What is known of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Overview {
    /// The largest number; minus infinity where there is none.
    pub(super) largest: f32,
    /// Whether some element is no number.
    pub(super) has_nan: bool,
}

pub(super) fn overview(row: &[f32]) -> Overview {
    Isa::of_this_machine().run(FindOverview { row })
}

/// The first index of the largest number, which is `largest`.
pub(super) fn first_of(row: &[f32], largest: f32) -> Option<usize> {
    Isa::of_this_machine().run(FindFirst { row, largest })
}

/// The indices of what is at least `threshold`, in order.
pub(super) fn at_least(row: &[f32], threshold: f32) -> Vec<usize> {
    Isa::of_this_machine().run(FindAtLeast { row, threshold })
}

/// Whether all numbers are at least `threshold`.
pub(super) fn all_at_least(row: &[f32], threshold: f32) -> bool {
    Isa::of_this_machine().run(AllAtLeast { row, threshold })
}

/// A number that `count` elements or more are at least as large as, and few more if the row allows it. `count`
/// is above 0.
pub(super) fn threshold_of(row: &[f32], count: usize) -> f32 {
    let mut maxima = Isa::of_this_machine().run(FindMaxima { row });
    // Where large numbers share blocks, they are hidden by each other: a maximum says less the more are taken.
    if count > maxima.len() / 2 {
        maxima = row.to_vec();
    }
    match maxima.len() {
        len if count < len => {
            let (_, threshold, _) = maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
            *threshold
        }
        _ => f32::NEG_INFINITY,
    }
}

/// Changes every number.
pub(super) fn change(row: &mut [f32], to: impl Fn(f32) -> f32) {
    Isa::of_this_machine().run(Change { row, to });
}

struct FindOverview<'a> {
    row: &'a [f32],
}

impl Kernel for FindOverview<'_> {
    type Output = Overview;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Overview {
        let mut largest = [f32::NEG_INFINITY; TOGETHER];
        let mut nan = [0_u32; TOGETHER];
        let (whole, rest) = self.row.as_chunks::<TOGETHER>();
        for numbers in whole {
            take_larger(&mut largest, numbers);
            for lane in 0..TOGETHER {
                nan[lane] |= u32::from(numbers[lane].is_nan());
            }
        }
        for (lane, number) in rest.iter().enumerate() {
            largest[lane] = if *number > largest[lane] { *number } else { largest[lane] };
            nan[lane] |= u32::from(number.is_nan());
        }
        Overview {
            largest: largest.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            has_nan: nan.iter().any(|nan| *nan != 0),
        }
    }
}

#[inline(always)]
fn take_larger<const COUNT: usize>(largest: &mut [f32; COUNT], numbers: &[f32; COUNT]) {
    for lane in 0..COUNT {
        // What is not a number is not larger.
        largest[lane] = if numbers[lane] > largest[lane] { numbers[lane] } else { largest[lane] };
    }
}

struct FindFirst<'a> {
    row: &'a [f32],
    largest: f32,
}

impl Kernel for FindFirst<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Option<usize> {
        for (chunk, numbers) in self.row.chunks(TOGETHER).enumerate() {
            if any_at_least(numbers, self.largest) {
                let first = numbers.iter().position(|number| *number >= self.largest)?;
                return Some(chunk * TOGETHER + first);
            }
        }
        None
    }
}

struct FindAtLeast<'a> {
    row: &'a [f32],
    threshold: f32,
}

impl Kernel for FindAtLeast<'_> {
    type Output = Vec<usize>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<usize> {
        let mut found = Vec::new();
        for (chunk, numbers) in self.row.chunks(TOGETHER).enumerate() {
            if any_at_least(numbers, self.threshold) {
                let all = (chunk * TOGETHER..).zip(numbers);
                found.extend(all.filter(|(_, number)| **number >= self.threshold).map(|(index, _)| index));
            }
        }
        found
    }
}

struct AllAtLeast<'a> {
    row: &'a [f32],
    threshold: f32,
}

impl Kernel for AllAtLeast<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        let mut below = [0_u32; TOGETHER];
        let (whole, rest) = self.row.as_chunks::<TOGETHER>();
        for numbers in whole {
            for lane in 0..TOGETHER {
                below[lane] |= u32::from(numbers[lane] < self.threshold || numbers[lane].is_nan());
            }
        }
        below.iter().all(|below| *below == 0) && rest.iter().all(|number| *number >= self.threshold)
    }
}

#[inline(always)]
fn any_at_least(numbers: &[f32], threshold: f32) -> bool {
    let Some(numbers) = numbers.as_array::<TOGETHER>() else { return true };
    let mut any = 0_u32;
    for number in numbers {
        any |= u32::from(*number >= threshold);
    }
    any != 0
}

/// The maxima of as many blocks as fit, and all that is left over.
struct FindMaxima<'a> {
    row: &'a [f32],
}

impl Kernel for FindMaxima<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<f32> {
        let (whole, rest) = self.row.as_chunks::<{ BLOCK * LANES }>();
        let mut maxima = Vec::with_capacity(whole.len() * LANES + rest.len());
        for numbers in whole {
            let mut largest = [f32::NEG_INFINITY; LANES];
            for numbers in numbers.as_chunks::<LANES>().0 {
                take_larger(&mut largest, numbers);
            }
            maxima.extend_from_slice(&largest);
        }
        maxima.extend_from_slice(rest);
        maxima
    }
}

struct Change<'a, F> {
    row: &'a mut [f32],
    to: F,
}

impl<F: Fn(f32) -> f32> Kernel for Change<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for number in self.row {
            *number = (self.to)(*number);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows() -> impl Strategy<Value = Vec<f32>> {
        let coarse = (-40..4_i32).prop_map(|step| step as f32 * 0.5);
        let number = prop_oneof![4 => -30.0_f32..30.0, 2 => coarse, 1 => Just(f32::NEG_INFINITY)];
        proptest::collection::vec(number, 1..3000)
    }

    proptest! {
        #[test]
        fn scans_find_what_plain_loops_find(row in rows(), threshold in -31.0_f32..31.0, count in 1..400_usize) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(overview(&row), Overview { largest, has_nan: false });
            prop_assert_eq!(first_of(&row, largest), row.iter().position(|number| *number == largest));
            let expected: Vec<usize> = (0..row.len()).filter(|at| row[*at] >= threshold).collect();
            prop_assert_eq!(all_at_least(&row, threshold), expected.len() == row.len());
            prop_assert_eq!(at_least(&row, threshold), expected);
            let found = at_least(&row, threshold_of(&row, count)).len();
            prop_assert!(found >= count.min(row.len()), "{} of {}", found, count);
        }

        #[test]
        fn what_is_not_a_number_is_found(row in rows(), at in any::<proptest::sample::Index>()) {
            let mut row = row;
            let at = at.index(row.len());
            row[at] = f32::NAN;
            prop_assert!(overview(&row).has_nan);
        }
    }
}
