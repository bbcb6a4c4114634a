//! A killed process: the service returns by itself and answers as before.

use lockstep_integration_tests::client::{Client, Generate};
use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_integration_tests::{BETWEEN_LOOKS, DEADLINE, faults};
use serde_json::Value;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

fn story() -> Generate {
    Generate::greedy("Once upon a time", 40)
}

/// Asks until there is an answer; what is said meanwhile is a refusal and not garbage.
async fn answer_at_last(client: &Client) -> Value {
    let start = std::time::Instant::now();
    loop {
        match client.generate(&story()).await {
            Ok(answer) => return answer,
            Err(refusal) => {
                let expected = [0, 424, 500, 503];
                assert!(expected.contains(&refusal.status), "{refusal:?}");
                assert!(start.elapsed() < DEADLINE, "the service does not return: {refusal:?}");
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
        }
    }
}

async fn check_return(cluster: &Cluster, victim: u32) {
    let client = cluster.client();
    let before = client.generate(&story()).await.expect("it answers");
    let router = faults::router(cluster);
    let ranks: Vec<_> = (0..2).map(|rank| faults::rank(cluster, rank)).collect();

    let mut stream =
        client.stream(&Generate::greedy("Once upon a time", 1000).seeded(1)).await.expect("it opens");
    for _ in 0..5 {
        stream.next().await.expect("it goes on").expect("it holds");
    }
    faults::kill(ranks[victim as usize]);
    // It may fail, or go on once the group is back; it may not hang.
    let rest = tokio::time::timeout(DEADLINE, stream.rest()).await.expect("the stream ends");
    if let Ok(events) = rest {
        assert!(!events.is_empty(), "a stream does not end without a word");
    }

    assert_eq!(answer_at_last(&client).await, before, "the same answer as before");
    assert_eq!(faults::router(cluster), router, "the router stayed");
    for (rank, old) in (0..2).zip(ranks) {
        assert_ne!(faults::rank(cluster, rank), old, "the whole group was started again");
    }
    assert!(client.is_ready().await);
}

#[tokio::test]
async fn the_service_returns_after_a_rank_was_killed_in_mid_stream() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).start();
    check_return(&cluster, 1).await;
    check_return(&cluster, 0).await;
    assert!(cluster.client().metric("lockstep_group_losses_total").await >= 2.0);
}

#[tokio::test]
async fn the_service_returns_after_the_router_was_killed() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let client = cluster.client();
    let before = client.generate(&story()).await.expect("it answers");
    let router = faults::router(&cluster);
    faults::kill(router);
    assert_eq!(answer_at_last(&client).await, before);
    assert_ne!(faults::router(&cluster), router, "another one answers");
}

#[tokio::test]
async fn the_service_returns_after_a_step_that_never_ended() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).flags(&["--step-timeout", "2"]).start();
    let client = cluster.client();
    let before = client.generate(&story()).await.expect("it answers");
    faults::freeze(faults::rank(&cluster, 1));
    assert_eq!(answer_at_last(&client).await, before);
}
