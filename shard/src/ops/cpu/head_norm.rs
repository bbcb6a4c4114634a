//! Root mean square norms of query and key heads in place.

use super::isa::{Isa, Kernel};
use super::norm::{inverse_root, squares};
use super::parallel::{SharedSlice, for_each_range};
use super::simd::Simd;
use crate::ops::attention::AttentionShape;

/// Scalar operations an element costs, about.
const OPERATIONS: usize = 4;

/// What heads are multiplied by once they are normed.
#[derive(Clone, Copy)]
pub(crate) struct HeadWeights<'a> {
    /// (head width)
    pub(crate) query: &'a [f32],
    /// (head width)
    pub(crate) key: &'a [f32],
    /// Added to the mean square.
    pub(crate) epsilon: f32,
}

/// Norms the query and key heads of `qkv` (rows, all heads, head width).
pub(crate) fn norm_heads(isa: Isa, shape: AttentionShape, weights: HeadWeights<'_>, qkv: &mut [f32]) {
    let (width, operations) = (shape.row_elements(), qkv.len() * OPERATIONS);
    let rows = qkv.len() / width;
    let qkv = SharedSlice::new(qkv);
    for_each_range(rows, operations, |rows| {
        for row in rows {
            // SAFETY: each row is one item, worked on by one thread.
            let heads = unsafe { qkv.part(row * width, shape.query_elements() + shape.kv_elements()) };
            let (queries, keys) = heads.split_at_mut(shape.query_elements());
            isa.run(NormHeads { heads: queries, weight: weights.query, epsilon: weights.epsilon });
            isa.run(NormHeads { heads: keys, weight: weights.key, epsilon: weights.epsilon });
        }
    });
}

struct NormHeads<'a> {
    heads: &'a mut [f32],
    weight: &'a [f32],
    epsilon: f32,
}

impl Kernel for NormHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for head in self.heads.chunks_exact_mut(self.weight.len()) {
            let factor = inverse_root(squares(simd, head, 0.0), head.len(), self.epsilon);
            for (value, weight) in head.iter_mut().zip(self.weight) {
                *value = *value * factor * weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::kv::layout::KvLayout;
    use crate::ops::head_norm::HeadNorm;
    use crate::ops::reference::{Random, assert_close, rms_norm};

    #[test]
    fn heads_are_normed_one_by_one_and_values_stay() {
        let mut random = Random::new(20);
        for (query_heads, kv_heads, head_width) in [(1, 1, 2), (6, 2, 20), (4, 4, 16), (9, 3, 66)] {
            let kv = KvLayout { kv_heads, head_width };
            let shape = AttentionShape { query_heads, kv, scale: 1.0, window: None, softcap: None };
            let before = random.values(3 * shape.row_elements());
            let (query, key) = (random.values(head_width), random.values(head_width));
            let mut expected = Vec::new();
            for row in before.chunks(shape.row_elements()) {
                let (queries, rest) = row.split_at(shape.query_elements());
                let (keys, values) = rest.split_at(shape.kv_elements());
                expected.extend(rms_norm(queries, &query, 1e-6));
                expected.extend(rms_norm(keys, &key, 1e-6));
                expected.extend_from_slice(values);
            }
            for isa in Isa::all_of_this_machine() {
                let what = format!("{isa} {shape:?}");
                let weights = HeadWeights { query: &query, key: &key, epsilon: 1e-6 };
                let mut qkv = before.clone();
                norm_heads(isa, shape, weights, &mut qkv);
                assert_close(&qkv, &expected, 1e-5, &what);
                let mut alone = before.clone();
                let rows = alone.chunks_mut(shape.row_elements());
                rows.for_each(|row| norm_heads(isa, shape, weights, row));
                assert_eq!(alone, qkv, "{what}: rows alone");
            }
        }
    }

    #[test]
    fn weights_of_another_width_are_refused() {
        let kv = KvLayout { kv_heads: 1, head_width: 4 };
        let shape = AttentionShape { query_heads: 2, kv, scale: 1.0, window: None, softcap: None };
        let norm = HeadNorm { shape, epsilon: 1e-6, isa: Isa::of_this_machine() };
        let ones = |shape| Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let qkv = ones((3, 16));
        assert!(qkv.inplace_op2(&ones((2, 4)), &norm).is_ok());
        for weights in [(1, 4), (2, 8)] {
            let message = qkv.inplace_op2(&ones(weights), &norm).unwrap_err().to_string();
            assert!(message.contains("norm heads of 4 elements"), "{message}");
        }
    }
}
