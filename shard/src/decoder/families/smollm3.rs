//! SmolLM 3: Llama in which positions do not turn queries and keys of some layers, which may see a window instead.

use serde::Deserialize;

use super::{config::Config, invalid, llama};
use crate::decoder::choices::LayerRope;
use crate::decoder::spec::{ModelSpec, SpecError};

#[derive(Deserialize)]
struct Fields {
    /// One for layers that are turned, zero for others.
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
    use_sliding_window: Option<bool>,
}

/// Of how many layers one is not turned, where config.json says nothing.
const INTERVAL: usize = 4;

pub(super) fn spec(config: &Config, family: &'static str) -> Result<ModelSpec, SpecError> {
    let own: Fields = config.own()?;
    let mut spec = llama::spec(config, family)?;
    let interval = own.no_rope_layer_interval.unwrap_or(INTERVAL).max(1);
    let turned = own.no_rope_layers.unwrap_or_else(|| {
        (0..spec.layers.len()).map(|layer| u8::from(!(layer + 1).is_multiple_of(interval))).collect()
    });
    if turned.len() != spec.layers.len() {
        let expected = format!("as many numbers as there are layers, {}", spec.layers.len());
        return Err(invalid("no_rope_layers", format!("{} numbers", turned.len()), expected));
    }
    if own.use_sliding_window == Some(true) {
        config.slide(&mut spec, |layer| turned.get(layer) == Some(&0))?;
    }
    for (layer, turned) in spec.layers.iter_mut().zip(turned) {
        if turned == 0 {
            layer.rope = LayerRope::Absent;
        }
    }
    Ok(spec)
}
