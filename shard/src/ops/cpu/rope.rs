//! Rotates the halves of query and key heads in place.

use super::isa::{Isa, Kernel};
use super::simd::Simd;

/// Rotates `heads` (heads, width) by `angles` (width): cosines of one half, then sines.
pub(crate) fn rotate(isa: Isa, heads: &mut [f32], angles: &[f32]) {
    isa.run(Rotate { heads, angles });
}

struct Rotate<'a> {
    heads: &'a mut [f32],
    angles: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let width = self.angles.len();
        let (cosines, sines) = self.angles.split_at(width / 2);
        for head in self.heads.chunks_exact_mut(width) {
            let (left, right) = head.split_at_mut(width / 2);
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
            rotate(isa, &mut heads, &table);
            assert_close(&heads, &expected, 1e-5, &isa.to_string());
        }
    }
}
