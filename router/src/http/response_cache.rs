//! Answers kept for requests that would get the same bytes again: bounded, the least recently used goes
//! first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use axum::http::HeaderMap;
use serde_json::{Map, Value};

/// What an entry costs besides its bytes.
const ENTRY_BYTES: usize = 1_024;
/// An answer may take one part in so many of the cache.
const LARGEST_SHARE: usize = 8;

/// A request, whole, in one spelling: two keys are equal only if the requests are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheKey(Arc<str>);

/// An answer as it was sent.
#[derive(Clone, Debug, Default)]
pub struct CachedAnswer {
    /// Headers, those that are the server's left out.
    pub headers: HeaderMap,
    /// The body: one piece for a whole answer, one for each event of a stream.
    pub pieces: Vec<Bytes>,
}

/// Answers by request.
#[derive(Debug)]
pub struct ResponseCache {
    capacity_bytes: usize,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: BTreeMap<CacheKey, Entry>,
    /// Least recently used first.
    by_use: BTreeMap<u64, CacheKey>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Arc<CachedAnswer>,
    bytes: usize,
    last_use: u64,
}

impl CacheKey {
    /// The key of a JSON request to `path`, from the tenant `tenant`, to a server of this `fingerprint`.
    ///
    /// The order of fields and of parameters makes no difference. What is inside of one may: properties of a
    /// schema are answered in their order, and templates write objects in theirs.
    pub fn new(path: &str, tenant: &str, fingerprint: &str, body: &Value) -> Self {
        let parts = [path, tenant, fingerprint].map(Value::from);
        let body = with_sorted_names(body, |name, value| match name {
            "parameters" => with_sorted_names(value, |_, parameter| parameter.clone()),
            _ => value.clone(),
        });
        let whole = Value::Array(parts.into_iter().chain([body]).collect());
        Self(whole.to_string().into())
    }
}

/// An object's fields in the order of their names, each as `spell` writes it; anything else as it is.
fn with_sorted_names(value: &Value, spell: impl Fn(&str, &Value) -> Value) -> Value {
    let Value::Object(fields) = value else { return value.clone() };
    let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
    let spelt = sorted.into_iter().map(|(name, value)| (name.clone(), spell(name, value)));
    Value::Object(spelt.collect::<Map<_, _>>())
}

impl ResponseCache {
    /// An empty cache; one of no bytes keeps nothing.
    pub fn new(capacity_bytes: usize) -> Self {
        Self { capacity_bytes, entries: Mutex::default() }
    }

    /// Whether it keeps anything.
    pub fn is_enabled(&self) -> bool {
        self.capacity_bytes > 0
    }

    /// Bytes of the longest answer it keeps.
    pub fn largest_answer_bytes(&self) -> usize {
        self.capacity_bytes / LARGEST_SHARE
    }

    /// The answer to a request that was answered before.
    pub fn get(&self, key: &CacheKey) -> Option<Arc<CachedAnswer>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let Entries { by_key, by_use, uses, .. } = &mut *entries;
        let entry = by_key.get_mut(key)?;
        *uses += 1;
        by_use.remove(&entry.last_use);
        by_use.insert(*uses, key.clone());
        entry.last_use = *uses;
        Some(Arc::clone(&entry.answer))
    }

    /// Keeps an answer, unless it is too long; others make room.
    pub fn insert(&self, key: CacheKey, answer: CachedAnswer) {
        let body: usize = answer.pieces.iter().map(Bytes::len).sum();
        let bytes = body + key.0.len() + ENTRY_BYTES;
        if bytes > self.largest_answer_bytes() {
            return;
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.remove(&key);
        while entries.bytes + bytes > self.capacity_bytes {
            let Some((_, oldest)) = entries.by_use.pop_first() else { break };
            entries.remove(&oldest);
        }
        entries.uses += 1;
        let last_use = entries.uses;
        entries.by_use.insert(last_use, key.clone());
        entries.bytes += bytes;
        entries.by_key.insert(key, Entry { answer: Arc::new(answer), bytes, last_use });
    }
}

impl Entries {
    fn remove(&mut self, key: &CacheKey) {
        if let Some(entry) = self.by_key.remove(key) {
            self.by_use.remove(&entry.last_use);
            self.bytes -= entry.bytes;
        }
    }
}

/// Whether equal requests get equal bytes: nothing is sampled, or with a seed. Where it cannot be told
/// from the request alone, it is not.
pub fn is_deterministic(body: &Value) -> bool {
    let given = |fields: &Value, name: &str| fields.get(name).filter(|value| !value.is_null()).cloned();
    let Some(_) = given(body, "inputs") else {
        // OpenAI's routes sample unless they are told not to.
        let is_greedy = given(body, "temperature").and_then(|value| value.as_f64()) == Some(0.0);
        return is_greedy || given(body, "seed").is_some();
    };
    let Some(parameters) = given(body, "parameters") else { return true };
    let samples = given(&parameters, "do_sample").is_some_and(|value| value != Value::Bool(false))
        || ["temperature", "top_k", "top_p", "typical_p", "min_p"]
            .iter()
            .any(|name| given(&parameters, name).is_some());
    !samples || given(&parameters, "seed").is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> CacheKey {
        CacheKey::new("/generate", "", "f", &json!({"inputs": name}))
    }

    fn answer(bytes: usize) -> CachedAnswer {
        CachedAnswer { pieces: vec![Bytes::from(vec![b'a'; bytes])], ..CachedAnswer::default() }
    }

    #[test]
    fn what_is_used_least_recently_goes_first() {
        let cache = ResponseCache::new(16 * ENTRY_BYTES);
        for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            cache.insert(key(name), answer(500));
            assert!(cache.get(&key("a")).is_some(), "it is used all the time");
        }
        assert!(cache.get(&key("b")).is_some());
        cache.insert(key("k"), answer(500));
        assert!(cache.get(&key("c")).is_none() && cache.get(&key("b")).is_some());
        cache.insert(key("l"), answer(2 * ENTRY_BYTES));
        assert!(cache.get(&key("l")).is_none(), "it is too long");
    }

    #[test]
    fn keys_are_equal_where_requests_are() {
        let new = |path, tenant, body: &str| {
            CacheKey::new(path, tenant, "f", &serde_json::from_str(body).unwrap())
        };
        let first = new("/", "", r#"{"inputs": "a", "parameters": {"a": 1, "b": [2]}}"#);
        assert_eq!(first, new("/", "", r#"{"parameters":{"b":[2],"a":1},"inputs":"a"}"#));
        let others = [
            new("/generate", "", r#"{"inputs": "a", "parameters": {"a": 1, "b": [2]}}"#),
            new("/", "t", r#"{"inputs": "a", "parameters": {"a": 1, "b": [2]}}"#),
            new("/", "", r#"{"inputs": "a", "parameters": {"a": 2, "b": [2]}}"#),
            new("/", "", r#"{"inputs": "a"}"#),
        ];
        let schema =
            |body: &str| new("/", "", &format!(r#"{{"inputs":"a","parameters":{{"grammar":{body}}}}}"#));
        assert_ne!(
            schema(r#"{"a": {}, "b": {}}"#),
            schema(r#"{"b": {}, "a": {}}"#),
            "its order is answered in"
        );
        assert!(others.iter().all(|other| *other != first));
    }

    #[test]
    fn what_is_sampled_without_a_seed_is_not_deterministic() {
        let cases = [
            (json!({"inputs": "a"}), true),
            (json!({"inputs": "a", "parameters": {"temperature": null, "max_new_tokens": 3}}), true),
            (json!({"inputs": "a", "parameters": {"do_sample": true}}), false),
            (json!({"inputs": "a", "parameters": {"do_sample": true, "seed": 1}}), true),
            (json!({"inputs": "a", "parameters": {"top_p": 0.5}}), false),
            (json!({"inputs": "a", "parameters": {"min_p": 0.5}}), false),
            (json!({"messages": []}), false),
            (json!({"messages": [], "temperature": 0}), true),
            (json!({"messages": [], "temperature": 0.5}), false),
            (json!({"prompt": "a", "temperature": 0.5, "seed": 3}), true),
        ];
        for (body, expected) in cases {
            assert_eq!(is_deterministic(&body), expected, "{body}");
        }
    }
}
