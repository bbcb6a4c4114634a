//! Where a waiting sequence goes: to the replica with the longest cached prefix among the least loaded.
//!
//! Nothing is assigned ahead. Each replica that plans a step goes through the queue and leaves to the others what they
//! would rather have; the same look at the same state gives all of them the same answer, so whoever is meant takes it
//! with its next step.

use std::cmp::Reverse;

use lockstep_proto::{ReplicaId, Tokens};

use crate::admit::Fit;
use crate::group::Group;
use crate::replicas::Replicas;
use crate::sequence::Sequence;

/// So many sequences more than the least loaded has, and a replica still counts as one of the least loaded; or a
/// quarter more, where that is more. A prefix is worth a little imbalance, and no more than that: it is computed once
/// elsewhere and is cached there as well from then on.
const LOAD_SLACK: usize = 2;

/// What a replica has for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) replica: ReplicaId,
    /// Sequences it computes, and one more for each step's worth of tokens they are behind.
    pub(crate) load: usize,
    /// Tokens of the sequence that it has cached, or soon will have.
    pub(crate) prefix: Tokens,
}

/// The offer to be taken.
pub(crate) fn best(offers: impl Iterator<Item = Offer> + Clone) -> Option<Offer> {
    let least = offers.clone().map(|offer| offer.load).min()?;
    let most = least + LOAD_SLACK.max(least / 4);
    let least_loaded = offers.filter(|offer| offer.load <= most);
    least_loaded.max_by_key(|offer| (offer.prefix, Reverse(offer.load), Reverse(offer.replica)))
}

/// The other replicas, while one plans its step.
#[derive(Debug, Default)]
pub(crate) struct Siblings<'a> {
    others: Vec<Sibling<'a>>,
    /// What waits for the one that plans.
    left_to_self: usize,
}

#[derive(Debug)]
struct Sibling<'a> {
    group: &'a Group,
    load: usize,
    /// What was left to it.
    left: usize,
}

impl<'a> Siblings<'a> {
    /// Of a replica whose group is out of its place.
    pub(crate) fn new(others: &'a Replicas) -> Self {
        let others = others.groups().filter(|group| group.admits());
        let others = others.map(|group| Sibling { group, load: group.load(), left: 0 });
        Self { others: others.collect(), left_to_self: 0 }
    }

    /// Whether `sequence`, of which `own` has such a prefix, is better left to another one. If so, it counts as that
    /// one's from here on.
    pub(crate) fn prefer(&mut self, sequence: &Sequence, own: &Group, prefix: Tokens) -> bool {
        if self.others.is_empty() {
            return false;
        }
        let own = Offer { replica: own.replica, load: own.load() + self.left_to_self, prefix };
        let offers: Vec<Offer> = self.others.iter().filter_map(|other| other.offer(sequence)).collect();
        let best = best(offers.iter().copied().chain([own]));
        let is_best =
            |other: &&mut Sibling<'_>| best.is_some_and(|best| best.replica == other.group.replica);
        let preferred = self.others.iter_mut().find(is_best);
        preferred.map(|other| other.left += 1).is_some()
    }

    /// `sequence` waits for the one that plans, if not for its owner.
    pub(crate) fn leave_to_self(&mut self, sequence: &Sequence) {
        if !sequence.is_held() {
            self.left_to_self += 1;
        }
    }
}

impl Sibling<'_> {
    /// What it has for `sequence`, if it could take it with its next step.
    fn offer(&self, sequence: &Sequence) -> Option<Offer> {
        if !self.group.has_places(self.left + 1) {
            return None;
        }
        let prospect = self.group.prospect(sequence);
        let takes_it = match prospect.fit {
            Fit::Fits | Fit::Follows(_) => true,
            Fit::Lacks | Fit::Never => false,
        };
        takes_it.then_some(Offer {
            replica: self.group.replica,
            load: self.load + self.left,
            prefix: prospect.prefix,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The replica to take, given the load and the prefix of each.
    fn taken(offers: &[(usize, u32)]) -> Option<u32> {
        let offers = (0..).map(ReplicaId).zip(offers);
        let offers =
            offers.map(|(replica, (load, prefix))| Offer { replica, load: *load, prefix: Tokens(*prefix) });
        best(offers).map(|offer| offer.replica.0)
    }

    #[test]
    fn the_longest_prefix_counts_among_the_least_loaded() {
        type Offers = &'static [(usize, u32)];
        let cases: [(Offers, Option<u32>); 9] = [
            (&[], None),
            (&[(9, 0)], Some(0)),
            // Nothing is cached: the least loaded, then the first.
            (&[(1, 0), (0, 0)], Some(1)),
            (&[(1, 0), (1, 0)], Some(0)),
            // A prefix is worth two sequences, and not three.
            (&[(0, 0), (2, 16)], Some(1)),
            (&[(0, 0), (3, 16)], Some(0)),
            (&[(1, 16), (2, 32), (4, 64)], Some(1)),
            // Or a quarter of what the least loaded has.
            (&[(40, 0), (50, 16)], Some(1)),
            (&[(40, 0), (51, 16)], Some(0)),
        ];
        for (offers, expected) in cases {
            assert_eq!(taken(offers), expected, "{offers:?}");
        }
    }

    /// What one replica leaves to another, that one takes: nothing but the load of who left it can have grown.
    #[test]
    fn who_is_meant_is_still_meant_when_others_have_more_to_do() {
        for seed in 0..10_000 {
            let mut random = crate::tests::Generator::new(seed);
            let mut offers: Vec<(usize, u32)> =
                (0..2).map(|_| (random.between(0, 40) as usize, 16 * random.between(0, 4))).collect();
            let Some(meant) = taken(&offers) else { continue };
            let other = 1 - meant as usize;
            offers[other].0 += random.between(0, 10) as usize;
            assert_eq!(taken(&offers), Some(meant), "{offers:?}");
        }
    }
}
