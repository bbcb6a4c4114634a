//! Which part of a model a rank has, and in which fixed parts its sums are added.

use std::ops::Range;

use lockstep_proto::Rank;
use thiserror::Error;

use super::spec::ModelSpec;
use crate::kv::layout::KvLayout;
use crate::ops::cpu::panels::MAX_SEGMENTS;
use crate::ops::cpu::simd::LANES;

/// A rank's place in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Its place, from 0.
    pub rank: Rank,
    /// How many ranks there are.
    pub world_size: u32,
}

/// Ranks a model cannot be split over.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("split {parts} over {world_size} ranks: {possible}")]
pub struct SplitError {
    parts: String,
    world_size: u32,
    possible: String,
}

impl ModelSpec {
    /// Into how many parts the sums of row-parallel products are cut, whatever the number of ranks: the
    /// largest power of two, up to 8, that divides the KV heads, the MLP's panels and the experts.
    pub(crate) fn virtual_shards(&self) -> usize {
        let shape = &self.shape;
        let divides = |parts: &usize| {
            let dense = !self.has_dense_layers() || shape.intermediate.is_multiple_of(*parts * LANES);
            let experts = shape.experts.is_none_or(|experts| experts.count.is_multiple_of(*parts));
            shape.kv_heads.is_multiple_of(*parts) && dense && experts
        };
        [MAX_SEGMENTS, 4, 2].into_iter().find(divides).unwrap_or(1)
    }

    fn cannot_split(&self, world_size: u32) -> SplitError {
        let shape = &self.shape;
        let mut parts = format!("{} query heads, {} KV heads", shape.query_heads, shape.kv_heads);
        if self.has_dense_layers() {
            parts += &format!(", an MLP of {}", shape.intermediate);
        }
        if let Some(experts) = shape.experts {
            parts += &format!(", {} experts", experts.count);
        }
        let most = self.virtual_shards();
        let possible: Vec<String> =
            [1, 2, 4, 8].iter().filter(|ranks| most.is_multiple_of(**ranks)).map(usize::to_string).collect();
        let possible = match possible.as_slice() {
            [only] => format!("only {only} rank works"),
            several => format!("{} ranks work", several.join(" or ")),
        };
        SplitError { parts, world_size, possible }
    }
}

/// The part of a model one rank has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) query_heads: Range<usize>,
    pub(crate) kv_heads: Range<usize>,
    /// Columns of the MLP.
    pub(crate) intermediate: Range<usize>,
    /// Experts that are computed here.
    pub(crate) experts: Range<usize>,
    /// Entries of the vocabulary that exist.
    pub(crate) vocabulary: Range<usize>,
    /// Entries of the vocabulary each rank computes, padding included.
    pub(crate) vocabulary_padded: usize,
    /// Parts of a row-parallel product's sum on this rank.
    pub(crate) segments: usize,
    pub(crate) head_width: usize,
}

impl Slice {
    /// # Errors
    /// When the number of ranks does not divide the virtual shards.
    pub(crate) fn of(spec: &ModelSpec, split: Split) -> Result<Self, SplitError> {
        let shape = &spec.shape;
        let parts = spec.virtual_shards();
        let (ranks, rank) = (split.world_size as usize, split.rank.0 as usize);
        if ranks == 0 || !parts.is_multiple_of(ranks) || rank >= ranks {
            return Err(spec.cannot_split(split.world_size));
        }
        let share = |whole: usize| rank * whole / ranks..(rank + 1) * whole / ranks;
        let padded = shape.vocabulary.div_ceil(LANES).div_ceil(ranks) * LANES;
        let entry = |entry: usize| (entry * padded).min(shape.vocabulary);
        Ok(Self {
            query_heads: share(shape.query_heads),
            kv_heads: share(shape.kv_heads),
            intermediate: share(shape.intermediate),
            experts: share(shape.experts.map_or(0, |experts| experts.count)),
            vocabulary: entry(rank)..entry(rank + 1),
            vocabulary_padded: padded,
            segments: parts / ranks,
            head_width: shape.head_width,
        })
    }

    /// Elements of the rank's heads, counted over the whole model's.
    pub(crate) fn elements(&self, heads: &Range<usize>) -> Range<usize> {
        heads.start * self.head_width..heads.end * self.head_width
    }

    pub(crate) fn kv_layout(&self) -> KvLayout {
        KvLayout { kv_heads: self.kv_heads.len(), head_width: self.head_width }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::families::testing;
    use crate::decoder::spec::ExpertShape;

    fn spec(query_heads: usize, kv_heads: usize, intermediate: usize) -> ModelSpec {
        let mut spec = testing::plain_spec();
        spec.shape.query_heads = query_heads;
        spec.shape.kv_heads = kv_heads;
        spec.shape.intermediate = intermediate;
        spec
    }

    #[test]
    fn virtual_shards_follow_from_the_shape_alone() {
        let cases =
            [((8, 4, 768), 4), ((32, 8, 8192), 8), ((14, 2, 4864), 2), ((8, 8, 100), 1), ((9, 3, 96), 1)];
        for ((query_heads, kv_heads, intermediate), expected) in cases {
            assert_eq!(spec(query_heads, kv_heads, intermediate).virtual_shards(), expected);
        }
    }

    #[test]
    fn the_ranks_slices_cover_the_model_once() {
        let mut spec = spec(8, 4, 768);
        spec.shape.experts = Some(ExpertShape { count: 16, chosen: 2, intermediate: 40 });
        for world_size in [1, 2, 4] {
            let slices: Vec<Slice> = (0..world_size)
                .map(|rank| Slice::of(&spec, Split { rank: Rank(rank), world_size }).unwrap())
                .collect();
            let ends = |part: fn(&Slice) -> Range<usize>| {
                slices.iter().fold(0, |end, slice| {
                    assert_eq!(part(slice).start, end);
                    part(slice).end
                })
            };
            assert_eq!(ends(|slice| slice.query_heads.clone()), 8);
            assert_eq!(ends(|slice| slice.kv_heads.clone()), 4);
            assert_eq!(ends(|slice| slice.intermediate.clone()), 768);
            assert_eq!(ends(|slice| slice.experts.clone()), 16);
            assert_eq!(ends(|slice| slice.vocabulary.clone()), spec.shape.vocabulary);
            assert!(slices.iter().all(|slice| slice.segments * world_size as usize == 4));
        }
    }

    #[test]
    fn ranks_that_do_not_divide_say_which_do() {
        let error = Slice::of(&spec(8, 4, 768), Split { rank: Rank(0), world_size: 3 }).unwrap_err();
        let expected =
            "split 8 query heads, 4 KV heads, an MLP of 768 over 3 ranks: 1 or 2 or 4 ranks work";
        assert_eq!(error.to_string(), expected);
        let mut odd = spec(8, 1, 768);
        odd.shape.experts = Some(ExpertShape { count: 8, chosen: 2, intermediate: 40 });
        let error = Slice::of(&odd, Split { rank: Rank(0), world_size: 2 }).unwrap_err();
        let expected =
            "split 8 query heads, 1 KV heads, an MLP of 768, 8 experts over 2 ranks: only 1 rank works";
        assert_eq!(error.to_string(), expected);
    }
}
