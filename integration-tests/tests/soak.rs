//! One minute of 64 streams whose clients come and go: nothing is left of them.

use std::time::{Duration, Instant};

use futures::future::join_all;
use lockstep_integration_tests::client::{Client, Generate};
use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_integration_tests::draws::Draws;
use lockstep_integration_tests::oracle::check_stream;
use lockstep_integration_tests::{BETWEEN_LOOKS, DEADLINE, faults};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");
const STREAMS: u64 = 64;
const LOAD: Duration = Duration::from_secs(60);
/// Memory of the second half over the first: noise of the allocator is far below, a leak of one answer's
/// tokens in ten is above.
const GROWTH_ALLOWED: f64 = 1.15;
const NOISE_ALLOWED: u64 = 8 << 20;

/// What one client did.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    whole: u64,
    dropped: u64,
}

/// One request after another, about a third of them abandoned, until time is up.
async fn come_and_go(client: Client, seed: u64) -> Tally {
    let openings = ["Once upon a time", "A little dog", "The king said", "One day a girl found a red ball"];
    let mut draws = Draws(seed);
    let mut tally = Tally::default();
    let start = Instant::now();
    while start.elapsed() < LOAD {
        let prompt = openings[draws.below(4) as usize].repeat(1 + draws.below(12) as usize);
        let length = 1 + draws.below(80) as u32;
        let request = Generate::greedy(&prompt, length).seeded(draws.below(1000));
        let mut stream = client.stream(&request).await.expect("64 streams are permitted");
        let patience = if draws.below(3) == 0 { draws.below(20) } else { u64::MAX };
        let mut events = Vec::new();
        while (events.len() as u64) < patience {
            let Some(event) = stream.next().await else { break };
            events.push(event.expect("the connection holds"));
        }
        if patience == u64::MAX {
            check_stream(&events);
            tally.whole += 1;
        } else {
            tally.dropped += 1;
        }
    }
    tally
}

/// The most memory each process held in the first half, and in the second.
async fn watch_memory(cluster: &Cluster) -> Vec<(String, u64, u64)> {
    let mut watched: Vec<_> =
        (0..2).map(|rank| (format!("shard {rank}"), faults::rank(cluster, rank), 0, 0)).collect();
    watched.push(("router".to_owned(), faults::router(cluster), 0, 0));
    let start = Instant::now();
    while start.elapsed() < LOAD {
        for (_, process, first, second) in &mut watched {
            let half = if start.elapsed() < LOAD / 2 { first } else { second };
            *half = faults::anonymous_memory(*process).max(*half);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    watched.into_iter().map(|(name, _, first, second)| (name, first, second)).collect()
}

/// Tasks of the router's runtime. Each open connection has some, so the visitors' must be closed first.
const TASKS: &str = "lockstep_tasks_alive";

/// Waits until no more is left of the visitors than there was before they came.
async fn wait_until_idle(client: &Client, tasks_before: f64) {
    let start = Instant::now();
    let bounds = [
        ("tgi_queue_size", 0.0),
        ("tgi_batch_current_size", 0.0),
        ("lockstep_kv_blocks_used", 0.0),
        (TASKS, tasks_before),
    ];
    for (gauge, bound) in bounds {
        loop {
            let value = client.metric(gauge).await;
            if value <= bound {
                break;
            }
            assert!(start.elapsed() < DEADLINE, "{gauge} is {value} when nobody asks, {bound} is expected");
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }
}

#[tokio::test]
async fn clients_that_come_and_go_leave_nothing_behind() {
    // So small a cache that it is full at once, and that sequences are preempted.
    let cluster = Setup::demo(LOCKSTEP).ranks(2).flags(&["--kv-cache-memory", "16MiB"]).start();
    let client = cluster.client();
    let before = client.generate(&Generate::greedy("Once upon a time", 40)).await.expect("it answers");

    let tasks_before = client.metric(TASKS).await;

    let visitors = cluster.client();
    let clients = join_all((0..STREAMS).map(|seed| come_and_go(visitors.clone(), seed)));
    let (tallies, memory) = tokio::join!(clients, watch_memory(&cluster));
    let whole: u64 = tallies.iter().map(|tally| tally.whole).sum();
    let dropped: u64 = tallies.iter().map(|tally| tally.dropped).sum();
    assert!(whole >= STREAMS / 2 && dropped > 0, "{whole} whole, {dropped} dropped");

    drop(visitors);
    wait_until_idle(&client, tasks_before).await;
    for (name, first, second) in memory {
        let bound = (first as f64 * GROWTH_ALLOWED) as u64 + NOISE_ALLOWED;
        assert!(
            first > 0 && second <= bound,
            "{name} held {first} bytes, then {second}, more than {bound}"
        );
    }
    let after = client.generate(&Generate::greedy("Once upon a time", 40)).await.expect("it answers");
    assert_eq!(after, before, "and answers as before");
    assert!(!cluster.log().contains("panicked"), "nothing panicked");
}
