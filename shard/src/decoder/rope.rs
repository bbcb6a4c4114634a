//! The angles queries and keys are turned by.
//!
//! Frequencies and angles are rounded to f32 as they are in the library models are trained with, so that
//! positions far out turn by what the model learned. Where that library lets the length of a pass decide
//! (dynamic and long scalings), the longest context the model serves decides here, once and for all: keys in
//! the cache were turned before anyone knew how long their sequence would get.

use std::f64::consts::PI;

use candle_core::{Device, Error, Result, Tensor};
use rayon::prelude::*;

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Elements of a head that are turned, its first ones; even.
    pub width: usize,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched beyond the context a model was first trained with.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// They are not.
    Absent,
    /// All divided alike: Chen et al. 2023, "Extending Context Window of Large Language Models via Positional
    /// Interpolation".
    Linear {
        /// By this.
        factor: f64,
    },
    /// A larger base, as for the whole stretched context ("dynamic NTK").
    Dynamic {
        /// How many times longer the context gets.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between: Peng et al. 2023, "YaRN".
    Yarn(Yarn),
    /// As YaRN by wavelength, the ramp another: Llama 3.1's.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Wavelengths above the original context over this are divided whole.
        low: f64,
        /// Wavelengths below the original context over this are kept.
        high: f64,
        /// Positions first trained with.
        original: f64,
    },
    /// Each frequency divided by its own number: Ding et al. 2024, "LongRoPE".
    Long {
        /// One for each frequency.
        divisors: Vec<f64>,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
}

/// The numbers of a YaRN scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// What low frequencies are divided by.
    pub factor: f64,
    /// Positions first trained with.
    pub original: f64,
    /// Frequencies that turn at least this often within them are kept.
    pub beta_fast: f64,
    /// Frequencies that turn at most this often within them are divided whole.
    pub beta_slow: f64,
    /// What cosines and sines are multiplied by.
    pub attention_factor: f64,
    /// Where the ramp's ends lie.
    pub ends: RampEnds,
}

/// Where the ends of YaRN's ramp lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RampEnds {
    /// At whole frequencies.
    Whole,
    /// Between them.
    Fractional,
}

/// (positions, width): cosines of the first half's angles, then their sines.
pub(super) fn table(rope: &Rope, positions: usize) -> Result<Tensor> {
    let (frequencies, factor) = (frequencies(rope), attention_factor(&rope.scaling));
    let mut values = Vec::new();
    values.try_reserve_exact(positions * rope.width).map_err(Error::wrap)?;
    values.resize(positions * rope.width, 0.0);
    let rows = values.par_chunks_exact_mut(rope.width.max(1)).enumerate();
    rows.for_each(|(position, row)| {
        let (cosines, sines) = row.split_at_mut(rope.width / 2);
        for (frequency, (cosine, sine)) in frequencies.iter().zip(cosines.iter_mut().zip(sines)) {
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            (*cosine, *sine) = (cos as f32 * factor, sin as f32 * factor);
        }
    });
    Tensor::from_vec(values, (positions, rope.width), &Device::Cpu)
}

fn attention_factor(scaling: &RopeScaling) -> f32 {
    match scaling {
        RopeScaling::Yarn(yarn) => yarn.attention_factor as f32,
        RopeScaling::Long { attention_factor, .. } => *attention_factor as f32,
        RopeScaling::Absent
        | RopeScaling::Linear { .. }
        | RopeScaling::Dynamic { .. }
        | RopeScaling::Llama3 { .. } => 1.0,
    }
}

/// Radians a position turns each pair by: (width / 2).
fn frequencies(rope: &Rope) -> Vec<f32> {
    let width = rope.width as f64;
    let plain = |theta: f64| {
        (0..rope.width / 2).map(move |pair| 1.0 / theta.powf(2.0 * pair as f64 / width)).collect::<Vec<_>>()
    };
    let scaled = match &rope.scaling {
        RopeScaling::Absent => plain(rope.theta),
        RopeScaling::Linear { factor } => plain(rope.theta).iter().map(|f| f / factor).collect(),
        RopeScaling::Dynamic { factor } => {
            let stretch = factor * factor - (factor - 1.0);
            plain(rope.theta * stretch.powf(width / (width - 2.0)))
        }
        RopeScaling::Yarn(yarn) => {
            let ramp = yarn.ramp(rope);
            plain(rope.theta).iter().zip(ramp).map(|(f, kept)| yarn.blend(*f, kept)).collect()
        }
        RopeScaling::Llama3 { factor, low, high, original } => {
            let stretched = |frequency: &f64| {
                let turns = original * frequency / (2.0 * PI);
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            };
            plain(rope.theta).iter().map(stretched).collect()
        }
        RopeScaling::Long { divisors, .. } => {
            plain(rope.theta).iter().zip(divisors).map(|(f, divisor)| f / divisor).collect()
        }
    };
    scaled.into_iter().map(|frequency| frequency as f32).collect()
}

impl Yarn {
    fn blend(&self, frequency: f64, kept: f64) -> f64 {
        frequency / self.factor * (1.0 - kept) + frequency * kept
    }

    /// How much of each frequency is kept, from one to zero.
    fn ramp(&self, rope: &Rope) -> impl Iterator<Item = f64> {
        let width = rope.width as f64;
        // The frequency that turns so often within the original context, counted from the fastest.
        let turning =
            |turns: f64| width * (self.original / (turns * 2.0 * PI)).ln() / (2.0 * rope.theta.ln());
        let (first, last) = (turning(self.beta_fast), turning(self.beta_slow));
        let (first, last) = match self.ends {
            RampEnds::Whole => (first.floor(), last.ceil()),
            RampEnds::Fractional => (first, last),
        };
        let (first, mut last) = (first.max(0.0), last.min(width - 1.0));
        if first == last {
            // As in the original: a ramp of no length would divide by zero.
            last += 0.001;
        }
        (0..rope.width / 2).map(move |pair| 1.0 - ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scaling: RopeScaling, expected: [f32; 4]) {
        let found = frequencies(&Rope { theta: 10_000.0, width: 8, scaling });
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-6 * expected, "{found} {expected}");
        }
    }

    #[test]
    fn frequencies_are_those_worked_out_by_hand() {
        check(RopeScaling::Absent, [1.0, 0.1, 0.01, 0.001]);
        check(RopeScaling::Linear { factor: 4.0 }, [0.25, 0.025, 0.0025, 0.00025]);
        // 4 * 4 - 3 = 13, times 13^(1/3) more of the base.
        let theta = 10_000.0 * 13_f64.powf(8.0 / 6.0);
        let base = |pair: i32| theta.powf(-f64::from(pair) / 4.0) as f32;
        check(RopeScaling::Dynamic { factor: 4.0 }, [1.0, base(1), base(2), base(3)]);
        // Within 628 positions the frequencies turn about 100, 10, 1 and 0.1 times: one is divided whole.
        let original = 200.0 * PI;
        check(
            RopeScaling::Llama3 { factor: 8.0, low: 0.5, high: 5.5, original },
            [1.0, 0.1, 0.01 * (0.9 / 8.0 + 0.1), 0.001 / 8.0],
        );
        let divisors = vec![1.0, 2.0, 4.0, 5.0];
        check(RopeScaling::Long { divisors, attention_factor: 1.0 }, [1.0, 0.05, 0.0025, 0.0002]);
        // 32 turns at pair 0.49, 1.1 at pair 1.96: the ramp falls from 0 to 2.
        let yarn = Yarn {
            factor: 4.0,
            original,
            beta_fast: 32.0,
            beta_slow: 1.1,
            attention_factor: 1.0,
            ends: RampEnds::Whole,
        };
        check(RopeScaling::Yarn(yarn), [1.0, 0.1 * (0.5 + 0.125), 0.01 / 4.0, 0.001 / 4.0]);
    }

    #[test]
    fn the_factor_of_a_scaling_is_in_the_table() {
        let scaling = RopeScaling::Long { divisors: vec![1.0, 1.0], attention_factor: 1.5 };
        let table = table(&Rope { theta: 10_000.0, width: 4, scaling }, 2).unwrap();
        assert_eq!(table.to_vec2::<f32>().unwrap()[0], [1.5, 1.5, 0.0, 0.0]);
    }
}
