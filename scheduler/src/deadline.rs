//! Ends by the clock.

use std::time::{Duration, Instant};

use crate::event::{ExpiredWhile, SequenceEvent};
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::service::Service;
use crate::submission::AdmissionError;

impl Scheduler {
    /// When [`on_time`](Self::on_time) is to be called next; `None` while no sequence has a deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.sequences().filter_map(|sequence| sequence.standing.deadline).min()
    }

    /// Ends the sequences whose deadline has come: as if cancelled, except that their owners are told.
    #[must_use = "sequences whose deadline has come end here"]
    pub fn on_time(&mut self, now: Instant) -> Vec<SequenceEvent> {
        let due = |sequence: &Sequence| sequence.standing.deadline.is_some_and(|deadline| deadline <= now);
        let waiting = self.queue.iter().filter(|sequence| due(sequence));
        let running =
            self.replicas.running().map(|running| &running.sequence).filter(|sequence| due(sequence));
        let mut expired: Vec<_> = waiting.map(|sequence| (sequence.id, ExpiredWhile::Waiting)).collect();
        expired.extend(running.map(|sequence| (sequence.id, ExpiredWhile::Running)));
        let events = expired.into_iter().map(|(sequence, state)| {
            self.on_cancel(sequence);
            SequenceEvent::Expired { sequence, state }
        });
        events.collect()
    }

    /// How long a sequence of this service is expected to wait in the queue: for what its tenant has there,
    /// for as much of every other tenant's, and for what comes back from running.
    pub fn expected_wait(&self, service: &Service) -> Duration {
        self.time_for(self.queue.tokens_before(&service.tenant, &self.pace))
    }

    /// Refuses what cannot even begin in time.
    pub(crate) fn check_deadline(&self, service: &Service, now: Instant) -> Result<(), AdmissionError> {
        let Some(deadline) = service.deadline else { return Ok(()) };
        let left = deadline.saturating_duration_since(now);
        let wait = self.expected_wait(service);
        if left.is_zero() || wait >= left {
            return Err(AdmissionError::TooLate { wait, left });
        }
        Ok(())
    }
}
