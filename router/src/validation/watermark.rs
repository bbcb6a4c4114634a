//! How strong a watermark may be.

use lockstep_proto::Watermark;

use crate::error::ApiError;

/// A watermark, as asked; what is absent is as the server is configured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WatermarkRequest {
    /// In (0, 1): the share of the vocabulary that is favoured.
    pub gamma: Option<f32>,
    /// In [0, 100]: what is added to its logits.
    pub delta: Option<f32>,
}

/// A number of a watermark that marks nothing or leaves nothing to choose from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutOfRange {
    /// `gamma` or `delta`.
    pub name: &'static str,
    /// Its value.
    pub found: f32,
    /// What it may be.
    pub rule: &'static str,
}

impl WatermarkRequest {
    /// What the shards are told.
    pub(super) fn check(self, configured: Watermark) -> Result<Watermark, ApiError> {
        let gamma = self.gamma.unwrap_or(configured.gamma);
        let delta = self.delta.unwrap_or(configured.delta);
        check_watermark(Watermark { gamma, delta }).map_err(|OutOfRange { name, rule, .. }| {
            ApiError::invalid("watermark", format_args!("`watermark.{name}` must be {rule}"))
        })
    }
}

/// The same watermark, if it can be found again.
///
/// # Errors
/// When one of its numbers is out of its range.
pub fn check_watermark(watermark: Watermark) -> Result<Watermark, OutOfRange> {
    let Watermark { gamma, delta } = watermark;
    if gamma.is_nan() || gamma <= 0.0 || gamma >= 1.0 {
        return Err(OutOfRange { name: "gamma", found: gamma, rule: "> 0.0 and < 1.0" });
    }
    if !(0.0..=100.0).contains(&delta) {
        return Err(OutOfRange { name: "delta", found: delta, rule: ">= 0.0 and <= 100.0" });
    }
    Ok(watermark)
}
