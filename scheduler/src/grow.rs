//! Blocks for what runs, what runs longest first; when there are none, the sequence admitted last gives up
//! its own.

use lockstep_proto::Tokens;

use crate::event::SequenceEvent;
use crate::group::{Group, Plan};
use crate::scheduler::Scheduler;
use crate::sequence::{Running, Sequence};

impl Group {
    /// Plans a chunk for every running sequence that is granted tokens. Returns those that gave up their
    /// blocks, newest first.
    ///
    /// A sequence is only ever preempted before its own chunk is planned: the newest one goes first, and
    /// chunks are planned oldest first.
    pub(crate) fn grow(&mut self, grants: &[Tokens]) -> (Plan, Vec<Sequence>) {
        let mut plan = Plan::default();
        let mut preempted = Vec::new();
        for (index, &tokens) in grants.iter().enumerate() {
            if !tokens.is_empty() {
                self.claim(index, tokens, &mut preempted);
            }
            // The sequence itself may be among the preempted.
            let Some((_, running)) = self.running.get_index_mut(index) else { break };
            if !tokens.is_empty() {
                plan.push_chunk(running.take_chunk(tokens));
            }
        }
        (plan, preempted)
    }

    /// Extends the table of the sequence at `index` by `tokens`, at the expense of newer ones and in the end
    /// of itself.
    fn claim(&mut self, index: usize, tokens: Tokens, preempted: &mut Vec<Sequence>) {
        while let Some((_, running)) = self.running.get_index_mut(index) {
            let context = running.scheduled + tokens;
            if self.cache.extend(&mut running.table, context).is_ok() {
                return;
            }
            if let Some((_, newest)) = self.running.pop() {
                preempted.push(self.preempt(newest));
            }
        }
    }

    /// Running → waiting.
    fn preempt(&mut self, running: Running) -> Sequence {
        self.releases.push(running.sequence.id);
        self.cache.release(running.table);
        running.sequence
    }
}

impl Scheduler {
    pub(crate) fn note_preempted(&mut self, newest_first: Vec<Sequence>) {
        for sequence in newest_first {
            self.totals.preemptions += 1;
            self.events.push(SequenceEvent::Preempted { sequence: sequence.id });
            self.queue.put_back(sequence);
        }
    }
}
