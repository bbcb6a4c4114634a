//! How a model's authors would have its tokens chosen: `generation_config.json`.

use serde_json::Value;

use super::sampling::SamplingRequest;

/// What stands in for what a request leaves open; absent means neutral.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Above 0.
    pub temperature: Option<f32>,
    /// Above 0.
    pub top_k: Option<i64>,
    /// In (0, 1].
    pub top_p: Option<f32>,
    /// In (0, 1].
    pub typical_p: Option<f32>,
    /// In [0, 1].
    pub min_p: Option<f32>,
    /// Above 0.
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// Reads `generation_config.json`. As in transformers, all but the penalty count only where `do_sample` is
    /// true. Values that mean "off" or nothing, such as a `top_k` of 0, are left out.
    pub fn from_generation_config(config: &Value) -> Self {
        let number = |name: &str| config.get(name).and_then(Value::as_f64).map(|number| number as f32);
        let above_zero = |name: &str| number(name).filter(|value| *value > 0.0 && value.is_finite());
        let share = |name: &str| above_zero(name).filter(|value| *value <= 1.0);
        let repetition_penalty = above_zero("repetition_penalty");
        if config.get("do_sample").and_then(Value::as_bool) != Some(true) {
            return Self { repetition_penalty, ..Self::default() };
        }
        Self {
            temperature: above_zero("temperature"),
            top_k: config.get("top_k").and_then(Value::as_i64).filter(|k| *k > 0),
            top_p: share("top_p"),
            typical_p: share("typical_p"),
            min_p: share("min_p"),
            repetition_penalty,
        }
    }
}

impl SamplingRequest {
    /// Fills in what the request leaves open. A greedy request takes only the penalty: what shapes a draw means
    /// nothing to it.
    pub fn fill(&mut self, defaults: &SamplingDefaults) {
        self.repetition_penalty = self.repetition_penalty.or(defaults.repetition_penalty);
        if self.do_sample == Some(false) {
            return;
        }
        self.temperature = self.temperature.or(defaults.temperature);
        self.top_k = self.top_k.or(defaults.top_k);
        self.top_p = self.top_p.or(defaults.top_p);
        self.typical_p = self.typical_p.or(defaults.typical_p);
        self.min_p = self.min_p.or(defaults.min_p);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_model_that_samples_says_how() {
        let config = json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.0,
                            "typical_p": 1.0, "repetition_penalty": 1.05});
        let defaults = SamplingDefaults::from_generation_config(&config);
        let expected = SamplingDefaults {
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.9),
            typical_p: Some(1.0),
            min_p: None,
            repetition_penalty: Some(1.05),
        };
        assert_eq!(defaults, expected);
        let greedy = json!({"do_sample": false, "temperature": 0.6, "repetition_penalty": 1.05});
        let penalty = SamplingDefaults { repetition_penalty: Some(1.05), ..SamplingDefaults::default() };
        assert_eq!(SamplingDefaults::from_generation_config(&greedy), penalty);
        let nonsense = json!({"do_sample": true, "temperature": 0.0, "top_k": 0, "top_p": 2, "min_p": "x"});
        assert_eq!(SamplingDefaults::from_generation_config(&nonsense), SamplingDefaults::default());
    }

    #[test]
    fn a_request_has_the_last_word() {
        let defaults = SamplingDefaults {
            temperature: Some(0.6),
            top_k: Some(20),
            repetition_penalty: Some(1.1),
            ..SamplingDefaults::default()
        };
        let mut open = SamplingRequest { temperature: Some(0.9), ..SamplingRequest::default() };
        open.fill(&defaults);
        assert_eq!(
            (open.temperature, open.top_k, open.repetition_penalty),
            (Some(0.9), Some(20), Some(1.1))
        );
        let mut greedy = SamplingRequest { do_sample: Some(false), ..SamplingRequest::default() };
        greedy.fill(&defaults);
        assert_eq!((greedy.temperature, greedy.top_k, greedy.repetition_penalty), (None, None, Some(1.1)));
    }
}
