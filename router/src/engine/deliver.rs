//! Scheduler events become text: detokenize, watch for stop strings, hand to the request's channel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lockstep_proto::{SequenceId, TokenId, TokenLogprobs, Tokens};
use lockstep_scheduler::{self as scheduler, SequenceEvent};
use tokio::sync::mpsc;
use tracing::debug;

use super::{EngineError, FinishReason, GeneratedToken, GenerationEvent, StopStrings, StopText};
use crate::metrics::Metrics;
use crate::tokenizer::{Detokenizer, Vocabulary};

/// Events of a sequence besides its tokens and its prompt's pieces: admission, and failure or an empty end.
const EVENTS_BESIDES_TOKENS: usize = 2;

/// Room for everything a sequence can say, so that handing over never waits and a slow client never holds
/// up a step: at most one event for each token of output, one piece of log-probabilities for each prompt
/// token (a step computes at least one), and the rest. The channel allocates as it fills; a client that
/// does not read costs the memory of its own answer, which `max_new_tokens` bounds.
pub(super) fn channel_capacity_events(prompt: Tokens, max_new_tokens: Tokens) -> usize {
    prompt.len() + max_new_tokens.len() + EVENTS_BESIDES_TOKENS
}

/// Everyone who waits for a sequence.
pub(super) struct Deliveries {
    vocabulary: Arc<Vocabulary>,
    metrics: Arc<Metrics>,
    open: BTreeMap<SequenceId, Delivery>,
}

struct Delivery {
    tx: mpsc::Sender<GenerationEvent>,
    detokenizer: Detokenizer,
    stops: StopStrings,
    /// Special tokens whose names are part of the text.
    shown: Arc<[TokenId]>,
    /// The newest token, until it is known whether it is the last.
    newest: Option<GeneratedToken>,
    submitted: Instant,
    last_token: Option<Instant>,
}

impl Deliveries {
    pub(super) fn new(vocabulary: Arc<Vocabulary>, metrics: Arc<Metrics>) -> Self {
        Self { vocabulary, metrics, open: BTreeMap::new() }
    }

    /// Someone waits for `sequence` from here on.
    pub(super) fn open(
        &mut self,
        sequence: SequenceId,
        (stops, shown): (StopStrings, Arc<[TokenId]>),
        tx: mpsc::Sender<GenerationEvent>,
        now: Instant,
    ) {
        let detokenizer = Detokenizer::new();
        let delivery =
            Delivery { tx, detokenizer, stops, shown, newest: None, submitted: now, last_token: None };
        self.open.insert(sequence, delivery);
    }

    /// Hands on what one step brought. Returns the sequences a stop string has ended: the scheduler does not
    /// know and is to cancel them.
    pub(super) fn on_events(&mut self, events: Vec<SequenceEvent>, now: Instant) -> Vec<SequenceId> {
        let mut stopped = Vec::new();
        let mut touched = Vec::new();
        for event in events {
            let sequence = event.sequence();
            let Some(delivery) = self.open.get_mut(&sequence) else { continue };
            touched.push(sequence);
            match event {
                SequenceEvent::Admitted { queued, cached, .. } => {
                    debug!(
                        sequence = sequence.0,
                        queued_ms = queued.as_millis() as u64,
                        cached_tokens = cached.0,
                        "admitted"
                    );
                    delivery.send(GenerationEvent::Admitted { queued, cached });
                }
                SequenceEvent::PromptLogprobs { tokens, .. } => {
                    delivery.send(GenerationEvent::Prompt(tokens))
                }
                SequenceEvent::Token { token, .. } => {
                    delivery.send_newest();
                    self.metrics.observe_token(delivery.submitted, delivery.last_token, now);
                    if delivery.last_token.is_none() {
                        debug!(sequence = sequence.0, "first token");
                    }
                    delivery.last_token = Some(now);
                    delivery.take(token, &self.vocabulary);
                }
                SequenceEvent::Finished { reason, .. } => {
                    delivery.finish(reason.into());
                    self.close(sequence);
                    continue;
                }
                SequenceEvent::Failed { reason, .. } => {
                    delivery.send(GenerationEvent::Failed(EngineError::Failed(reason)));
                    self.close(sequence);
                    continue;
                }
                SequenceEvent::Expired { state, .. } => {
                    delivery.send(GenerationEvent::Failed(EngineError::Expired { state }));
                    self.close(sequence);
                    continue;
                }
                SequenceEvent::Preempted { .. } => debug!(sequence = sequence.0, "preempted"),
            }
            if delivery.is_stopped() {
                self.close(sequence);
                stopped.push(sequence);
            }
        }
        for sequence in touched {
            if let Some(delivery) = self.open.get_mut(&sequence) {
                delivery.send_newest();
            }
        }
        stopped
    }

    /// Sequences whose owner has left; they are forgotten here.
    pub(super) fn take_abandoned(&mut self) -> Vec<SequenceId> {
        let abandoned: Vec<SequenceId> = self
            .open
            .iter()
            .filter(|(_, delivery)| delivery.tx.is_closed())
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in &abandoned {
            debug!(sequence = sequence.0, "client left");
            self.open.remove(sequence);
        }
        abandoned
    }

    /// Ends the waiting for one sequence, which cannot go on.
    pub(super) fn fail(&mut self, sequence: SequenceId, error: EngineError) {
        if let Some(mut delivery) = self.open.remove(&sequence) {
            delivery.send_newest();
            delivery.send(GenerationEvent::Failed(error));
        }
    }

    /// Ends everyone's waiting with `error`; returns whom the scheduler still knows.
    pub(super) fn fail_all(&mut self, error: &EngineError) -> Vec<SequenceId> {
        let open = std::mem::take(&mut self.open);
        open.into_iter()
            .map(|(sequence, mut delivery)| {
                delivery.send(GenerationEvent::Failed(error.clone()));
                sequence
            })
            .collect()
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    fn close(&mut self, sequence: SequenceId) {
        if let Some(mut delivery) = self.open.remove(&sequence) {
            delivery.send_newest();
            debug!(sequence = sequence.0, "ended");
        }
    }
}

impl Delivery {
    fn take(&mut self, token: TokenLogprobs, vocabulary: &Vocabulary) {
        let id = token.token;
        let special = vocabulary.is_special(id);
        if special && !self.shown.contains(&id) {
            let text = vocabulary.text(id);
            self.newest =
                Some(GeneratedToken { token, text, delta: String::new(), special: true, finish: None });
            return;
        }
        let mut text = self.detokenizer.push(vocabulary.bytes(id));
        let passed = self.stops.push(&text);
        let finish = passed.stopped.then_some(FinishReason::StopSequence);
        if passed.stopped && self.stops.placement() == StopText::Keep {
            text.clone_from(&passed.text);
        }
        self.newest = Some(GeneratedToken { token, text, delta: passed.text, special, finish });
    }

    fn is_stopped(&self) -> bool {
        self.newest.as_ref().is_some_and(|newest| newest.finish.is_some())
    }

    /// The newest token is the last one.
    fn finish(&mut self, reason: FinishReason) {
        let rest = self.detokenizer.finish();
        let passed = self.stops.push(&rest);
        if self.last_token.is_none() {
            self.send(GenerationEvent::PromptDone);
            return;
        }
        let Some(newest) = &mut self.newest else {
            let reason = "the sequence ended without a last token".to_owned();
            self.send(GenerationEvent::Failed(EngineError::Failed(reason)));
            return;
        };
        newest.delta.push_str(&passed.text);
        if !newest.special {
            newest.text.push_str(&rest);
        }
        newest.finish = Some(if passed.stopped { FinishReason::StopSequence } else { reason });
        if !passed.stopped {
            newest.delta.push_str(&self.stops.finish());
        }
    }

    fn send_newest(&mut self) {
        if let Some(newest) = self.newest.take() {
            self.send(GenerationEvent::Token(newest));
        }
    }

    fn send(&mut self, event: GenerationEvent) {
        // There is room for every event; whoever has left is swept up after the step.
        let _ = self.tx.try_send(event);
    }
}

impl From<scheduler::FinishReason> for FinishReason {
    fn from(reason: scheduler::FinishReason) -> Self {
        match reason {
            scheduler::FinishReason::StopToken => Self::EndOfSequence,
            scheduler::FinishReason::Length => Self::Length,
        }
    }
}
