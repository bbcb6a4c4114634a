//! A checkpoint has exactly the tensors its config.json asks for, or the error names the difference; a
//! batch that makes no sense is refused before anything is computed.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lockstep_models::ModelFiles;
use lockstep_proto::{BlockId, Blocks, Position, TokenId};
use lockstep_shard::batch::{Batch, BatchSequence};
use lockstep_shard::comm::{Solo, Threads};
use lockstep_shard::decoder::{Decoder, Dtype, ModelSpec, Precision, Quantize};
use lockstep_shard::plan::MemoryPlan;
use lockstep_shard::testing::{TinyHead, TinyLlama, TinyTensor, write_tensors};
use support::written;

/// Loads a checkpoint whose tensors were changed.
fn load_with(change: impl FnOnce(&mut BTreeMap<String, TinyTensor>)) -> Result<Decoder, String> {
    let model = TinyLlama::new(2);
    let (folder, files) = written(&model);
    let mut tensors = model.tensors();
    change(&mut tensors);
    write_tensors(folder.path(), &tensors).expect("room for a model");
    load(&files)
}

fn load(files: &ModelFiles) -> Result<Decoder, String> {
    load_as(files, Dtype::Bfloat16)
}

fn load_as(files: &ModelFiles, dtype: Dtype) -> Result<Decoder, String> {
    let spec = ModelSpec::read(files).map_err(|error| error.to_string())?;
    Decoder::load(files, &spec, dtype, Arc::new(Solo)).map_err(|error| error.to_string())
}

fn check_refused(change: impl FnOnce(&mut BTreeMap<String, TinyTensor>), expected: &str) {
    assert_eq!(load_with(change).err().as_deref(), Some(expected));
}

fn zeroes(shape: &[usize]) -> TinyTensor {
    TinyTensor { shape: shape.to_vec(), bytes: vec![0; 2 * shape.iter().product::<usize>()] }
}

#[test]
fn tensors_that_are_missing_are_named() {
    check_refused(
        |tensors| {
            tensors.remove("model.layers.1.self_attn.k_proj.weight");
            tensors.remove("model.norm.weight");
        },
        "find tensors model.layers.1.self_attn.k_proj.weight [80, 72], model.norm.weight [72]: \
         the checkpoint does not have them",
    );
}

#[test]
fn weights_that_float16_has_no_room_for_are_named() {
    let model = TinyLlama::new(2);
    let (folder, files) = written(&model);
    let mut tensors = model.tensors();
    let weights = &mut tensors.get_mut("model.layers.1.self_attn.o_proj.weight").unwrap().bytes;
    // 1e5, as bf16 has it.
    weights[..2].copy_from_slice(&[0xc3, 0x47]);
    write_tensors(folder.path(), &tensors).unwrap();
    let expected = "hold the weights of model.layers.1.self_attn.o_proj: a weight is beyond 65504, the largest number \
                    of float16: bfloat16 holds it";
    assert_eq!(load_as(&files, Dtype::Float16).err().as_deref(), Some(expected));
    for dtype in [Dtype::Bfloat16, Dtype::Float32] {
        assert!(load_as(&files, dtype).is_ok(), "{dtype}");
    }
}

#[test]
fn tensors_of_another_shape_are_named() {
    check_refused(
        |tensors| {
            tensors.insert("model.layers.0.mlp.up_proj.weight".to_owned(), zeroes(&[100, 72]));
        },
        "read tensors model.layers.0.mlp.up_proj.weight [100, 72] (expected [192, 72]): config.json says otherwise",
    );
}

#[test]
fn tensors_that_are_not_used_are_named() {
    check_refused(
        |tensors| {
            tensors.insert("model.layers.0.self_attn.q_proj.bias".to_owned(), zeroes(&[160]));
        },
        "use tensors model.layers.0.self_attn.q_proj.bias [160]: this architecture has no place for them",
    );
}

#[test]
fn leftovers_of_older_writers_are_tolerated() {
    let loaded = load_with(|tensors| {
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), zeroes(&[10]));
        tensors.insert("lm_head.weight".to_owned(), zeroes(&[331, 72]));
    });
    assert!(loaded.is_ok());
}

#[test]
fn a_checkpoint_in_parts_is_read_through_its_index() {
    let model = TinyLlama { head: TinyHead::Separate, ..TinyLlama::new(3) };
    let (folder, files) = written(&model);
    let mut map = serde_json::Map::new();
    let mut parts = [BTreeMap::new(), BTreeMap::new()];
    for (at, (name, tensor)) in model.tensors().into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", at % 2).into());
        parts[at % 2].insert(name, tensor);
    }
    for (at, part) in parts.iter().enumerate() {
        write_tensors(folder.path(), part).unwrap();
        let name = folder.path().join(format!("model-{at}.safetensors"));
        std::fs::rename(folder.path().join("model.safetensors"), name).unwrap();
    }
    let index = serde_json::json!({ "weight_map": map });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert!(load(&files).is_ok());
}

#[test]
fn a_file_that_is_no_checkpoint_is_named() {
    let (folder, files) = written(&TinyLlama::new(4));
    std::fs::write(folder.path().join("model.safetensors"), b"nothing of the kind").unwrap();
    assert!(load(&files).err().unwrap().starts_with("parse model.safetensors: "));
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(load(&files).err().unwrap().starts_with("find weights in "));
}

#[test]
fn the_plan_says_what_a_loaded_rank_takes() {
    let (_folder, files) = written(&TinyLlama::new(5));
    let spec = ModelSpec::read(&files).unwrap();
    let precisions = [
        Dtype::Bfloat16.into(),
        Dtype::Float16.into(),
        Dtype::Float32.into(),
        Precision { dtype: Dtype::Bfloat16, quantize: Quantize::Int8 },
        Precision { dtype: Dtype::Bfloat16, quantize: Quantize::Int4 },
    ];
    for precision in precisions {
        for world_size in [1, 2, 4] {
            let plan = MemoryPlan::new(&spec, precision, world_size).unwrap();
            let rank = Threads::group(world_size, Duration::from_secs(60)).unwrap().remove(0);
            let decoder = Decoder::load(&files, &spec, precision, Arc::new(rank)).unwrap();
            assert_eq!((decoder.weight_bytes(), decoder.block_bytes()), (plan.weights, plan.block));
            let pool = decoder.allocate_kv(Blocks(3)).unwrap();
            assert_eq!(pool.bytes(), plan.kv_for(Blocks(3)));
        }
    }
    let error = MemoryPlan::new(&spec, Dtype::Bfloat16, 8).unwrap_err();
    let expected = "split 8 query heads, 4 KV heads, an MLP of 192 over 8 ranks: 1 or 2 or 4 ranks work";
    assert_eq!(error.to_string(), expected);
}

/// One sequence of two rows in one block, and logits of the last.
fn batch() -> Batch {
    let sequence =
        BatchSequence { first_row: 0, rows: 2, first_position: Position(0), blocks: vec![BlockId(1)] };
    let token_ids = vec![TokenId(1), TokenId(330)];
    Batch { token_ids, sequences: vec![sequence], logit_rows: vec![1], fed: Vec::new() }
}

#[test]
fn a_batch_that_makes_no_sense_is_refused() {
    let decoder = load_with(|_| {}).unwrap();
    let mut pool = decoder.allocate_kv(Blocks(2)).unwrap();
    let mut outcome = |change: fn(&mut Batch)| {
        let mut batch = batch();
        change(&mut batch);
        decoder.forward(&batch, &mut pool).map(|hidden| hidden.len()).map_err(|error| error.to_string())
    };
    let refused = |expected: &str| Err(expected.to_owned());
    assert_eq!(outcome(|_| {}), Ok(1));
    assert_eq!(outcome(|batch| *batch = Batch::default()), Ok(0));
    assert_eq!(
        outcome(|batch| batch.token_ids[0] = TokenId(331)),
        refused("compute token 331: the vocabulary has 331 entries")
    );
    assert_eq!(
        outcome(|batch| batch.sequences[0].rows = 1),
        refused("compute a batch of 2 rows: its sequences cover 1 in order")
    );
    assert_eq!(
        outcome(|batch| batch.sequences[0].first_position = Position(511)),
        refused("compute 2 tokens from position 511: the model has 512 positions")
    );
    assert_eq!(
        outcome(|batch| batch.sequences[0].first_position = Position(15)),
        refused("compute 2 tokens from position 15: the block table has 1 blocks of 16")
    );
    assert_eq!(
        outcome(|batch| batch.sequences[0].blocks[0] = BlockId(2)),
        refused("use KV block 2: the pool has 2")
    );
    assert_eq!(
        outcome(|batch| batch.logit_rows[0] = 2),
        refused("return logits of row 2: the batch has 2 rows")
    );
}

#[test]
fn logits_of_rows_that_were_not_asked_for_are_refused() {
    let decoder = load_with(|_| {}).unwrap();
    let mut pool = decoder.allocate_kv(Blocks(2)).unwrap();
    let hidden = decoder.forward(&batch(), &mut pool).unwrap();
    assert_eq!((hidden.len(), hidden.is_empty()), (1, false));
    let outcome =
        |rows| decoder.logits(&hidden, rows).map(|logits| logits.len()).map_err(|error| error.to_string());
    assert_eq!((outcome(0..1), outcome(1..1)), (Ok(1), Ok(0)));
    assert_eq!(outcome(1..2), Err("return logits 1 to 2 of a batch: it asked for 1".to_owned()));
}
