//! Reads a GGUF file's header: metadata and where tensors lie. No byte of it is believed before it is checked
//! against the file's length, and nothing it says makes more memory be taken than a few times its size.

use std::collections::BTreeMap;
use std::ops::Range;

use super::metadata::{Metadata, Value};
use super::{ElementType, GgufError};

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;

/// Far more than any model has: a larger number is damage.
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;
/// Bytes of a name, of a text.
const MAX_NAME: u64 = 1 << 16;
const MAX_TEXT: u64 = 1 << 24;
/// List elements in all of a file: the largest vocabularies have some 300,000 tokens and twice as many merges.
const MAX_LIST_ELEMENTS: u64 = 1 << 23;
/// Lists within lists.
const MAX_DEPTH: u32 = 4;

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

/// A tensor as the file has it.
#[derive(Debug)]
pub(super) struct TensorInfo {
    /// (rows, columns), or (columns)
    pub(super) shape: Vec<usize>,
    pub(super) element: ElementType,
    /// Where it lies in the file; checked to be within it.
    pub(super) bytes: Range<usize>,
}

/// Reads the header of a whole file.
pub(super) fn header(file: &[u8]) -> Result<Header, GgufError> {
    let mut cursor = Cursor { file, at: 0, list_elements_left: MAX_LIST_ELEMENTS };
    let magic = cursor.take(4, "the magic number")?;
    if magic != MAGIC {
        return Err(GgufError::Magic { found: magic.escape_ascii().to_string() });
    }
    let version = cursor.u32("the version")?;
    if !matches!(version, 2 | 3) {
        return Err(GgufError::Version { found: version });
    }
    let tensor_count = cursor.u64("the number of tensors")?;
    let key_count = cursor.u64("the number of keys")?;
    at_most("the number of tensors", tensor_count, MAX_TENSORS)?;
    at_most("the number of keys", key_count, MAX_KEYS)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = cursor.text("a key", MAX_NAME)?;
        let kind = cursor.u32(&key)?;
        let value = cursor.value(kind, &key, MAX_DEPTH)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(GgufError::Duplicate { what: "key", name: key });
        }
    }
    let metadata = Metadata(metadata);
    let mut stated = Vec::new();
    for _ in 0..tensor_count {
        stated.push(cursor.tensor()?);
    }
    let data = aligned(cursor.at as u64, alignment(&metadata)?);
    let mut tensors = BTreeMap::new();
    for tensor in stated {
        let name = tensor.name.clone();
        let info = place(tensor, data, alignment(&metadata)?, file.len())?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(GgufError::Duplicate { what: "tensor", name });
        }
    }
    Ok(Header { metadata, tensors })
}

/// A tensor as the header states it, before it is checked.
struct StatedTensor {
    name: String,
    /// Columns first.
    dimensions: Vec<u64>,
    element: u32,
    /// From the beginning of all tensors' data.
    offset: u64,
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let found = metadata.unsigned(ALIGNMENT)?.unwrap_or(DEFAULT_ALIGNMENT);
    if found.is_power_of_two() && (8..=1 << 16).contains(&found) {
        return Ok(found);
    }
    Err(GgufError::Invalid {
        what: ALIGNMENT.to_owned(),
        found: found.to_string(),
        expected: "a power of two from 8 to 65536".to_owned(),
    })
}

fn aligned(at: u64, alignment: u64) -> u64 {
    at.div_ceil(alignment).saturating_mul(alignment)
}

/// Checks a tensor's type and size and finds its bytes.
fn place(tensor: StatedTensor, data: u64, alignment: u64, length: usize) -> Result<TensorInfo, GgufError> {
    let invalid = |what: &str, found: String, expected: &str| GgufError::Invalid {
        what: format!("{what} of tensor {}", tensor.name),
        found,
        expected: expected.to_owned(),
    };
    let element = ElementType::of(tensor.element).ok_or_else(|| GgufError::Unsupported {
        what: format!("the element type of tensor {}", tensor.name),
        found: ElementType::name_of(tensor.element),
        supported: ElementType::names(),
    })?;
    let columns = tensor.dimensions.first().copied().unwrap_or(1);
    let block = element.block_elements() as u64;
    if !columns.is_multiple_of(block) {
        return Err(invalid("the row length", columns.to_string(), &format!("a multiple of {block}")));
    }
    let dimensions = || format!("{:?}", tensor.dimensions);
    let elements = tensor.dimensions.iter().try_fold(1_u64, |all, size| all.checked_mul(*size));
    let bytes = elements.and_then(|elements| (elements / block).checked_mul(element.block_bytes() as u64));
    let Some(bytes) = bytes.filter(|bytes| *bytes > 0) else {
        return Err(invalid("the shape", dimensions(), "sizes of at least 1 that fit the file"));
    };
    if !tensor.offset.is_multiple_of(alignment) {
        return Err(invalid(
            "the offset",
            tensor.offset.to_string(),
            &format!("a multiple of {alignment}, the alignment"),
        ));
    }
    let start = data.saturating_add(tensor.offset);
    let end = start.saturating_add(bytes);
    if end > length as u64 {
        let within = format!("tensor {}", tensor.name);
        return Err(GgufError::CutOff { within, at: start, needed: bytes, length: length as u64 });
    }
    // What lies within the file fits a usize.
    let shape = tensor.dimensions.iter().rev().map(|size| *size as usize).collect();
    Ok(TensorInfo { shape, element, bytes: start as usize..end as usize })
}

fn at_most(what: &str, found: u64, limit: u64) -> Result<(), GgufError> {
    if found > limit {
        return Err(GgufError::TooLarge { what: what.to_owned(), found, limit });
    }
    Ok(())
}

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
    list_elements_left: u64,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64, within: &str) -> Result<&'a [u8], GgufError> {
        let rest = self.file.get(self.at..).unwrap_or_default();
        let taken = usize::try_from(count).ok().and_then(|count| rest.get(..count));
        let Some(taken) = taken else {
            return Err(GgufError::CutOff {
                within: within.to_owned(),
                at: self.at as u64,
                needed: count,
                length: self.file.len() as u64,
            });
        };
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, within: &str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, within)?);
        Ok(array)
    }

    fn u32(&mut self, within: &str) -> Result<u32, GgufError> {
        self.array(within).map(u32::from_le_bytes)
    }

    fn u64(&mut self, within: &str) -> Result<u64, GgufError> {
        self.array(within).map(u64::from_le_bytes)
    }

    fn text(&mut self, within: &str, limit: u64) -> Result<String, GgufError> {
        let length = self.u64(within)?;
        at_most(&format!("the length of {within}"), length, limit)?;
        let bytes = self.take(length, within)?;
        let text = std::str::from_utf8(bytes).map_err(|_| GgufError::Invalid {
            what: within.to_owned(),
            found: format!("\"{}\"", bytes.escape_ascii()),
            expected: "UTF-8".to_owned(),
        })?;
        Ok(text.to_owned())
    }

    /// A value of the kind that has this number.
    fn value(&mut self, kind: u32, key: &str, depth: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => Value::Flag(self.array::<1>(key)? != [0]),
            8 => Value::Text(self.text(key, MAX_TEXT)?),
            9 => self.list(key, depth)?,
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            _ => {
                return Err(GgufError::Invalid {
                    what: format!("the type of {key}"),
                    found: kind.to_string(),
                    expected: "0 to 12".to_owned(),
                });
            }
        })
    }

    fn list(&mut self, key: &str, depth: u32) -> Result<Value, GgufError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(GgufError::Invalid {
                what: key.to_owned(),
                found: format!("lists more than {MAX_DEPTH} deep"),
                expected: "fewer".to_owned(),
            });
        };
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        at_most(&format!("the length of {key}"), count, self.list_elements_left)?;
        self.list_elements_left -= count;
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(self.value(kind, key, depth)?);
        }
        Ok(Value::List(values))
    }

    fn tensor(&mut self) -> Result<StatedTensor, GgufError> {
        let name = self.text("a tensor's name", MAX_NAME)?;
        let count = self.u32(&name)?;
        at_most(
            &format!("the number of dimensions of tensor {name}"),
            count.into(),
            MAX_DIMENSIONS.into(),
        )?;
        let mut dimensions = Vec::new();
        for _ in 0..count {
            dimensions.push(self.u64(&name)?);
        }
        let element = self.u32(&name)?;
        let offset = self.u64(&name)?;
        Ok(StatedTensor { name, dimensions, element, offset })
    }
}
