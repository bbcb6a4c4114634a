//! The angles queries and keys are turned by.

use candle_core::{Device, Error, Result, Tensor};

use super::spec::{RopeScaling, Shape};

/// (positions, head width): cosines of the first half's angles, then their sines.
///
/// Frequencies and angles are rounded to f32 as they are in the library models are trained with, so that
/// positions far out turn by what the model learned.
pub(super) fn table(shape: &Shape, scaling: RopeScaling) -> Result<Tensor> {
    let width = shape.head_width;
    let frequencies: Vec<f32> = match scaling {
        RopeScaling::Absent => (0..width / 2)
            .map(|pair| (1.0 / shape.rope_theta.powf(2.0 * pair as f64 / width as f64)) as f32)
            .collect(),
    };
    let mut values = Vec::new();
    values.try_reserve_exact(shape.max_positions * width).map_err(Error::wrap)?;
    for position in 0..shape.max_positions {
        let angles = frequencies.iter().map(|frequency| f64::from(position as f32 * frequency));
        values.extend(angles.clone().map(|angle| angle.cos() as f32));
        values.extend(angles.map(|angle| angle.sin() as f32));
    }
    Tensor::from_vec(values, (shape.max_positions, width), &Device::Cpu)
}
