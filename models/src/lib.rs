//! Which files make up a model and where they are: the embedded demo, a folder, a GGUF file, the Hub.

mod demo;
mod files;
pub mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
pub mod testing;

pub use files::{FileBytes, FileError, ModelFiles, is_named_gguf};
