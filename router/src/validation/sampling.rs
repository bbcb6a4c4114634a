//! Ranges and exclusions of sampling parameters.

use lockstep_proto::{LogitBias, LogprobsOf, SamplingParams, Seeded, Selection};

use crate::error::ApiError;

/// A `top_k` that leaves every token.
pub const EVERY_TOKEN: i64 = i64::MAX;

/// How tokens are chosen, as asked; absent means neutral.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingRequest {
    /// Whether to sample; absent means: if any of the parameters of sampling asks for it.
    pub do_sample: Option<bool>,
    /// Above 0.
    pub temperature: Option<f32>,
    /// Above 0.
    pub top_k: Option<i64>,
    /// In (0, 1]; 1 is off.
    pub top_p: Option<f32>,
    /// In (0, 1]; 1 is off.
    pub typical_p: Option<f32>,
    /// In [0, 1]; 0 is off.
    pub min_p: Option<f32>,
    /// Above 0; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// In [-2, 2]; 0 is off.
    pub frequency_penalty: Option<f32>,
    /// In [-2, 2]; 0 is off.
    pub presence_penalty: Option<f32>,
    /// Each in [-100, 100].
    pub logit_bias: Vec<LogitBias>,
    /// Any number; absent means a random one.
    pub seed: Option<u64>,
    /// 1 is off.
    pub best_of: Option<u32>,
}

/// Sampling parameters within their ranges.
#[derive(Clone, Debug)]
pub(super) struct CheckedSampling {
    pub(super) params: SamplingParams,
    /// The seed, when sampling.
    pub(super) seed: Option<u64>,
}

impl SamplingRequest {
    /// Whether tokens are drawn. What is asked for explicitly is obeyed.
    fn samples(&self) -> bool {
        let asks = self.temperature.is_some_and(|temperature| temperature != 1.0)
            || self.top_k.is_some()
            || self.top_p.is_some_and(|p| p < 1.0)
            || self.typical_p.is_some_and(|p| p < 1.0)
            || self.min_p.is_some_and(|p| p > 0.0);
        self.do_sample.unwrap_or(asks)
    }

    /// The rules, in the order clients know.
    pub(super) fn check_ranges(&self, vocabulary_size: u32) -> Result<(), ApiError> {
        let above_zero = |value: &f32| *value > 0.0;
        // JSON's numbers may be larger.
        let finite = |value: &f32| value.is_finite();
        let penalty = |value: &f32| (-2.0..=2.0).contains(value);
        let share = |value: &f32| *value > 0.0 && *value <= 1.0;
        let in_range = [
            ("temperature", "must be strictly positive", self.temperature.as_ref().is_none_or(above_zero)),
            ("temperature", "must be finite in 32 bits", self.temperature.as_ref().is_none_or(finite)),
            (
                "repetition_penalty",
                "must be strictly positive",
                self.repetition_penalty.as_ref().is_none_or(above_zero),
            ),
            (
                "repetition_penalty",
                "must be finite in 32 bits",
                self.repetition_penalty.as_ref().is_none_or(finite),
            ),
            (
                "frequency_penalty",
                "must be >= -2.0 and <= 2.0",
                self.frequency_penalty.as_ref().is_none_or(penalty),
            ),
            (
                "presence_penalty",
                "must be >= -2.0 and <= 2.0",
                self.presence_penalty.as_ref().is_none_or(penalty),
            ),
            ("top_p", "must be > 0.0 and <= 1.0", self.top_p.as_ref().is_none_or(share)),
            ("typical_p", "must be > 0.0 and <= 1.0", self.typical_p.as_ref().is_none_or(share)),
            ("top_k", "must be strictly positive", self.top_k.is_none_or(|k| k > 0)),
            ("min_p", "must be >= 0.0 and <= 1.0", self.min_p.is_none_or(|p| (0.0..=1.0).contains(&p))),
        ];
        match in_range.into_iter().find(|(_, _, kept)| !kept) {
            Some((param, rule, _)) => Err(ApiError::invalid(param, format_args!("`{param}` {rule}"))),
            None => self.check_logit_bias(vocabulary_size),
        }
    }

    fn check_logit_bias(&self, vocabulary_size: u32) -> Result<(), ApiError> {
        if let Some(unknown) = self.logit_bias.iter().find(|entry| entry.token.0 >= vocabulary_size) {
            let message =
                format!("`logit_bias` names token {}, ids end before {vocabulary_size}", unknown.token);
            return Err(ApiError::invalid("logit_bias", message));
        }
        if self.logit_bias.iter().all(|entry| (-100.0..=100.0).contains(&entry.bias)) {
            return Ok(());
        }
        Err(ApiError::invalid("logit_bias", "`logit_bias` values must be >= -100 and <= 100"))
    }

    /// What the shards are told. Ranges are checked already.
    pub(super) fn check(&self, top_logprobs: u32) -> Result<CheckedSampling, ApiError> {
        let seed = self.samples().then(|| self.seed.unwrap_or_else(random_seed));
        let selection = match seed {
            None => Selection::Greedy,
            Some(seed) => Selection::Seeded(Seeded {
                seed,
                choice: 0,
                temperature: self.temperature.unwrap_or(1.0),
                // 0 is off, as is a number that no vocabulary has.
                top_k: self.top_k.and_then(|k| u32::try_from(k).ok()).unwrap_or(0),
                top_p: self.top_p.unwrap_or(1.0),
                typical_p: self.typical_p.unwrap_or(1.0),
                min_p: self.min_p.unwrap_or(0.0),
            }),
        };
        let params = SamplingParams {
            selection,
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            logit_bias: self.logit_bias.clone(),
            top_logprobs,
            logprobs_of: LogprobsOf::Model,
            watermark: None,
        };
        Ok(CheckedSampling { params, seed })
    }

    /// The rules of `best_of` that come before all others on routes that answer whole.
    pub fn check_best_of(&self, max_best_of: u32) -> Result<(), ApiError> {
        let best_of = self.best_of.unwrap_or(1);
        if best_of == 1 {
            return Ok(());
        }
        if max_best_of == 1 {
            return Err(ApiError::invalid("best_of", "`best_of` != 1 is not allowed for this endpoint"));
        }
        if best_of == 0 || best_of > max_best_of {
            let message = format!("`best_of` must be > 0 and <= {max_best_of}. Given: {best_of}");
            return Err(ApiError::invalid("best_of", message));
        }
        if !self.samples() {
            return Err(ApiError::invalid("best_of", "you must use sampling when `best_of` is > 1"));
        }
        Ok(())
    }
}

/// A seed nobody can guess.
fn random_seed() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}
