//! Who gets a place among the requests under way, and what a request says of its service.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::http::request::Parts;
use lockstep_scheduler::{Priority, Service, Tenant};

use super::auth::KeyName;
use super::excerpt::excerpt;
use crate::error::ApiError;

/// Longest name of a tenant, in bytes.
const TENANT_BYTES: usize = 256;
/// How long a tenant counts as present after its last request.
const PRESENT: Duration = Duration::from_secs(600);
/// Most tenants that are remembered.
const MOST_TENANTS: usize = 1_000;
/// Where there are several tenants, one place in so many is kept from those that have their share.
const KEPT: usize = 4;
/// Longest time a client is told to stay away, in seconds.
const LONGEST_RETRY_AFTER_S: u32 = 600;
/// Longest time a request may ask for, in seconds: a year.
const LONGEST_TIMEOUT_S: f64 = 31_536_000.0;

/// Places for requests under way. One tenant alone may have all of them; where several come, those that
/// have an even share leave a quarter of the places to those that have less. So one that floods fills
/// three quarters of them, and others still get in.
#[derive(Debug)]
pub struct Places {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    tenants: BTreeMap<Tenant, Presence>,
}

#[derive(Clone, Copy, Debug)]
struct Presence {
    places: usize,
    last: Instant,
}

/// The places of one request, one for each of its sequences; dropping it gives them back.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    tenant: Tenant,
    count: usize,
}

impl Places {
    /// So many, all free.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: Mutex::new(Held::default()) })
    }

    /// `count` places for `tenant`, at least one, if it may have them.
    pub fn take(self: &Arc<Self>, tenant: &Tenant, count: usize, now: Instant) -> Option<Place> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.note(tenant, now);
        let Held { total, tenants } = &mut *held;
        let present = tenants.values().filter(|presence| presence.is_present(now)).count();
        let mine = tenants.get_mut(tenant)?;
        // The last of them decides.
        let others = count.saturating_sub(1);
        if *total + others >= self.most(present, mine.places + others) {
            return None;
        }
        mine.places += count;
        *total += count;
        Some(Place { places: Arc::clone(self), tenant: tenant.clone(), count })
    }

    /// `count` places for `tenant`, at least one, whether or not there are any: of a request that had its places before.
    pub fn take_again(self: &Arc<Self>, tenant: &Tenant, count: usize, now: Instant) -> Place {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.note(tenant, now);
        if let Some(presence) = held.tenants.get_mut(tenant) {
            presence.places += count;
        }
        held.total += count;
        Place { places: Arc::clone(self), tenant: tenant.clone(), count }
    }

    /// Places taken in all that a tenant which has `mine` may bring it to.
    fn most(&self, present: usize, mine: usize) -> usize {
        let share = self.limit.div_ceil(present.max(1));
        if present <= 1 || mine < share { self.limit } else { self.limit - self.limit / KEPT }
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl Held {
    fn note(&mut self, tenant: &Tenant, now: Instant) {
        if let Some(presence) = self.tenants.get_mut(tenant) {
            presence.last = now;
            return;
        }
        if self.tenants.len() >= MOST_TENANTS {
            self.tenants.retain(|_, presence| presence.places > 0);
        }
        self.tenants.insert(tenant.clone(), Presence { places: 0, last: now });
    }
}

impl Presence {
    fn is_present(&self, now: Instant) -> bool {
        self.places > 0 || now.saturating_duration_since(self.last) < PRESENT
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total -= self.count;
        if let Some(presence) = held.tenants.get_mut(&self.tenant) {
            presence.places -= self.count;
        }
    }
}

/// When to try again, where what is queued should take `queue_time`: whole seconds, at least one.
pub fn retry_after_s(queue_time: Duration) -> u32 {
    let seconds = queue_time.as_secs_f64().ceil().clamp(1.0, f64::from(LONGEST_RETRY_AFTER_S));
    seconds as u32
}

/// A number of seconds as a time to wait; `None` where it is no number above 0.
pub fn parse_timeout(seconds: f64) -> Option<Duration> {
    (seconds > 0.0).then(|| Duration::from_secs_f64(seconds.min(LONGEST_TIMEOUT_S)))
}

/// What a request says of its service: its key's name, or without keys `x-tenant`; `x-priority`; `x-request-timeout`, or
/// `timeout`, counted from `arrived`.
///
/// # Errors
/// When a header makes no sense.
pub(super) fn service(
    parts: &Parts,
    timeout: Option<Duration>,
    arrived: Instant,
) -> Result<Service, ApiError> {
    let named = text(&parts.headers, "x-tenant")?;
    if let Some(name) = named.filter(|name| name.len() > TENANT_BYTES) {
        let message = format!("`x-tenant` must have at most {TENANT_BYTES} bytes. Given: {}", name.len());
        return Err(ApiError::invalid("x-tenant", message));
    }
    // Who has one key has one share, whatever names it thinks of.
    let key = parts.extensions.get::<KeyName>().map(|key| &*key.0);
    let tenant = key.or(named).map_or_else(Tenant::default, Tenant::named);
    let priority = match text(&parts.headers, "x-priority")? {
        None => Priority::NORMAL,
        Some(word) => word.to_ascii_lowercase().parse().map_err(|_| {
            let message = format!(
                "`x-priority` must be high, normal, low or a whole number from -100 to 100. Given: {}",
                excerpt(word)
            );
            ApiError::invalid("x-priority", message)
        })?,
    };
    let timeout = match text(&parts.headers, "x-request-timeout")? {
        None => timeout,
        Some(seconds) => {
            let parsed = seconds.parse().ok().and_then(parse_timeout);
            Some(parsed.ok_or_else(|| {
                let message = format!(
                    "`x-request-timeout` must be a number of seconds above 0. Given: {}",
                    excerpt(seconds)
                );
                ApiError::invalid("x-request-timeout", message)
            })?)
        }
    };
    Ok(Service { tenant, priority, deadline: timeout.and_then(|timeout| arrived.checked_add(timeout)) })
}

/// The name of a tenant that has one.
pub(super) fn name_of(tenant: &Tenant) -> Option<&str> {
    Some(tenant.name()).filter(|name| !name.is_empty())
}

/// A header that is true or false.
///
/// # Errors
/// When it is neither.
pub(super) fn flag(headers: &HeaderMap, name: &'static str) -> Result<Option<bool>, ApiError> {
    let Some(word) = text(headers, name)? else { return Ok(None) };
    match word.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(Some(true)),
        "false" | "0" => Ok(Some(false)),
        _ => {
            let message = format!("`{name}` must be true or false. Given: {}", excerpt(word));
            Err(ApiError::invalid(name, message))
        }
    }
}

/// A header's text; an empty one is absent.
fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, ApiError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| ApiError::invalid(name, format_args!("`{name}` must be UTF-8 text")))?;
    Ok(Some(text.trim()).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenant_alone_may_have_every_place() {
        let (places, now) = (Places::new(4), Instant::now());
        let alone = Tenant::default();
        let mut taken: Vec<_> = (0..4).map(|_| places.take(&alone, 1, now).unwrap()).collect();
        assert!(places.take(&alone, 1, now).is_none());
        taken.pop();
        assert!(places.take(&alone, 1, now).is_some());
        assert_eq!(places.taken(), 3);
    }

    #[test]
    fn a_flood_leaves_places_to_others() {
        let (places, now) = (Places::new(8), Instant::now());
        let [flood, quiet, late] = ["flood", "quiet", "late"].map(Tenant::named);
        drop(places.take(&quiet, 1, now));
        let flooding: Vec<_> = std::iter::from_fn(|| places.take(&flood, 1, now)).collect();
        assert_eq!(flooding.len(), 6);
        let quiet_place = places.take(&quiet, 1, now).unwrap();
        let late_place = places.take(&late, 1, now).unwrap();
        assert!(places.take(&quiet, 1, now).is_none(), "all are taken");
        drop((quiet_place, late_place));
        assert!(places.take(&flood, 1, now).is_none(), "what was left to others is left to others again");
        // Nobody else has been here for a while.
        drop(flooding);
        let later = now + PRESENT;
        assert_eq!(std::iter::from_fn(|| places.take(&flood, 1, later)).map(std::mem::forget).count(), 8);
    }

    #[test]
    fn who_had_a_place_has_one_again() {
        let (places, now) = (Places::new(2), Instant::now());
        let tenant = Tenant::default();
        let again: Vec<_> = (0..3).map(|_| places.take_again(&tenant, 1, now)).collect();
        assert_eq!(places.taken(), 3);
        assert!(places.take(&tenant, 1, now).is_none(), "others wait until there is room");
        drop(again);
        assert_eq!(places.taken(), 0);
        assert!(places.take(&tenant, 1, now).is_some());
    }

    #[test]
    fn retry_after_is_the_time_of_the_queue() {
        let cases = [(0, 1), (900, 1), (1_001, 2), (42_000, 42), (u64::MAX, LONGEST_RETRY_AFTER_S)];
        for (milliseconds, expected) in cases {
            assert_eq!(retry_after_s(Duration::from_millis(milliseconds)), expected);
        }
    }

    #[test]
    fn timeouts_are_positive_numbers() {
        assert_eq!(parse_timeout(1.5), Some(Duration::from_millis(1_500)));
        assert!(parse_timeout(f64::INFINITY).is_some());
        assert_eq!([0.0, -1.0, f64::NAN].map(parse_timeout), [None, None, None]);
    }
}
