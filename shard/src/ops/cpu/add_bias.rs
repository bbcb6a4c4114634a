//! Adds one row to many. A single addition is the same on every instruction set.

use super::parallel::{SharedSlice, for_each_range};

/// Adds `bias` (width) to each row of `values` (rows, width).
pub(crate) fn add_bias(bias: &[f32], values: &mut [f32]) {
    let (width, operations) = (bias.len(), values.len());
    let rows = values.len() / width.max(1);
    let values = SharedSlice::new(values);
    for_each_range(rows, operations, |rows| {
        for row in rows {
            // SAFETY: each row is one item, worked on by one thread.
            let values = unsafe { values.part(row * width, width) };
            for (value, bias) in values.iter_mut().zip(bias) {
                *value += bias;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result, Tensor};

    use crate::ops::add_bias::AddBias;
    use crate::ops::reference::Random;

    #[test]
    fn a_bias_is_added_to_every_row() -> Result<()> {
        let mut random = Random::new(21);
        for (rows, width) in [(1, 1), (3, 17), (2, 64), (700, 1000)] {
            let (before, bias) = (random.values(rows * width), random.values(width));
            let values = Tensor::from_slice(&before, (rows, width), &Device::Cpu)?;
            values.inplace_op2(&Tensor::from_slice(&bias, width, &Device::Cpu)?, &AddBias)?;
            let expected: Vec<f32> = before.iter().zip(bias.iter().cycle()).map(|(a, b)| a + b).collect();
            assert_eq!(values.flatten_all()?.to_vec1::<f32>()?, expected, "{rows} rows of {width}");
        }
        Ok(())
    }

    #[test]
    fn a_bias_of_another_width_is_refused() -> Result<()> {
        let values = Tensor::zeros((2, 8), candle_core::DType::F32, &Device::Cpu)?;
        let bias = Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu)?;
        let message = values.inplace_op2(&bias, &AddBias).unwrap_err().to_string();
        assert!(message.contains("a bias of 4 elements to rows of 8"), "{message}");
        Ok(())
    }
}
