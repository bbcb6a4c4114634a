//! Rotary settings, in the words of older and of newer config.json files.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{above_zero, invalid, unsupported};
use crate::decoder::rope::{RampEnds, Rope, RopeScaling, Yarn};
use crate::decoder::spec::SpecError;

const SCALINGS: &str = "default, linear, dynamic, yarn, llama3 or longrope";

/// A config.json's rotary settings.
#[derive(Deserialize)]
pub(super) struct RopeConfig {
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_local_base_freq: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    rope_scaling: Option<Parameters>,
    rope_parameters: Option<Parameters>,
}

/// The numbers of one rotation.
#[derive(Deserialize)]
pub(super) struct Parameters {
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_rope_type: Option<String>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    /// What only some scalings have; of models with two kinds of layers, one rotation for each.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// What a scaling is worked out from.
struct Scaling<'a> {
    parameters: &'a Parameters,
    /// Turned elements of a head.
    width: usize,
    positions: f64,
    original: Option<f64>,
}

impl RopeConfig {
    /// The base where no config names one.
    pub(super) const DEFAULT_THETA: f64 = 10_000.0;

    /// The rotation of heads of `head_width`, and how many positions there are with it where
    /// `max_position_embeddings` is `positions`. The base is `theta` where none is named.
    pub(super) fn read(
        &self,
        head_width: usize,
        positions: usize,
        theta: f64,
    ) -> Result<(Rope, usize), SpecError> {
        let nested = self.rope_parameters.as_ref().and_then(|whole| whole.nested("full_attention"));
        let nested = nested.transpose()?;
        let parameters = nested.as_ref().or(self.rope_parameters.as_ref()).or(self.rope_scaling.as_ref());
        self.build(parameters, (head_width, positions), theta)
    }

    /// The rotation of layers that see a window, where it is another: older files call its base
    /// `rope_local_base_freq`.
    pub(super) fn read_local(&self, head_width: usize, theta: f64) -> Result<Rope, SpecError> {
        let nested = self.rope_parameters.as_ref().and_then(|whole| whole.nested("sliding_attention"));
        match nested.transpose()? {
            Some(nested) => Ok(self.build(Some(&nested), (head_width, 1), theta)?.0),
            None => rope(self.rope_local_base_freq.unwrap_or(theta), head_width, RopeScaling::Absent),
        }
    }

    fn build(
        &self,
        parameters: Option<&Parameters>,
        (head_width, positions): (usize, usize),
        theta: f64,
    ) -> Result<(Rope, usize), SpecError> {
        let own = |field: fn(&Parameters) -> Option<f64>| parameters.and_then(field);
        let theta = own(|own| own.rope_theta).or(self.rope_theta).unwrap_or(theta);
        let partial = own(|own| own.partial_rotary_factor).or(self.partial_rotary_factor).unwrap_or(1.0);
        let width = (head_width as f64 * partial) as usize;
        let is_part = partial > 0.0 && partial <= 1.0;
        if !is_part || !width.is_multiple_of(2) {
            let expected = format!("a part of {head_width} that is an even number of elements");
            return Err(invalid("partial_rotary_factor", partial, expected));
        }
        let Some(parameters) = parameters else {
            return Ok((rope(theta, width, RopeScaling::Absent)?, positions));
        };
        let scaling = Scaling {
            parameters,
            width,
            positions: positions as f64,
            original: own(|own| own.original_max_position_embeddings)
                .or(self.original_max_position_embeddings),
        };
        let (scaling, stretched) = scaling.read()?;
        if matches!(scaling, RopeScaling::Yarn(_)) && theta <= 1.0 {
            return Err(invalid("rope_theta", theta, "a number above 1"));
        }
        Ok((rope(theta, width, scaling)?, stretched as usize))
    }
}

fn rope(theta: f64, width: usize, scaling: RopeScaling) -> Result<Rope, SpecError> {
    if theta > 0.0 && (theta as f32).is_finite() {
        Ok(Rope { theta, width, scaling })
    } else {
        Err(invalid("rope_theta", theta, "a number above 0 that f32 holds"))
    }
}

impl Parameters {
    /// The rotation of one kind of layers, where each kind has one.
    fn nested(&self, kind: &str) -> Option<Result<Self, SpecError>> {
        let nested = self.others.get(kind)?;
        Some(Self::deserialize(nested).map_err(|error| invalid("rope_parameters", nested, error)))
    }
}

impl Scaling<'_> {
    /// The scaling, and how many positions there are with it.
    fn read(&self) -> Result<(RopeScaling, f64), SpecError> {
        let Parameters { rope_type, old_rope_type, others, factor, .. } = self.parameters;
        let positions = self.positions;
        match rope_type.as_deref().or(old_rope_type.as_deref()) {
            Some("default") => Ok((RopeScaling::Absent, positions)),
            None if others.is_empty() && factor.is_none() => Ok((RopeScaling::Absent, positions)),
            Some("linear") => {
                let factor = self.factor()?;
                Ok((RopeScaling::Linear { factor }, positions * factor))
            }
            Some("dynamic") => {
                let factor = self.factor()?;
                Ok((RopeScaling::Dynamic { factor }, positions * factor))
            }
            Some("yarn") => self.yarn(),
            Some("llama3") => Ok((
                RopeScaling::Llama3 {
                    factor: self.factor()?,
                    low: self.required("low_freq_factor")?,
                    high: self.required("high_freq_factor")?,
                    original: self.original()?,
                },
                positions,
            )),
            Some("longrope" | "su") => Ok((self.long()?, positions)),
            Some(other) => Err(unsupported("rope_type", other, SCALINGS)),
            None => {
                let mut keys: Vec<&str> = others.keys().map(String::as_str).collect();
                keys.extend(factor.map(|_| "factor"));
                let found = format!("{{{}, no rope_type}}", keys.join(", "));
                Err(unsupported("rope_scaling", found, SCALINGS))
            }
        }
    }

    fn yarn(&self) -> Result<(RopeScaling, f64), SpecError> {
        let original = self.original_or_positions()?;
        let factor = match self.parameters.factor {
            Some(_) => self.factor()?,
            None => self.positions / self.original()?,
        };
        let magnitude = |of: f64| if factor <= 1.0 { 1.0 } else { 0.1 * of * factor.ln() + 1.0 };
        let attention_factor = match (self.optional("attention_factor")?, self.magnitudes()?) {
            (Some(given), _) => given,
            (None, Some((one, all))) => magnitude(one) / magnitude(all),
            (None, None) => magnitude(1.0),
        };
        let yarn = Yarn {
            factor,
            original,
            beta_fast: self.optional("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.optional("beta_slow")?.unwrap_or(1.0),
            attention_factor,
            ends: match self.parameters.others.get("truncate") {
                Some(Value::Bool(false)) => RampEnds::Fractional,
                Some(_) | None => RampEnds::Whole,
            },
        };
        // Some files name the stretched context, others the original one.
        Ok((RopeScaling::Yarn(yarn), (original * factor).max(self.positions)))
    }

    fn magnitudes(&self) -> Result<Option<(f64, f64)>, SpecError> {
        let both = self.optional("mscale")?.zip(self.optional("mscale_all_dim")?);
        Ok(both.filter(|(one, all)| *one != 0.0 && *all != 0.0))
    }

    fn long(&self) -> Result<RopeScaling, SpecError> {
        let original = self.original_or_positions()?;
        let field = if self.positions > original { "long_factor" } else { "short_factor" };
        let found = self.parameters.others.get(field).unwrap_or(&Value::Null);
        let divisors = Vec::<f64>::deserialize(found).unwrap_or_default();
        let positive = divisors.iter().all(|divisor| *divisor > 0.0);
        if divisors.len() != self.width / 2 || !positive {
            let expected = format!("{} numbers above 0", self.width / 2);
            return Err(invalid(field, found, expected));
        }
        let factor = self.parameters.factor.unwrap_or(self.positions / original);
        let attention_factor = match self.optional("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        Ok(RopeScaling::Long { divisors, attention_factor })
    }

    fn factor(&self) -> Result<f64, SpecError> {
        above_zero("factor", self.parameters.factor)
    }

    fn original(&self) -> Result<f64, SpecError> {
        above_zero("original_max_position_embeddings", self.original)
    }

    /// Positions the model was first trained with; their logarithm is divided by.
    fn original_or_positions(&self) -> Result<f64, SpecError> {
        let original = self.original.unwrap_or(self.positions);
        if original > 1.0 {
            Ok(original)
        } else {
            Err(invalid("original_max_position_embeddings", original, "a number above 1"))
        }
    }

    fn required(&self, field: &'static str) -> Result<f64, SpecError> {
        above_zero(field, self.parameters.others.get(field).and_then(Value::as_f64))
    }

    fn optional(&self, field: &'static str) -> Result<Option<f64>, SpecError> {
        match self.parameters.others.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.required(field).map(Some),
        }
    }
}
