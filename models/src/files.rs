//! One way to read a model's files, wherever they are.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::demo;
use crate::gguf::{self, Gguf, GgufError};

/// How the name of a GGUF file ends.
const GGUF_SUFFIX: &str = ".gguf";

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelFiles {
    /// Compiled into this binary.
    EmbeddedDemo,
    /// In a local folder, in Hugging Face layout.
    Folder(PathBuf),
    /// One local GGUF file: weights, configuration and tokenizer.
    Gguf(PathBuf),
}

/// A file that is needed and cannot be had.
#[derive(Debug, Error)]
pub enum FileError {
    /// It is not there.
    #[error("find {name} in {place}: a model folder holds config.json, tokenizer.json and *.safetensors")]
    Missing {
        /// The file's name.
        name: String,
        /// Where it was looked for.
        place: String,
    },
    /// It is there and cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not the JSON that was expected.
    #[error("parse {name} in {place}: {source}")]
    Parse {
        /// The file's name.
        name: String,
        /// Where it is.
        place: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It is a GGUF file that cannot be used.
    #[error("read {path}: {source}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// Why.
        source: GgufError,
    },
}

/// A file's bytes. Of one that is mapped or embedded, reading a part touches that part only.
pub enum FileBytes {
    /// Part of the binary.
    Embedded(&'static [u8]),
    /// Mapped from disk.
    Mapped(Mmap),
    /// Made of what another file holds.
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Has the system read `bytes` from disk, front to back, where they are not in memory: what is then read here
    /// and there need not wait for the disk each time.
    pub fn prefetch(&self, bytes: Range<usize>) {
        if let Self::Mapped(map) = self
            && bytes.start < bytes.end
            && bytes.end <= map.len()
        {
            // Only speed depends on it.
            let _ = map.advise_range(Advice::WillNeed, bytes.start, bytes.len());
        }
    }

    /// Gives back the memory that pages wholly within `bytes` take in this process. They are read again when
    /// they are next used.
    pub fn release(&self, bytes: Range<usize>) {
        match self {
            Self::Embedded(_) | Self::Owned(_) => {}
            Self::Mapped(map) => {
                let (first, end) =
                    (bytes.start.next_multiple_of(PAGE_BYTES), bytes.end / PAGE_BYTES * PAGE_BYTES);
                if first >= end || end > map.len() {
                    return;
                }
                #[expect(
                    unsafe_code,
                    reason = "the advice drops pages, which only matters where they were written"
                )]
                // SAFETY: the mapping is of a file and is never written, so its pages come back as they were.
                // Only memory depends on it: a system that refuses keeps them.
                let _ =
                    unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, first, end - first) };
            }
        }
    }
}

/// Pages of any system this runs on are this long, or a part of it.
const PAGE_BYTES: usize = 64 << 10;

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Embedded(bytes) => bytes,
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl ModelFiles {
    /// The value that names these files on a command line; [`Self::from_argument`] reads it back.
    pub fn to_argument(&self) -> String {
        match self {
            Self::EmbeddedDemo => "demo".to_owned(),
            // A folder that is named like a GGUF file is told from one by a slash.
            Self::Folder(path) if is_named_gguf(path) => format!("{}/", path.display()),
            Self::Folder(path) | Self::Gguf(path) => path.display().to_string(),
        }
    }

    /// Reads what [`Self::to_argument`] wrote.
    pub fn from_argument(argument: &str) -> Self {
        match argument {
            "demo" => Self::EmbeddedDemo,
            path if path.ends_with(GGUF_SUFFIX) => Self::Gguf(PathBuf::from(path)),
            path => Self::Folder(PathBuf::from(path)),
        }
    }

    /// Names of the files ending in `suffix`, sorted.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn names_ending_in(&self, suffix: &str) -> Result<Vec<String>, FileError> {
        let mut names: Vec<String> = match self {
            Self::EmbeddedDemo => demo::FILES.iter().map(|(name, _)| (*name).to_owned()).collect(),
            Self::Folder(folder) => list(folder)?,
            Self::Gguf(_) => gguf::FILES.iter().map(|name| (*name).to_owned()).collect(),
        };
        names.retain(|name| name.ends_with(suffix));
        names.sort();
        Ok(names)
    }

    /// Names of the files in the folder `inner`, sorted; none when there is no such folder.
    ///
    /// # Errors
    /// When it is there and cannot be listed.
    pub fn names_within(&self, inner: &str) -> Result<Vec<String>, FileError> {
        let Self::Folder(folder) = self else { return Ok(Vec::new()) };
        let inner = folder.join(inner);
        let mut names = if inner.is_dir() { list(&inner)? } else { Vec::new() };
        names.sort();
        Ok(names)
    }

    /// The file's bytes, or `None` when there is no such file.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(&self, name: &str) -> Result<Option<FileBytes>, FileError> {
        match self {
            Self::EmbeddedDemo => {
                let found = demo::FILES.iter().find(|(candidate, _)| *candidate == name);
                Ok(found.map(|(_, bytes)| FileBytes::Embedded(bytes)))
            }
            Self::Folder(folder) => map_if_there(&folder.join(name)),
            Self::Gguf(_) if !gguf::FILES.contains(&name) => Ok(None),
            Self::Gguf(path) => {
                let bytes = Gguf::open(path)?.synthesize(name);
                let bytes = bytes.map_err(|source| FileError::Gguf { path: path.clone(), source })?;
                Ok(bytes.map(FileBytes::Owned))
            }
        }
    }

    /// The GGUF file, with its header read, or `None` when the model is no such file.
    ///
    /// # Errors
    /// When it cannot be read or is no sound GGUF file.
    pub fn gguf(&self) -> Result<Option<Gguf>, FileError> {
        match self {
            Self::EmbeddedDemo | Self::Folder(_) => Ok(None),
            Self::Gguf(path) => Gguf::open(path).map(Some),
        }
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn require(&self, name: &str) -> Result<FileBytes, FileError> {
        self.open(name)?
            .ok_or_else(|| FileError::Missing { name: name.to_owned(), place: self.to_string() })
    }

    /// The file parsed as JSON, or `None` when there is no such file.
    ///
    /// # Errors
    /// When it cannot be read or is not such JSON.
    pub fn open_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FileError> {
        let Some(bytes) = self.open(name)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|source| FileError::Parse {
            name: name.to_owned(),
            place: self.to_string(),
            source,
        })
    }

    /// The file parsed as JSON.
    ///
    /// # Errors
    /// When it is not there, cannot be read or is not such JSON.
    pub fn require_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, FileError> {
        self.open_json(name)?
            .ok_or_else(|| FileError::Missing { name: name.to_owned(), place: self.to_string() })
    }
}

impl fmt::Display for ModelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmbeddedDemo => f.write_str("the embedded demo model"),
            Self::Folder(path) | Self::Gguf(path) => path.display().fmt(f),
        }
    }
}

/// Whether a path ends as the names of GGUF files do.
pub fn is_named_gguf(path: &Path) -> bool {
    path.to_string_lossy().ends_with(GGUF_SUFFIX)
}

fn list(folder: &Path) -> Result<Vec<String>, FileError> {
    let failed = |source| FileError::Read { path: folder.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// The whole file, mapped.
pub(crate) fn map(path: &Path) -> Result<FileBytes, FileError> {
    let failed = |source| FileError::Read { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(failed)?;
    #[expect(unsafe_code, reason = "mapping a file is how weights are read in part")]
    // SAFETY: the mapping is read-only and private to this process. Model files are not changed while they
    // are served; one that is truncated under us ends the process with SIGBUS, which the launcher handles
    // like any other death of a rank.
    let mapped = unsafe { Mmap::map(&file) };
    mapped.map(FileBytes::Mapped).map_err(failed)
}

/// The whole file, mapped, or `None` when there is no such file.
fn map_if_there(path: &Path) -> Result<Option<FileBytes>, FileError> {
    match map(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_names_the_same_files_again() {
        let path = PathBuf::from;
        for files in [
            ModelFiles::EmbeddedDemo,
            ModelFiles::Folder(path("/models/a")),
            ModelFiles::Folder(path("/models/b.gguf")),
            ModelFiles::Gguf(path("/models/b.gguf")),
        ] {
            assert_eq!(ModelFiles::from_argument(&files.to_argument()), files);
        }
    }

    #[test]
    fn a_missing_file_says_what_a_model_folder_holds() {
        let files = ModelFiles::Folder(PathBuf::from("/nonexistent"));
        let Err(error) = files.require("config.json") else { panic!("found a file in /nonexistent") };
        let expected = "find config.json in /nonexistent: \
                        a model folder holds config.json, tokenizer.json and *.safetensors";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn the_demo_model_is_whole() {
        let demo = ModelFiles::EmbeddedDemo;
        for name in ["config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json"] {
            assert!(demo.require(name).is_ok_and(|bytes| !bytes.is_empty()), "{name}");
        }
    }
}
