//! Root mean square norms of whole projections, whose heads lie on several ranks.

use super::isa::{Isa, Kernel};
use super::norm::{inverse_root, squares};
use super::parallel::{SharedSlice, for_each_range};
use super::simd::Simd;
use crate::ops::attention::AttentionShape;

/// Scalar operations an element costs, about.
const OPERATIONS: usize = 2;

/// Writes the sums of the squares of the queries and of the keys of `qkv` (rows, all heads, head width) to
/// `sums` (rows, 2), each added in `segments` parts, a power of two.
pub(crate) fn sum_squares(isa: Isa, shape: AttentionShape, segments: usize, qkv: &[f32], sums: &mut [f32]) {
    let (width, queries) = (shape.row_elements(), shape.query_elements());
    let operations = qkv.len() * OPERATIONS;
    let rows = sums.len() / 2;
    let sums = SharedSlice::new(sums);
    for_each_range(rows, operations, |rows| {
        for row in rows {
            let (queries, rest) = qkv[row * width..][..width].split_at(queries);
            // SAFETY: each row is one item, worked on by one thread.
            let sums = unsafe { sums.part(row * 2, 2) };
            sums[0] = isa.run(Squares { values: queries, segments });
            sums[1] = isa.run(Squares { values: &rest[..shape.kv_elements()], segments });
        }
    });
}

struct Squares<'a> {
    values: &'a [f32],
    segments: usize,
}

impl Kernel for Squares<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut values = self.values;
        let length = values.len() / self.segments;
        // A binary counter: level `l` holds the sum of 2^l segments until its sibling is there.
        let mut pending = [0.0; usize::BITS as usize];
        for segment in 0..self.segments {
            let (part, rest) = values.split_at(length);
            values = rest;
            let mut sum = squares(simd, part, 0.0);
            let mut level = 0;
            while segment >> level & 1 == 1 {
                sum += pending[level];
                level += 1;
            }
            pending[level] = sum;
        }
        pending[self.segments.trailing_zeros() as usize]
    }
}

/// What projections are normed by.
#[derive(Clone, Copy)]
pub(crate) struct ProjectionWeights<'a> {
    /// Of this rank's query elements.
    pub(crate) query: &'a [f32],
    /// Of this rank's key elements.
    pub(crate) key: &'a [f32],
    /// Query elements of the whole model.
    pub(crate) query_width: usize,
    /// Key elements of the whole model.
    pub(crate) key_width: usize,
    /// Added to the mean square.
    pub(crate) epsilon: f32,
}

/// Norms the queries and keys of `qkv` (rows, all heads, head width), whose squares over all ranks add up to
/// `sums` (rows, 2).
pub(crate) fn norm_projections(isa: Isa, weights: ProjectionWeights<'_>, sums: &[f32], qkv: &mut [f32]) {
    let operations = qkv.len() * OPERATIONS;
    let (queries, keys) = (weights.query.len(), weights.key.len());
    let width = queries + 2 * keys;
    let qkv = SharedSlice::new(qkv);
    for_each_range(sums.len() / 2, operations, |rows| {
        for row in rows {
            // SAFETY: each row is one item, worked on by one thread.
            let (queries, keys) = unsafe { qkv.part(row * width, queries + keys) }.split_at_mut(queries);
            let factor =
                |projection: usize, width| inverse_root(sums[row * 2 + projection], width, weights.epsilon);
            let factors = [factor(0, weights.query_width), factor(1, weights.key_width)];
            isa.run(Scale { values: queries, weights: weights.query, factor: factors[0] });
            isa.run(Scale { values: keys, weights: weights.key, factor: factors[1] });
        }
    });
}

struct Scale<'a> {
    values: &'a mut [f32],
    weights: &'a [f32],
    factor: f32,
}

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for (value, weight) in self.values.iter_mut().zip(self.weights) {
            *value = *value * self.factor * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use candle_core::{Device, Result, Tensor};

    use super::*;
    use crate::comm::Threads;
    use crate::kv::layout::KvLayout;
    use crate::ops::all_reduce::AllReduce;
    use crate::ops::projection_norm::{ProjectionNorm, ProjectionSquares};
    use crate::ops::reference::{Random, assert_close, rms_norm};

    const ROWS: usize = 3;
    /// Parts of the sums of the whole model.
    const PARTS: usize = 4;

    /// Queries, keys and values, each of all ranks: (rows, elements).
    type Projections = [Vec<f32>; 3];

    fn shape(query_heads: usize, kv_heads: usize, head_width: usize) -> AttentionShape {
        let kv = KvLayout { kv_heads, head_width };
        AttentionShape { query_heads, kv, scale: 1.0, window: None, softcap: None }
    }

    /// One of `ranks` equal parts of each row.
    fn share(rows: &[f32], count: usize, (rank, ranks): (usize, usize)) -> Vec<f32> {
        let part = |row: &[f32]| row[rank * row.len() / ranks..(rank + 1) * row.len() / ranks].to_vec();
        rows.chunks(rows.len() / count).flat_map(part).collect()
    }

    /// One rank's queries, keys and values, normed.
    fn norm_rank(
        isa: Isa,
        whole: AttentionShape,
        projections: &Projections,
        weights: &[Vec<f32>; 2],
        comm: &Threads,
    ) -> Result<Projections> {
        use crate::comm::Communicator;
        let place = (comm.rank().0 as usize, comm.world_size() as usize);
        let shape = shape(whole.query_heads / place.1, whole.kv.kv_heads / place.1, whole.kv.head_width);
        let parts = projections.each_ref().map(|rows| share(rows, ROWS, place));
        let widths = [shape.query_elements(), shape.kv_elements(), shape.kv_elements()];
        let row =
            |row: usize| parts.iter().zip(widths).flat_map(move |(part, w)| part[row * w..][..w].to_vec());
        let qkv: Vec<f32> = (0..ROWS).flat_map(row).collect();
        let qkv = Tensor::from_vec(qkv, (ROWS, shape.row_elements()), &Device::Cpu)?;
        let mine = weights.each_ref().map(|weight| share(weight, 1, place)).concat();
        let mine = Tensor::from_vec(mine, (1, widths[0] + widths[1]), &Device::Cpu)?;
        let squares = qkv.apply_op1_no_bwd(&ProjectionSquares { shape, segments: PARTS / place.1, isa })?;
        squares.inplace_op1(&AllReduce::over(comm))?;
        let (query_width, key_width) = (whole.query_elements(), whole.kv_elements());
        let norm = ProjectionNorm { shape, epsilon: 1e-6, query_width, key_width, isa };
        qkv.inplace_op3(&squares, &mine, &norm)?;
        let part = |first: usize, width: usize| {
            qkv.narrow(1, first, width)?.contiguous()?.flatten_all()?.to_vec1::<f32>()
        };
        Ok([part(0, widths[0])?, part(widths[0], widths[1])?, part(widths[0] + widths[1], widths[2])?])
    }

    /// All ranks' queries, keys and values, normed: (rows, elements).
    fn norm_group(
        isa: Isa,
        whole: AttentionShape,
        projections: &Projections,
        weights: &[Vec<f32>; 2],
        ranks: u32,
    ) -> Projections {
        let group = Threads::group(ranks, Duration::from_secs(60)).unwrap();
        let parts: Vec<Projections> = thread::scope(|scope| {
            let spawn = |comm: Threads| {
                scope.spawn(move || norm_rank(isa, whole, projections, weights, &comm).unwrap())
            };
            let running: Vec<_> = group.into_iter().map(spawn).collect();
            running.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        std::array::from_fn(|projection| {
            let row =
                |row: usize| parts.iter().flat_map(move |rank| share(&rank[projection], 1, (row, ROWS)));
            (0..ROWS).flat_map(row).collect()
        })
    }

    #[test]
    fn a_projection_is_normed_whole_and_to_the_bit_on_any_number_of_ranks() {
        let mut random = Random::new(22);
        for whole in [shape(4, 4, 2), shape(8, 4, 20), shape(12, 4, 33)] {
            let widths = [whole.query_elements(), whole.kv_elements(), whole.kv_elements()];
            let projections = widths.map(|width| random.values(ROWS * width));
            let weights = [random.values(widths[0]), random.values(widths[1])];
            for isa in Isa::all_of_this_machine() {
                let what = format!("{isa} {whole:?}");
                let alone = norm_group(isa, whole, &projections, &weights, 1);
                for projection in 0..2 {
                    let expected = rms_norm(&projections[projection], &weights[projection], 1e-6);
                    assert_close(&alone[projection], &expected, 1e-5, &what);
                }
                assert_eq!(alone[2], projections[2], "{what}: values stay");
                for ranks in [2, 4] {
                    let group = norm_group(isa, whole, &projections, &weights, ranks);
                    assert_eq!(group, alone, "{what} on {ranks} ranks");
                }
            }
        }
    }

    #[test]
    fn parts_that_do_not_divide_the_heads_are_refused() {
        let shape = shape(6, 2, 4);
        let qkv = Tensor::zeros((1, shape.row_elements()), candle_core::DType::F32, &Device::Cpu).unwrap();
        for segments in [0, 3, 4] {
            let squares = ProjectionSquares { shape, segments, isa: Isa::of_this_machine() };
            let message = qkv.apply_op1_no_bwd(&squares).unwrap_err().to_string();
            assert!(message.contains("6 query heads and 2 key heads"), "{message}");
        }
    }
}
