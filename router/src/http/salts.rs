//! Whose keys and values a request may find in the prefix tree: those of requests with the same key's name and the same
//! `cache_salt`. How long an answer takes, and the tokens it says it found, tell nobody what others have asked.

use std::hash::{BuildHasher, RandomState};

use lockstep_scheduler::CacheSalt;

use super::auth::KeyName;

/// Makes salts. The prefix tree is this process's, so its salts need mean nothing to the next one; they are hashed with a
/// secret that is drawn when it starts, so nobody can aim at another's.
#[derive(Debug, Default)]
pub(super) struct Salts(RandomState);

impl Salts {
    /// The salt of a request that came with this key and names this `cache_salt`.
    pub(super) fn of(&self, key: Option<&KeyName>, named: Option<&str>) -> CacheSalt {
        match (key, named) {
            (None, None) => CacheSalt::default(),
            (Some(_), _) | (None, Some(_)) => CacheSalt(self.0.hash_one((key.map(|key| &*key.0), named))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_names_are_kept_apart_and_told_again() {
        let salts = Salts::default();
        let (ann, ben) = (KeyName("ann".into()), KeyName("ben".into()));
        let cases = [
            (None, None),
            (None, Some("ann")),
            (Some(&ann), None),
            (Some(&ann), Some("ann")),
            (Some(&ann), Some("b")),
            (Some(&ben), None),
            (Some(&ben), Some("ann")),
        ];
        let of_all = || cases.map(|(key, named)| salts.of(key, named));
        assert_eq!(of_all(), of_all());
        assert_eq!(salts.of(None, None), CacheSalt(0));
        let mut distinct = of_all().to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), cases.len());
        assert_ne!(
            Salts::default().of(Some(&ann), None),
            salts.of(Some(&ann), None),
            "each process has its own"
        );
    }
}
