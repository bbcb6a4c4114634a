//! Taking a JSON object apart field by field: `null` is absent, and every complaint names its field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// The fields of an object that nobody has taken yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn new(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// A field's value, if it is there.
    ///
    /// # Errors
    /// When it is of another type.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>, ApiError> {
        match self.take_value(name) {
            None => Ok(None),
            Some(value) => {
                let parsed = serde_json::from_value(value);
                parsed.map(Some).map_err(|error| ApiError::invalid(name, format_args!("`{name}`: {error}")))
            }
        }
    }

    /// A field's value.
    ///
    /// # Errors
    /// When it is missing or of another type.
    pub(super) fn require<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T, ApiError> {
        self.take(name)?.ok_or_else(|| ApiError::invalid(name, format_args!("missing field `{name}`")))
    }

    /// A field that is off where it is absent.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        Ok(self.take(name)?.unwrap_or(false))
    }

    /// The fields of an object; none where it is absent.
    pub(super) fn object(&mut self, name: &'static str) -> Result<Self, ApiError> {
        Ok(Self(self.take(name)?.unwrap_or_default()))
    }

    /// Whether a field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }

    /// A field's value as it is.
    pub(super) fn take_value(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Refuses a field that this server does not serve, unless its value changes nothing.
    pub(super) fn refuse_unless(
        &mut self,
        name: &'static str,
        is_neutral: impl FnOnce(&Value) -> bool,
    ) -> Result<(), ApiError> {
        match self.take_value(name) {
            Some(value) if !is_neutral(&value) => Err(ApiError::unsupported(name)),
            Some(_) | None => Ok(()),
        }
    }
}
