//! A bounded number of values by key, of which those used last are kept.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Values by key.
pub(crate) struct Recent<K, V> {
    known: BTreeMap<K, Known<V>>,
    turns: u64,
    most: usize,
}

struct Known<V> {
    value: V,
    last_turn: u64,
}

impl<K: Ord + Copy, V> Recent<K, V> {
    /// At most so many, and one at least.
    pub(crate) fn new(most: usize) -> Self {
        Self { known: BTreeMap::new(), turns: 0, most: most.max(1) }
    }

    /// Whether there is a value of the key. That does not use it.
    pub(crate) fn has(&self, key: K) -> bool {
        self.known.contains_key(&key)
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// The value of a key, made where there is none. It takes the place of the one used longest ago, if there is no other.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn get<E>(&mut self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<&mut V, E> {
        if self.known.len() >= self.most && !self.has(key) {
            self.make_room();
        }
        self.turns += 1;
        let found = match self.known.entry(key) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => place.insert(Known { value: make()?, last_turn: 0 }),
        };
        found.last_turn = self.turns;
        Ok(&mut found.value)
    }

    /// A look at all of them: it comes with a value that is made, which costs far more.
    fn make_room(&mut self) {
        let oldest = self.known.iter().min_by_key(|(_, known)| known.last_turn).map(|(key, _)| *key);
        if let Some(oldest) = oldest {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// What is alive of what was made.
    #[derive(Clone, Default)]
    struct Alive(Rc<RefCell<Vec<u32>>>);

    struct Value(u32, Alive);

    impl Alive {
        fn make(&self, number: u32) -> Result<Value, String> {
            self.0.borrow_mut().push(number);
            Ok(Value(number, self.clone()))
        }

        fn sorted(&self) -> Vec<u32> {
            let mut numbers = self.0.borrow().clone();
            numbers.sort_unstable();
            numbers
        }
    }

    impl Drop for Value {
        fn drop(&mut self) {
            let Self(number, Alive(alive)) = self;
            alive.borrow_mut().retain(|other| other != number);
        }
    }

    #[test]
    fn a_value_is_made_once_while_it_is_kept() {
        let mut recent = Recent::new(2);
        for _ in 0..3 {
            assert_eq!(recent.get(7, || Ok::<_, String>(70)), Ok(&mut 70));
        }
        assert_eq!(recent.get(7, || Err("made again")), Ok(&mut 70));
    }

    #[test]
    fn who_was_used_longest_ago_makes_room_and_is_dropped() {
        let (alive, mut recent) = (Alive::default(), Recent::new(3));
        for key in [1, 2, 3, 1, 4] {
            recent.get(key, || alive.make(key)).unwrap();
        }
        assert_eq!(alive.sorted(), [1, 3, 4]);
        recent.get(2, || alive.make(2)).unwrap();
        assert_eq!(alive.sorted(), [1, 2, 4]);
        drop(recent);
        assert!(alive.sorted().is_empty());
    }

    #[test]
    fn many_that_come_once_leave_those_that_come_again_and_again() {
        let (alive, mut recent) = (Alive::default(), Recent::new(8));
        for turn in 0..100 {
            for key in [0, 1, 2, 1000 + turn] {
                recent.get(key, || alive.make(key)).unwrap();
            }
        }
        let kept = alive.sorted();
        assert_eq!(kept[..3], [0, 1, 2]);
        assert_eq!(kept.len(), 8);
    }

    #[test]
    fn what_cannot_be_made_is_not_kept() {
        let mut recent = Recent::new(1);
        recent.get(1, || Ok::<_, &str>(10)).unwrap();
        assert_eq!(recent.get(2, || Err("no")), Err("no"));
        assert_eq!(recent.get(2, || Ok::<_, &str>(20)), Ok(&mut 20));
        assert_eq!(recent.known.len(), 1);
    }
}
