//! Which files make up a model and where they are: the embedded demo, a folder, the Hub.

mod demo;
mod files;
#[cfg(feature = "hub")]
pub mod hub;

pub use files::{FileBytes, FileError, ModelFiles};
