//! The families of models: which there are, and what each does differently.
//!
//! A family begins with the plain model its config.json's sizes describe ([`config::Config::plain`]) and
//! changes what it does differently. What config.json asks for and no family heeded is an error.

mod config;
mod gemma;
mod granite;
mod llama;
mod mixtral;
mod olmo2;
mod olmo3;
mod phi3;
mod qwen;
mod rope_config;
mod smollm3;
mod starcoder2;

use std::fmt::Display;

use config::Config;
use lockstep_models::ModelFiles;

use super::spec::{ModelSpec, SpecError};

/// The file every family reads.
const CONFIG: &str = "config.json";

type Reader = fn(&Config, &'static str) -> Result<ModelSpec, SpecError>;

/// Architectures by the names config.json gives them, each with its reader.
const FAMILIES: &[(&str, Reader)] = &[
    ("LlamaForCausalLM", llama::spec),
    ("MistralForCausalLM", llama::mistral_spec),
    ("Qwen2ForCausalLM", qwen::qwen2_spec),
    ("Qwen3ForCausalLM", qwen::qwen3_spec),
    ("Qwen3MoeForCausalLM", qwen::qwen3_moe_spec),
    ("MixtralForCausalLM", mixtral::spec),
    ("GemmaForCausalLM", gemma::gemma1_spec),
    ("Gemma2ForCausalLM", gemma::gemma2_spec),
    ("Gemma3ForCausalLM", gemma::gemma3_spec),
    ("Phi3ForCausalLM", phi3::spec),
    ("GraniteForCausalLM", granite::spec),
    ("Olmo2ForCausalLM", olmo2::spec),
    ("Olmo3ForCausalLM", olmo3::spec),
    ("Starcoder2ForCausalLM", starcoder2::spec),
    ("SmolLM3ForCausalLM", smollm3::spec),
];

/// Reads config.json with the family it names.
pub(super) fn read(files: &ModelFiles) -> Result<ModelSpec, SpecError> {
    let named = Config::architectures(files)?;
    let known = FAMILIES.iter().find(|(name, _)| named.iter().any(|found| found == name));
    let Some((family, reader)) = known else {
        return Err(SpecError::Architecture {
            found: match named.as_slice() {
                [] => "(none named in config.json)".to_owned(),
                names => names.join(", "),
            },
            known: FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        });
    };
    let config = Config::read(files)?;
    let spec = reader(&config, family)?;
    spec.shape.check()?;
    config.check_heeded(&spec)?;
    Ok(spec)
}

fn unsupported(field: &'static str, found: impl Display, supported: &'static str) -> SpecError {
    SpecError::Unsupported { field, found: found.to_string(), supported }
}

fn invalid(field: &'static str, found: impl Display, expected: impl Display) -> SpecError {
    SpecError::Invalid { field, found: found.to_string(), expected: expected.to_string() }
}

fn above_zero(field: &'static str, value: Option<f64>) -> Result<f64, SpecError> {
    match value {
        Some(value) if value > 0.0 => Ok(value),
        Some(value) => Err(invalid(field, value, "a number above 0")),
        None => Err(invalid(field, "null", "a number above 0")),
    }
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
