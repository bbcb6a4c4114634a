//! The families of models: which there are, and what their config.json files share.

mod llama;

use std::collections::BTreeMap;

use lockstep_models::ModelFiles;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::spec::{Choices, ModelSpec, RopeScaling, Shape, SpecError};

/// The file every family reads.
const CONFIG: &str = "config.json";

type Reader = fn(&ModelFiles) -> Result<ModelSpec, SpecError>;

/// Architectures by the names config.json gives them, each with its reader.
const FAMILIES: &[(&str, Reader)] =
    &[("LlamaForCausalLM", |files| family(files, llama::shape, llama::choices))];

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    architectures: Vec<String>,
}

/// Reads config.json with the family it names.
pub(super) fn read(files: &ModelFiles) -> Result<ModelSpec, SpecError> {
    let named: Named = files.require_json(CONFIG)?;
    let known = FAMILIES.iter().find(|(name, _)| named.architectures.iter().any(|found| found == name));
    match known {
        Some((_, read)) => read(files),
        None => Err(SpecError::Architecture {
            found: match named.architectures.as_slice() {
                [] => "(none named in config.json)".to_owned(),
                names => names.join(", "),
            },
            known: FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        }),
    }
}

fn family<C: DeserializeOwned>(
    files: &ModelFiles,
    shape: fn(&C) -> Result<Shape, SpecError>,
    choices: fn(&C) -> Result<Choices, SpecError>,
) -> Result<ModelSpec, SpecError> {
    let config: C = files.require_json(CONFIG)?;
    Ok(ModelSpec { shape: shape(&config)?, choices: choices(&config)? })
}

/// Rotary settings, in the words of older and of newer config.json files.
#[derive(Deserialize)]
struct RopeConfig {
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_rope_type: Option<String>,
    /// Whatever else is said: numbers of a scaling.
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

impl RopeConfig {
    /// The base where no config names one.
    const DEFAULT_THETA: f64 = 10_000.0;

    fn theta(&self) -> f64 {
        let newer = self.rope_parameters.as_ref().and_then(|parameters| parameters.rope_theta);
        newer.or(self.rope_theta).unwrap_or(Self::DEFAULT_THETA)
    }

    fn scaling(&self) -> Result<RopeScaling, SpecError> {
        check_partial_rotary(self.partial_rotary_factor)?;
        let named = [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)];
        for (field, parameters) in named {
            let Some(parameters) = parameters else { continue };
            check_partial_rotary(parameters.partial_rotary_factor)?;
            let found = match parameters.rope_type.as_ref().or(parameters.old_rope_type.as_ref()) {
                Some(kind) if kind == "default" => continue,
                Some(kind) => format!("{{rope_type: {kind}}}"),
                None if parameters.others.is_empty() => continue,
                None => {
                    let keys: Vec<&str> = parameters.others.keys().map(String::as_str).collect();
                    format!("{{{}, no rope_type}}", keys.join(", "))
                }
            };
            return Err(SpecError::Unsupported { field, found, supported: "null or rope_type default" });
        }
        Ok(RopeScaling::Absent)
    }
}

/// An error where only a part of each head would be turned.
fn check_partial_rotary(factor: Option<f64>) -> Result<(), SpecError> {
    match factor {
        Some(factor) if factor != 1.0 => Err(SpecError::Unsupported {
            field: "partial_rotary_factor",
            found: factor.to_string(),
            supported: "1",
        }),
        Some(_) | None => Ok(()),
    }
}

/// An error where a field that must be off is on.
fn must_be_off(field: &'static str, value: Option<bool>) -> Result<(), SpecError> {
    match value {
        Some(true) => Err(SpecError::Unsupported { field, found: "true".to_owned(), supported: "false" }),
        Some(false) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
