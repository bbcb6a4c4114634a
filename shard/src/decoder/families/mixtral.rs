//! Mixtral: Mistral with experts in every layer.

use serde::Deserialize;

use super::config::Config;
use crate::decoder::choices::{ExpertChoices, ExpertNames, Head, LayerMlp, RoutingWeights};
use crate::decoder::spec::{ExpertShape, ModelSpec, SpecError};

#[derive(Deserialize)]
struct ExpertFields {
    num_local_experts: usize,
    num_experts_per_tok: usize,
}

pub(super) fn spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let own: ExpertFields = config.own()?;
    let mut spec = config.plain(family, Head::Separate)?;
    spec.choices.mlp.experts =
        ExpertChoices { names: ExpertNames::Short, weights: RoutingWeights::SoftmaxOfChosen };
    spec.shape.experts = Some(ExpertShape {
        count: own.num_local_experts,
        chosen: own.num_experts_per_tok,
        intermediate: spec.shape.intermediate,
    });
    spec.layers.iter_mut().for_each(|layer| layer.mlp = LayerMlp::Experts);
    config.slide(&mut spec, |_| true)?;
    Ok(spec)
}
