//! A model in one GGUF file: its tensors under the names they have in a Hugging Face checkpoint, and the files
//! such a checkpoint has beside them, made from the metadata. Nobody else needs to know the format.

mod byte_level;
mod config;
mod element;
mod merges;
mod metadata;
mod names;
mod parse;
mod rope;
mod sentence_piece;
mod tokenizer;
mod vocabulary;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use thiserror::Error;

use crate::files::{self, FileBytes, FileError};
use parse::{Header, TensorInfo};

pub use element::ElementType;
pub use names::RowOrder;

/// The files that are made from the metadata.
pub(crate) const FILES: &[&str] =
    &["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];

/// A GGUF file that cannot be used; reads well after "read {file}: ".
#[derive(Debug, Error)]
pub enum GgufError {
    /// It is another kind of file.
    #[error("it begins with \"{found}\", expected \"GGUF\": this is no GGUF file")]
    Magic {
        /// Its first bytes.
        found: String,
    },
    /// Its version is not read.
    #[error("its version is {found}, expected 2 or 3 in little-endian order: convert the model again")]
    Version {
        /// The version it states.
        found: u32,
    },
    /// It ends too early.
    #[error(
        "{within} takes {needed} bytes from byte {at} on and the file has {length}: it is cut off or damaged, \
         copy it again"
    )]
    CutOff {
        /// What is not there as a whole.
        within: String,
        /// Where that begins.
        at: u64,
        /// How long it should be.
        needed: u64,
        /// The file's length.
        length: u64,
    },
    /// A number is beyond all sense.
    #[error("{what} is {found}, expected at most {limit}: the file is damaged")]
    TooLarge {
        /// The number.
        what: String,
        /// Its value.
        found: u64,
        /// The most that makes sense.
        limit: u64,
    },
    /// A value makes no model.
    #[error("{what} is {found}, expected {expected}")]
    Invalid {
        /// The value.
        what: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// Two things have one name.
    #[error("{what} {name} is there twice: the file is damaged")]
    Duplicate {
        /// What they are.
        what: &'static str,
        /// Their name.
        name: String,
    },
    /// A value is not there.
    #[error("{key} is not there, expected {expected}")]
    Missing {
        /// The metadata key or tensor.
        key: String,
        /// What it should be.
        expected: String,
    },
    /// The model has what is not implemented.
    #[error("{what} is {found}, supported is {supported}")]
    Unsupported {
        /// What it is about.
        what: String,
        /// What the file has.
        found: String,
        /// What works.
        supported: String,
    },
}

/// A GGUF file whose header was read and checked.
pub struct Gguf {
    file: Arc<FileBytes>,
    header: Header,
}

/// A tensor, seen as a Hugging Face checkpoint would have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name in a Hugging Face checkpoint; its own where it is not known.
    pub name: String,
    /// (rows, columns), or (columns)
    pub shape: Vec<usize>,
    /// The type of its elements; rows are whole blocks of it.
    pub element: ElementType,
    /// Where it lies in [`Gguf::file`]: within it, and at an even place.
    pub bytes: Range<usize>,
    /// In what order its rows (where it has no rows, its elements) lie.
    pub rows: RowOrder,
}

impl Gguf {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// When it cannot be read, or is no sound GGUF file.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::from_bytes(files::map(path)?)
            .map_err(|source| FileError::Gguf { path: path.to_path_buf(), source })
    }

    /// Reads the header of a whole file.
    ///
    /// # Errors
    /// When it is no sound GGUF file.
    pub fn from_bytes(bytes: FileBytes) -> Result<Self, GgufError> {
        let header = parse::header(&bytes)?;
        Ok(Self { file: Arc::new(bytes), header })
    }

    /// The whole file.
    pub fn file(&self) -> &Arc<FileBytes> {
        &self.file
    }

    /// All weights.
    ///
    /// # Errors
    /// When the metadata does not tell how they lie.
    pub fn tensors(&self) -> Result<Vec<GgufTensor>, GgufError> {
        let rotated = config::order_of_rotated_rows(&self.header)?;
        let weights = self.header.tensors.iter().filter(|(name, _)| *name != names::ROPE_FACTORS);
        Ok(weights
            .map(|(name, info)| GgufTensor {
                name: names::hugging_face(name),
                shape: info.shape.clone(),
                element: info.element,
                bytes: info.bytes.clone(),
                rows: if names::is_rotated(name) { rotated } else { RowOrder::Same },
            })
            .collect())
    }

    /// What the file of this name holds in a Hugging Face checkpoint, as JSON; `None` where there is none.
    ///
    /// # Errors
    /// When the metadata lacks what it takes or says what is not supported.
    pub fn synthesize(&self, name: &str) -> Result<Option<Vec<u8>>, GgufError> {
        let value: Value = match name {
            "config.json" => config::config(self)?,
            "generation_config.json" => tokenizer::generation_config(&self.header.metadata)?,
            "tokenizer.json" => tokenizer::tokenizer(&self.header.metadata)?,
            "tokenizer_config.json" => tokenizer::tokenizer_config(&self.header.metadata)?,
            _ => return Ok(None),
        };
        Ok(Some(value.to_string().into_bytes()))
    }

    /// A tensor of single-precision elements, by its own name.
    fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, GgufError> {
        let Some(TensorInfo { element, bytes, .. }) = self.header.tensors.get(name) else {
            return Ok(None);
        };
        if *element != ElementType::F32 {
            return Err(GgufError::Unsupported {
                what: format!("the element type of tensor {name}"),
                found: format!("{element:?}"),
                supported: "F32".to_owned(),
            });
        }
        let bytes = self.file.get(bytes.clone()).unwrap_or_default();
        Ok(Some(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
    }
}

#[cfg(test)]
mod tests;
