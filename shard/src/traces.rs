//! The spans of a step, for the sampled requests it computes for.
//!
//! A step is one piece of work for all its sequences, so its span has one parent, the first of them, and links to
//! the others. What it spent on the forward pass, on the other ranks and on sampling are sums of many short
//! turns: their spans have the lengths of the sums, one after the other, communication inside of the forward pass.

use std::time::{Duration, SystemTime};

use lockstep_process::traces::{Span, Traces};
use lockstep_proto::{MAX_STEP_TRACES, Rank, Step, StepTimings, Tokens, TraceParent};

/// A sampled step that is being computed.
pub(crate) struct StepTrace<'a> {
    traces: &'a Traces,
    span: Span,
    start: SystemTime,
}

impl<'a> StepTrace<'a> {
    /// Begins the span of a step; `None` where none of its requests is sampled.
    pub(crate) fn begin(
        traces: &'a Traces,
        rank: Rank,
        step: &Step,
        parents: &[TraceParent],
    ) -> Option<Self> {
        let (first, others) = parents.split_first()?;
        let start = SystemTime::now();
        let mut span = traces.child_since("step", *first, start)?;
        others.iter().take(MAX_STEP_TRACES - 1).for_each(|other| span.link(*other));
        let tokens = step.work.iter().fold(Tokens::ZERO, |sum, work| sum + work.tokens.count());
        span.set("lockstep.rank", i64::from(rank.0));
        span.set("lockstep.epoch", step.epoch.0 as i64);
        span.set("lockstep.step", step.step_id.0 as i64);
        span.set("lockstep.step.sequences", i64::try_from(step.work.len()).unwrap_or(i64::MAX));
        span.set("lockstep.step.tokens", i64::from(tokens.0));
        Some(Self { traces, span, start })
    }

    /// The step is done.
    pub(crate) fn end(self, timings: &StepTimings) {
        let after = |nanoseconds| self.start + Duration::from_nanos(nanoseconds);
        let forward = after(timings.forward_ns);
        let parent = self.span.parent();
        if let Some(span) = self.traces.child_since("forward", parent, self.start) {
            if let Some(communication) = self.traces.child_since("communication", span.parent(), self.start)
            {
                communication.end_at(after(timings.comm_ns.min(timings.forward_ns)));
            }
            span.end_at(forward);
        }
        if let Some(span) = self.traces.child_since("sampling", parent, forward) {
            span.end_at(after(timings.forward_ns + timings.sample_ns));
        }
    }

    /// The rank broke in the step.
    pub(crate) fn fail(mut self) {
        self.span.fail("this rank cannot go on");
    }
}
