//! GGUF files.

use lockstep_models::FileBytes;
use lockstep_models::gguf::Gguf;
use lockstep_router::tokenizer::Tokenizer;
use serde_json::Value;

/// Tensors lie within the file, and what stands for the files of a checkpoint is JSON. A tokenizer made of it is one or
/// is refused.
pub fn check(data: &[u8]) {
    let Ok(gguf) = Gguf::from_bytes(FileBytes::Owned(data.to_vec())) else { return };
    for tensor in gguf.tensors().into_iter().flatten() {
        assert!(data.get(tensor.bytes.clone()).is_some(), "{tensor:?} of {} bytes", data.len());
        let elements: usize = tensor.shape.iter().product();
        assert!(elements == 0 || !tensor.bytes.is_empty(), "{tensor:?}");
    }
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        let Ok(file) = gguf.synthesize(name) else { continue };
        let file = file.unwrap_or_else(|| panic!("there is no {name}"));
        let json: Value = serde_json::from_slice(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(json.is_object(), "{name}");
        if name == "tokenizer.json" {
            let _ = Tokenizer::from_bytes(&file);
        }
    }
}
