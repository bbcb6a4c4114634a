//! OLMo 3: OLMo 2 with layers that see a window, which the scaling of the rotation leaves alone.

use super::{config::Config, olmo2};
use crate::decoder::spec::{ModelSpec, SpecError};

/// Of how many layers one sees all, where config.json says nothing.
const PATTERN: usize = 4;

pub(super) fn spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let mut spec = olmo2::spec(config, family)?;
    config.slide(&mut spec, |layer| !(layer + 1).is_multiple_of(PATTERN))?;
    let theta = spec.choices.rope.theta;
    config.turn_windows_otherwise(&mut spec, theta)?;
    Ok(spec)
}
