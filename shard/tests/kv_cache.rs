//! Keys and values of eight bits: the same logits to the bit for any cut of a prompt and beside others;
//! near those of sixteen bits; in about half the memory; and told apart by the arithmetic's name.

mod support;

use std::sync::Arc;

use lockstep_models::ModelFiles;
use lockstep_proto::Bytes;
use lockstep_shard::comm::{Communicator, Solo};
use lockstep_shard::decoder::{Dtype, ModelSpec};
use lockstep_shard::kv::KvCacheDtype;
use lockstep_shard::plan::MemoryPlan;
use support::{Runner, Sequence, tokens};

const MODEL: ModelFiles = ModelFiles::EmbeddedDemo;

fn runner(kv_cache: KvCacheDtype) -> Runner {
    Runner::load_with(&MODEL, (Dtype::Bfloat16.into(), kv_cache), Arc::new(Solo) as Arc<dyn Communicator>)
}

#[test]
fn eight_bits_give_the_same_logits_in_any_chunks_and_beside_others() {
    let mut runner = runner(KvCacheDtype::Int8);
    let prompt = tokens(150, 5, 4096);
    let whole = runner.alone(&prompt, prompt.len());
    for chunk in [1, 7, 64] {
        assert!(runner.alone(&prompt, chunk) == whole, "in chunks of {chunk}");
    }
    let (mut sequence, mut other) = (Sequence::new(&prompt), Sequence::new(&tokens(90, 6, 4096)));
    let mut beside = Vec::new();
    while sequence.left() > 0 {
        let mut work = vec![(&mut sequence, 17)];
        if other.left() > 0 {
            work.insert(0, (&mut other, 5));
        }
        beside.extend(runner.step(&mut work).pop().expect("a sequence has rows"));
    }
    assert!(beside == whole, "beside another");
}

#[test]
fn eight_bits_are_near_sixteen() {
    let prompt = tokens(120, 9, 4096);
    let logits = |kv_cache| -> Vec<f32> {
        let rows = runner(kv_cache).alone(&prompt, prompt.len());
        rows.into_iter().flatten().map(f32::from_bits).collect()
    };
    let (eight, sixteen) = (logits(KvCacheDtype::Int8), logits(KvCacheDtype::Auto));
    let largest = sixteen.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
    let squares = eight.iter().zip(&sixteen).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    let error = (squares / sixteen.len() as f64).sqrt() / f64::from(largest);
    assert!(error > 0.0 && error < 0.02, "off by {error} of the largest");
    assert!(logits(KvCacheDtype::Bfloat16) == sixteen);
    assert!(logits(KvCacheDtype::Float16) != sixteen);
}

#[test]
fn what_is_held_is_planned_and_named() {
    let spec = ModelSpec::read(&MODEL).expect("config.json is served");
    let plan = MemoryPlan::new(&spec, Dtype::Bfloat16, 1).expect("one rank holds it");
    let auto = runner(KvCacheDtype::Auto).decoder;
    let held = [
        (KvCacheDtype::Bfloat16, 1.0),
        (KvCacheDtype::Float16, 1.0),
        (KvCacheDtype::Int8, 0.5 + 2.0 / 32.0),
    ];
    for (kv_cache, share) in held {
        let decoder = runner(kv_cache).decoder;
        let planned = plan.with_kv_cache(kv_cache).block;
        assert_eq!((decoder.block_bytes(), decoder.weight_bytes()), (planned, plan.weights));
        // Heads of 32 elements: four bytes of scale beside 32.
        assert_eq!(planned, Bytes((plan.block.0 as f64 * share) as u64), "{kv_cache}");
        assert_eq!(decoder.may_overflow(), kv_cache == KvCacheDtype::Float16, "{kv_cache}");
        let same_name = decoder.arithmetic() == auto.arithmetic();
        assert_eq!(same_name, kv_cache == KvCacheDtype::Bfloat16, "{}", decoder.arithmetic());
    }
}
