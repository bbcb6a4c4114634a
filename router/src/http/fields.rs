//! Taking a JSON object apart field by field: `null` is absent, and every complaint names its field.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// What becomes of fields that no interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFields {
    /// They are passed over: clients send extras.
    Ignore,
    /// The request is refused.
    Refuse,
}

/// The fields of an object that nobody has taken yet.
pub(super) struct Fields {
    rest: Map<String, Value>,
    unknown: UnknownFields,
    /// What the fields are in, such as `parameters`; empty for the body.
    place: Cow<'static, str>,
}

impl Fields {
    /// The fields of a body.
    pub(super) fn new(rest: Map<String, Value>, unknown: UnknownFields) -> Self {
        Self { rest, unknown, place: Cow::Borrowed("") }
    }

    /// The fields of an object that stands in these as `name`.
    pub(super) fn inside(&self, name: &'static str, rest: Map<String, Value>) -> Self {
        let place = match &*self.place {
            "" => Cow::Borrowed(name),
            outer => Cow::Owned(format!("{outer}.{name}")),
        };
        Self { rest, unknown: self.unknown, place }
    }

    /// Ends the reading: what is left is in no interface. Where such fields are refused, they are refused here.
    ///
    /// # Errors
    /// When a field is left that is not null.
    pub(super) fn refuse_rest(&self) -> Result<(), ApiError> {
        match self.unknown {
            UnknownFields::Ignore => Ok(()),
            UnknownFields::Refuse => match self.rest.iter().find(|(_, value)| !value.is_null()) {
                None => Ok(()),
                Some((name, _)) if self.place.is_empty() => Err(ApiError::unknown_field(name.clone())),
                Some((name, _)) => Err(ApiError::unknown_field(format!("{}.{name}", self.place))),
            },
        }
    }

    /// Takes fields that are marks for the operator's side: no answer depends on them.
    pub(super) fn pass_over(&mut self, names: &[&str]) {
        for name in names {
            self.take_value(name);
        }
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
        let rest = self.take(name)?.unwrap_or_default();
        Ok(self.inside(name, rest))
    }

    /// Whether a field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.rest.get(name).is_some_and(|value| !value.is_null())
    }

    /// A field's value as it is.
    pub(super) fn take_value(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        asked::note(&self.place, name);
        self.rest.shift_remove(name).filter(|value| !value.is_null())
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

/// Which fields a parser asks for, so that a test can compare them with those that are described.
#[cfg(test)]
pub(super) mod asked {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    /// Where a field stands, and its name.
    pub(in crate::http) type Asked = BTreeSet<(String, String)>;

    thread_local! {
        static ASKED: RefCell<Asked> = const { RefCell::new(Asked::new()) };
    }

    pub(super) fn note(place: &str, name: &str) {
        ASKED.with_borrow_mut(|asked| asked.insert((place.to_owned(), name.to_owned())));
    }

    /// What this thread has asked for since the last call.
    pub(in crate::http) fn take() -> Asked {
        ASKED.take()
    }
}
