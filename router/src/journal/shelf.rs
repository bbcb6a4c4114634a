//! Which segments are still needed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

/// Segments by number, each with the streams that have records in it and may be taken up.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    segments: BTreeMap<u64, BTreeSet<Uuid>>,
}

impl Shelf {
    /// Records go to segment `number` from here on.
    pub(super) fn open(&mut self, number: u64) {
        self.segments.entry(number).or_default();
    }

    /// The number after all there are.
    pub(super) fn next(&self) -> u64 {
        self.newest().map_or(1, |newest| newest.saturating_add(1))
    }

    /// A record of `stream` goes to the newest segment.
    pub(super) fn note(&mut self, stream: Uuid) {
        if let Some(mut newest) = self.segments.last_entry() {
            newest.get_mut().insert(stream);
        }
    }

    /// Whether `stream` may be taken up.
    pub(super) fn holds(&self, stream: Uuid) -> bool {
        self.segments.values().any(|streams| streams.contains(&stream))
    }

    /// Nobody takes `stream` up any more.
    pub(super) fn forget(&mut self, stream: Uuid) {
        for streams in self.segments.values_mut() {
            streams.remove(&stream);
        }
    }

    /// Takes out the segments that nobody needs: the oldest ones up to the first that is needed. What says that a
    /// stream is forgotten is thus never gone before what says that there is one.
    pub(super) fn take_unneeded(&mut self) -> Vec<u64> {
        let newest = self.newest();
        let unneeded =
            |(number, streams): &(&u64, &BTreeSet<Uuid>)| streams.is_empty() && Some(**number) != newest;
        let numbers: Vec<u64> =
            self.segments.iter().take_while(unneeded).map(|(number, _)| *number).collect();
        for number in &numbers {
            self.segments.remove(number);
        }
        numbers
    }

    fn newest(&self) -> Option<u64> {
        self.segments.last_key_value().map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_goes_with_its_last_stream_and_never_before_older_ones() {
        let [a, b, c] = [1, 2, 3].map(Uuid::from_u128);
        let mut shelf = Shelf::default();
        for (number, streams) in [(1, vec![a, b]), (2, vec![b]), (3, vec![c]), (4, vec![])] {
            shelf.open(number);
            streams.into_iter().for_each(|stream| shelf.note(stream));
        }
        assert_eq!(shelf.take_unneeded(), Vec::<u64>::new());
        shelf.forget(c);
        assert_eq!(shelf.take_unneeded(), Vec::<u64>::new(), "older ones are needed");
        shelf.forget(a);
        assert_eq!(shelf.take_unneeded(), Vec::<u64>::new());
        shelf.forget(b);
        assert_eq!(shelf.take_unneeded(), [1, 2, 3], "records go to the newest");
        assert_eq!(shelf.next(), 5);
    }
}
