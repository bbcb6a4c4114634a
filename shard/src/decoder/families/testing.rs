//! A model to test with where only its sizes matter.

use lockstep_models::ModelFiles;

use crate::decoder::spec::ModelSpec;
use crate::testing::TinyLlama;

/// The spec of a small Llama.
pub(in crate::decoder) fn plain_spec() -> ModelSpec {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(super::CONFIG), TinyLlama::new(0).config().to_string()).unwrap();
    ModelSpec::read(&ModelFiles::Folder(folder.path().to_owned())).unwrap()
}
