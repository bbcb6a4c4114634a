//! Clients that leave, too many clients, shards that are lost, servers that stop.

mod support;

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use futures::StreamExt;
use lockstep_proto::{PromptLogprobs, SamplingParams, TokenId, Tokens};
use lockstep_router::engine::{Assignment, EngineError, GroupState, StopStrings, StopText};
use lockstep_router::serve::drained;
use lockstep_router::shards::fake::{FakeModel, Garbage};
use lockstep_scheduler::{CacheSalt, RunAhead, Service, Submission};
use serde_json::json;
use support::{BLOCKS, Server, config, model, post};
use tower::ServiceExt;

fn endless(words: &str) -> Request<Body> {
    post(
        "/generate_stream",
        &json!({"inputs": words, "parameters": {"max_new_tokens": 100, "ignore_eos": true}}),
    )
}

/// A stream that has been opened.
async fn opened(server: &Server, request: Request<Body>) -> axum::body::BodyDataStream {
    let response = server.router().oneshot(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    response.into_body().into_data_stream()
}

async fn blocks_taken(server: &Server) -> f64 {
    server.metric("lockstep_kv_blocks_used").await
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_blocks_within_one_step() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    server.control.pause();
    let mut stream = opened(&server, endless("a prompt")).await;
    server.control.allow_steps(1);
    stream.next().await.unwrap().unwrap();
    // The second step is in flight and paused.
    server
        .until(async |server| server.metric("tgi_batch_inference_count{method=\"decode\"}").await >= 1.0)
        .await;
    assert!(blocks_taken(&server).await > 0.0);
    let steps = server.control.steps();
    drop(stream);
    server.control.allow_steps(1);
    server.until(async |server| blocks_taken(server).await == 0.0).await;
    assert_eq!(server.control.steps(), steps + 1);
    let cached = server.metric("lockstep_kv_blocks_cached").await;
    assert_eq!(server.metric("lockstep_kv_blocks_free").await + cached, f64::from(BLOCKS));
    assert_eq!(server.metric("tgi_request_failure{err=\"dropped\"}").await, 1.0);
    assert_eq!(server.app.requests_under_way(), 0);
}

/// How many steps it takes until the blocks of a client that leaves after two of its prompt are free, of `allowed` ones.
async fn steps_until_free(run_ahead: RunAhead, allowed: usize) -> u64 {
    let mut config = config();
    config.engine.limits.max_step_tokens = Tokens(16);
    config.engine.run_ahead = run_ahead;
    let server = Server::start_with(FakeModel::Hash, config).await;
    server.control.pause();
    // Six steps of prompt.
    let stream = opened(&server, endless(&"a long prompt. ".repeat(6))).await;
    server.control.allow_steps(2);
    server.until(async |server| server.control.steps() == 2 && blocks_taken(server).await >= 8.0).await;
    drop(stream);
    server.control.allow_steps(allowed);
    server.until(async |server| blocks_taken(server).await == 0.0).await;
    assert_eq!(server.metric("tgi_request_failure{err=\"dropped\"}").await, 1.0);
    server.control.steps() - 2
}

#[tokio::test]
async fn a_client_that_leaves_in_its_prompt_frees_its_blocks_with_the_steps_under_way() {
    assert_eq!(steps_until_free(RunAhead::Never, 1).await, 1);
    let ahead = steps_until_free(RunAhead::Allowed, 2).await;
    assert!((1..=2).contains(&ahead), "{ahead}");
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_forgotten() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    server.control.pause();
    let first = opened(&server, endless("one")).await;
    let second = opened(&server, endless("two")).await;
    server.until(async |server| server.metric("tgi_queue_size").await >= 1.0).await;
    drop(second);
    server.until(async |server| server.metric("tgi_queue_size").await == 0.0).await;
    drop(first);
    server.control.resume();
    server.until(async |server| blocks_taken(server).await == 0.0).await;
}

#[tokio::test]
async fn a_slow_client_holds_up_nobody() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    // Opened and never read.
    let mut slow = opened(&server, endless("slow")).await;
    let fast = json!({"inputs": "fast", "parameters": {"max_new_tokens": 100, "ignore_eos": true, "details": true}});
    let reply = server.post("/generate", fast).await.json();
    assert_eq!(reply["details"]["generated_tokens"], 100);
    server.until(async |server| blocks_taken(server).await == 0.0).await;
    let mut events = 0;
    while let Some(event) = slow.next().await {
        assert!(event.unwrap().starts_with(b"data: "));
        events += 1;
    }
    assert_eq!(events, 100);
}

#[tokio::test]
async fn one_request_too_many_is_429_before_anything_else() {
    let mut config = config();
    config.max_concurrent_requests = 1;
    let server = Server::start_with(FakeModel::Hash, config).await;
    server.control.pause();
    let stream = opened(&server, endless("one")).await;
    let broken = json!({"inputs": "", "parameters": {"temperature": -1}});
    let reply = server.post("/generate", broken).await;
    let expected = json!({"error": "Model is overloaded", "error_type": "overloaded"});
    assert_eq!((reply.status, reply.json()), (429, expected));
    assert!(reply.header("retry-after").parse::<u32>().unwrap() >= 1);
    assert_eq!(server.metric("tgi_request_failure{err=\"overloaded\"}").await, 1.0);
    drop(stream);
    server.control.resume();
    let body = json!({"inputs": "two", "parameters": {"max_new_tokens": 1}});
    assert_eq!(server.post("/generate", body).await.status, 200);
}

#[tokio::test]
async fn requests_are_cancelled_by_id() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    server.control.pause();
    let mut request = endless("one");
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    let mut stream = opened(&server, request).await;
    let cancel = || Request::delete("/requests/mine").body(Body::empty()).unwrap();
    assert_eq!(server.send(cancel()).await.json(), json!({"id": "mine", "cancelled": 1}));
    let event = stream.next().await.unwrap().unwrap();
    assert_eq!(event, "data: {\"error\":\"The request was cancelled\",\"error_type\":\"cancelled\"}\n\n");
    assert!(stream.next().await.is_none());
    drop(stream);
    assert_eq!(server.send(cancel()).await.status, 404);
    server.control.resume();
    server.until(async |server| blocks_taken(server).await == 0.0).await;
}

#[tokio::test]
async fn a_stream_outlives_its_shards() {
    let undisturbed = Server::start_with(FakeModel::Hash, config()).await;
    let body = json!({"inputs": "a prompt", "parameters": {"max_new_tokens": 30, "ignore_eos": true}});
    let expected = undisturbed.post("/generate", body.clone()).await.json();

    let server = Server::start_with(FakeModel::Hash, config()).await;
    server.control.pause();
    let answering = server.post("/generate", body);
    let disturbing = async {
        for _ in 0..3 {
            server.control.allow_steps(4);
            let before = server.control.steps();
            server.until(async |server| server.control.steps() >= before + 4).await;
            server.control.lose();
            server.until(async |server| !server.app.is_ready()).await;
            assert_eq!(server.get("/readyz").await.status, 503);
            assert_eq!(server.get("/startupz").await.status, 200);
            assert_eq!(server.get("/livez").await.status, 200);
            server.control.come_back();
            server.app.wait_until_ready().await.unwrap();
        }
        server.control.resume();
    };
    let (reply, ()) = futures::join!(answering, disturbing);
    assert_eq!(reply.json(), expected);
    assert_eq!(server.metric("lockstep_group_losses_total").await, 3.0);
}

#[tokio::test]
async fn an_idle_server_notices_that_its_shards_are_gone() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let ready = async |server: &Server| server.get("/readyz").await.status == 200;
    server.until(ready).await;
    server.control.lose();
    server.until(async |server| !ready(server).await).await;
    server.control.come_back();
    server.until(ready).await;
}

#[tokio::test]
async fn shards_that_stay_away_end_the_wait_with_503() {
    let mut config = config();
    config.engine.group_loss_timeout = Duration::from_millis(50);
    let server = Server::start_with(FakeModel::Hash, config).await;
    server.control.pause();
    let whole = server.post("/generate", json!({"inputs": "a"}));
    let stream = server.post("/generate_stream", json!({"inputs": "b"}));
    let losing = async {
        server.until(async |server| server.app.requests_under_way() == 2).await;
        server.until(async |server| server.metric("tgi_batch_current_size").await >= 1.0).await;
        server.control.lose();
    };
    let (whole, stream, ()) = futures::join!(whole, stream, losing);
    assert_eq!((whole.status, &whole.json()["error_type"]), (503, &json!("group_lost")));
    assert!(!whole.header("retry-after").is_empty());
    assert_eq!(stream.status, 200);
    assert!(stream.events()[0].contains("\"error_type\":\"group_lost\""), "{}", stream.text);
    let late = server.post("/generate", json!({"inputs": "c"})).await;
    assert_eq!((late.status, &late.json()["error_type"]), (503, &json!("loading")));
}

#[tokio::test]
async fn what_arrives_when_the_wait_is_over_is_refused_at_once() {
    let mut config = config();
    config.engine.group_loss_timeout = Duration::from_millis(50);
    let server = Server::start_with(FakeModel::Hash, config).await;
    server.control.pause();
    let whole = server.post("/generate", json!({"inputs": "a"}));
    let losing = async {
        server.until(async |server| server.metric("tgi_batch_current_size").await >= 1.0).await;
        server.control.lose();
    };
    let (whole, ()) = futures::join!(whole, losing);
    assert_eq!(whole.status, 503);
    // As a request that was being tokenized when the shards were lost.
    let submission = Submission {
        prompt: vec![TokenId(1)],
        forced: Vec::new(),
        sampling: SamplingParams::greedy(),
        max_new_tokens: Tokens(1),
        stop_tokens: Vec::new(),
        prompt_logprobs: PromptLogprobs::Skip,
        cache_salt: CacheSalt(0),
        run_ahead: RunAhead::Allowed,
        service: Service::default(),
    };
    let stops = StopStrings::new(&[], StopText::Keep);
    let late = Assignment { submission, stops, grammar: None, trace: None };
    let refused = server.app.engine.submit(late).await.err();
    assert_eq!(refused, Some(EngineError::GroupLost { waited: Duration::from_millis(50) }));
    server.control.resume();
    server.control.come_back();
    server.app.wait_until_ready().await.unwrap();
    assert_eq!(server.post("/generate", json!({"inputs": "a"})).await.status, 200);
}

/// A shard that answers with an id the model does not have is out of its mind: its group is lost. The
/// request is tried with three groups, not for ever.
#[tokio::test]
async fn a_request_that_groups_are_lost_with_ends_after_three() {
    let server = Server::answering(&[u32::MAX]).await;
    let healing = async {
        for lost in 1..=3 {
            let restarts = async |server: &Server| server.metric("lockstep_group_losses_total").await;
            server.until(async |server| restarts(server).await == f64::from(lost)).await;
            server.control.come_back();
        }
    };
    let (reply, ()) = futures::join!(server.post("/generate", json!({"inputs": "a"})), healing);
    assert_eq!((reply.status, &reply.json()["error_type"]), (424, &json!("generation")));
    assert!(reply.text.contains("lost 3 times in a row"), "{}", reply.text);
    assert_eq!(server.metric("lockstep_group_losses_total").await, 3.0);
    server.until(async |server| blocks_taken(server).await == 0.0).await;
}

/// The request that fells groups is found among its batch-mates and ends alone; they get what they would
/// have got without it.
#[tokio::test]
async fn a_poisonous_request_ends_alone() {
    const POISON: u32 = b'#' as u32;
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let story = |start: &str| json!({"inputs": start, "parameters": {"max_new_tokens": 40, "ignore_eos": true, "details": true}});
    let starts = ["a", "b", "c", "d"];
    let undisturbed =
        futures::future::join_all(starts.map(|start| server.post("/generate", story(start)))).await;

    server.control.fall_over(TokenId(POISON));
    server.control.pause();
    let waiting = async {
        let others = starts.map(|start| server.post("/generate", story(start)));
        futures::join!(futures::future::join_all(others), server.post("/generate", story("##")))
    };
    let healing = async {
        server.until(async |server| server.metric("tgi_batch_current_size").await >= 5.0).await;
        server.control.resume();
        for lost in 1..=3 {
            let losses = async |server: &Server| server.metric("lockstep_group_losses_total").await;
            server.until(async |server| losses(server).await == f64::from(lost)).await;
            server.control.come_back();
        }
    };
    let ((others, poisonous), ()) = futures::join!(waiting, healing);
    assert_eq!((poisonous.status, &poisonous.json()["error_type"]), (424, &json!("generation")));
    for (other, expected) in others.iter().zip(&undisturbed) {
        assert_eq!(other.json(), expected.json());
    }
    assert_eq!(server.metric("lockstep_group_losses_total").await, 3.0);
}

/// Whatever is wrong with an answer, it is the group's fault and costs no request anything but time.
#[tokio::test]
async fn a_group_that_answers_garbage_is_lost_and_its_streams_go_on() {
    let undisturbed = Server::start_with(FakeModel::Hash, config()).await;
    let body = json!({"inputs": "a prompt", "parameters": {"max_new_tokens": 8, "ignore_eos": true, "details": true}});
    let expected = undisturbed.post("/generate", body.clone()).await.json();
    let all = [
        Garbage::WrongEpoch,
        Garbage::WrongStep,
        Garbage::MissingSequence,
        Garbage::DoubledSequence,
        Garbage::OtherSequence,
        Garbage::NoToken,
        Garbage::UnknownToken,
        Garbage::NotANumber,
    ];
    let server = Server::start_with(FakeModel::Hash, config()).await;
    for (before, garbage) in all.into_iter().enumerate() {
        server.control.pause();
        let disturbing = async {
            server.control.allow_steps(3);
            let steps = server.control.steps();
            server.until(async |server| server.control.steps() == steps + 3).await;
            server.control.answer_garbage(garbage);
            server.control.resume();
            server.until(async |server| !server.app.is_ready()).await;
            server.control.come_back();
        };
        let (reply, ()) = futures::join!(server.post("/generate", body.clone()), disturbing);
        assert_eq!(reply.json(), expected, "{garbage:?}");
        assert_eq!(server.metric("lockstep_group_losses_total").await, before as f64 + 1.0, "{garbage:?}");
    }
}

/// Logits that are no numbers whenever a request is computed are that request's fault.
#[tokio::test]
async fn a_request_that_breaks_numbers_ends_alone() {
    const POISON: u32 = b'#' as u32;
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let story = |start: &str| json!({"inputs": start, "parameters": {"max_new_tokens": 20, "ignore_eos": true, "details": true}});
    let undisturbed = server.post("/generate", story("a")).await.json();
    server.control.break_numbers(TokenId(POISON));
    server.control.pause();
    let healing = async {
        server.until(async |server| server.app.requests_under_way() == 2).await;
        server.control.resume();
        for lost in 1..=3 {
            let losses = async |server: &Server| server.metric("lockstep_group_losses_total").await;
            server.until(async |server| losses(server).await == f64::from(lost)).await;
            server.control.come_back();
        }
    };
    let other = server.post("/generate", story("a"));
    let (other, poisonous, ()) = futures::join!(other, server.post("/generate", story("##")), healing);
    assert_eq!((poisonous.status, &poisonous.json()["error_type"]), (424, &json!("generation")));
    assert_eq!(other.json(), undisturbed);
}

#[tokio::test]
async fn tokenizing_never_takes_the_places_of_generation() {
    let server = Server::saying("Hi").await;
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let mut busy = Box::pin(server.app.pool.run(move || wait.recv()));
    assert!(futures::poll!(busy.as_mut()).is_pending());
    let flood = (0..200).map(|_| server.post("/tokenize", json!({"inputs": "a"})));
    let mut flood = Box::pin(futures::future::join_all(flood));
    assert!(futures::poll!(flood.as_mut()).is_pending());
    let messages = json!([{"role": "user", "content": "a"}]);
    let mut answer = Box::pin(server.post("/v1/chat/completions", json!({"messages": messages})));
    assert!(futures::poll!(answer.as_mut()).is_pending(), "it waits for its turn and is not refused");
    release.send(()).unwrap();
    let (flood, answer, busy) = futures::join!(flood, answer, busy);
    assert!(busy.unwrap().is_ok());
    assert_eq!(answer.status, 200, "{}", answer.text);
    let refused = flood.iter().filter(|reply| reply.status == 429).count();
    let answered = flood.iter().filter(|reply| reply.status == 200).count();
    assert_eq!(refused + answered, 200);
    assert!(refused > 0 && answered > 0, "{refused} of 200 were refused");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_queue_is_counted() {
    let server = Server::loading(FakeModel::Hash, config(), model());
    let mut request = endless("one");
    request.headers_mut().insert("x-wait-for-model", "true".parse().unwrap());
    let mut waiting = Box::pin(server.send(request));
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    assert_eq!(server.metric("tgi_request_count").await, 1.0);
    drop(waiting);
    assert_eq!(server.metric("tgi_request_failure{err=\"dropped\"}").await, 1.0);
    assert_eq!(server.app.requests_under_way(), 0);
    // What is refused is counted once, as what it is.
    assert_eq!(server.post("/generate", json!({"inputs": "a"})).await.status, 503);
    assert_eq!(server.metric("tgi_request_failure{err=\"unavailable\"}").await, 1.0);
    assert_eq!(server.metric("tgi_request_failure{err=\"dropped\"}").await, 1.0);
}

#[tokio::test]
async fn a_step_that_hangs_is_a_lost_group() {
    let mut config = config();
    config.engine.step_timeout = Duration::from_millis(50);
    let server = Server::start_with(FakeModel::Hash, config).await;
    server.control.pause();
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 2, "ignore_eos": true}});
    let healing = async {
        server.until(async |server| server.app.requests_under_way() == 1).await;
        let mut state = server.app.engine.state();
        state.wait_for(|state| matches!(state, GroupState::Away { .. })).await.unwrap();
        server.control.resume();
        server.control.come_back();
    };
    let (reply, ()) = futures::join!(server.post("/generate", body), healing);
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[tokio::test]
async fn a_draining_server_finishes_what_runs_and_takes_nothing_new() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    server.control.pause();
    let stream = opened(&server, endless("one")).await;
    server.app.begin_draining();
    assert_eq!(server.get("/readyz").await.status, 503);
    assert_eq!(server.get("/livez").await.status, 200);
    let refused = server.post("/generate", json!({"inputs": "two"})).await;
    assert_eq!((refused.status, &refused.json()["error_type"]), (503, &json!("shutting_down")));
    assert_eq!(refused.header("retry-after"), "1");
    let mut ending = Box::pin(drained(&server.app));
    assert!(futures::poll!(ending.as_mut()).is_pending());
    server.control.resume();
    assert_eq!(stream.count().await, 100);
    ending.await;
}

#[tokio::test]
async fn what_does_not_finish_is_cancelled_with_a_word() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    server.control.pause();
    let stream = server.post("/generate_stream", json!({"inputs": "a"}));
    let stopping = async {
        server.until(async |server| server.app.requests_under_way() == 1).await;
        server.app.begin_draining();
        server.tasks.stop_and_wait().await;
    };
    let (reply, ()) = futures::join!(stream, stopping);
    assert!(reply.text.contains("\"error_type\":\"shutting_down\""), "{}", reply.text);
    assert_eq!(server.tasks.count(), 0);
}

#[tokio::test]
async fn info_models_and_tokens_have_their_names() {
    let server = Server::saying("Hi").await;
    let info = server.get("/info").await.json();
    let expected = json!({
        "model_id": "test/model", "model_sha": null, "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": 8, "max_best_of": 2, "max_stop_sequences": 4, "max_input_tokens": 199,
        "max_total_tokens": 200, "validation_workers": 1, "max_client_batch_size": 4, "watermark_gamma": 0.5,
        "watermark_delta": 2.0, "router": "lockstep-router",
        "version": env!("CARGO_PKG_VERSION"), "sha": null, "docker_label": null, "replicas": 1,
        "replicas_ready": 1
    });
    assert_eq!(info, expected);
    let models = server.get("/v1/models").await.json();
    let model = json!({"id": "test/model", "object": "model", "created": 0, "owned_by": "test/model"});
    assert_eq!(models, json!({"object": "list", "data": [model.clone()]}));
    // Clients write the slash in a name as they like.
    for path in ["/v1/models/test/model", "/v1/models/test%2Fmodel"] {
        assert_eq!(server.get(path).await.json(), model, "{path}");
    }
    let nobody = server.get("/v1/models/nobody").await;
    assert_eq!((nobody.status, nobody.json()["error"]["code"].as_str()), (404, Some("not_found")));
    let tokens = server.post("/tokenize", json!({"inputs": "aé"})).await.json();
    assert_eq!(tokens[0], json!({"id": 97, "text": "a", "start": 0, "stop": 1}));
    assert_eq!(tokens.as_array().unwrap().len(), 3);
}

/// A request that was let in a moment before is answered with the same names and bounds.
#[tokio::test]
async fn what_is_known_of_the_model_stays_known_while_its_group_is_away() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let known = |server: &Server| {
        let limits = server.app.limits();
        (server.app.fingerprint(), server.app.compute_type(), format!("{limits:?}"))
    };
    let before = known(&server);
    server.control.lose();
    server.until(async |server| !server.app.is_ready()).await;
    assert_eq!(known(&server), before);
}
