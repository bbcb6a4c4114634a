//! Which experts a row goes to, and how their outputs come back.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, bail};

use super::cpu::isa::{Isa, Kernel};
use super::cpu::simd::{LANES, Simd, exp};
use super::{contiguous, contiguous_mut};

/// How rows are spread over experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Routing {
    /// Experts there are.
    pub experts: usize,
    /// Experts each row goes to: those with its largest logits.
    pub chosen: usize,
    /// What an expert's output is multiplied by.
    pub weights: RoutingWeights,
}

/// What an expert's output is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingWeights {
    /// Its probability among all experts.
    SoftmaxOfAll,
    /// Its probability among the chosen ones, whose weights so sum to one.
    SoftmaxOfChosen,
}

/// logits (rows, experts) → for each expert its rows, ascending, with the weights of its outputs.
///
/// Of equal logits the lower expert's is taken for the larger, and what is not a number for the least. A row's
/// experts and weights depend on its own logits alone.
pub(crate) fn route(routing: Routing, logits: &[f32]) -> Vec<Vec<(usize, f32)>> {
    let mut groups = vec![Vec::new(); routing.experts];
    if groups.is_empty() {
        return groups;
    }
    for (row, logits) in logits.chunks_exact(routing.experts).enumerate() {
        let chosen = largest(logits, routing.chosen);
        let Some(maximum) = chosen.first().map(|expert| logits[*expert]) else { continue };
        // On the portable set, so that ranks on unlike machines agree to the bit.
        let exponentials = |logits: Vec<f32>| Isa::Portable.run(Exponentials { logits, maximum });
        let weights = exponentials(chosen.iter().map(|expert| logits[*expert]).collect());
        let total: f32 = match routing.weights {
            RoutingWeights::SoftmaxOfAll => exponentials(logits.to_vec()).iter().sum(),
            RoutingWeights::SoftmaxOfChosen => weights.iter().sum(),
        };
        for (expert, weight) in chosen.into_iter().zip(weights) {
            groups[expert].push((row, weight / total));
        }
    }
    groups
}

/// The places of the largest logits, the largest first.
fn largest(logits: &[f32], count: usize) -> Vec<usize> {
    let before = |a: &usize, b: &usize| {
        let (logit_a, logit_b) = (logits[*a], logits[*b]);
        let by_size = logit_b.partial_cmp(&logit_a).unwrap_or(logit_a.is_nan().cmp(&logit_b.is_nan()));
        by_size.then(a.cmp(b))
    };
    let mut experts: Vec<usize> = (0..logits.len()).collect();
    if count < experts.len() {
        experts.select_nth_unstable_by(count, before);
        experts.truncate(count);
    }
    experts.sort_unstable_by(before);
    experts
}

/// `e^(x - maximum)` of every logit.
struct Exponentials {
    logits: Vec<f32>,
    maximum: f32,
}

impl Kernel for Exponentials {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Vec<f32> {
        let maximum = simd.splat(self.maximum);
        for logits in self.logits.chunks_mut(LANES) {
            simd.store_first(exp(simd, simd.sub(simd.load_first(logits), maximum)), logits);
        }
        self.logits
    }
}

/// target (all rows, width), source (rows of one expert, width): adds each row of the source, weighted, to the
/// row of the target that it belongs to.
pub(crate) struct AddRows<'a> {
    /// Of each row of the source, its row of the target and its weight.
    pub(crate) rows: &'a [(usize, f32)],
}

impl AddRows<'_> {
    /// Elements of a row.
    fn check(&self, target: &Layout, source: &Layout) -> Result<usize> {
        let (rows, width) = target.shape().dims2()?;
        if source.shape().dims() != [self.rows.len(), width] {
            let (found, expected) = (source.shape(), (self.rows.len(), width));
            bail!("add {expected:?} rows and elements of an expert: its output is of shape {found:?}");
        }
        if let Some((row, _)) = self.rows.iter().find(|(row, _)| *row >= rows) {
            bail!("add an expert's output to row {row}: there are {rows}");
        }
        Ok(width)
    }
}

impl InplaceOp2 for AddRows<'_> {
    fn name(&self) -> &'static str {
        "add_rows"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        target_layout: &Layout,
        source: &CpuStorage,
        source_layout: &Layout,
    ) -> Result<()> {
        let width = self.check(target_layout, source_layout)?;
        let source = contiguous::<f32>(source, source_layout)?;
        let target = contiguous_mut::<f32>(target, target_layout)?;
        for ((row, weight), source) in self.rows.iter().zip(source.chunks_exact(width.max(1))) {
            for (target, source) in target[row * width..][..width].iter_mut().zip(source) {
                *target += weight * source;
            }
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        target: &mut CudaStorage,
        target_layout: &Layout,
        source: &CudaStorage,
        source_layout: &Layout,
    ) -> Result<()> {
        self.check(target_layout, source_layout)?;
        super::cuda::experts::one_by_one::add_forward(
            self.rows,
            (target, target_layout),
            (source, source_layout),
        )
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    use super::*;

    /// The experts and weights of one row, as plainly as they can be found.
    fn plain(routing: Routing, logits: &[f32]) -> Vec<(usize, f64)> {
        let mut left: Vec<usize> = (0..logits.len()).collect();
        let mut chosen = Vec::new();
        while chosen.len() < routing.chosen {
            let better =
                |best: usize, at: usize| if logits[left[at]] > logits[left[best]] { at } else { best };
            chosen.push(left.remove((0..left.len()).fold(0, better)));
        }
        let exponential = |expert: &usize| f64::from(logits[*expert]).exp();
        let total: f64 = match routing.weights {
            RoutingWeights::SoftmaxOfAll => (0..logits.len()).map(|expert| exponential(&expert)).sum(),
            RoutingWeights::SoftmaxOfChosen => chosen.iter().map(exponential).sum(),
        };
        chosen.iter().map(|expert| (*expert, exponential(expert) / total)).collect()
    }

    /// Small whole numbers, so that many are equal, and others.
    fn logit() -> impl Strategy<Value = f32> {
        prop_oneof![(-3..3_i32).prop_map(|logit| logit as f32), -9.0..9.0_f32]
    }

    fn routings() -> impl Strategy<Value = (Routing, Vec<f32>)> {
        (1..20_usize).prop_flat_map(|experts| {
            let weights =
                prop_oneof![Just(RoutingWeights::SoftmaxOfAll), Just(RoutingWeights::SoftmaxOfChosen)];
            let routing = (1..=experts, weights).prop_map(move |(chosen, weights)| Routing {
                experts,
                chosen,
                weights,
            });
            let logits =
                (0..7_usize).prop_flat_map(move |rows| prop::collection::vec(logit(), rows * experts));
            (routing, logits)
        })
    }

    proptest! {
        #[test]
        fn every_row_goes_to_the_experts_it_likes_best((routing, logits) in routings()) {
            let groups = route(routing, &logits);
            prop_assert_eq!(groups.len(), routing.experts);
            for group in &groups {
                prop_assert!(group.is_sorted_by(|a, b| a.0 < b.0));
            }
            for (row, logits) in logits.chunks(routing.experts).enumerate() {
                let mut expected = plain(routing, logits);
                expected.sort_by_key(|(expert, _)| *expert);
                let found = groups.iter().enumerate().flat_map(|(expert, group)| {
                    group.iter().filter(|(at, _)| *at == row).map(move |(_, weight)| (expert, *weight))
                });
                let found: Vec<(usize, f32)> = found.collect();
                prop_assert_eq!(found.len(), expected.len());
                for ((expert, weight), (right, exact)) in found.iter().zip(&expected) {
                    prop_assert_eq!(expert, right);
                    prop_assert!((f64::from(*weight) - exact).abs() < 1e-6);
                }
                let alone = route(routing, logits);
                let alone: Vec<(usize, f32)> = (0..).zip(&alone).flat_map(|(expert, group)| {
                    group.iter().map(move |(_, weight)| (expert, *weight))
                }).collect();
                prop_assert_eq!(alone, found);
            }
        }

        #[test]
        fn rows_come_back_weighted_in_order(
            rows in prop::collection::vec((0..5_usize, -2.0..2.0_f32), 0..9),
            width in 1..20_usize,
            seed in any::<u64>(),
        ) {
            let mut random = crate::ops::reference::Random::new(seed);
            let (before, source) = (random.values(5 * width), random.values(rows.len() * width));
            let target = Tensor::from_slice(&before, (5, width), &Device::Cpu).unwrap();
            let added = Tensor::from_slice(&source, (rows.len(), width), &Device::Cpu).unwrap();
            target.inplace_op2(&added, &AddRows { rows: &rows }).unwrap();
            let mut expected = before;
            for (at, (row, weight)) in rows.iter().enumerate() {
                for element in 0..width {
                    expected[row * width + element] += weight * source[at * width + element];
                }
            }
            prop_assert_eq!(target.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
        }
    }

    #[test]
    fn of_equal_logits_the_lower_expert_is_taken() {
        let routing = Routing { experts: 4, chosen: 2, weights: RoutingWeights::SoftmaxOfChosen };
        let groups = route(routing, &[1.0, -0.0, 1.0, 1.0, -0.0, 0.0, -1.0, 0.0]);
        assert_eq!(groups, [vec![(0, 0.5), (1, 0.5)], vec![(1, 0.5)], vec![(0, 0.5)], vec![]]);
    }

    #[test]
    fn what_is_not_a_number_is_least_and_not_hidden() {
        let routing = Routing { experts: 3, chosen: 2, weights: RoutingWeights::SoftmaxOfChosen };
        let groups = route(routing, &[f32::NAN, f32::NEG_INFINITY, 1.0]);
        assert_eq!(groups, [vec![], vec![(0, groups[1][0].1)], vec![(0, 1.0)]]);
        assert!(groups[1][0].1 < 1e-30);
        let weights = [RoutingWeights::SoftmaxOfAll, RoutingWeights::SoftmaxOfChosen];
        for routing in weights.map(|weights| Routing { weights, ..routing }) {
            let groups = route(routing, &[f32::NAN; 3]);
            assert!(groups[0][0].1.is_nan() && groups[1][0].1.is_nan() && groups[2].is_empty());
            for found in [f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(route(routing, &[found; 3]).concat().len(), 2, "{found}");
            }
        }
        assert!(route(Routing { experts: 0, ..routing }, &[1.0]).is_empty());
        assert_eq!(route(Routing { chosen: 9, ..routing }, &[0.0; 3]).concat().len(), 3);
    }

    #[test]
    fn rows_that_are_not_there_are_refused() {
        let zeroes = |rows| Tensor::zeros((rows, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let add = |rows: &[(usize, f32)]| {
            zeroes(2).inplace_op2(&zeroes(1), &AddRows { rows }).map_err(|error| error.to_string())
        };
        assert_eq!(add(&[(1, 1.0)]), Ok(()));
        assert!(add(&[(2, 1.0)]).unwrap_err().contains("row 2: there are 2"));
        assert!(add(&[(0, 1.0), (1, 1.0)]).unwrap_err().contains("(2, 3)"));
    }
}
