//! A model's folder whose files are other ones each time.

use std::path::PathBuf;

use lockstep_models::ModelFiles;
use tempfile::TempDir;

pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("there is room for a folder"))
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).expect("there is room for a file");
    }

    pub(crate) fn files(&self) -> ModelFiles {
        ModelFiles::Folder(self.path())
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_path_buf()
    }
}
