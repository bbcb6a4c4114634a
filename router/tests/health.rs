//! Probes: what they say is so, and they say it at once, whatever the engine does.

mod support;

use std::time::Duration;

use lockstep_router::shards::fake::FakeModel;
use serde_json::json;
use support::{Server, config};

/// Steps of a group of which nothing is known may take so long. Late is what takes half of it.
const STEP_TIMEOUT: Duration = Duration::from_secs(12);

async fn status(server: &Server, path: &str) -> u16 {
    server.get(path).await.status
}

#[tokio::test]
async fn probes_do_not_wait_behind_a_step() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    server.control.pause();
    let asking = server.post("/generate", json!({"inputs": "a", "parameters": {"max_new_tokens": 2}}));
    let probing = async {
        server.until(async |server| server.metric("lockstep_kv_blocks_used").await >= 1.0).await;
        // The step ends when it is allowed to, which is after these.
        for path in ["/", "/health", "/ping", "/readyz", "/livez", "/startupz", "/metrics", "/info"] {
            assert_eq!(status(&server, path).await, 200, "{path}");
        }
        assert_eq!(server.control.steps(), 0);
        server.control.resume();
    };
    let (reply, ()) = futures::join!(asking, probing);
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[tokio::test]
async fn a_group_that_does_not_finish_its_step_is_not_ready_before_it_is_given_up() {
    let mut config = config();
    config.engine.step_timeout = STEP_TIMEOUT;
    config.engine.min_step_timeout = STEP_TIMEOUT;
    let server = Server::start_with(FakeModel::Hash, config).await;
    server.control.pause();
    let asking = server.post("/generate", json!({"inputs": "a", "parameters": {"max_new_tokens": 2}}));
    let probing = async {
        server.until(async |server| server.metric("lockstep_kv_blocks_used").await >= 1.0).await;
        assert_eq!(status(&server, "/readyz").await, 200, "it has just begun");
        for path in ["/readyz", "/health"] {
            server.until(async |server| status(server, path).await == 503).await;
        }
        assert_eq!(server.metric("lockstep_group_losses_total").await, 0.0, "it may finish yet");
        assert_eq!(status(&server, "/livez").await, 200, "the process gets on");
        server.control.resume();
        server.until(async |server| status(server, "/readyz").await == 200).await;
    };
    let (reply, ()) = futures::join!(asking, probing);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(server.metric("lockstep_group_losses_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_hangs_is_not_alive() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    assert_eq!(status(&server, "/livez").await, 200);
    let hanging = server.control.seize();
    let asking = server.post("/generate", json!({"inputs": "a", "parameters": {"max_new_tokens": 2}}));
    let probing = async {
        server.until(async |server| status(server, "/livez").await == 503).await;
        drop(hanging);
        server.until(async |server| status(server, "/livez").await == 200).await;
    };
    let (reply, ()) = futures::join!(asking, probing);
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[tokio::test]
async fn an_engine_that_nobody_asks_for_longer_than_a_hang_is_alive() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let start = std::time::Instant::now();
    server
        .until(async |server| {
            assert_eq!(status(server, "/livez").await, 200);
            start.elapsed() > Duration::from_secs(6)
        })
        .await;
}
