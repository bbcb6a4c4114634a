//! What random histories meet, to see that they test anything.

use std::collections::BTreeMap;

use lockstep_proto::SequenceId;

/// How often what was met, over many histories: to see that they test anything.
#[derive(Debug, Default)]
pub(super) struct Coverage(BTreeMap<Met, u64>);

/// What a history can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Met {
    Finished,
    Failed,
    Submitted,
    RefusedFull,
    RefusedTokens,
    RefusedTooLate,
    ExpiredWaiting,
    ExpiredRunning,
    CancelledWaiting,
    CancelledInFlight,
    CancelledBetween,
    Preemptions,
    Restarts,
    LossesInFlight,
    LossesBetween,
    LostTooOften,
    Mismatches,
    PrefixHitTokens,
    LastSampled,
    RunAhead,
    AheadOfChunks,
    AheadAdmitted,
    AheadRefused,
    EndedAhead,
    LossesAhead,
    Outgrown,
    ComputedAlone,
    Forced,
    ForcedChunks,
    ResumedWaiting,
    Drained,
    Moves,
    LeftToSibling,
}

impl Met {
    const ALL: [Self; 33] = [
        Self::Finished,
        Self::Failed,
        Self::Submitted,
        Self::RefusedFull,
        Self::RefusedTokens,
        Self::RefusedTooLate,
        Self::ExpiredWaiting,
        Self::ExpiredRunning,
        Self::CancelledWaiting,
        Self::CancelledInFlight,
        Self::CancelledBetween,
        Self::Preemptions,
        Self::Restarts,
        Self::LossesInFlight,
        Self::LossesBetween,
        Self::LostTooOften,
        Self::Mismatches,
        Self::PrefixHitTokens,
        Self::LastSampled,
        Self::RunAhead,
        Self::AheadOfChunks,
        Self::AheadAdmitted,
        Self::AheadRefused,
        Self::EndedAhead,
        Self::LossesAhead,
        Self::Outgrown,
        Self::ComputedAlone,
        Self::Forced,
        Self::ForcedChunks,
        Self::ResumedWaiting,
        Self::Drained,
        Self::Moves,
        Self::LeftToSibling,
    ];
}

impl Coverage {
    pub(super) fn add(&mut self, other: &Self) {
        for (&met, &count) in &other.0 {
            self.count(met, count);
        }
    }

    /// What was met less than `least` times, with how often it was.
    pub(super) fn below(&self, least: u64) -> Vec<(Met, u64)> {
        let counts = Met::ALL.map(|met| (met, self.0.get(&met).copied().unwrap_or_default()));
        counts.into_iter().filter(|(_, count)| *count < least).collect()
    }

    /// A name for one more sequence.
    pub(super) fn next_sequence(&mut self) -> SequenceId {
        let submitted = self.0.get(&Met::Submitted).copied().unwrap_or_default();
        self.count(Met::Submitted, 1);
        SequenceId(submitted)
    }

    pub(super) fn count(&mut self, met: Met, times: u64) {
        *self.0.entry(met).or_default() += times;
    }
}
