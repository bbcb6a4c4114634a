//! Rotates the halves of query and key heads in place.

use super::isa::{Isa, Kernel};
use super::simd::Simd;

/// Rotates the first elements of each of `heads` (heads, head width) by `angles`, as many as those are: the
/// cosines of one half, then its sines.
pub(crate) fn rotate(isa: Isa, heads: &mut [f32], head_width: usize, angles: &[f32]) {
    isa.run(Rotate { heads, head_width, angles });
}

struct Rotate<'a> {
    heads: &'a mut [f32],
    head_width: usize,
    angles: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let rotary = self.angles.len();
        let (cosines, sines) = self.angles.split_at(rotary / 2);
        for head in self.heads.chunks_exact_mut(self.head_width) {
            let (left, right) = head[..rotary].split_at_mut(rotary / 2);
            let angles = cosines.iter().zip(sines);
            for ((left, right), (cosine, sine)) in left.iter_mut().zip(right).zip(angles) {
                (*left, *right) = (*left * cosine - *right * sine, *right * cosine + *left * sine);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reference::{Random, assert_close};

    #[test]
    fn a_rotation_turns_each_pair_of_elements_by_its_angle() {
        let mut random = Random::new(8);
        let angles = [0.3_f32, 1.0, -2.5];
        let table: Vec<f32> =
            angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect();
        let before = random.values(12);
        let expected: Vec<f32> = before
            .chunks(6)
            .flat_map(|head| {
                let turned = |i: usize, phase: f32| {
                    let (radius, angle) = (head[i].hypot(head[i + 3]), head[i + 3].atan2(head[i]));
                    radius * (angle + angles[i] - phase).cos()
                };
                let quarter = std::f32::consts::FRAC_PI_2;
                (0..3).map(|i| turned(i, 0.0)).chain((0..3).map(|i| turned(i, quarter))).collect::<Vec<_>>()
            })
            .collect();
        for isa in Isa::all_of_this_machine() {
            let mut heads = before.clone();
            rotate(isa, &mut heads, 6, &table);
            assert_close(&heads, &expected, 1e-5, &isa.to_string());
        }
    }

    #[test]
    fn elements_beyond_the_angles_stay() {
        let mut random = Random::new(18);
        for (width, rotary) in [(6, 0), (7, 2), (20, 8), (80, 32), (33, 32)] {
            let (before, table) = (random.values(3 * width), random.values(rotary));
            for isa in Isa::all_of_this_machine() {
                let mut heads = before.clone();
                rotate(isa, &mut heads, width, &table);
                for (found, before) in heads.chunks(width).zip(before.chunks(width)) {
                    let mut alone = before[..rotary].to_vec();
                    rotate(isa, &mut alone, rotary.max(1), &table);
                    assert_eq!(found[..rotary], alone, "{isa} {rotary} of {width}");
                    assert_eq!(found[rotary..], before[rotary..], "{isa} {rotary} of {width}");
                }
            }
        }
    }
}
