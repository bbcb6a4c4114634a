//! Headers of safetensors files.

use std::cell::LazyCell;

use lockstep_shard::decoder::{ModelSpec, check_weights};
use lockstep_shard::testing::{TinyHead, TinyLlama};

use crate::folder::Folder;

/// A small model, whose weights are in the file or are not.
const TINY: TinyLlama = TinyLlama {
    hidden: 8,
    layers: 1,
    query_heads: 2,
    kv_heads: 1,
    head_width: 4,
    intermediate: 8,
    experts: None,
    vocabulary: 8,
    max_positions: 16,
    head: TinyHead::Tied,
    seed: 1,
};

thread_local! {
    static PLACE: LazyCell<(Folder, ModelSpec)> = const { LazyCell::new(place) };
}

fn place() -> (Folder, ModelSpec) {
    let folder = Folder::new();
    folder.write("config.json", TINY.config().to_string().as_bytes());
    let spec = ModelSpec::read(&folder.files()).expect("it is a model");
    (folder, spec)
}

/// The file has the model's tensors, or what is wrong with it is said.
pub fn check(data: &[u8]) {
    PLACE.with(|place| {
        let (folder, spec) = &**place;
        folder.write("model.safetensors", data);
        if let Err(error) = check_weights(&folder.files(), spec) {
            assert!(!error.to_string().is_empty());
        }
    });
}
