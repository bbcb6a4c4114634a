//! Which tokens the grammars of running sequences force and allow next, found out on threads of their own.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lockstep_proto::{Sampling, SequenceId, Step, TokenId, TokenMask};

use crate::cpu_pool::PoolError;
use crate::grammar::{Allowed, CompiledGrammar, Following, GrammarError, TokenMatcher};

/// The sequences that have a grammar.
#[derive(Default)]
pub(super) struct Masks {
    places: BTreeMap<SequenceId, Place>,
    /// One a sequence whose place is pending, and those of sequences that have ended meanwhile.
    jobs: FuturesUnordered<Pin<Box<dyn Future<Output = Found> + Send>>>,
}

/// Where a sequence is in its grammar.
struct Place {
    grammar: Arc<CompiledGrammar>,
    next: Next,
}

enum Next {
    /// These may follow. The matcher is made when the first token comes.
    Known { allowed: Allowed, matcher: Option<Box<TokenMatcher>> },
    /// A job has the matcher.
    Pending,
}

/// What a job found out.
pub(super) struct Found {
    sequence: SequenceId,
    outcome: Result<Advanced, String>,
}

struct Advanced {
    matcher: Box<TokenMatcher>,
    following: Result<Following, GrammarError>,
    took: Duration,
}

/// What became of a sequence that was held for its mask.
pub(super) enum Settled {
    /// It goes on.
    Ready(Ready),
    /// It cannot, for this reason.
    Failed(SequenceId, String),
    /// It has ended meanwhile.
    Gone,
}

/// What was found out about a sequence that goes on.
pub(super) struct Ready {
    pub(super) sequence: SequenceId,
    /// Tokens that follow without being sampled.
    pub(super) forced: Vec<TokenId>,
    pub(super) took: Duration,
}

impl Masks {
    /// A sequence begins.
    pub(super) fn open(&mut self, sequence: SequenceId, grammar: Arc<CompiledGrammar>) {
        let next = Next::Known { allowed: grammar.first().allowed.clone(), matcher: None };
        self.places.insert(sequence, Place { grammar, next });
    }

    /// A sequence has ended.
    pub(super) fn close(&mut self, sequence: SequenceId) {
        self.places.remove(&sequence);
    }

    /// Whether a sequence has a grammar.
    pub(super) fn contains(&self, sequence: SequenceId) -> bool {
        self.places.contains_key(&sequence)
    }

    /// A sequence that has a grammar got a token: a job finds out what may follow.
    pub(super) fn on_token(&mut self, sequence: SequenceId, token: TokenId) -> Result<(), PoolError> {
        let Some(place) = self.places.get_mut(&sequence) else { return Ok(()) };
        let Next::Known { matcher, .. } = std::mem::replace(&mut place.next, Next::Pending) else {
            return Ok(());
        };
        let grammar = Arc::clone(&place.grammar);
        let job = place.grammar.mask_pool().begin(move || {
            let begun = Instant::now();
            let mut matcher = matcher.unwrap_or_else(|| Box::new(grammar.matcher()));
            let following = matcher.advance(token);
            Advanced { matcher, following, took: begun.elapsed() }
        })?;
        self.jobs.push(Box::pin(async move {
            Found { sequence, outcome: job.await.map_err(|_| PoolError::Panicked.to_string()) }
        }));
        Ok(())
    }

    /// Whether jobs are under way.
    pub(super) fn are_pending(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// The next job that is done; never, if there is none.
    ///
    /// # Cancel safety
    /// Nothing found is lost.
    pub(super) async fn next(&mut self) -> Found {
        match self.jobs.next().await {
            Some(found) => found,
            None => std::future::pending().await,
        }
    }

    /// Takes in what a job found out.
    pub(super) fn on_found(&mut self, found: Found) -> Settled {
        let Found { sequence, outcome } = found;
        let Some(place) = self.places.get_mut(&sequence) else { return Settled::Gone };
        let Advanced { matcher, following, took } = match outcome {
            Ok(advanced) => advanced,
            Err(reason) => return Settled::Failed(sequence, reason),
        };
        match following {
            Ok(Following { forced, allowed }) => {
                place.next = Next::Known { allowed, matcher: Some(matcher) };
                Settled::Ready(Ready { sequence, forced, took })
            }
            Err(error) => Settled::Failed(sequence, error.to_string()),
        }
    }

    /// The masks of what `step` samples, for a model of `vocabulary` tokens. None of it is pending: what is held is
    /// not sampled.
    pub(super) fn of(&self, step: &Step, vocabulary: u32) -> Vec<TokenMask> {
        let sampled = step.work.iter().filter(|work| work.sampling == Sampling::Sample);
        let mask = |sequence| match &self.places.get(&sequence)?.next {
            Next::Known { allowed, .. } => {
                Some(TokenMask { sequence, allowed: allowed.to_bits(vocabulary) })
            }
            Next::Pending => None,
        };
        sampled.filter_map(|work| mask(work.sequence)).collect()
    }
}
