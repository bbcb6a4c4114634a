//! Products by cuBLASLt: their numbers, where they go, and that the same product has the same bits.

use std::sync::Arc;

use candle_core::{CudaDevice, Device, Result, Tensor, bail};

use super::devices::rounding;
use super::products::{Weights, put_weights, twin};
use super::{Checks, Error, Machine, Numbers};
use crate::device::Target;
use crate::dtype::Dtype;
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::panels::PanelShape;
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::product::cublaslt::{CublasLt, MOST_PLANS};
use crate::ops::cuda::product::{Call, DeviceMatrix, DevicePart, DeviceWeights, Sizes, Sums};
use crate::ops::cuda::recording::Recording;
use crate::ops::linear::Linear;
use crate::ops::matrix::Matrix;

/// Sizes that nothing divides.
const ODD: Sizes = Sizes { rows: 61, inputs: 1031, outputs: 67 };

/// Sizes, and elements between rows of the output.
const PRODUCTS: [(Sizes, usize); 5] = [
    (Sizes { rows: 1, inputs: 72, outputs: 331 }, 0),
    (Sizes { rows: 7, inputs: 896, outputs: 130 }, 0),
    (Sizes { rows: 300, inputs: 256, outputs: 512 }, 0),
    (ODD, 0),
    (ODD, 3),
];

pub(super) fn check(checks: &mut Checks<'_>, fast: &Target) {
    for held in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
        for (sizes, between) in PRODUCTS {
            let Sizes { rows, inputs, outputs } = sizes;
            let name = format!(
                "cuBLASLt, {rows} x {inputs} by {inputs} x {outputs}, {between} between rows, {}",
                held
            );
            checks.check(name, || On::of(fast)?.product(sizes, held)?.check(between));
        }
        let name = format!("cuBLASLt, a matrix of two parts, {}", held);
        checks.check(name, || two_parts(fast, held));
    }
    checks.check("cuBLASLt, a product before and after more others than plans are kept", || {
        again_after_many(&mut On::of(fast)?)
    });
    checks.check("cuBLASLt, a product run, and replayed with others in between", || {
        replayed(&mut On::of(fast)?)
    });
    checks.check("cuBLASLt, a product on two streams at once and on one", || on_two_streams(fast));
}

/// A device, its library and memory.
struct On {
    device: CudaDevice,
    library: Arc<CublasLt>,
    machine: Machine,
}

/// A product's numbers.
struct Product<'a> {
    on: &'a mut On,
    sizes: Sizes,
    held: Dtype,
    weights: (Vec<f32>, Address),
    input: (Vec<f32>, Address),
}

impl On {
    fn of(target: &Target) -> Result<Self> {
        let (Some(device), Sums::Fastest(library)) = (target.gpu(), target.sums()) else {
            bail!("multiply by cuBLASLt: the target is no GPU, or exact");
        };
        let device = device.clone();
        Ok(Self { machine: Machine::on(device.clone()), device, library })
    }

    fn product(&mut self, sizes: Sizes, held: Dtype) -> Result<Product<'_>> {
        let mut numbers = Numbers::new(sizes.outputs as u64);
        let input = numbers.values(sizes.rows * sizes.inputs);
        let weights = numbers.values(sizes.outputs * sizes.inputs);
        let place = put_weights(&mut self.machine, &weights, held)?;
        let input_place = self.machine.put(&input)?;
        Ok(Product { on: self, sizes, held, weights: (weights, place), input: (input, input_place) })
    }
}

impl Product<'_> {
    /// With rows of the output so many elements apart.
    fn start(&self, output: Address, stride: usize) -> Result<()> {
        let Sizes { rows, .. } = self.sizes;
        let call = Call { device: &self.on.device, input: self.input.1, rows, output, stride };
        self.on.library.multiply(&call, self.sizes, (self.weights.1, self.held))
    }

    /// (rows, outputs)
    fn compute(&mut self) -> Result<Vec<f32>> {
        let Sizes { rows, outputs, .. } = self.sizes;
        let output = self.on.machine.room::<f32>(rows * outputs)?;
        self.start(output, outputs)?;
        self.on.machine.get(output, rows * outputs)
    }

    /// Against the CPU. Where there is something between rows, outputs begin behind its first element.
    fn check(&mut self, between: usize) -> Result<Error> {
        let Sizes { rows, inputs, outputs } = self.sizes;
        let (first, stride) = (between.min(1), outputs + between);
        let room = self.on.machine.room::<f32>(rows * stride)?;
        self.start(room.plus(first * size_of::<f32>()), stride)?;
        let all: Vec<f32> = self.on.machine.get(room, rows * stride)?;
        let (mut found, mut beside) = (Vec::new(), Vec::new());
        for row in all.chunks_exact(stride) {
            found.extend_from_slice(&row[first..first + outputs]);
            beside.extend(row[..first].iter().chain(&row[first + outputs..]));
        }
        if !beside.iter().all(|value: &f32| value.is_nan()) {
            bail!("a product wrote beside its columns");
        }
        let shape = PanelShape { outputs, inputs, segments: 1 };
        let weights = Weights { values: self.weights.0.clone(), inputs };
        let expected = twin(&self.input.0, weights, shape, self.held)?;
        Ok(Error::of(&found, &expected, rounding(self.held)))
    }
}

/// As a model has them: the columns of two parts beside each other.
fn two_parts(target: &Target, held: Dtype) -> Result<Error> {
    let (rows, inputs, outputs) = (40, 72, [67, 130]);
    let mut numbers = Numbers::new(6);
    let input = numbers.values(rows * inputs);
    let weights = numbers.values(inputs * (outputs[0] + outputs[1]));
    let (first, second) = weights.split_at(inputs * outputs[0]);
    let part = |values: &[f32]| {
        let shape = PanelShape { outputs: values.len() / inputs, inputs, segments: 1 };
        let matrix = Tensor::from_slice(values, (shape.outputs, inputs), &Device::Cpu)?;
        let matrix = matrix.to_dtype(held.elements())?.to_device(&target.device)?;
        Ok(DevicePart { weights: DeviceWeights::Rows(matrix), shape })
    };
    let parts = [first, second].into_iter().map(part).collect::<Result<_>>()?;
    let matrix = Arc::new(Matrix::of_device(DeviceMatrix { parts, sums: target.sums() }));
    let linear = Linear { matrix, isa: Isa::of_this_machine() };
    let on_device = Tensor::from_slice(&input, (rows, inputs), &target.device)?;
    let found: Vec<f32> = on_device.apply_op1_no_bwd(&linear)?.flatten_all()?.to_vec1()?;
    let shape = PanelShape { outputs: outputs[0] + outputs[1], inputs, segments: 1 };
    let expected = twin(&input, Weights { values: weights, inputs }, shape, held)?;
    Ok(Error::of(&found, &expected, rounding(held)))
}

/// Its plan is made anew, and says the same.
fn again_after_many(on: &mut On) -> Result<Error> {
    let once = on.product(ODD, Dtype::Bfloat16)?.compute()?;
    let small = Sizes { rows: 2, inputs: 8, outputs: 8 };
    let last = small.outputs + MOST_PLANS;
    let output = on.machine.room::<f32>(small.rows * last)?;
    let others = on.product(small, Dtype::Float32)?;
    (small.outputs..=last).try_for_each(|stride| others.start(output, stride))?;
    let again = on.product(ODD, Dtype::Bfloat16)?.compute()?;
    Ok(Error::of_bits(&again, &once))
}

/// The workspace is others' in between.
fn replayed(on: &mut On) -> Result<Error> {
    let mut product = on.product(ODD, Dtype::Bfloat16)?;
    let run = product.compute()?;
    let Sizes { rows, outputs, .. } = product.sizes;
    let output = product.on.machine.room::<f32>(rows * outputs)?;
    let mut recording = Recording::of(&product.on.device, || product.start(output, outputs))?;
    let mut right = true;
    for (sizes, _) in PRODUCTS {
        on.product(sizes, Dtype::Float32)?.compute()?;
        recording.replay()?;
        on.product(sizes, Dtype::Bfloat16)?.compute()?;
        right &= Error::of_bits(&on.machine.get(output, rows * outputs)?, &run).is_small();
    }
    Ok(Error::unless(right))
}

/// Ranks that share a GPU and a process have a stream and a workspace each.
fn on_two_streams(fast: &Target) -> Result<Error> {
    let alone = On::of(fast)?.product(ODD, Dtype::Bfloat16)?.compute()?;
    let rank = || -> Result<bool> {
        let target = Target::open_gpu(0, false).map_err(candle_core::Error::wrap)?;
        let mut on = On::of(&target)?;
        let mut product = on.product(ODD, Dtype::Bfloat16)?;
        let mut right = true;
        for _ in 0..8 {
            right &= Error::of_bits(&product.compute()?, &alone).is_small();
        }
        Ok(right)
    };
    let ranks = std::thread::scope(|scope| {
        let ranks = [scope.spawn(rank), scope.spawn(rank)];
        ranks.map(|rank| rank.join().unwrap_or_else(|_| bail!("a rank panicked")))
    });
    let mut right = true;
    for rank in ranks {
        right &= rank?;
    }
    Ok(Error::unless(right))
}
