//! The operators as plainly as they can be written, in f64: what the kernels are tested against.

use crate::ops::activation::Activation;

/// Repeatable numbers for tests.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Between -1 and 1.
    pub(crate) fn value(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// One number for all bits of these, another for almost any other ones (FNV-1a).
pub(crate) fn hash_of_bits(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|value| value.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Fails where an element is further than `tolerance` from the expected, relative to the largest expected.
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-6_f32, |largest, value| largest.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let close = (found - expected).abs() <= tolerance * scale;
        assert!(close, "{what}: element {at} is {found}, expected {expected} (scale {scale})");
    }
}

/// (rows, inputs) by (outputs, inputs) → (rows, outputs).
pub(crate) fn matrix_product(input: &[f32], weights: &[f32], inputs: usize) -> Vec<f32> {
    let dot = |row: &[f32], weight: &[f32]| {
        row.iter().zip(weight).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
    };
    input
        .chunks(inputs)
        .flat_map(|row| weights.chunks(inputs).map(move |weight| dot(row, weight)))
        .collect()
}

/// (rows, width) → (rows, width).
pub(crate) fn rms_norm(input: &[f32], weight: &[f32], epsilon: f64) -> Vec<f32> {
    let norm = |row: &[f32]| {
        let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / row.len() as f64;
        let factor = 1.0 / (mean + epsilon).sqrt();
        row.iter().zip(weight).map(|(x, w)| (f64::from(*x) * factor) as f32 * w).collect::<Vec<_>>()
    };
    input.chunks(weight.len()).flat_map(norm).collect()
}

/// (rows, width) → (rows, width).
pub(crate) fn layer_norm(input: &[f32], weight: &[f32], epsilon: f64) -> Vec<f32> {
    let norm = |row: &[f32]| {
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
        let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / row.len() as f64;
        let factor = 1.0 / (variance + epsilon).sqrt();
        let normed = |(x, w): (&f32, &f32)| ((f64::from(*x) - mean) * factor * f64::from(*w)) as f32;
        row.iter().zip(weight).map(normed).collect::<Vec<_>>()
    };
    input.chunks(weight.len()).flat_map(norm).collect()
}

pub(crate) fn activation(activation: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    };
    y as f32
}

/// One query (width) over keys and values (positions, width) → (width).
pub(crate) fn attention(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    (scale, softcap): (f32, Option<f32>),
) -> Vec<f32> {
    let width = query.len();
    let dot = |key: &[f32]| query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
    let capped = |score: f64| softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
    let scores: Vec<f64> = keys.chunks(width).map(|key| capped(dot(key) * f64::from(scale))).collect();
    let maximum = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - maximum).exp()).collect();
    let total: f64 = weights.iter().sum();
    let element = |at: usize| {
        let sum: f64 = weights.iter().zip(values.chunks(width)).map(|(w, v)| w * f64::from(v[at])).sum();
        (sum / total) as f32
    };
    (0..width).map(element).collect()
}
