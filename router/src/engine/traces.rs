//! The spans of sampled sequences: in the queue, in each chunk of the prompt, and one for all generated tokens.
//!
//! Without a collector, and for requests that are not sampled, nothing is kept here and nothing costs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use lockstep_process::traces::{Span, Traces};
use lockstep_proto::{MAX_STEP_TRACES, SequenceId, Step, StepOutput, TraceParent, Work, WorkTokens};
use lockstep_scheduler::{FinishReason, SequenceEvent};

/// The span of a request that a sequence is computed for.
#[derive(Clone, Debug)]
pub struct TraceOrigin {
    /// What the sequence's spans hang on.
    pub parent: TraceParent,
    /// The request's id, as clients and logs know it.
    pub request: Arc<str>,
}

/// The spans of every sampled sequence under way.
#[derive(Default)]
pub(super) struct SequenceTraces {
    traces: Traces,
    open: BTreeMap<SequenceId, SequenceTrace>,
    /// What the planned step hangs on.
    parents: Vec<TraceParent>,
}

struct SequenceTrace {
    origin: TraceOrigin,
    phase: Phase,
    tokens: u32,
    steps: u32,
}

/// How far a sequence is, with the span of that.
enum Phase {
    Queued(Option<Span>),
    /// With an entry for each step in flight that computes it, the oldest first: the span of a chunk of its prompt.
    Prefill(VecDeque<Option<Span>>),
    Decode(Option<Span>),
}

impl SequenceTraces {
    pub(super) fn new(traces: Traces) -> Self {
        Self { traces, ..Self::default() }
    }

    /// A sequence waits from here on.
    pub(super) fn open(&mut self, sequence: SequenceId, origin: TraceOrigin) {
        let span = self.traces.child("queue", origin.parent).map(|span| named(span, &origin, sequence));
        self.open
            .insert(sequence, SequenceTrace { origin, phase: Phase::Queued(span), tokens: 0, steps: 0 });
    }

    /// A step goes to the ranks. Those whose prompt it computes come first among its parents, so that each
    /// request has spans of the ranks in its own trace, however many others are under way.
    pub(super) fn on_step_planned(&mut self, step: &Step) {
        self.parents.clear();
        if self.open.is_empty() {
            return;
        }
        let mut decoding = Vec::new();
        for work in &step.work {
            let Some(trace) = self.open.get_mut(&work.sequence) else { continue };
            match trace.on_work(&self.traces, work) {
                Some(Parent::Prefill(parent)) => self.parents.push(parent),
                Some(Parent::Decode(parent)) => decoding.push(parent),
                None => {}
            }
        }
        self.parents.append(&mut decoding);
        self.parents.truncate(MAX_STEP_TRACES);
    }

    /// What the planned step hangs on.
    pub(super) fn parents(&mut self) -> Vec<TraceParent> {
        std::mem::take(&mut self.parents)
    }

    /// A step is done; its chunks end.
    pub(super) fn on_step_done(&mut self, output: &StepOutput) {
        if self.open.is_empty() {
            return;
        }
        for result in &output.results {
            if let Some(SequenceTrace { phase: Phase::Prefill(chunks), .. }) =
                self.open.get_mut(&result.sequence)
            {
                chunks.pop_front();
            }
        }
    }

    /// The ranks that `ran` these sequences are gone; they are computed again.
    pub(super) fn on_group_end(&mut self, ran: &[SequenceId]) {
        for sequence in ran {
            let Some(trace) = self.open.get_mut(sequence) else { continue };
            match &mut trace.phase {
                Phase::Queued(_) => {}
                Phase::Prefill(chunks) => {
                    for mut chunk in chunks.drain(..).flatten() {
                        chunk.fail("the ranks were lost");
                    }
                }
                Phase::Decode(Some(span)) => span.event("ranks lost"),
                Phase::Decode(None) => {}
            }
        }
    }

    /// Something happened to sequences.
    pub(super) fn on_events(&mut self, events: &[SequenceEvent]) {
        if self.open.is_empty() {
            return;
        }
        for event in events {
            let sequence = event.sequence();
            match event {
                SequenceEvent::Token { .. } => {
                    if let Some(trace) = self.open.get_mut(&sequence) {
                        trace.on_token(&self.traces, sequence);
                    }
                }
                SequenceEvent::Preempted { .. } => {
                    if let Some(span) = self.open.get_mut(&sequence).and_then(SequenceTrace::span) {
                        span.event("preempted");
                    }
                }
                SequenceEvent::Finished { reason, .. } => self.end(sequence, Some(*reason), None),
                SequenceEvent::Failed { .. } => self.end(sequence, None, Some("a rank could not go on")),
                SequenceEvent::Expired { .. } => self.end(sequence, None, Some("its deadline has come")),
                SequenceEvent::Admitted { .. } | SequenceEvent::PromptLogprobs { .. } => {}
            }
        }
    }

    /// A sequence is cancelled: its text has ended, or nobody waits for it.
    pub(super) fn close(&mut self, sequence: SequenceId) {
        if !self.open.is_empty() {
            self.end(sequence, None, None);
        }
    }

    fn end(&mut self, sequence: SequenceId, finish: Option<FinishReason>, failure: Option<&'static str>) {
        let Some(mut trace) = self.open.remove(&sequence) else { return };
        let (tokens, steps) = (trace.tokens, trace.steps);
        let is_decoding = matches!(trace.phase, Phase::Decode(_));
        let Some(span) = trace.span() else { return };
        if is_decoding {
            span.set("gen_ai.usage.output_tokens", i64::from(tokens));
            span.set("lockstep.steps", i64::from(steps));
        }
        match finish {
            Some(FinishReason::StopToken) => span.set_list("gen_ai.response.finish_reasons", vec!["stop"]),
            Some(FinishReason::Length) => span.set_list("gen_ai.response.finish_reasons", vec!["length"]),
            None => {}
        }
        if let Some(failure) = failure {
            span.fail(failure);
        }
    }
}

/// What a step hangs on for one of its sequences.
enum Parent {
    Prefill(TraceParent),
    Decode(TraceParent),
}

impl SequenceTrace {
    /// A step computes for it.
    fn on_work(&mut self, traces: &Traces, work: &Work) -> Option<Parent> {
        match &mut self.phase {
            Phase::Prefill(chunks) if work.tokens == WorkTokens::LastSampled => {
                // Its first token is on its way, and opens the span of all of them.
                self.steps += 1;
                chunks.push_back(None);
                Some(Parent::Decode(self.origin.parent))
            }
            Phase::Queued(_) | Phase::Prefill(_) => {
                let chunk = traces.child("prefill", self.origin.parent).map(|span| {
                    let mut span = named(span, &self.origin, work.sequence);
                    span.set("lockstep.chunk.first_position", i64::from(work.first_position.0));
                    span.set("lockstep.chunk.tokens", i64::from(work.tokens.count().0));
                    span
                });
                let parent = chunk.as_ref().map(Span::parent);
                match &mut self.phase {
                    Phase::Prefill(chunks) => chunks.push_back(chunk),
                    Phase::Queued(_) | Phase::Decode(_) => {
                        self.phase = Phase::Prefill(VecDeque::from([chunk]))
                    }
                }
                parent.map(Parent::Prefill)
            }
            Phase::Decode(span) => {
                self.steps += 1;
                span.as_ref().map(Span::parent).map(Parent::Decode)
            }
        }
    }

    fn on_token(&mut self, traces: &Traces, sequence: SequenceId) {
        self.tokens += 1;
        match self.phase {
            Phase::Queued(_) | Phase::Prefill(_) => {
                let span = traces.child("decode", self.origin.parent);
                self.phase = Phase::Decode(span.map(|span| named(span, &self.origin, sequence)));
            }
            Phase::Decode(_) => {}
        }
    }

    fn span(&mut self) -> Option<&mut Span> {
        match &mut self.phase {
            Phase::Queued(span) | Phase::Decode(span) => span.as_mut(),
            Phase::Prefill(chunks) => chunks.front_mut().and_then(Option::as_mut),
        }
    }
}

fn named(mut span: Span, origin: &TraceOrigin, sequence: SequenceId) -> Span {
    span.set("lockstep.request.id", origin.request.to_string());
    span.set("lockstep.sequence", sequence.0 as i64);
    span
}
