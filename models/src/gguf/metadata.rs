//! A GGUF file's metadata: values by key, taken out as what they must be.

use std::collections::BTreeMap;

use super::GgufError;

/// A metadata value; integers and floats of all widths are one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Flag(bool),
    Text(String),
    List(Vec<Value>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Flag(_) => "a flag",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
        }
    }

    fn as_unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            Self::Float(_) | Self::Flag(_) | Self::Text(_) | Self::List(_) => None,
        }
    }

    fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            Self::Unsigned(value) => Some(*value as f64),
            Self::Signed(value) => Some(*value as f64),
            Self::Flag(_) | Self::Text(_) | Self::List(_) => None,
        }
    }

    fn as_flag(&self) -> Option<bool> {
        match self {
            Self::Flag(value) => Some(*value),
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) | Self::Text(_) | Self::List(_) => None,
        }
    }

    fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(value) => Some(value),
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) | Self::Flag(_) | Self::List(_) => None,
        }
    }

    fn as_list(&self) -> Option<&[Value]> {
        match self {
            Self::List(values) => Some(values),
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) | Self::Flag(_) | Self::Text(_) => None,
        }
    }
}

/// All values by key. A value that is absent is `None`; one that is something else than asked for is an
/// error that names its key.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Metadata(pub(super) BTreeMap<String, Value>);

impl Metadata {
    pub(super) fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.get(key, "an integer of at least 0", Value::as_unsigned)
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.get(key, "a float", Value::as_float)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.get(key, "a flag", Value::as_flag)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.get(key, "text", Value::as_text)
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        self.list(key, "a list of texts", Value::as_text)
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f64>>, GgufError> {
        self.list(key, "a list of floats", Value::as_float)
    }

    pub(super) fn unsigneds(&self, key: &str) -> Result<Option<Vec<u64>>, GgufError> {
        self.list(key, "a list of integers of at least 0", Value::as_unsigned)
    }

    /// One number for all layers, written once or as a list of equal ones.
    pub(super) fn unsigned_of_all_layers(&self, key: &str) -> Result<Option<u64>, GgufError> {
        if self.0.get(key).is_none_or(|value| value.as_list().is_none()) {
            return self.unsigned(key);
        }
        let values = self.unsigneds(key)?.unwrap_or_default();
        match values.split_first() {
            Some((first, rest)) if rest.iter().all(|value| value == first) => Ok(Some(*first)),
            Some(_) | None => Err(GgufError::Unsupported {
                what: key.to_owned(),
                found: "a list that differs from layer to layer".to_owned(),
                supported: "one number for all layers".to_owned(),
            }),
        }
    }

    /// What `found` gives, or an error that says what was expected under `key`.
    pub(super) fn require<T>(key: &str, found: Option<T>, expected: &str) -> Result<T, GgufError> {
        found.ok_or_else(|| GgufError::Missing { key: key.to_owned(), expected: expected.to_owned() })
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| GgufError::Invalid {
            what: key.to_owned(),
            found: value.kind().to_owned(),
            expected: expected.to_owned(),
        })
    }

    fn list<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        self.get(key, expected, |value| value.as_list()?.iter().map(&read).collect())
    }
}
