//! One request is one connected trace over all processes, as an OTLP receiver gets it, and a receiver that is
//! not there does no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_process::tasks::{Fate, Tasks};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";
const PROMPT: &str = "Once upon a time, there was a little dog named Rex.";

/// A span with who sent it.
#[derive(Clone, Debug)]
struct Received {
    service: String,
    instance: String,
    span: Span,
}

/// Takes spans as a collector does.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Received>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for from in request.into_inner().resource_spans {
            let resource = from.resource.unwrap_or_default().attributes;
            let (service, instance) =
                (text(&resource, "service.name"), text(&resource, "service.instance.id"));
            let spans = from.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let received =
                spans.map(|span| Received { service: service.clone(), instance: instance.clone(), span });
            self.0.lock().expect("nobody panics with it").extend(received);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a free port; returns where.
    async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        let serving = server.serve_with_incoming(TcpListenerStream::new(listener));
        Tasks::new().spawn("collector", Fate::Log, async move { serving.await.expect("it serves") });
        format!("http://{address}")
    }

    fn spans(&self) -> Vec<Received> {
        self.0.lock().expect("nobody panics with it").clone()
    }
}

fn attribute<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a Attribute> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.as_ref().and_then(|AnyValue { value }| value.as_ref())
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let Some(Attribute::StringValue(text)) = attribute(attributes, name) else { return String::new() };
    text.clone()
}

fn number(span: &Span, name: &str) -> Option<i64> {
    let Some(Attribute::IntValue(number)) = attribute(&span.attributes, name) else { return None };
    Some(*number)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn body(tokens: u32) -> Value {
    json!({"inputs": PROMPT, "parameters": {"max_new_tokens": tokens, "details": true, "ignore_eos": true}})
}

async fn ask(cluster: &Cluster, id: &str, flags: &str) -> String {
    let request = reqwest::Client::new()
        .post(format!("{}/generate_stream", cluster.url()))
        .header("x-request-id", id)
        .header("traceparent", format!("00-{TRACE}-{CLIENT_SPAN}-{flags}"))
        .json(&body(8));
    let answer = request.send().await.expect("it is served");
    assert_eq!(answer.status(), 200);
    answer.text().await.expect("the stream ends")
}

fn stop(cluster: &mut Cluster) {
    cluster.signal(Signal::TERM);
    // Blocks this thread alone: the collector has the runtime's.
    assert!(cluster.wait().success());
}

/// Names of spans, counted, by who sent them.
type Names = BTreeMap<(String, String), BTreeMap<String, usize>>;

fn names(spans: &[Received]) -> Names {
    let mut names = Names::new();
    for Received { service, instance, span } in spans {
        let of_sender = names.entry((service.clone(), instance.clone())).or_default();
        *of_sender.entry(span.name.clone()).or_default() += 1;
    }
    names
}

/// Everyone has sent what it should: the router each part of the request, every rank each step.
fn check_names(names: &Names) {
    let of = |service: &str, instance: &str| {
        let sent = names.get(&(service.to_owned(), instance.to_owned()));
        sent.unwrap_or_else(|| panic!("{service} {instance} sent nothing: {names:?}"))
    };
    let router = of("lockstep.router", "router");
    let chunks = router.get("prefill").copied().unwrap_or_default();
    assert!(chunks >= 2, "the prompt is cut: {router:?}");
    for name in ["POST /generate_stream", "queue", "decode"] {
        assert_eq!(router.get(name), Some(&1), "{router:?}");
    }
    // A step for each chunk, of which the last gives the first token, and one for each token more.
    let steps = chunks + 7;
    for rank in ["shard-0", "shard-1"] {
        let expected =
            ["step", "forward", "communication", "sampling"].map(|name| (name.to_owned(), steps));
        assert_eq!(of("lockstep.shard", rank), &BTreeMap::from(expected), "{rank}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_one_trace_over_router_and_ranks() {
    let collector = Collector::default();
    let endpoint = collector.listen().await;
    let flags = ["--otlp-endpoint", &endpoint, "--max-batch-prefill-tokens", "8"];
    let mut cluster = Setup::demo(LOCKSTEP).ranks(2).flags(&flags).start();
    ask(&cluster, "sampled-one", "01").await;
    // The client has decided that this one is not.
    ask(&cluster, "not-sampled", "00").await;
    stop(&mut cluster);

    let spans = collector.spans();
    assert!(!spans.is_empty(), "nothing was received");
    assert!(spans.iter().all(|received| hex(&received.span.trace_id) == TRACE));
    let ids: BTreeSet<String> = spans.iter().map(|received| hex(&received.span.span_id)).collect();
    assert_eq!(ids.len(), spans.len(), "every span is told once");
    for Received { span, .. } in &spans {
        let parent = hex(&span.parent_span_id);
        let is_root = span.name.starts_with("POST ");
        assert_eq!(parent == CLIENT_SPAN, is_root, "{}", span.name);
        assert!(is_root || ids.contains(&parent), "{} hangs on nothing", span.name);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{}", span.name);
        assert!(!format!("{span:?}").contains("Rex"), "{} shows the prompt", span.name);
    }

    check_names(&names(&spans));
    let named =
        |name: &str| spans.iter().find(|received| received.span.name == name).map(|found| &found.span);
    let request = named("POST /generate_stream").expect("it is there");
    assert_eq!(text(&request.attributes, "lockstep.request.id"), "sampled-one");
    assert_eq!(text(&request.attributes, "gen_ai.operation.name"), "text_completion");
    assert_eq!(number(request, "gen_ai.usage.output_tokens"), Some(8));
    assert_eq!(number(request, "http.response.status_code"), Some(200));
    let decode = named("decode").expect("it is there");
    assert_eq!(number(decode, "gen_ai.usage.output_tokens"), Some(8));
    assert_eq!(number(decode, "lockstep.steps"), Some(7));
    assert_eq!(text(&decode.attributes, "lockstep.request.id"), "sampled-one");

    let log = cluster.log();
    let finished =
        log.lines().find(|line| line.contains("request finished") && line.contains("sampled-one"));
    let finished = finished.expect("it is logged");
    assert!(finished.contains(&format!("trace_id=\"{TRACE}\"")), "{finished}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ratio_decides_for_clients_that_do_not() {
    let collector = Collector::default();
    let endpoint = collector.listen().await;
    let flags =
        ["--otlp-endpoint", &endpoint, "--trace-sampling-ratio", "0", "--otlp-service-name", "shop"];
    let mut cluster = Setup::demo(LOCKSTEP).flags(&flags).start();
    let plain = reqwest::Client::new().post(format!("{}/generate", cluster.url())).json(&body(4));
    assert_eq!(plain.send().await.expect("it is served").status(), 200);
    ask(&cluster, "sampled-two", "01").await;
    stop(&mut cluster);
    let names = names(&collector.spans());
    let senders: Vec<&str> = names.keys().map(|(service, _)| service.as_str()).collect();
    assert_eq!(senders, ["shop", "shop.shard"]);
    let requests = names.values().flat_map(BTreeMap::keys).filter(|name| name.starts_with("POST "));
    assert_eq!(requests.collect::<Vec<_>>(), ["POST /generate_stream"]);
}

/// A receiver that takes connections and never answers: requests are served, and the end comes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_hangs_holds_nothing_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", silent.local_addr().expect("it is bound"));
    let mut cluster = Setup::demo(LOCKSTEP).ranks(2).flags(&["--otlp-endpoint", &endpoint]).start();
    let answers = [ask(&cluster, "one", "01").await, ask(&cluster, "two", "00").await];
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].matches("data: ").count(), 8);
    stop(&mut cluster);
    assert!(cluster.log().contains("the last spans were not sent in time"), "the loss is told");
}
