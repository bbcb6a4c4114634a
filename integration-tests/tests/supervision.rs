//! Processes that die, hang or leave: what is restarted, what outlives it, and when the launcher gives up.

use std::time::Instant;

use lockstep_integration_tests::client::{Client, Generate};
use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_integration_tests::{BETWEEN_LOOKS, DEADLINE, faults, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

fn story() -> Generate {
    Generate::greedy("Once upon a time", 40)
}

async fn answer_at_last(client: &Client) -> Value {
    let start = Instant::now();
    loop {
        match client.generate(&story()).await {
            Ok(answer) => return answer,
            Err(refusal) => {
                assert!([0, 503].contains(&refusal.status), "{refusal:?}");
                assert!(start.elapsed() < DEADLINE, "the service does not return: {refusal:?}");
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
        }
    }
}

fn ranks(cluster: &Cluster, count: u32) -> Vec<Pid> {
    (0..count).map(|rank| faults::rank(cluster, rank)).collect()
}

#[tokio::test]
async fn shards_outlive_their_routers() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).start();
    let client = cluster.client();
    let before = client.generate(&story()).await.expect("it answers");
    let shards = ranks(&cluster, 2);
    for _ in 0..3 {
        let router = faults::router(&cluster);
        faults::kill(router);
        assert_eq!(answer_at_last(&client).await, before);
        assert_ne!(faults::router(&cluster), router, "another one answers");
    }
    assert_eq!(ranks(&cluster, 2), shards, "and the shards are the same");
}

/// Kills the router when a stream has told so many events.
async fn kill_router_after(events: usize, cluster: &Cluster) {
    let request = Generate::greedy("Once upon a time", 1000).seeded(1);
    let mut stream = cluster.client().stream(&request).await.expect("it opens");
    for _ in 0..events {
        stream.next().await.expect("it goes on").expect("it holds");
    }
    faults::kill(faults::router(cluster));
}

/// One rank: where there are more, a router may die when it has told some of a step and not the others, and the
/// group starts anew.
#[tokio::test]
async fn a_shard_outlives_a_router_that_dies_in_a_step() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let client = cluster.client();
    let before = client.generate(&story()).await.expect("it answers");
    let shards = ranks(&cluster, 1);
    for events in 1..4 {
        kill_router_after(events, &cluster).await;
        assert_eq!(answer_at_last(&client).await, before);
    }
    assert_eq!(ranks(&cluster, 1), shards);
}

#[tokio::test]
async fn the_service_returns_after_a_router_that_dies_in_a_step_of_two_ranks() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).start();
    let client = cluster.client();
    let before = client.generate(&story()).await.expect("it answers");
    for events in 1..6 {
        kill_router_after(events, &cluster).await;
        assert_eq!(answer_at_last(&client).await, before);
    }
}

/// However far a rank has come, before it listens or after, idle or not: nobody asks it for anything.
#[tokio::test]
async fn a_rank_that_hangs_while_it_loads_is_restarted() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).flags(&["--liveness-timeout", "5"]).start();
    let client = cluster.client();
    let before = client.generate(&story()).await.expect("it answers");
    let old = faults::rank(&cluster, 1);
    faults::kill(old);
    let is_new = |process: &Pid| *process != old;
    let mut loading = None;
    wait_until("the rank is started again", || {
        loading = faults::find_rank(&cluster, 1).filter(is_new);
        loading.is_some()
    });
    let loading = loading.expect("it was found");
    faults::freeze(loading);
    wait_until("it is ended", || !faults::is_alive(loading));
    cluster.wait_for_log("a process gives no sign of life");
    assert_eq!(answer_at_last(&client).await, before);
}

#[tokio::test]
async fn a_router_that_hangs_is_restarted() {
    let cluster = Setup::demo(LOCKSTEP).flags(&["--liveness-timeout", "5"]).start();
    let client = cluster.client();
    let before = client.generate(&story()).await.expect("it answers");
    let router = faults::router(&cluster);
    faults::freeze(router);
    wait_until("it is ended", || !faults::is_alive(router));
    assert_eq!(answer_at_last(&client).await, before);
}

#[tokio::test]
async fn a_rank_that_leaves_without_being_told_is_lost_with_its_group() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).start();
    let client = cluster.client();
    let before = client.generate(&story()).await.expect("it answers");
    let old = ranks(&cluster, 2);
    kill_process(old[1], Signal::TERM).expect("it is there");
    wait_until("both are gone", || !old.iter().any(|process| faults::is_alive(*process)));
    assert_eq!(answer_at_last(&client).await, before);
}

#[tokio::test]
async fn more_falls_than_are_allowed_end_the_launcher() {
    let mut cluster = Setup::demo(LOCKSTEP).ranks(2).flags(&["--max-restarts", "1"]).start();
    let client = cluster.client();
    let before = client.generate(&story()).await.expect("it answers");
    faults::kill(faults::rank(&cluster, 0));
    assert_eq!(answer_at_last(&client).await, before);
    faults::kill(faults::rank(&cluster, 1));
    assert!(!cluster.wait().success());
    cluster.wait_for_log("failed to keep the shards alive: they fell more than 1 times within 3600 s");
    assert_eq!(cluster.left_in_folder(), Vec::<std::path::PathBuf>::new());
}
