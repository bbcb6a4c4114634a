//! A layer's MLP: one for all tokens, or experts of which each token chooses some.

use candle_core::{DType, Tensor};

use super::layer::Projection;
use super::stream::{ForwardResult, Pass};
use crate::ops::activation::{Activation, GatedActivation, PlainActivation};
#[cfg(feature = "cuda")]
use crate::ops::cuda::experts::grouped::GroupedExperts;
use crate::ops::experts::{AddRows, Routing, route};
use crate::ops::gated_linear::GatedLinear;
use crate::ops::linear::Linear;
use crate::ops::select_rows::SelectRows;

/// One rank's part of a layer's MLP.
pub(super) enum Mlp {
    Dense(DenseMlp),
    Experts(Experts),
}

/// One rank's columns of an MLP.
pub(super) struct DenseMlp {
    /// (rows, hidden) → (rows, MLP)
    pub(super) inner: Inner,
    /// (rows, MLP) → (rows, hidden), to be summed over ranks
    pub(super) down: Projection,
}

/// What comes before an MLP's last product.
pub(super) enum Inner {
    /// Gate and up, and the activation, in one operator.
    Gated(GatedLinear),
    /// (rows, hidden) → (rows, gate and up), then the activation.
    ThenGated(Projection, Activation),
    /// (rows, hidden) → (rows, up), then the activation.
    ThenActivated(Projection, Activation),
}

/// A layer's experts, of which this rank has some whole.
///
/// The experts are cut into as many groups as there are virtual shards. A group's sum is taken in the order
/// of its experts, the groups' sums in the binary tree of every other row-parallel sum, so that the number of
/// ranks shows in none.
pub(super) struct Experts {
    /// (rows, hidden) → (rows, experts), the same on every rank
    pub(super) router: Linear,
    pub(super) held: HeldExperts,
}

/// How experts are computed.
pub(super) enum HeldExperts {
    OneByOne(ExpertsOneByOne),
    /// All at once, on a device that decides where rows go.
    #[cfg(feature = "cuda")]
    Grouped(Box<GroupedExperts>),
}

/// Experts to which the host sends rows.
pub(super) struct ExpertsOneByOne {
    pub(super) routing: Routing,
    /// The first of this rank's experts, counted over the model's.
    pub(super) first: usize,
    /// This rank's, group after group, all of one length.
    pub(super) groups: Vec<Vec<Expert>>,
    pub(super) activation: Activation,
}

/// One expert.
pub(super) struct Expert {
    /// (rows, hidden) → (rows, gate and up)
    pub(super) gate_up: Linear,
    /// (rows, width) → (rows, hidden)
    pub(super) down: Linear,
}

impl Mlp {
    /// (rows, hidden) → (rows, hidden), summed over the ranks.
    pub(super) fn forward(&self, pass: &Pass<'_>, input: &Tensor) -> ForwardResult<Tensor> {
        match self {
            Self::Dense(dense) => dense.forward(pass, input),
            Self::Experts(experts) => experts.forward(pass, input),
        }
    }
}

impl DenseMlp {
    fn forward(&self, pass: &Pass<'_>, input: &Tensor) -> ForwardResult<Tensor> {
        let isa = pass.isa;
        let activated = match &self.inner {
            Inner::Gated(gated) => input.apply_op1_no_bwd(gated)?,
            Inner::ThenGated(projection, activation) => {
                let activation = GatedActivation { activation: *activation, isa };
                projection.apply(input)?.apply_op1_no_bwd(&activation)?
            }
            Inner::ThenActivated(projection, activation) => {
                let activated = projection.apply(input)?;
                activated.inplace_op1(&PlainActivation { activation: *activation, isa })?;
                activated
            }
        };
        self.down.apply_and_sum(pass, &activated)
    }
}

impl Experts {
    fn forward(&self, pass: &Pass<'_>, input: &Tensor) -> ForwardResult<Tensor> {
        let scores = input.apply_op1_no_bwd(&self.router)?;
        let sum = match &self.held {
            HeldExperts::OneByOne(experts) => experts.forward(pass, (input, &scores))?,
            #[cfg(feature = "cuda")]
            HeldExperts::Grouped(experts) => {
                let padding = pass.rows.on_device()?.padding();
                input.apply_op2_no_bwd(&scores, &experts.in_pass(padding))?
            }
        };
        pass.all_reduce(&sum)?;
        Ok(sum)
    }
}

impl ExpertsOneByOne {
    fn forward(&self, pass: &Pass<'_>, (input, scores): (&Tensor, &Tensor)) -> ForwardResult<Tensor> {
        pass.wait()?;
        let scores = scores.flatten_all()?.to_vec1::<f32>()?;
        let chosen = route(self.routing, &scores);
        let mut wanted = chosen.iter().skip(self.first);
        let mut sums = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let sum = Tensor::zeros(input.shape(), DType::F32, input.device())?;
            for (expert, rows) in group.iter().zip(wanted.by_ref()) {
                self.add(pass, expert, (input, rows), &sum)?;
            }
            sums.push(sum);
        }
        Ok(tree(sums)?)
    }

    /// Adds to `sum` what an expert makes of the rows that chose it.
    fn add(
        &self,
        pass: &Pass<'_>,
        expert: &Expert,
        (input, rows): (&Tensor, &[(usize, f32)]),
        sum: &Tensor,
    ) -> ForwardResult<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let indices: Vec<usize> = rows.iter().map(|(row, _)| *row).collect();
        let selected = input.apply_op1_no_bwd(&SelectRows { rows: &indices })?;
        let gate_up = selected.apply_op1_no_bwd(&expert.gate_up)?;
        let activation = GatedActivation { activation: self.activation, isa: pass.isa };
        let output = gate_up.apply_op1_no_bwd(&activation)?.apply_op1_no_bwd(&expert.down)?;
        sum.inplace_op2(&output, &AddRows { rows })?;
        Ok(())
    }
}

/// The sum of a power of two of tensors, in one balanced binary tree.
fn tree(mut sums: Vec<Tensor>) -> candle_core::Result<Tensor> {
    while sums.len() > 1 {
        sums = sums
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => left + right,
                others => Ok(others[0].clone()),
            })
            .collect::<Result<_, _>>()?;
    }
    sums.pop().ok_or_else(|| candle_core::Error::msg("sum no groups of experts"))
}
