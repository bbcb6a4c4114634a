//! How rotary frequencies are stretched: config.json's `rope_scaling` from metadata and frequency factors.

use std::f64::consts::TAU;

use serde_json::{Value, json};

use super::GgufError;
use super::config::{Keys, decimal};
use super::names::ROPE_FACTORS;

/// The base where a file names none.
pub(super) const DEFAULT_BASE: f64 = 10_000.0;

/// What every model of the Llama 3 series says beside its factor: GGUF files hold the frequency factors that
/// follow from these, not the numbers themselves.
const LOW_FREQUENCY_FACTOR: f64 = 1.0;
const HIGH_FREQUENCY_FACTOR: f64 = 4.0;
const ORIGINAL_POSITIONS: f64 = 8192.0;

/// How far, relatively, a stored factor may be from the computed one.
const TOLERANCE: f64 = 1e-4;

/// config.json's `rope_scaling`: `null` where nothing is stretched. `factors` divide the frequencies one by one.
pub(super) fn scaling(keys: &Keys<'_>, factors: Option<Vec<f32>>, base: f64) -> Result<Value, GgufError> {
    if let Some(factors) = factors.filter(|factors| factors.iter().any(|factor| *factor != 1.0)) {
        return llama3(&factors, keys.head_width()?, base).ok_or_else(|| GgufError::Unsupported {
            what: format!("tensor {ROPE_FACTORS}"),
            found: format!("{} factors up to {}", factors.len(), largest(&factors)),
            supported: format!(
                "the factors of rope_type llama3 with low_freq_factor {LOW_FREQUENCY_FACTOR}, high_freq_factor \
                 {HIGH_FREQUENCY_FACTOR} and original_max_position_embeddings {ORIGINAL_POSITIONS}"
            ),
        });
    }
    let factor = keys.float("rope.scaling.factor")?.or(keys.float("rope.scale_linear")?);
    let kind = keys.text("rope.scaling.type")?;
    let original = keys.unsigned("rope.scaling.original_context_length")?;
    match (kind, factor) {
        (Some("none"), _) | (None, None) => Ok(Value::Null),
        (_, Some(1.0)) => Ok(Value::Null),
        (None | Some("linear"), Some(factor)) => {
            Ok(json!({"rope_type": "linear", "factor": decimal(factor)}))
        }
        (Some("yarn"), Some(factor)) => Ok(yarn(keys, factor, original)?),
        (Some(found), _) => Err(GgufError::Unsupported {
            what: keys.name("rope.scaling.type"),
            found: format!("{found} with factor {}", factor.map_or("none".to_owned(), |f| f.to_string())),
            supported: "none, linear or yarn, with a factor".to_owned(),
        }),
    }
}

fn yarn(keys: &Keys<'_>, factor: f64, original: Option<u64>) -> Result<Value, GgufError> {
    let mut scaling = json!({"rope_type": "yarn", "factor": decimal(factor)});
    let mut set = |name: &str, value: Value| scaling[name] = value;
    if let Some(original) = original {
        set("original_max_position_embeddings", json!(original));
    }
    for (key, name) in
        [("rope.scaling.yarn_beta_fast", "beta_fast"), ("rope.scaling.yarn_beta_slow", "beta_slow")]
    {
        if let Some(value) = keys.float(key)? {
            set(name, json!(decimal(value)));
        }
    }
    // The stored factor multiplies what yarn gives by itself; config.json's replaces it.
    if let Some(attention) = keys.float("rope.scaling.attn_factor")?.filter(|attention| *attention != 1.0) {
        set("attention_factor", json!(attention * (0.1 * factor.ln() + 1.0)));
    }
    Ok(scaling)
}

/// The scaling of the Llama 3 series whose factors these are.
fn llama3(factors: &[f32], head_width: u64, base: f64) -> Option<Value> {
    let factor = f64::from(largest(factors));
    let pairs = head_width / 2;
    let computed = (0..pairs).map(|pair| {
        let frequency = base.powf(-((2 * pair) as f64) / head_width as f64);
        llama3_factor(TAU / frequency, factor)
    });
    let close =
        |(stored, computed): (&f32, f64)| (f64::from(*stored) - computed).abs() <= TOLERANCE * computed;
    if factors.len() as u64 != pairs || !factors.iter().zip(computed).all(close) {
        return None;
    }
    Some(json!({
        "rope_type": "llama3",
        "factor": decimal(factor),
        "low_freq_factor": LOW_FREQUENCY_FACTOR,
        "high_freq_factor": HIGH_FREQUENCY_FACTOR,
        "original_max_position_embeddings": ORIGINAL_POSITIONS as u64,
    }))
}

/// What the frequency of this wavelength is divided by: nothing where it is short, `factor` where it is long.
fn llama3_factor(wavelength: f64, factor: f64) -> f64 {
    let (long, short) =
        (ORIGINAL_POSITIONS / LOW_FREQUENCY_FACTOR, ORIGINAL_POSITIONS / HIGH_FREQUENCY_FACTOR);
    if wavelength < short {
        1.0
    } else if wavelength > long {
        factor
    } else {
        let smooth = (ORIGINAL_POSITIONS / wavelength - LOW_FREQUENCY_FACTOR)
            / (HIGH_FREQUENCY_FACTOR - LOW_FREQUENCY_FACTOR);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

fn largest(factors: &[f32]) -> f32 {
    factors.iter().copied().fold(1.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_of_llama_3_are_recognized_and_others_are_not() {
        for factor in [8.0, 32.0] {
            let frequency = |pair: u32| 500_000_f64.powf(-f64::from(2 * pair) / 64.0);
            let factors: Vec<f32> =
                (0..32).map(|pair| llama3_factor(TAU / frequency(pair), factor) as f32).collect();
            let scaling = llama3(&factors, 64, 500_000.0).expect("these are its factors");
            assert_eq!(scaling["factor"], json!(factor));
            assert_eq!(scaling["original_max_position_embeddings"], json!(8192));
            // Another base, head or factor does not fit.
            assert_eq!(llama3(&factors, 64, 10_000.0), None);
            assert_eq!(llama3(&factors, 128, 500_000.0), None);
            let mut changed = factors;
            changed[16] *= 1.01;
            assert_eq!(llama3(&changed, 64, 500_000.0), None);
        }
    }
}
