//! Weights quantized at load: how far the demo model's logits are from those of the weights as they are, and how much
//! memory it saves.

mod support;

use std::sync::Arc;

use lockstep_models::ModelFiles;
use lockstep_shard::comm::Solo;
use lockstep_shard::decoder::{Decoder, Dtype, ModelSpec, Precision, Quantize};
use lockstep_shard::device::DeviceKind;
use lockstep_shard::plan::MemoryPlan;
use support::{Runner, relative_error, tokens};

const DTYPE: Dtype = Dtype::Bfloat16;

fn logits(precision: Precision) -> Vec<f32> {
    let rows = Runner::solo(&ModelFiles::EmbeddedDemo, precision).alone(&tokens(60, 3, 4096), 32);
    rows.concat().into_iter().map(f32::from_bits).collect()
}

#[test]
fn eight_bits_change_little_and_four_bits_more() {
    let exact = logits(Dtype::Float32.into());
    let error = |quantize| relative_error(&logits(Precision { dtype: DTYPE, quantize }), &exact);
    let (none, int8, int4) = (error(Quantize::None), error(Quantize::Int8), error(Quantize::Int4));
    eprintln!("relative errors: bfloat16 {none}, int8 {int8}, int4 {int4}");
    assert!(int8 < 0.02 && int4 < 0.2, "int8 {int8}, int4 {int4}");
}

#[test]
fn ranks_that_quantize_unlike_do_not_pair() {
    let name = |quantize| {
        let precision = Precision { dtype: DTYPE, quantize };
        Runner::solo(&ModelFiles::EmbeddedDemo, precision).decoder.arithmetic()
    };
    let names = [Quantize::None, Quantize::Int8, Quantize::Int4].map(name);
    assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2], "{names:?}");
    // Files that are not quantized are held alike, whichever is asked for.
    assert_eq!(name(Quantize::AsStored), names[0]);
}

#[test]
fn what_only_gpus_multiply_by_is_refused_on_the_cpu() {
    let precision = Precision { dtype: DTYPE, quantize: Quantize::Fp8 };
    let spec = ModelSpec::read(&ModelFiles::EmbeddedDemo).expect("it is a model");
    let Err(error) = Decoder::load(&ModelFiles::EmbeddedDemo, &spec, precision, Arc::new(Solo)) else {
        panic!("the CPU has no numbers of 8 bits with an exponent")
    };
    let expected = "compute on the CPU with --quantize fp8: it is there on GPUs only; give int8";
    assert_eq!(error.to_string(), expected);
    assert!(precision.check(DeviceKind::Cuda).is_ok());
}

#[test]
fn the_plan_counts_eight_and_a_half_bits_and_four_and_a_half() {
    let spec = ModelSpec::read(&ModelFiles::EmbeddedDemo).expect("it has a plan");
    let weights = |quantize| {
        let plan = MemoryPlan::new(&spec, Precision { dtype: DTYPE, quantize }, 1).expect("it has a plan");
        plan.weights.0 as f64
    };
    let whole = weights(Quantize::None);
    for (quantize, bits) in [(Quantize::Int8, 8.5), (Quantize::Int4, 4.5)] {
        let share = weights(quantize) / whole;
        // Norms and the tables of positions stay as they are.
        assert!((bits / 16.0..bits / 16.0 + 0.05).contains(&share), "{quantize}: {share}");
    }
}
