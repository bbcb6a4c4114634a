//! For whom, how urgently and until when a sequence is computed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

/// Who a sequence is computed for. Tenants share the shards evenly, by tokens; the one without a name is a
/// tenant like any other.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// The tenant of this name.
    pub fn named(name: &str) -> Self {
        Self(name.into())
    }

    /// Its name; empty for the one without.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// How urgent a sequence is among those of its tenant: each unit is worth six seconds of waiting. So a
/// more urgent one goes first, and one that waits long enough goes before all that come later. It decides
/// nothing between tenants: who calls everything urgent gains nothing over others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(i8);

/// A priority is none of the words and no number in range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read a priority: found {found:?}, expected high, normal, low or a whole number from -100 to 100")]
pub struct PriorityError {
    found: String,
}

impl Priority {
    /// A minute ahead of normal.
    pub const HIGH: Self = Self(10);
    /// What counts where none is given.
    pub const NORMAL: Self = Self(0);
    /// A minute behind normal.
    pub const LOW: Self = Self(-10);

    /// Largest value, and the smallest with its sign turned.
    const MOST: i8 = 100;
    /// What a unit is worth.
    const UNIT_MS: i64 = 6_000;

    /// How much earlier than it did a sequence counts as having arrived.
    pub(crate) fn head_start_ms(self) -> i64 {
        i64::from(self.0) * Self::UNIT_MS
    }
}

impl FromStr for Priority {
    type Err = PriorityError;

    fn from_str(text: &str) -> Result<Self, PriorityError> {
        match text {
            "high" => return Ok(Self::HIGH),
            "normal" => return Ok(Self::NORMAL),
            "low" => return Ok(Self::LOW),
            _ => {}
        }
        let number = text.parse().ok().filter(|number| (-Self::MOST..=Self::MOST).contains(number));
        number.map(Self).ok_or_else(|| PriorityError { found: text.to_owned() })
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// For whom, how urgently and until when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// For whom.
    pub tenant: Tenant,
    /// How urgently, among the tenant's own.
    pub priority: Priority,
    /// When the answer is of no use any more; absent where it always is.
    pub deadline: Option<Instant>,
}
