//! The ways a packed matrix holds its elements.

use half::bf16;

use crate::ops::cpu::isa::{Isa, Kernel};
use crate::ops::cpu::panels::{Bf16Step, F16Step, F32Step, VECTORS};
use crate::ops::cpu::simd::{LANES, Simd, round_to_bf16};

/// A way to hold an element, and how a step of it is accumulated.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// A panel's weights in one step.
    type Step: Sync + Send + 'static;
    /// The activations of one row in one step.
    type Activation: Copy + Default + Sync + Send + 'static;
    type Vector<S: Simd>: Copy;

    /// An activation that adds nothing.
    const ZERO: Self::Activation;
    /// Elements of a row that one step takes.
    const INPUTS: usize;

    /// One step's activation, of `INPUTS` elements or fewer; those a row lacks are zero.
    fn activation(elements: &[f32]) -> Self::Activation;
    /// The activations of steps that follow each other, as [`Self::activation`] makes them; `to` has as many as
    /// `elements` are worth.
    fn activations<S: Simd>(simd: S, elements: &[f32], to: &mut [Self::Activation]);
    fn load<S: Simd>(simd: S, step: &Self::Step) -> [Self::Vector<S>; VECTORS];
    fn splat<S: Simd>(simd: S, activation: Self::Activation) -> Self::Vector<S>;
    fn accumulate<S: Simd>(simd: S, sum: S::Lanes, a: Self::Vector<S>, w: Self::Vector<S>) -> S::Lanes;
    /// Runs a kernel over these elements.
    fn run_kernel<K: Kernel>(isa: Isa, kernel: K) -> K::Output;
}

#[derive(Clone, Copy)]
pub(super) struct Bf16;

#[derive(Clone, Copy)]
pub(super) struct F16;

#[derive(Clone, Copy)]
pub(super) struct F32;

impl Element for Bf16 {
    type Step = Bf16Step;
    type Activation = [bf16; 2];
    type Vector<S: Simd> = S::Pairs;

    const ZERO: [bf16; 2] = [bf16::ZERO; 2];
    const INPUTS: usize = 2;

    #[inline(always)]
    fn activation(elements: &[f32]) -> [bf16; 2] {
        let second = elements.get(1).copied().unwrap_or(0.0);
        [round_to_bf16(elements[0]), round_to_bf16(second)]
    }

    #[inline(always)]
    fn activations<S: Simd>(simd: S, elements: &[f32], to: &mut [[bf16; 2]]) {
        let (vectors, rest) = elements.as_chunks::<LANES>();
        let (whole, last) = to.split_at_mut(vectors.len() * LANES / Self::INPUTS);
        let whole = whole.as_flattened_mut().as_chunks_mut::<LANES>().0;
        for (vector, to) in vectors.iter().zip(whole) {
            simd.store_bf16(simd.load(vector), to);
        }
        for (pair, to) in rest.chunks(Self::INPUTS).zip(last) {
            *to = Self::activation(pair);
        }
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, step: &Bf16Step) -> [S::Pairs; VECTORS] {
        [simd.load_pairs(&step[0]), simd.load_pairs(&step[1])]
    }

    #[inline(always)]
    fn splat<S: Simd>(simd: S, activation: [bf16; 2]) -> S::Pairs {
        simd.splat_pair(activation)
    }

    #[inline(always)]
    fn accumulate<S: Simd>(simd: S, sum: S::Lanes, a: S::Pairs, w: S::Pairs) -> S::Lanes {
        simd.dot_pairs(sum, a, w)
    }

    fn run_kernel<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        isa.run_pairs(kernel)
    }
}

/// Weights are widened; activations are not rounded, so that they may be of any size.
impl Element for F16 {
    type Step = F16Step;
    type Activation = [f32; 2];
    type Vector<S: Simd> = [S::Lanes; 2];

    const ZERO: [f32; 2] = [0.0; 2];
    const INPUTS: usize = 2;

    #[inline(always)]
    fn activation(elements: &[f32]) -> [f32; 2] {
        [elements[0], elements.get(1).copied().unwrap_or(0.0)]
    }

    #[inline(always)]
    fn activations<S: Simd>(_simd: S, elements: &[f32], to: &mut [[f32; 2]]) {
        for (pair, to) in elements.chunks(Self::INPUTS).zip(to) {
            *to = Self::activation(pair);
        }
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, step: &F16Step) -> [[S::Lanes; 2]; VECTORS] {
        let widened = |of_vector: usize, input: usize| simd.load_f16(&step[of_vector][input]);
        [[widened(0, 0), widened(0, 1)], [widened(1, 0), widened(1, 1)]]
    }

    #[inline(always)]
    fn splat<S: Simd>(simd: S, activation: [f32; 2]) -> [S::Lanes; 2] {
        [simd.splat(activation[0]), simd.splat(activation[1])]
    }

    #[inline(always)]
    fn accumulate<S: Simd>(simd: S, sum: S::Lanes, a: [S::Lanes; 2], w: [S::Lanes; 2]) -> S::Lanes {
        simd.mul_add(a[1], w[1], simd.mul_add(a[0], w[0], sum))
    }

    fn run_kernel<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        isa.run(kernel)
    }
}

impl Element for F32 {
    type Step = F32Step;
    type Activation = f32;
    type Vector<S: Simd> = S::Lanes;

    const ZERO: f32 = 0.0;
    const INPUTS: usize = 1;

    #[inline(always)]
    fn activation(elements: &[f32]) -> f32 {
        elements[0]
    }

    #[inline(always)]
    fn activations<S: Simd>(_simd: S, elements: &[f32], to: &mut [f32]) {
        to.copy_from_slice(elements);
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, step: &F32Step) -> [S::Lanes; VECTORS] {
        [simd.load(&step[0]), simd.load(&step[1])]
    }

    #[inline(always)]
    fn splat<S: Simd>(simd: S, activation: f32) -> S::Lanes {
        simd.splat(activation)
    }

    #[inline(always)]
    fn accumulate<S: Simd>(simd: S, sum: S::Lanes, a: S::Lanes, w: S::Lanes) -> S::Lanes {
        simd.mul_add(a, w, sum)
    }

    fn run_kernel<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        isa.run(kernel)
    }
}
