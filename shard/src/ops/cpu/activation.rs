//! Activations of rows, with or without a gate.

use std::marker::PhantomData;

use super::isa::{Isa, Kernel};
use super::parallel::{SharedSlice, for_each_range};
use super::simd::{LANES, Simd, exp, tanh};
use super::unwritten::Unwritten;
use crate::ops::activation::Activation;

/// Scalar operations an element costs, about.
const OPERATIONS: usize = 24;

/// Writes `activation(gate) * up` to all of `output` (rows, width), from `gate_up` (rows, 2 * width), gate first.
pub(crate) fn gate(isa: Isa, activation: Activation, width: usize, gate_up: &[f32], output: Unwritten<'_>) {
    match activation {
        Activation::Silu => gate_rows::<Silu>(isa, width, gate_up, output),
        Activation::GeluTanh => gate_rows::<GeluTanh>(isa, width, gate_up, output),
    }
}

/// Replaces each of `values` (rows, width) by its activation.
pub(crate) fn activate(isa: Isa, activation: Activation, width: usize, values: &mut [f32]) {
    match activation {
        Activation::Silu => activate_rows::<Silu>(isa, width, values),
        Activation::GeluTanh => activate_rows::<GeluTanh>(isa, width, values),
    }
}

/// `activation(gate) * up` in every lane.
#[inline(always)]
pub(super) fn gated<S: Simd>(
    simd: S,
    activation: Activation,
    (gate, up): (S::Lanes, S::Lanes),
) -> S::Lanes {
    let activated = match activation {
        Activation::Silu => Silu::apply(simd, gate),
        Activation::GeluTanh => GeluTanh::apply(simd, gate),
    };
    simd.mul(activated, up)
}

/// An activation as vectors compute it.
trait Function: Send + Sync {
    fn apply<S: Simd>(simd: S, x: S::Lanes) -> S::Lanes;
}

struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: S::Lanes) -> S::Lanes {
        let negated = simd.sub(simd.splat(0.0), x);
        simd.div(x, simd.add(simd.splat(1.0), exp(simd, negated)))
    }
}

struct GeluTanh;

impl Function for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: S::Lanes) -> S::Lanes {
        /// `sqrt(2 / pi)`
        const SCALE: f32 = 0.797_884_6;
        const CUBIC: f32 = 0.044_715;

        let one = simd.splat(1.0);
        let stretch = simd.mul_add(simd.splat(CUBIC), simd.mul(x, x), one);
        let inner = simd.mul(simd.mul(simd.splat(SCALE), x), stretch);
        simd.mul(simd.mul(simd.splat(0.5), x), simd.add(one, tanh(simd, inner)))
    }
}

fn gate_rows<F: Function>(isa: Isa, width: usize, gate_up: &[f32], output: Unwritten<'_>) {
    let rows = output.len() / width.max(1);
    let operations = output.len() * OPERATIONS;
    for_each_range(rows, operations, |rows| {
        for row in rows {
            let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
            // SAFETY: each row is one item, worked on by one thread.
            let output = unsafe { output.cleared(row * width, width) };
            isa.run(GateRow::<F> { gate, up, output, function: PhantomData });
        }
    });
}

struct GateRow<'a, F> {
    gate: &'a [f32],
    up: &'a [f32],
    output: &'a mut [f32],
    function: PhantomData<F>,
}

impl<F: Function> Kernel for GateRow<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (gates, last_gates) = self.gate.as_chunks::<LANES>();
        let (ups, last_ups) = self.up.as_chunks::<LANES>();
        let (outputs, last_outputs) = self.output.as_chunks_mut::<LANES>();
        for (output, (gate, up)) in outputs.iter_mut().zip(gates.iter().zip(ups)) {
            simd.store(simd.mul(F::apply(simd, simd.load(gate)), simd.load(up)), output);
        }
        let last = F::apply(simd, simd.load_first(last_gates));
        simd.store_first(simd.mul(last, simd.load_first(last_ups)), last_outputs);
    }
}

fn activate_rows<F: Function>(isa: Isa, width: usize, values: &mut [f32]) {
    let operations = values.len() * OPERATIONS;
    let rows = values.len() / width.max(1);
    let values = SharedSlice::new(values);
    for_each_range(rows, operations, |rows| {
        // SAFETY: each row is one item, worked on by one thread.
        let values = unsafe { values.part(rows.start * width, rows.len() * width) };
        isa.run(Activate::<F> { values, function: PhantomData });
    });
}

struct Activate<'a, F> {
    values: &'a mut [f32],
    function: PhantomData<F>,
}

impl<F: Function> Kernel for Activate<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (whole, last) = self.values.as_chunks_mut::<LANES>();
        for values in whole {
            simd.store(F::apply(simd, simd.load(values)), values);
        }
        simd.store_first(F::apply(simd, simd.load_first(last)), last);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::ops::activation::{GatedActivation, PlainActivation};
    use crate::ops::reference::{Random, activation as plain, assert_close};

    const ROWS: usize = 3;
    const ACTIVATIONS: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

    /// Rows of small numbers, and some that are large.
    fn values(random: &mut Random, width: usize) -> Vec<f32> {
        let mut values: Vec<f32> = random.values(ROWS * width).iter().map(|value| value * 6.0).collect();
        values[0] = -200.0;
        values[width - 1] = 90.0;
        values
    }

    #[test]
    fn gates_of_any_width_are_the_plain_ones() {
        let mut random = Random::new(6);
        for (activation, width) in
            ACTIVATIONS.iter().flat_map(|a| [1, 15, 16, 17, 64, 250].map(|width| (*a, width)))
        {
            let (gates, ups) = (values(&mut random, width), random.values(ROWS * width));
            let rows = gates.chunks(width).zip(ups.chunks(width));
            let gate_up = rows.flat_map(|(gate, up)| [gate, up].concat()).collect::<Vec<_>>();
            let expected: Vec<f32> =
                gates.iter().zip(&ups).map(|(gate, up)| plain(activation, *gate) * up).collect();
            for isa in Isa::all_of_this_machine() {
                let mut output = vec![0.0; ROWS * width];
                gate(isa, activation, width, &gate_up, Unwritten::over(&mut output));
                assert_close(&output, &expected, 1e-6, &format!("{isa} {activation:?} {width}"));
            }
        }
    }

    #[test]
    fn activations_of_any_width_are_the_plain_ones_and_rows_do_not_mix() {
        let mut random = Random::new(7);
        for (activation, width) in
            ACTIVATIONS.iter().flat_map(|a| [1, 15, 16, 17, 64, 250].map(|width| (*a, width)))
        {
            let before = values(&mut random, width);
            let expected: Vec<f32> = before.iter().map(|x| plain(activation, *x)).collect();
            for isa in Isa::all_of_this_machine() {
                let what = format!("{isa} {activation:?} {width}");
                let mut together = before.clone();
                activate(isa, activation, width, &mut together);
                assert_close(&together, &expected, 1e-6, &what);
                let mut alone = before.clone();
                alone.chunks_mut(width).for_each(|row| activate(isa, activation, width, row));
                assert_eq!(alone, together, "{what}");
            }
        }
    }

    #[test]
    fn small_activations_are_right_in_proportion() {
        let inputs: Vec<f32> =
            (1..200).flat_map(|step| [step as f32 * 0.01, step as f32 * -0.01]).collect();
        for (isa, activation) in
            Isa::all_of_this_machine().iter().flat_map(|isa| ACTIVATIONS.map(|a| (*isa, a)))
        {
            let mut found = inputs.clone();
            activate(isa, activation, inputs.len(), &mut found);
            for (found, x) in found.iter().zip(&inputs) {
                let expected = plain(activation, *x);
                let close = (found - expected).abs() <= 4e-6 * expected.abs();
                assert!(close, "{isa} {activation:?} of {x}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn the_operators_take_gate_and_up_in_this_order() {
        let isa = Isa::of_this_machine();
        let plain = |x| plain(Activation::GeluTanh, x);
        let values = Tensor::from_slice(&[0.5_f32, -1.0, 3.0, 2.0], (1, 4), &Device::Cpu).unwrap();
        let gated = GatedActivation { activation: Activation::GeluTanh, isa };
        let found = values.apply_op1_no_bwd(&gated).unwrap().to_vec2::<f32>().unwrap();
        assert_close(&found[0], &[plain(0.5) * 3.0, plain(-1.0) * 2.0], 1e-6, "gated");
        let activation = PlainActivation { activation: Activation::GeluTanh, isa };
        values.inplace_op1(&activation).unwrap();
        let found = values.to_vec2::<f32>().unwrap();
        assert_close(&found[0], &[0.5, -1.0, 3.0, 2.0].map(plain), 1e-6, "plain");
    }
}
