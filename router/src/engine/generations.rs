//! Several sequences of one request, heard as one.

use std::future::poll_fn;
use std::task::{Context, Poll};

use super::{Generation, GenerationEvent};

/// The sequences of one request, in its order. Dropping them cancels those that run.
pub struct Generations {
    /// By place; `None` where a sequence has ended.
    open: Vec<Option<Generation>>,
    /// Who is asked first, so that nobody talks over the others.
    turn: usize,
}

impl Generations {
    /// All of them, by place; `None` where nothing more comes.
    pub fn new(generations: Vec<Option<Generation>>) -> Self {
        Self { open: generations, turn: 0 }
    }

    /// Whether each of them has ended.
    pub fn is_over(&self) -> bool {
        self.open.iter().all(Option::is_none)
    }

    /// What happened next and at which place; no event where a sequence ended without an end. `None` once all
    /// have ended.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub async fn next(&mut self) -> Option<(usize, Option<GenerationEvent>)> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Option<GenerationEvent>)>> {
        if self.is_over() {
            return Poll::Ready(None);
        }
        let count = self.open.len();
        for place in (self.turn..count).chain(0..self.turn) {
            let Some(slot) = self.open.get_mut(place) else { continue };
            let Some(generation) = slot else { continue };
            let Poll::Ready(event) = generation.poll_next(context) else { continue };
            if event.as_ref().is_none_or(GenerationEvent::is_last) {
                *slot = None;
            }
            self.turn = (place + 1) % count;
            return Poll::Ready(Some((place, event)));
        }
        Poll::Pending
    }
}
