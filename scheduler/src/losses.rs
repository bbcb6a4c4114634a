//! Sequences that groups of shards are lost with, again and again.

use lockstep_proto::Tokens;

/// A sequence that was being computed when so many groups in a row were lost, and got no further in
/// between, ends. One loss is nobody's fault, and a second may be a host that dies while it comes up; the
/// third time at the same place the sequence is the likely cause, and every replay costs everyone a restart.
pub(crate) const MAX_LOSSES_IN_A_ROW: u32 = 3;

/// How often a sequence was being computed when its group was lost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Losses {
    /// The most of its context that was ever computed, by any group.
    furthest: Tokens,
    /// Since it last got further.
    in_a_row: u32,
}

impl Losses {
    /// So much of its context is computed. Every token it gets takes it further than before.
    pub(crate) fn on_computed(&mut self, computed: Tokens) {
        if computed > self.furthest {
            *self = Self { furthest: computed, in_a_row: 0 };
        }
    }

    /// The group was lost while it computed the sequence.
    pub(crate) fn on_lost(&mut self) {
        self.in_a_row = self.in_a_row.saturating_add(1);
    }

    /// Whether the sequence is not to be tried again.
    pub(crate) fn are_too_many(self) -> bool {
        self.in_a_row >= MAX_LOSSES_IN_A_ROW
    }
}
