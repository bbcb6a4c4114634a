//! Two replicas behind one router: ranks that are killed, groups that are restarted one after the other, requests that
//! take groups down, stops; and no client can tell.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::future::join_all;
use lockstep_integration_tests::client::{Client, EventStream, Generate};
use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_integration_tests::{BETWEEN_LOOKS, DEADLINE, faults, wait_until};
use rustix::process::Signal;
use serde_json::json;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

/// Tokens of every answer here, unless it ends before.
const TOKENS: u32 = 40;

/// Streams at once.
const STREAMS: u64 = 16;

fn two_replicas() -> Setup {
    Setup::demo(LOCKSTEP).flags(&["--replicas", "2"])
}

/// Greedy, seeded, and held to a grammar.
fn request(number: u64) -> Generate {
    let prompt = format!("Once upon a time, there were {number} little dogs");
    let greedy = Generate::greedy(&prompt, TOKENS);
    match number % 4 {
        0 => greedy,
        1 => greedy.seeded(number).with("grammar", json!({ "type": "regex", "value": "[a-z ,.]{30,60}" })),
        _ => greedy.seeded(number),
    }
}

async fn open(client: &Client, request: &Generate) -> EventStream {
    client.stream(request).await.unwrap_or_else(|refusal| panic!("a request is refused: {refusal:?}"))
}

/// All streams at once, each event counted in `seen`.
async fn streams(client: &Client, seen: &AtomicUsize) -> Vec<Vec<String>> {
    let one = async |number| {
        let mut stream = open(client, &request(number)).await;
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            events.push(event.expect("the connection holds"));
            seen.fetch_add(1, Ordering::Relaxed);
        }
        events
    };
    let all = join_all((0..STREAMS).map(one));
    tokio::time::timeout(DEADLINE, all).await.expect("the streams end")
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < DEADLINE, "it never holds that {what}");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// Until the router computes with both, and the launcher knows it.
async fn until_both_serve(cluster: &Cluster, client: &Client) {
    until("both replicas serve", async || client.metric("lockstep_replicas_ready").await == 2.0).await;
    let known = || cluster.count_in_log("the router computes with these shards") >= 2;
    until("the launcher knows", async || known()).await;
}

async fn until_seen(seen: &AtomicUsize, events: usize) {
    until("the streams go on", async || seen.load(Ordering::Relaxed) >= events).await;
}

#[tokio::test]
async fn streams_go_on_with_the_sibling_of_a_group_that_is_lost() {
    let cluster = two_replicas().ranks(2).start();
    let client = cluster.client();
    until_both_serve(&cluster, &client).await;
    let seen = AtomicUsize::new(0);
    let undisturbed = streams(&client, &seen).await;
    let total = seen.swap(0, Ordering::Relaxed);
    for (replica, rank) in [(0, 1), (1, 0)] {
        until_both_serve(&cluster, &client).await;
        let moves = client.metric("lockstep_sequence_moves_total").await;
        let killing = async {
            until_seen(&seen, total / 4).await;
            faults::kill(faults::rank_of(&cluster, replica, rank));
        };
        let (events, ()) = tokio::join!(streams(&client, &seen), killing);
        assert_eq!(events, undisturbed, "rank {rank} of replica {replica} was killed");
        assert!(
            client.metric("lockstep_sequence_moves_total").await > moves,
            "its streams went on elsewhere"
        );
        assert!(client.is_ready().await);
        seen.store(0, Ordering::Relaxed);
    }
    assert_eq!(client.metric("lockstep_group_losses_total").await, 2.0);
}

#[tokio::test]
async fn a_rolling_restart_under_load_loses_nothing() {
    let cluster = two_replicas().start();
    let client = cluster.client();
    until_both_serve(&cluster, &client).await;
    let seen = AtomicUsize::new(0);
    let undisturbed = streams(&client, &seen).await;
    let before = [0, 1].map(|replica| faults::rank_of(&cluster, replica, 0));
    cluster.signal(Signal::HUP);
    // As long as it takes, one load after the other; a request that is refused is a failure.
    let mut loads = 0;
    while !cluster.log().contains("every group was restarted and serves") || loads == 0 {
        assert_eq!(streams(&client, &seen).await, undisturbed, "load {loads}");
        assert!(client.is_ready().await);
        loads += 1;
    }
    for (replica, before) in (0..).zip(before) {
        assert_ne!(faults::rank_of(&cluster, replica, 0), before, "replica {replica} has a new process");
    }
    assert_eq!(client.metric("lockstep_group_drains_total").await, 2.0);
    assert_eq!(client.metric("lockstep_group_losses_total").await, 0.0, "none was lost");
    until_both_serve(&cluster, &client).await;
    assert_eq!(streams(&client, &seen).await, undisturbed);
}

#[tokio::test]
async fn a_rolling_restart_is_refused_where_nobody_would_serve() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let rank = faults::rank(&cluster, 0);
    cluster.signal(Signal::HUP);
    cluster.wait_for_log("rolling restart: refused");
    assert!(faults::is_alive(rank) && cluster.client().is_ready().await);

    let cluster = two_replicas().start();
    let client = cluster.client();
    until_both_serve(&cluster, &client).await;
    // The second comes while the first is under way: the group whose turn it is cannot be back within no time.
    cluster.signal(Signal::HUP);
    cluster.wait_for_log("this group leaves and comes back");
    cluster.signal(Signal::HUP);
    cluster.wait_for_log("rolling restart: refused, since one is under way");
    cluster.wait_for_log("rolling restart: every group was restarted and serves");
    assert!(client.is_ready().await);
}

#[tokio::test]
async fn a_stop_lets_streams_of_both_replicas_end() {
    let mut cluster = two_replicas().start();
    let client = cluster.client();
    until_both_serve(&cluster, &client).await;
    let seen = AtomicUsize::new(0);
    let undisturbed = streams(&client, &seen).await;
    let total = seen.swap(0, Ordering::Relaxed);
    let processes = faults::descendants(cluster.launcher());
    assert_eq!(processes.len(), 3, "a router and two ranks");
    let stopping = async {
        until_seen(&seen, total / 4).await;
        cluster.signal(Signal::TERM);
        until("readiness drops first", async || !client.is_ready().await).await;
    };
    let (events, ()) = tokio::join!(streams(&client, &seen), stopping);
    assert_eq!(events, undisturbed);
    assert!(cluster.wait().success());
    assert!(!processes.into_iter().any(faults::is_alive), "nothing is left");
    assert_eq!(cluster.left_in_folder(), Vec::<std::path::PathBuf>::new());
}

/// A group that falls while it is restarted is tried again, and its sibling is left alone.
#[tokio::test]
async fn a_group_that_falls_on_its_way_back_ends_a_rolling_restart() {
    let cluster = two_replicas().start();
    let client = cluster.client();
    until_both_serve(&cluster, &client).await;
    let (first, second) = (faults::rank_of(&cluster, 0, 0), faults::rank_of(&cluster, 1, 0));
    cluster.signal(Signal::HUP);
    let mut next = None;
    wait_until("the first group is started again", || {
        next = faults::find_rank_of(&cluster, 0, 0).filter(|process| *process != first);
        next.is_some()
    });
    faults::kill(next.expect("it was found"));
    // Where it was faster than the kill, the restart goes on; it ends here otherwise.
    until("the restart has ended", async || {
        let log = cluster.log();
        log.contains("rolling restart: ended") || log.contains("rolling restart: every group")
    })
    .await;
    if cluster.log().contains("rolling restart: ended") {
        assert!(faults::is_alive(second), "the sibling stays as it is");
    }
    until_both_serve(&cluster, &client).await;
    let story = Generate::greedy("Once upon a time", 10);
    assert!(client.generate(&story).await.is_ok());
}
