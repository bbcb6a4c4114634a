//! Two groups of ranks behind one router: one that is lost or asked to leave, and streams that go on with the other.

mod support;

use std::time::Duration;

use futures::future::join_all;
use lockstep_process::tasks::Tasks;
use lockstep_proto::{Epoch, ReplicaId, TokenId, Tokens};
use lockstep_router::app::{App, AppConfig};
use lockstep_router::engine::GroupState;
use lockstep_router::shards::fake::{FakeControl, FakeGroup, FakeModel, FakeShape};
use lockstep_router::testing::VOCABULARY_SIZE;
use lockstep_scheduler::RunAhead;
use serde_json::{Value, json};
use support::{BLOCKS, Reply, Server, config, model};

/// Groups that answer the same.
const MODEL: FakeModel = FakeModel::Seeded;

struct Replicas {
    server: Server,
    controls: Vec<FakeControl>,
}

impl Replicas {
    /// As many as there are vocabularies.
    fn loading(config: AppConfig, vocabularies: &[u32]) -> Self {
        let shape = |vocabulary_size| FakeShape {
            vocabulary_size,
            max_positions: Tokens(200),
            block_size: Tokens(4),
            blocks: BLOCKS,
        };
        let fakes = vocabularies.iter().map(|size| FakeGroup::new(MODEL, shape(*size)));
        let (groups, controls): (Vec<_>, Vec<_>) = fakes.unzip();
        let tasks = Tasks::new();
        let app = App::start(config, model(), groups, &tasks).expect("it starts");
        Self { server: Server { app, control: controls[0].clone(), tasks }, controls }
    }

    async fn start_with(config: AppConfig) -> Self {
        let replicas = Self::loading(config, &[VOCABULARY_SIZE; 2]);
        replicas.controls.iter().for_each(FakeControl::come_back);
        replicas.until_ready(2).await;
        replicas
    }

    async fn start() -> Self {
        Self::start_with(config()).await
    }

    async fn until_ready(&self, count: usize) {
        let mut states = self.server.app.engine.replica_states();
        let is_ready = |state: &&GroupState| matches!(state, GroupState::Ready(_));
        states
            .wait_for(|states| states.iter().filter(is_ready).count() == count)
            .await
            .expect("the engine lives");
    }

    /// Lets each group compute so many steps more, and waits until they have.
    async fn compute(&self, steps: usize) {
        for control in &self.controls {
            let before = control.steps();
            control.allow_steps(steps);
            self.server.until(async |_| control.steps() >= before + steps as u64).await;
        }
    }

    fn pause(&self) {
        self.controls.iter().for_each(FakeControl::pause);
    }

    fn resume(&self) {
        self.controls.iter().for_each(FakeControl::resume);
    }

    /// All of these requests at once, as soon as they run in both groups while both are paused.
    async fn answers(&self, disturb: impl AsyncFnOnce()) -> Vec<Reply> {
        self.pause();
        let answering = join_all(requests().map(|body| self.server.post("/generate", body)));
        let disturbing = async {
            self.server.until(async |server| server.app.requests_under_way() == COUNT).await;
            self.compute(3).await;
            disturb().await;
            self.resume();
        };
        futures::join!(answering, disturbing).0
    }
}

const COUNT: usize = 6;

/// Greedy and seeded ones, and one with a grammar.
fn requests() -> [Value; COUNT] {
    let request = |name: &str, more: Value| {
        let mut parameters = json!({"max_new_tokens": 30, "ignore_eos": true, "details": true});
        for (name, value) in more.as_object().into_iter().flatten() {
            parameters[name] = value.clone();
        }
        json!({"inputs": name, "parameters": parameters})
    };
    [
        request("a", json!({})),
        request("b", json!({"do_sample": true, "seed": 1})),
        request("a prompt", json!({"do_sample": true, "seed": 2, "temperature": 0.5})),
        request("a prompt", json!({"top_n_tokens": 3})),
        request("c", json!({"ignore_eos": false, "grammar": {"type": "regex", "value": "[a-f]{12,30}"}})),
        request("d", json!({"decoder_input_details": true})),
    ]
}

async fn undisturbed() -> Vec<Value> {
    let server = Server::start_with(MODEL, config()).await;
    let mut answers = Vec::new();
    for request in requests() {
        let reply = server.post("/generate", request).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        answers.push(reply.json());
    }
    answers
}

#[track_caller]
fn assert_undisturbed(replies: &[Reply], expected: &[Value]) {
    let answers: Vec<Value> = replies.iter().map(Reply::json).collect();
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn what_a_lost_group_computed_goes_on_with_the_other_at_once() {
    let expected = undisturbed().await;
    for lost in [0, 1] {
        let it = Replicas::start().await;
        let disturb = async || {
            it.controls[lost].lose();
            it.until_ready(1).await;
            assert_eq!(it.server.get("/readyz").await.status, 200);
        };
        assert_undisturbed(&it.answers(disturb).await, &expected);
        let number = async |name| it.server.metric(name).await;
        assert_eq!(number("lockstep_group_losses_total").await, 1.0);
        assert!(number("lockstep_sequence_moves_total").await >= 1.0, "both computed some of them");
        assert_eq!(number("lockstep_replicas_ready").await, 1.0);
        let of_lost = format!("lockstep_replica_ready{{replica=\"{lost}\"}}");
        assert_eq!(it.server.metric(&of_lost).await, 0.0);
        assert_eq!(number("lockstep_group_restarts_total").await, 0.0);
    }
}

#[tokio::test]
async fn a_group_that_is_to_leave_ends_its_steps_and_the_other_goes_on() {
    let expected = undisturbed().await;
    let one = (RunAhead::Never, 1);
    let one_or_two = (RunAhead::Allowed, 2);
    for (leaving, other, (run_ahead, steps)) in
        [(0, 1, one), (1, 0, one), (0, 1, one_or_two), (1, 0, one_or_two)]
    {
        let mut config = config();
        config.engine.run_ahead = run_ahead;
        let it = Replicas::start_with(config).await;
        let drain = || it.server.app.engine.drain(ReplicaId(leaving as u32), Epoch(1));
        let disturb = async || {
            let mut draining = Box::pin(drain());
            assert!(futures::poll!(draining.as_mut()).is_pending());
            it.controls[leaving].allow_steps(steps);
            draining.await.unwrap();
            it.until_ready(1).await;
        };
        assert_undisturbed(&it.answers(disturb).await, &expected);
        let number = async |name| it.server.metric(name).await;
        assert_eq!(number("lockstep_group_losses_total").await, 0.0);
        assert_eq!(number("tgi_batch_inference_failure{method=\"decode\"}").await, 0.0, "no step was lost");
        assert_eq!(number("lockstep_group_drains_total").await, 1.0);
        assert!(number("lockstep_sequence_moves_total").await >= 1.0);
        // It is gone already, whoever asks and however often.
        drain().await.unwrap();
        it.controls[leaving].come_back();
        it.until_ready(2).await;
        drain().await.unwrap();
        assert_eq!(it.server.app.replicas(), (2, 2), "that is said of an earlier one");
        assert!(it.controls[other].steps() > 0);
    }
}

#[tokio::test]
async fn where_no_group_is_left_the_first_that_returns_goes_on() {
    let expected = undisturbed().await;
    let it = Replicas::start().await;
    let disturb = async || {
        it.controls.iter().for_each(FakeControl::lose);
        it.until_ready(0).await;
        assert_eq!(it.server.get("/readyz").await.status, 503);
        it.controls[1].come_back();
        it.until_ready(1).await;
    };
    assert_undisturbed(&it.answers(disturb).await, &expected);
    assert_eq!(it.server.metric("lockstep_group_losses_total").await, 2.0);
}

/// Its sibling serves: nobody waits, so nobody waits for too long.
#[tokio::test]
async fn a_group_that_stays_away_ends_nothing() {
    let mut config = config();
    config.engine.group_loss_timeout = Duration::ZERO;
    let it = Replicas::start_with(config).await;
    it.controls[0].lose();
    it.until_ready(1).await;
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 3, "ignore_eos": true}});
    assert_eq!(it.server.post("/generate", body.clone()).await.status, 200);
    it.pause();
    let losing = async {
        it.server.until(async |server| server.metric("tgi_batch_current_size").await >= 1.0).await;
        it.controls[1].lose();
    };
    let (reply, ()) = futures::join!(it.server.post("/generate", body), losing);
    assert_eq!((reply.status, &reply.json()["error_type"]), (503, &json!("group_lost")));
}

/// It takes both groups down before it is found, and ends alone.
#[tokio::test]
async fn a_poisonous_request_is_found_whichever_groups_it_takes_down() {
    const POISON: u32 = b'#' as u32;
    let expected = undisturbed().await;
    let it = Replicas::start().await;
    it.controls.iter().for_each(|control| control.fall_over(TokenId(POISON)));
    it.pause();
    let poisonous = json!({"inputs": "##", "parameters": {"max_new_tokens": 10}});
    let waiting = async {
        let others = join_all(requests().map(|body| it.server.post("/generate", body)));
        futures::join!(others, it.server.post("/generate", poisonous))
    };
    let healing = async {
        it.server.until(async |server| server.app.requests_under_way() == COUNT + 1).await;
        it.resume();
        let mut healed = 0;
        while healed < 3 {
            let states = it.server.app.engine.replica_states().borrow().clone();
            let lost = it.server.metric("lockstep_group_losses_total").await;
            let is_down = |(state, control): &(&GroupState, &FakeControl)| {
                matches!(state, GroupState::Away { .. }) && !control.is_up()
            };
            // One at a time, each once its loss was counted.
            if lost > f64::from(healed)
                && let Some((_, control)) = states.iter().zip(&it.controls).find(is_down)
            {
                control.come_back();
                healed += 1;
            }
            tokio::task::yield_now().await;
        }
    };
    let ((others, poisonous), ()) = futures::join!(waiting, healing);
    assert_eq!((poisonous.status, &poisonous.json()["error_type"]), (424, &json!("generation")));
    assert_undisturbed(&others, &expected);
    assert_eq!(it.server.metric("lockstep_group_losses_total").await, 3.0);
}

#[tokio::test]
async fn the_load_is_shared_and_a_prefix_is_found_again() {
    let it = Replicas::start().await;
    it.pause();
    let long = "one and the same beginning of forty bytes";
    let body = |tail: &str| json!({"inputs": format!("{long}{tail}"), "parameters": {"max_new_tokens": 4, "ignore_eos": true}});
    let steps = || it.controls.iter().map(FakeControl::steps).collect::<Vec<_>>();
    it.resume();
    // One after the other: all of them where the first one's blocks are.
    for tail in ["", "!", "?", "."] {
        assert_eq!(it.server.post("/generate", body(tail)).await.status, 200);
    }
    assert_eq!(steps().iter().filter(|steps| **steps == 0).count(), 1, "{:?}", steps());
    assert!(it.server.metric("lockstep_prefix_hit_tokens_total").await >= 3.0 * 40.0);
    // Together: neither is left out.
    let all = (0..8).map(|tail| it.server.post("/generate", body(&tail.to_string())));
    assert!(join_all(all).await.iter().all(|reply| reply.status == 200));
    assert!(steps().iter().all(|steps| *steps > 0), "{:?}", steps());
}

#[tokio::test]
async fn a_group_of_another_model_is_not_used() {
    let it = Replicas::loading(config(), &[VOCABULARY_SIZE, VOCABULARY_SIZE + 1]);
    it.controls[0].come_back();
    it.until_ready(1).await;
    it.controls[1].come_back();
    for inputs in ["a", "b", "c"] {
        let body = json!({"inputs": inputs, "parameters": {"max_new_tokens": 20, "ignore_eos": true}});
        assert_eq!(it.server.post("/generate", body).await.status, 200);
    }
    assert_eq!(it.server.app.replicas(), (2, 1));
    assert_eq!(it.controls[1].steps(), 0);
    let info = it.server.get("/info").await.json();
    assert_eq!((&info["replicas"], &info["replicas_ready"]), (&json!(2), &json!(1)));
}
