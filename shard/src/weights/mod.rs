//! A checkpoint's tensors, read in part and checked as a whole: one that is missing, has another shape or is
//! not used is an error that names it.

mod blocks;
mod packed_blocks;
mod stacked;
mod tensor;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use lockstep_models::gguf::{Gguf, GgufError, RowOrder};
use lockstep_models::{FileBytes, FileError, ModelFiles};
use safetensors::{Dtype as StoredDtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use thiserror::Error;

pub(crate) use packed_blocks::format_of;
pub(crate) use stacked::{GateBesideUp, StackedRows};
pub(crate) use tensor::{Element, StoredTensor};

/// Ends of names that older checkpoints carry and nothing needs.
const LEFTOVERS: &[&str] = &[".rotary_emb.inv_freq"];

/// Ends of names of files that hold weights in formats that are not read.
const OTHER_FORMATS: &[&str] = &[".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx"];

/// Names in an error before the rest is counted only.
const NAMES_SHOWN: usize = 8;

/// Bytes of a safetensors file before its header.
const HEADER_LENGTH_BYTES: usize = 8;

/// A checkpoint that cannot be used.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// A file is missing or cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no weight file.
    #[error(
        "find weights in {place}: found {found}, expected model.safetensors, or parts of it with \
         model.safetensors.index.json; PyTorch files are converted by transformers' save_pretrained"
    )]
    NoWeights {
        /// Where they were looked for.
        place: String,
        /// Files there that hold weights in another format.
        found: String,
    },
    /// A file is not what its name says.
    #[error(
        "parse {file}: {source}; its {size} bytes are cut off, damaged or never fetched: download it again"
    )]
    Format {
        /// The file's name.
        file: String,
        /// Its size in bytes.
        size: usize,
        /// What is wrong with it.
        source: SafeTensorError,
    },
    /// A GGUF file does not tell how its tensors lie.
    #[error("read {file}: {source}")]
    Gguf {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: GgufError,
    },
    /// Tensors the model needs are not there.
    #[error("find tensors {names}: the checkpoint does not have them")]
    Missing {
        /// Names and shapes.
        names: String,
    },
    /// Tensors have other shapes than config.json says.
    #[error("read tensors {names}: config.json says otherwise")]
    Shapes {
        /// Names, shapes found and shapes expected.
        names: String,
    },
    /// Tensors are there that the model does not use.
    #[error("use tensors {names}: this architecture has no place for them")]
    Unused {
        /// Names and shapes.
        names: String,
    },
    /// A tensor's elements are of a type that is not read.
    #[error("read tensor {name}: its elements are {found}, expected BF16, F16 or F32")]
    Element {
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
    },
}

/// The tensors of all of a model's files.
pub(crate) struct Checkpoint {
    tensors: BTreeMap<String, Stored>,
}

struct Stored {
    file: Arc<FileBytes>,
    bytes: Range<usize>,
    element: StoredElement,
    shape: Vec<usize>,
    order: RowOrder,
}

/// A type of elements, which matters only where a tensor is used.
#[derive(Clone, Copy)]
enum StoredElement {
    Read(Element),
    NotRead(StoredDtype),
}

/// model.safetensors.index.json.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Reads the headers of all weight files; elements are read where they are used.
    ///
    /// # Errors
    /// When there are no weight files, or one cannot be read or parsed.
    pub(crate) fn open(files: &ModelFiles) -> Result<Self, WeightsError> {
        if let Some(gguf) = files.gguf()? {
            return Self::of_gguf(files, &gguf);
        }
        let mut tensors = BTreeMap::new();
        for name in file_names(files)? {
            let file = Arc::new(files.require(&name)?);
            let parsed = SafeTensors::read_metadata(&file);
            let (header, metadata) =
                parsed.map_err(|source| WeightsError::Format { file: name, size: file.len(), source })?;
            let data = header + HEADER_LENGTH_BYTES;
            for key in metadata.offset_keys() {
                let Some(info) = metadata.info(&key) else { continue };
                let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
                let element =
                    Element::of(info.dtype).map_or(StoredElement::NotRead(info.dtype), StoredElement::Read);
                let (file, shape) = (file.clone(), info.shape.clone());
                tensors.insert(key, Stored { file, bytes, element, shape, order: RowOrder::Same });
            }
        }
        Ok(Self { tensors })
    }

    fn of_gguf(files: &ModelFiles, gguf: &Gguf) -> Result<Self, WeightsError> {
        let tensors =
            gguf.tensors().map_err(|source| WeightsError::Gguf { file: files.to_string(), source })?;
        let stored = tensors.into_iter().map(|tensor| {
            let stored = Stored {
                file: gguf.file().clone(),
                bytes: tensor.bytes,
                element: StoredElement::Read(Element::of_gguf(tensor.element)),
                shape: tensor.shape,
                order: tensor.rows,
            };
            (tensor.name, stored)
        });
        Ok(Self { tensors: stored.collect() })
    }

    /// Checks that the checkpoint has exactly these tensors, beside known leftovers and what `tolerated`
    /// names.
    ///
    /// # Errors
    /// Names what is missing, what has another shape, or what is left over.
    pub(crate) fn check(
        &self,
        expected: &BTreeMap<String, Vec<usize>>,
        tolerated: &[&str],
    ) -> Result<(), WeightsError> {
        let missing = expected.iter().filter(|(name, _)| !self.tensors.contains_key(*name));
        let names = list(missing.map(|(name, shape)| format!("{name} {shape:?}")));
        if !names.is_empty() {
            return Err(WeightsError::Missing { names });
        }
        let mut reshaped = Vec::new();
        for (name, shape) in expected {
            let found = &self.tensors[name].shape;
            if found != shape {
                reshaped.push(format!("{name} {found:?} (expected {shape:?})"));
            }
        }
        if !reshaped.is_empty() {
            return Err(WeightsError::Shapes { names: list(reshaped.into_iter()) });
        }
        let unused = self.tensors.iter().filter(|(name, _)| {
            let tolerable =
                tolerated.contains(&name.as_str()) || LEFTOVERS.iter().any(|end| name.ends_with(end));
            !expected.contains_key(*name) && !tolerable
        });
        let names = list(unused.map(|(name, stored)| format!("{name} {:?}", stored.shape)));
        if names.is_empty() { Ok(()) } else { Err(WeightsError::Unused { names }) }
    }

    /// One tensor.
    ///
    /// # Errors
    /// When there is none of that name or its elements are of a type that is not read.
    pub(crate) fn tensor(&self, name: &str) -> Result<StoredTensor, WeightsError> {
        let Some(stored) = self.tensors.get(name) else {
            return Err(WeightsError::Missing { names: name.to_owned() });
        };
        let element = match stored.element {
            StoredElement::Read(element) => element,
            StoredElement::NotRead(dtype) => {
                let (name, found) = (name.to_owned(), format!("{dtype:?}"));
                return Err(WeightsError::Element { name, found });
            }
        };
        let (file, bytes) = (stored.file.clone(), stored.bytes.clone());
        Ok(StoredTensor::new(file, bytes, element, &stored.shape, stored.order))
    }
}

/// The tensors a GGUF file holds in blocks, by name; none of other files.
///
/// # Errors
/// When the file cannot be read or its metadata does not tell how its tensors lie.
pub(crate) fn stored_blocks(files: &ModelFiles) -> Result<BTreeMap<String, GgmlDType>, FileError> {
    let ModelFiles::Gguf(path) = files else { return Ok(BTreeMap::new()) };
    let tensors =
        Gguf::open(path)?.tensors().map_err(|source| FileError::Gguf { path: path.clone(), source })?;
    let in_blocks = tensors.into_iter().filter_map(|tensor| match Element::of_gguf(tensor.element) {
        Element::Blocks(dtype) => Some((tensor.name, dtype)),
        Element::Bf16 | Element::F16 | Element::F32 => None,
    });
    Ok(in_blocks.collect())
}

fn file_names(files: &ModelFiles) -> Result<Vec<String>, WeightsError> {
    if let Some(index) = files.open_json::<Index>("model.safetensors.index.json")? {
        let mut names: Vec<String> = index.weight_map.into_values().collect();
        names.sort();
        names.dedup();
        return Ok(names);
    }
    let names = files.names_ending_in(".safetensors")?;
    match names.iter().find(|name| *name == "model.safetensors") {
        Some(whole) => Ok(vec![whole.clone()]),
        None if names.is_empty() => Err(no_weights(files)?),
        None => Ok(names),
    }
}

fn no_weights(files: &ModelFiles) -> Result<WeightsError, FileError> {
    let mut found = files.names_ending_in("")?;
    found.retain(|name| OTHER_FORMATS.iter().any(|end| name.ends_with(end)));
    let found = if found.is_empty() { "none".to_owned() } else { list(found.into_iter()) };
    Ok(WeightsError::NoWeights { place: files.to_string(), found })
}

/// The first few names, and how many more there are.
fn list(mut names: impl Iterator<Item = String>) -> String {
    let shown: Vec<String> = names.by_ref().take(NAMES_SHOWN).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests;
