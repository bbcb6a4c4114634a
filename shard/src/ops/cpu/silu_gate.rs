//! `silu(gate) * up` of rows that hold both.

use super::isa::{Isa, Kernel};
use super::parallel::{SharedSlice, for_each_range};
use super::simd::{LANES, Simd, exp};

/// Scalar operations an element costs, about.
const OPERATIONS: usize = 24;

/// Writes `silu(gate) * up` to `output` (rows, width), from `gate_up` (rows, 2 * width), gate first.
pub(crate) fn silu_gate(isa: Isa, width: usize, gate_up: &[f32], output: &mut [f32]) {
    let rows = output.len() / width;
    let operations = output.len() * OPERATIONS;
    let output = SharedSlice::new(output);
    for_each_range(rows, operations, |rows| {
        for row in rows {
            let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
            // SAFETY: each row is one item, worked on by one thread.
            let output = unsafe { output.part(row * width, width) };
            isa.run(GateRow { gate, up, output });
        }
    });
}

struct GateRow<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    output: &'a mut [f32],
}

impl Kernel for GateRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (gates, last_gates) = self.gate.as_chunks::<LANES>();
        let (ups, last_ups) = self.up.as_chunks::<LANES>();
        let (outputs, last_outputs) = self.output.as_chunks_mut::<LANES>();
        for (output, (gate, up)) in outputs.iter_mut().zip(gates.iter().zip(ups)) {
            simd.store(gated(simd, simd.load(gate), simd.load(up)), output);
        }
        let last = gated(simd, simd.load_first(last_gates), simd.load_first(last_ups));
        simd.store_first(last, last_outputs);
    }
}

#[inline(always)]
fn gated<S: Simd>(simd: S, gate: S::Lanes, up: S::Lanes) -> S::Lanes {
    let negated = simd.sub(simd.splat(0.0), gate);
    let denominator = simd.add(simd.splat(1.0), exp(simd, negated));
    simd.mul(simd.div(gate, denominator), up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reference::{Random, assert_close, silu_gate as plain};

    #[test]
    fn gates_of_any_width_are_the_plain_ones() {
        let mut random = Random::new(6);
        for width in [1, 15, 16, 17, 64, 250] {
            let mut gate_up = random.values(6 * width);
            gate_up[0] = -200.0;
            gate_up[width - 1] = 90.0;
            for isa in Isa::all_of_this_machine() {
                let mut output = vec![0.0; 3 * width];
                silu_gate(isa, width, &gate_up, &mut output);
                assert_close(&output, &plain(&gate_up, width), 1e-6, &format!("{isa} {width}"));
            }
        }
    }
}
