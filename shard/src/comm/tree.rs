//! The one order in which ranks' numbers are added.
//!
//! Halves are summed first, then added: ((0+1)+(2+3))+((4+5)+(6+7)). A rank that holds what several ranks
//! of a larger group would hold can sum that subtree by itself and get the same bits.

/// Writes the sum of `parts` into `sum`. `parts` is a power of two of slices as long as `sum`.
pub(super) fn add(parts: &[&[f32]], sum: &mut [f32]) {
    match parts {
        [] => sum.fill(0.0),
        [only] => sum.copy_from_slice(only),
        [a, b] => {
            for ((sum, a), b) in sum.iter_mut().zip(*a).zip(*b) {
                *sum = a + b;
            }
        }
        [a, b, c, d] => {
            for ((((sum, a), b), c), d) in sum.iter_mut().zip(*a).zip(*b).zip(*c).zip(*d) {
                *sum = (a + b) + (c + d);
            }
        }
        more => {
            let (left, right) = more.split_at(more.len() / 2);
            let mut right_sum = vec![0.0; sum.len()];
            add(left, sum);
            add(right, &mut right_sum);
            for (sum, right) in sum.iter_mut().zip(&right_sum) {
                *sum += right;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(values: &[f32]) -> f32 {
        if let [only] = values {
            return *only;
        }
        let (left, right) = values.split_at(values.len() / 2);
        plain(left) + plain(right)
    }

    proptest! {
        #[test]
        fn adds_in_the_same_tree_for_every_group(
            levels in 0..4_u32,
            columns in proptest::collection::vec(proptest::array::uniform8(-1e6_f32..1e6), 0..40),
        ) {
            let ranks = 1 << levels;
            let rows: Vec<Vec<f32>> =
                (0..ranks).map(|rank| columns.iter().map(|column| column[rank]).collect()).collect();
            let parts: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let mut sum = vec![0.0; columns.len()];
            add(&parts, &mut sum);
            for (sum, column) in sum.iter().zip(&columns) {
                prop_assert_eq!(sum.to_bits(), plain(&column[..ranks]).to_bits());
            }
        }
    }
}
