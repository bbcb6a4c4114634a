//! Bounds of the queue, deadlines, priorities and tenants, as clients meet them.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use futures::{FutureExt, StreamExt};
use lockstep_proto::Tokens;
use lockstep_router::shards::fake::FakeModel;
use serde_json::{Value, json};
use support::{Server, config, post};

fn asking(path: &str, body: &Value, headers: &[(&'static str, &str)]) -> Request<Body> {
    let mut request = post(path, body);
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

fn short(inputs: &str) -> Value {
    json!({"inputs": inputs, "parameters": {"max_new_tokens": 2}})
}

#[tokio::test]
async fn headers_that_make_no_sense_are_refused_by_name() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let long = "t".repeat(300);
    let cases = [
        ("x-priority", "urgent"),
        ("x-priority", "101"),
        ("x-request-timeout", "0"),
        ("x-request-timeout", "-1"),
        ("x-request-timeout", "soon"),
        ("x-request-timeout", "NaN"),
        ("x-tenant", &long),
        ("x-use-cache", "maybe"),
        ("x-wait-for-model", "maybe"),
    ];
    for (name, value) in cases {
        let reply = server.send(asking("/generate", &short("a"), &[(name, value)])).await;
        assert_eq!(
            (reply.status, &reply.json()["error_type"]),
            (422, &json!("validation")),
            "{name}: {value}"
        );
        assert!(reply.text.contains(name), "{}", reply.text);
    }
    let good = [
        ("x-priority", "High"),
        ("x-priority", "-100"),
        ("x-request-timeout", "30.5"),
        ("x-request-timeout", "1e300"),
        ("x-tenant", "a tenant"),
        ("x-use-cache", "False"),
        ("x-wait-for-model", "1"),
        ("x-wait-for-model", ""),
    ];
    for header in good {
        let reply = server.send(asking("/generate", &short("a"), &[header])).await;
        assert_eq!(reply.status, 200, "{header:?}: {}", reply.text);
    }
}

#[tokio::test]
async fn a_deadline_ends_what_runs_with_a_typed_error() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    server.control.pause();
    let timeout = [("x-request-timeout", "0.05")];
    let whole = server.send(asking("/generate", &short("a"), &timeout)).await;
    assert_eq!((whole.status, &whole.json()["error_type"]), (504, &json!("timeout")));
    let stream = server.send(asking("/generate_stream", &short("b"), &timeout)).await;
    let events = stream.events();
    let error: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!((events.len(), &error["error_type"]), (1, &json!("timeout")));
    let chat = json!({"messages": [{"role": "user", "content": "a"}]});
    let chat = server.send(asking("/v1/chat/completions", &chat, &timeout)).await;
    assert_eq!((chat.status, &chat.json()["error"]["code"]), (504, &json!("timeout")));
    assert_eq!(server.metric("tgi_request_failure{err=\"timeout\"}").await, 3.0);
    assert_eq!(server.metric("tgi_queue_size").await, 0.0);
    server.control.resume();
    let after = server.send(asking("/generate", &short("c"), &[])).await;
    assert_eq!(after.status, 200, "{}", after.text);
}

#[tokio::test]
async fn the_configured_timeout_holds_where_none_is_named() {
    let request_timeout = Some(Duration::from_millis(50));
    let mut config = config();
    config.patience.request_timeout = request_timeout;
    let server = Server::start_with(FakeModel::Hash, config).await;
    server.control.pause();
    assert_eq!(server.post("/generate", short("a")).await.status, 504);
    let longer = server.send(asking("/generate", &short("a"), &[("x-request-timeout", "600")]));
    let resuming = async {
        server.until(async |server| server.metric("tgi_queue_size").await >= 1.0).await;
        server.control.resume();
    };
    let (longer, ()) = futures::join!(longer, resuming);
    assert_eq!(longer.status, 200, "{}", longer.text);
}

#[tokio::test]
async fn a_deadline_also_comes_while_the_shards_are_away() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    server.control.pause();
    let lost = async {
        server.until(async |server| server.metric("tgi_batch_current_size").await >= 1.0).await;
        server.control.lose();
    };
    let request = server.send(asking("/generate", &short("a"), &[("x-request-timeout", "0.2")]));
    let (reply, ()) = futures::join!(request, lost);
    assert_eq!((reply.status, &reply.json()["error_type"]), (504, &json!("timeout")));
}

#[tokio::test]
async fn what_waits_in_the_queue_for_too_long_is_told_to_come_back() {
    let mut config = config();
    config.engine.limits.max_running = 1;
    config.patience.queue_timeout = Some(Duration::from_secs(2));
    let server = Server::start_with(FakeModel::Hash, config).await;
    server.control.pause();
    let first = server.post("/generate", short("first"));
    let others = async {
        server.until(async |server| server.metric("tgi_batch_current_size").await >= 1.0).await;
        // That it is out of the queue is told with its first step.
        server.control.allow_steps(1);
        let whole = server.post("/generate", short("second"));
        let stream = server.post("/generate_stream", short("third"));
        let (whole, stream) = futures::join!(whole, stream);
        server.until(async |server| server.metric("tgi_queue_size").await == 0.0).await;
        server.control.resume();
        (whole, stream)
    };
    let (first, (whole, stream)) = futures::join!(first, others);
    assert_eq!(first.status, 200, "what runs has as long as it takes: {}", first.text);
    assert_eq!((whole.status, &whole.json()["error_type"]), (429, &json!("overloaded")));
    assert!(whole.header("retry-after").parse::<u32>().unwrap() >= 1);
    let event: Value = serde_json::from_str(&stream.events()[0]).unwrap();
    assert_eq!((stream.events().len(), &event["error_type"]), (1, &json!("overloaded")));
}

/// Bodies come before their requests have a place.
#[tokio::test]
async fn bodies_that_are_under_way_are_bounded_together() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let almost = vec![b' '; config().payload_limit_bytes - 100];
    let stuck = || {
        let begun = futures::stream::iter([Ok::<_, std::io::Error>(almost.clone())]);
        let body = Body::from_stream(begun.chain(futures::stream::pending()));
        Request::post("/generate").header("content-type", "application/json").body(body).unwrap()
    };
    let mut waiting: Vec<_> = (0..40).map(|_| Box::pin(server.send(stuck()))).collect();
    let mut refused = 0;
    for request in &mut waiting {
        if let Some(reply) = request.as_mut().now_or_never() {
            assert_eq!((reply.status, &reply.json()["error_type"]), (429, &json!("overloaded")));
            assert_eq!(reply.header("retry-after"), "1");
            refused += 1;
        }
    }
    assert_eq!(refused, 8, "there is room for 32");
    drop(waiting);
    assert_eq!(server.send(asking("/generate", &short("a"), &[])).await.status, 200);
}

#[tokio::test]
async fn the_queue_is_bounded_in_tokens() {
    let mut config = config();
    config.engine.limits.max_running = 1;
    config.engine.limits.max_queue_tokens = Tokens(10);
    let server = Server::start_with(FakeModel::Hash, config).await;
    server.control.pause();
    let first = server.post("/generate", short("first"));
    let second = async {
        server.until(async |server| server.metric("tgi_batch_current_size").await >= 1.0).await;
        server.post("/generate", short("12345678")).await
    };
    let third = async {
        // The first one runs and the second one waits.
        server.until(async |server| server.metric("tgi_queue_size").await >= 1.0).await;
        let reply = server.post("/generate_stream", short("123")).await;
        server.control.resume();
        reply
    };
    let (first, second, third) = futures::join!(first, second, third);
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!((third.status, &third.json()["error_type"]), (429, &json!("overloaded")));
    assert!(third.header("retry-after").parse::<u32>().unwrap() >= 1);
}

#[tokio::test]
async fn a_tenant_that_floods_leaves_places_to_others() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let quiet = [("x-tenant", "quiet")];
    assert_eq!(server.send(asking("/generate", &short("a"), &quiet)).await.status, 200);
    server.control.pause();
    let requests = (0..12).map(|_| server.send(asking("/generate", &short("a"), &[("x-tenant", "flood")])));
    let flood = futures::future::join_all(requests);
    let other = async {
        server.until(async |server| server.app.requests_under_way() == 6).await;
        let other = server.send(asking("/generate", &short("b"), &quiet));
        let resuming = async {
            server.until(async |server| server.app.requests_under_way() == 7).await;
            server.control.resume();
        };
        futures::join!(other, resuming).0
    };
    let (flood, other) = futures::join!(flood, other);
    assert_eq!(other.status, 200);
    let refused = flood.iter().filter(|reply| reply.status == 429);
    assert_eq!(refused.map(|reply| assert!(!reply.header("retry-after").is_empty())).count(), 6);
}

/// Whatever names it thinks of, a key has one share.
#[tokio::test]
async fn a_key_that_names_many_tenants_is_one() {
    let mut config = config();
    config.access.keys = ["flood".parse().unwrap(), "quiet".parse().unwrap()].to_vec();
    let server = Server::start_with(FakeModel::Hash, config).await;
    let quiet = [("authorization", "Bearer quiet")];
    assert_eq!(server.send(asking("/generate", &short("a"), &quiet)).await.status, 200);
    server.control.pause();
    let requests = (0..12).map(|number| {
        let tenant = format!("tenant {number}");
        let headers = [("authorization", "Bearer flood"), ("x-tenant", &tenant)];
        server.send(asking("/generate", &short("a"), &headers))
    });
    let flood = futures::future::join_all(requests);
    let counting = async {
        let have_all_come = async |server: &Server| {
            let refused = server.metric("tgi_request_failure{err=\"overloaded\"}").await;
            server.app.requests_under_way() + refused as usize == 12
        };
        server.until(have_all_come).await;
        let under_way = server.app.requests_under_way();
        server.control.resume();
        under_way
    };
    let (flood, under_way) = futures::join!(flood, counting);
    assert_eq!(under_way, 6);
    assert_eq!(flood.iter().filter(|reply| reply.status == 429).count(), 6);
}
