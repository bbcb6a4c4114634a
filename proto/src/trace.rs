//! Where a span of one process hangs on a span of another.

use crate::wire;

/// Spans of sampled requests that one step carries at most. More would cost every rank's span a link each.
pub const MAX_STEP_TRACES: usize = 8;

/// A span in a sampled trace (W3C Trace Context), as a parent for spans elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace; not 0.
    pub trace_id: u128,
    /// The span; not 0.
    pub span_id: u64,
}

impl From<TraceParent> for wire::TraceParent {
    fn from(parent: TraceParent) -> Self {
        Self {
            trace_id_high: (parent.trace_id >> 64) as u64,
            trace_id_low: parent.trace_id as u64,
            span_id: parent.span_id,
        }
    }
}

impl From<wire::TraceParent> for TraceParent {
    fn from(parent: wire::TraceParent) -> Self {
        let trace_id = u128::from(parent.trace_id_high) << 64 | u128::from(parent.trace_id_low);
        Self { trace_id, span_id: parent.span_id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_their_bytes() {
        let parent =
            TraceParent { trace_id: 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210, span_id: u64::MAX - 1 };
        assert_eq!(TraceParent::from(wire::TraceParent::from(parent)), parent);
    }
}
