//! Floating-point numbers of 8 bits: a sign, 4 bits of exponent less 7, 3 of mantissa; no infinity.

/// The largest.
const LARGEST: f32 = 448.0;

/// The smallest that is normal; what is smaller is a multiple of 2^-9.
const LEAST_NORMAL: f32 = 1.0 / 64.0;

/// Writes the codes of a row's segment, and returns its scale: the largest magnitude is the largest there is. What is
/// not finite makes the segment not a number.
pub(crate) fn quantize(values: &[f32], codes: &mut [u8]) -> f32 {
    codes.fill(0);
    let largest = f32::from_bits(values.iter().fold(0, |most, value| most.max(value.abs().to_bits())));
    if !largest.is_finite() {
        return f32::NAN;
    }
    let scale = largest / LARGEST;
    if scale > 0.0 {
        for (code, value) in codes.iter_mut().zip(values) {
            *code = nearest(value / scale);
        }
    }
    scale
}

/// The nearest number's code, the even one of two that are as near; beyond the largest it is the largest.
fn nearest(value: f32) -> u8 {
    let magnitude = value.abs().min(LARGEST);
    let code = if magnitude < LEAST_NORMAL {
        (magnitude * 512.0).round_ties_even() as u32
    } else {
        let bits = magnitude.to_bits();
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - (120 << 3)
    };
    code.to_le_bytes()[0] | if value.is_sign_negative() { 0x80 } else { 0 }
}

/// What a code stands for.
pub(crate) fn widen(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
    };
    if code < 0x80 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every code but the two that are no number.
    fn codes() -> impl Iterator<Item = u8> {
        (0..=255).filter(|code| code & 0x7f != 0x7f)
    }

    #[test]
    fn every_number_is_its_own_nearest() {
        for code in codes() {
            assert_eq!(nearest(widen(code)), code, "{code:#x}");
        }
        assert_eq!([nearest(1e9), nearest(-1e9)].map(widen), [448.0, -448.0]);
    }

    #[test]
    fn a_segment_with_a_value_that_is_not_finite_has_no_scale() {
        let mut found = [7; 3];
        assert!(quantize(&[1.0, f32::INFINITY, 2.0], &mut found).is_nan());
        assert!(quantize(&[1.0, f32::NAN, 2.0], &mut found).is_nan());
        assert_eq!((quantize(&[0.0; 3], &mut found), found), (0.0, [0; 3]));
    }

    proptest! {
        #[test]
        fn no_other_number_is_nearer(value in -500.0..500.0_f32, shift in 0..16_i32) {
            let value = value * 2.0_f32.powi(-shift);
            let found = (widen(nearest(value)) - value).abs();
            let least = codes().map(|code| (widen(code) - value).abs()).fold(f32::INFINITY, f32::min);
            prop_assert_eq!(found, least);
        }
    }
}
