//! Sampling and parents, without a collector behind.

use super::*;

const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const NOT_SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// Spans go where nobody listens: port 1 takes no connections.
fn traces(sampling_ratio: f64) -> Traces {
    let config =
        TraceConfig::new(Role::Router, Some("http://127.0.0.1:1".to_owned()), None, sampling_ratio);
    Traces::start(&config).expect("the address is one")
}

fn client(parent: &str) -> Incoming<'_> {
    Incoming { parent: Some(parent), state: None }
}

fn request(traces: &Traces, client: Incoming<'_>) -> Option<Span> {
    traces.serve("POST /".to_owned(), client)
}

// The thread that sends is waited for at the end, so another must move its bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_clients_trace_goes_on() {
    let traces = traces(0.0);
    let span = request(&traces, client(SAMPLED)).expect("the client has sampled it");
    assert_eq!(span.trace_id(), "0af7651916cd43dd8448eb211c80319c");
    let child = traces.child("queue", span.parent()).expect("its parent is sampled");
    assert_eq!(child.trace_id(), span.trace_id());
    assert_ne!(child.parent().span_id, span.parent().span_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_clients_decision_counts_more_than_the_ratio() {
    assert!(request(&traces(1.0), client(NOT_SAMPLED)).is_none());
    assert!(request(&traces(0.0), client(SAMPLED)).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_ratio_decides_where_no_client_has() {
    for unclear in ["", "00-0-0-00", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"] {
        assert!(request(&traces(1.0), client(unclear)).is_some());
        assert!(request(&traces(0.0), client(unclear)).is_none());
    }
    let sampled = {
        let traces = traces(0.5);
        (0..400).filter(|_| request(&traces, Incoming::default()).is_some()).count()
    };
    // 20 standard deviations of room.
    assert!((1..400).contains(&sampled), "{sampled}");
}

#[test]
fn without_a_collector_there_are_no_spans() {
    let traces = Traces::default();
    assert!(!traces.is_on());
    assert!(request(&traces, client(SAMPLED)).is_none());
    assert!(traces.child("a", TraceParent { trace_id: 1, span_id: 1 }).is_none());
}

#[test]
fn a_trace_has_its_name_though_nobody_samples_it() {
    assert_eq!(client(NOT_SAMPLED).trace_id().as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
    assert_eq!(client("00-1-1-01").trace_id(), None);
    assert_eq!(Incoming::default().trace_id(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_address_that_needs_tls_is_refused_at_once() {
    let config = TraceConfig::new(Role::Router, Some("https://127.0.0.1:1".to_owned()), None, 1.0);
    let refused = Traces::start(&config).map(|_| ()).map_err(|error| error.to_string());
    assert!(
        refused.is_err_and(|message| message.contains("https://127.0.0.1:1") && message.contains("TLS"))
    );
}

#[test]
fn shares_are_from_0_to_1() {
    for ratio in [-0.1, 1.1, f64::NAN] {
        assert!(Traces::start(&TraceConfig::new(Role::Router, None, None, ratio)).is_err(), "{ratio}");
    }
}
