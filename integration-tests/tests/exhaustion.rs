//! Real processes that run out of something: files, disk, memory, time for a step. What is served is served on, and
//! what is not says so.

use std::net::TcpStream;
use std::time::Instant;

use lockstep_integration_tests::client::{Client, Generate};
use lockstep_integration_tests::cluster::Setup;
use lockstep_integration_tests::{BETWEEN_LOOKS, DEADLINE, faults};
use rustix::process::Resource;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

fn story(tokens: u32) -> Generate {
    Generate::greedy("Once upon a time, there was a little dog named Rex.", tokens).seeded(6)
}

async fn events(client: &Client, request: &Generate) -> Vec<String> {
    client.stream(request).await.expect("it opens").rest().await.expect("the connection holds")
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < DEADLINE, "waited in vain until {what}");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

#[tokio::test]
async fn a_router_out_of_files_serves_the_connections_it_has_and_accepts_others_again() {
    let cluster = Setup::demo(LOCKSTEP).start();
    let client = cluster.client();
    let undisturbed = events(&client, &story(200)).await;
    let mut stream = client.stream(&story(200)).await.expect("it opens");
    let mut told = vec![stream.next().await.expect("it goes on").expect("it holds")];
    let router = faults::router(&cluster);
    faults::limit(router, Resource::Nofile, faults::open_files(router) + 3);
    let address = cluster.url().trim_start_matches("http://");
    // The kernel completes connections that nobody accepts yet.
    let waiting: Vec<TcpStream> =
        (0..32).map(|_| TcpStream::connect(address).expect("the listener is there")).collect();
    cluster.wait_for_log("no connection can be accepted");
    told.extend(stream.rest().await.expect("the connection holds"));
    assert_eq!(told, undisturbed);
    drop(waiting);
    // Another client has no connection yet.
    let newcomer = cluster.client();
    assert_eq!(events(&newcomer, &story(200)).await, undisturbed);
    assert_eq!(cluster.count_in_log("no connection can be accepted"), 1, "it is said once");
    assert_eq!(faults::router(&cluster), router, "it is the same process");
}

#[tokio::test]
async fn a_journal_that_cannot_grow_is_off_and_streams_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = folder.path().display().to_string();
    let cluster = Setup::demo(LOCKSTEP).flags(&["--resume-window", "600", "--journal", &journal]).start();
    let client = cluster.client();
    let undisturbed = events(&client, &story(40)).await;
    assert_eq!(client.metric("lockstep_journal_on").await as u64, 1);
    let router = faults::router(&cluster);
    let written: u64 = std::fs::read_dir(folder.path())
        .expect("it is there")
        .map(|entry| entry.and_then(|entry| entry.metadata()).expect("it is there").len())
        .sum();
    // Room for a few tokens more.
    faults::limit(router, Resource::Fsize, written + 2_000);
    assert_eq!(events(&client, &story(40)).await, undisturbed);
    assert_eq!(client.metric("lockstep_journal_on").await as u64, 0);
    cluster.wait_for_log("the journal is off");
    assert_eq!(events(&client, &story(40)).await, undisturbed);
    assert_eq!(faults::router(&cluster), router, "it is the same process");
}

#[tokio::test]
async fn a_rank_out_of_memory_is_replaced_and_its_streams_go_on() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).start();
    let client = cluster.client();
    let long = Generate::greedy(&"Rex the dog went to the park. ".repeat(120), 16).seeded(2);
    let other = Setup::demo(LOCKSTEP).ranks(2).start();
    let undisturbed = events(&other.client(), &long).await;
    drop(other);
    // Less than it has: nothing more is given.
    faults::limit(faults::rank(&cluster, 1), Resource::As, 1 << 20);
    assert_eq!(events(&client, &long).await, undisturbed);
    assert_eq!(client.metric("lockstep_group_losses_total").await as u64, 1, "it did run out");
}

#[tokio::test]
async fn probes_say_that_a_step_does_not_end_before_its_group_is_given_up() {
    let flags = ["--min-step-timeout", "8", "--step-timeout", "60"];
    let cluster = Setup::demo(LOCKSTEP).ranks(2).flags(&flags).start();
    let client = cluster.client();
    let undisturbed = events(&client, &story(40)).await;
    let mut stream = client.stream(&story(40)).await.expect("it opens");
    let mut told = Vec::new();
    while told.len() < 9 {
        told.push(stream.next().await.expect("it goes on").expect("it holds"));
    }
    faults::freeze(faults::rank(&cluster, 1));
    until("it is not ready", async || !client.is_ready().await).await;
    assert_eq!(client.metric("lockstep_group_losses_total").await as u64, 0, "it may finish yet");
    for (path, expected) in [("/health", 503), ("/livez", 200), ("/startupz", 200)] {
        assert_eq!(client.get(path).await.expect("it answers").status, expected, "{path}");
    }
    told.extend(stream.rest().await.expect("the connection holds"));
    assert_eq!(told, undisturbed);
    until("it is ready again", async || client.is_ready().await).await;
}
