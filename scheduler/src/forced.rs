//! Tokens that are not sampled: what a grammar leaves no choice about follows at once, and all of it is computed as
//! one chunk. Until the owner has found out what that is, a sequence is held.

use lockstep_proto::{SequenceId, TokenId};

use crate::scheduler::Scheduler;
use crate::sequence::Hold;

impl Scheduler {
    /// A sequence gets no next token until [`on_resume`](Self::on_resume): its owner has yet to find out which ones
    /// may follow. One that runs keeps its place and its blocks; one that waits, because it was preempted or its
    /// group was lost, is not admitted. To be called between the step that brought its last token and the next, of
    /// sequences that are not run ahead of.
    pub fn on_hold(&mut self, sequence: SequenceId) {
        self.set_hold(sequence, Hold::Held);
    }

    /// A sequence that was held gets tokens again: first those `forced`, which follow whatever the model says, up to
    /// its end; their log-probabilities are told as of any other. Nothing happens to a sequence that is not held.
    pub fn on_resume(&mut self, sequence: SequenceId, forced: &[TokenId]) {
        let given = match self.replicas.running_mut(sequence) {
            Some(running) if running.is_held() => {
                running.sequence.standing.hold = Hold::Free;
                Some((running.sequence.standing.tenant.clone(), running.force(forced)))
            }
            Some(_) => None,
            None => self.queue.remove(sequence).map(|mut waiting| {
                let was_held = waiting.standing.hold == Hold::Held;
                waiting.standing.hold = Hold::Free;
                let given = waiting.force(if was_held { forced } else { &[] });
                let tenant = waiting.standing.tenant.clone();
                self.queue.put_back(waiting);
                (tenant, given)
            }),
        };
        if let Some((tenant, tokens)) = given {
            self.queue.charge(&tenant, tokens);
        }
        self.assert_invariants();
    }

    fn set_hold(&mut self, sequence: SequenceId, hold: Hold) {
        if let Some(running) = self.replicas.running_mut(sequence) {
            running.sequence.standing.hold = hold;
        } else if let Some(mut waiting) = self.queue.remove(sequence) {
            waiting.standing.hold = hold;
            self.queue.put_back(waiting);
        }
    }
}
