//! Tokens of one step, and who gets them.

use lockstep_proto::Tokens;

use crate::sequence::Running;

/// What is left to spend in the step being planned.
#[derive(Debug)]
pub(crate) struct StepBudget {
    left: Tokens,
}

impl StepBudget {
    pub(crate) fn new(tokens: Tokens) -> Self {
        Self { left: tokens }
    }

    /// Tokens for each of `running`, in its order: one for each that has caught up, then as much as is left
    /// for the others, the first one first. Those of which nothing is ready get nothing.
    pub(crate) fn grant<'a>(&mut self, running: impl Iterator<Item = &'a Running> + Clone) -> Vec<Tokens> {
        let caught_up = Tokens(1);
        let mut grants: Vec<Tokens> = running
            .clone()
            .map(|running| if running.ready() == caught_up { self.take(caught_up) } else { Tokens::ZERO })
            .collect();
        for (grant, running) in grants.iter_mut().zip(running) {
            if running.ready() > caught_up {
                *grant = self.take(running.ready());
            }
        }
        grants
    }

    /// Up to `wanted` tokens.
    pub(crate) fn take(&mut self, wanted: Tokens) -> Tokens {
        let taken = wanted.min(self.left);
        self.left -= taken;
        taken
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.left.is_empty()
    }
}
