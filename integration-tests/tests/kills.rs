//! Shards are killed in the middle of streams, and no client can tell: every event is that of an undisturbed
//! run, byte for byte.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use lockstep_integration_tests::client::{Client, EventStream, Generate};
use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_integration_tests::{BETWEEN_LOOKS, DEADLINE, faults, wait_until};
use rustix::process::Pid;
use serde_json::json;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

/// Tokens of every answer here, unless it ends before.
const TOKENS: u32 = 40;

/// Events a client has seen when a rank is killed: at the first, at each of some, around a block's end.
const KILLED_AFTER: [usize; 10] = [0, 1, 2, 3, 7, 14, 15, 16, 17, 31];

/// One request for each way in which an answer depends on what came before.
fn requests() -> Vec<(&'static str, Generate)> {
    let story = "Once upon a time, there was a little dog named Rex.";
    let penalties = json!({ "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2 });
    let mut penalised = Generate::greedy(story, TOKENS).seeded(3);
    for (name, value) in penalties.as_object().into_iter().flatten() {
        penalised = penalised.with(name, value.clone());
    }
    vec![
        ("greedy", Generate::greedy(story, TOKENS)),
        ("sampled", Generate::greedy(story, TOKENS).seeded(17)),
        ("penalised", penalised),
        ("log-probabilities", Generate::greedy(story, TOKENS).seeded(5).with("top_n_tokens", json!(4))),
        ("watermark", Generate::greedy(story, TOKENS).seeded(23).with("watermark", json!(true))),
        ("grammar", Generate::greedy(story, TOKENS).seeded(9).with("grammar", grammar())),
        ("stop string", Generate::greedy(story, TOKENS).with("stop", json!(["very far away", "happy. "]))),
    ]
}

/// Leaves few choices: most of an answer is forced.
fn grammar() -> serde_json::Value {
    let schema = json!({
        "type": "object",
        "properties": {
            "the_name_of_the_little_dog": {"type": "string", "maxLength": 8},
            "where_the_little_dog_went": {"enum": ["to the park with a friend", "to the river with a bird"]},
        },
        "required": ["the_name_of_the_little_dog", "where_the_little_dog_went"],
        "additionalProperties": false,
        "x-guidance": {"whitespace_flexible": false},
    });
    json!({ "type": "json", "value": schema })
}

async fn open(client: &Client, request: &Generate) -> EventStream {
    let start = std::time::Instant::now();
    loop {
        match client.stream(request).await {
            Ok(stream) => return stream,
            Err(refusal) => {
                assert!(start.elapsed() < DEADLINE, "the service does not return: {refusal:?}");
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
        }
    }
}

async fn rest(stream: EventStream) -> Vec<String> {
    let rest = tokio::time::timeout(DEADLINE, stream.rest()).await.expect("the stream ends");
    rest.expect("the connection holds")
}

/// The stream's events, with `disturb` done once `after` of them have been seen.
async fn disturbed(
    client: &Client,
    request: &Generate,
    after: usize,
    disturb: impl FnOnce(),
) -> Vec<String> {
    let mut stream = open(client, request).await;
    let mut events = Vec::new();
    while events.len() < after {
        let event = stream.next().await.expect("the answer is longer");
        events.push(event.expect("the connection holds"));
    }
    disturb();
    events.extend(rest(stream).await);
    events
}

fn kill(cluster: &Cluster, rank: u32) {
    faults::kill(faults::rank(cluster, rank));
}

/// Waits until the group is up and has been started again so often: readiness drops a moment after a kill.
async fn wait_for_restarts(client: &Client, restarts: u32) {
    let start = std::time::Instant::now();
    while client.metric("lockstep_group_restarts_total").await < f64::from(restarts)
        || !client.is_ready().await
    {
        assert!(start.elapsed() < DEADLINE, "the service does not return");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

#[tokio::test]
async fn a_stream_goes_on_whichever_rank_is_killed_at_whichever_token() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).start();
    let client = cluster.client();
    let mut kills = 0;
    for (name, request) in requests() {
        wait_for_restarts(&client, kills).await;
        let undisturbed = rest(open(&client, &request).await).await;
        assert!(undisturbed.len() > KILLED_AFTER[4], "{name}: {undisturbed:?}");
        for (turn, after) in KILLED_AFTER.into_iter().enumerate().filter(|(_, at)| *at < undisturbed.len())
        {
            wait_for_restarts(&client, kills).await;
            let rank = turn as u32 % 2;
            kills += 1;
            let events = disturbed(&client, &request, after, || kill(&cluster, rank)).await;
            assert_eq!(events, undisturbed, "{name}: rank {rank} was killed after {after} events");
        }
    }
}

#[tokio::test]
async fn a_stream_goes_on_after_two_kills_in_a_row() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).start();
    let client = cluster.client();
    let request = Generate::greedy("Once upon a time", TOKENS).seeded(8);
    let undisturbed = rest(open(&client, &request).await).await;
    let mut stream = open(&client, &request).await;
    let mut events = Vec::new();
    for rank in [1, 0] {
        for _ in 0..5 {
            events.push(stream.next().await.expect("the answer is longer").expect("the connection holds"));
        }
        kill(&cluster, rank);
    }
    events.extend(rest(stream).await);
    assert_eq!(events, undisturbed);
}

#[tokio::test]
async fn a_stream_goes_on_after_a_rank_hung() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).flags(&["--step-timeout", "1"]).start();
    let client = cluster.client();
    let request = Generate::greedy("Once upon a time", TOKENS).seeded(8);
    let undisturbed = rest(open(&client, &request).await).await;
    for (restarts, rank) in [(0, 1), (1, 0)] {
        wait_for_restarts(&client, restarts).await;
        let freeze = || faults::freeze(faults::rank(&cluster, rank));
        assert_eq!(disturbed(&client, &request, 9, freeze).await, undisturbed, "rank {rank} hung");
    }
}

/// Nobody but the launcher can end it: there is no other rank whose stream it breaks.
#[tokio::test]
async fn a_stream_goes_on_after_the_only_rank_hung() {
    let cluster = Setup::demo(LOCKSTEP).flags(&["--step-timeout", "1"]).start();
    let client = cluster.client();
    let request = Generate::greedy("Once upon a time", TOKENS).seeded(8);
    let undisturbed = rest(open(&client, &request).await).await;
    let freeze = || faults::freeze(faults::rank(&cluster, 0));
    assert_eq!(disturbed(&client, &request, 9, freeze).await, undisturbed);
}

/// Waits until a rank is played by another process than these.
fn next_process(cluster: &Cluster, rank: u32, known: &[Pid]) -> Pid {
    let mut found = None;
    wait_until("the rank is started again", || {
        found = faults::find_rank(cluster, rank).filter(|process| !known.contains(process));
        found.is_some()
    });
    found.expect("it was found")
}

#[tokio::test]
async fn a_stream_goes_on_whoever_is_killed_while_the_next_group_loads() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).start();
    let client = cluster.client();
    let request = Generate::greedy("Once upon a time", TOKENS).seeded(8);
    let undisturbed = rest(open(&client, &request).await).await;
    let mut known = vec![faults::rank(&cluster, 0), faults::rank(&cluster, 1)];
    let disturb = || {
        kill(&cluster, 1);
        // As soon as it is there; as soon as it reads the model; as soon as it has read it.
        for (rank, line) in [(1, "starting"), (0, ": loading rank=0"), (1, ": loaded rank=1")] {
            let before = if line == "starting" { 0 } else { cluster.count_in_log(line) };
            let process = next_process(&cluster, rank, &known);
            wait_until("it is so far", || cluster.count_in_log(line) > before);
            known.extend([0, 1].into_iter().filter_map(|rank| faults::find_rank(&cluster, rank)));
            faults::kill(process);
        }
    };
    assert_eq!(disturbed(&client, &request, 9, disturb).await, undisturbed);
}

#[tokio::test]
async fn a_server_is_ready_though_ranks_were_killed_in_its_first_load() {
    let mut cluster = Setup::demo(LOCKSTEP).ranks(2).begin();
    let mut known = Vec::new();
    for rank in [1, 0] {
        let process = next_process(&cluster, rank, &known);
        known.push(process);
        faults::kill(process);
    }
    cluster.wait_until_ready();
    let events = rest(open(&cluster.client(), &Generate::greedy("Once upon a time", TOKENS)).await).await;
    assert_eq!(events.len(), TOKENS as usize);
}

#[tokio::test]
async fn a_prompt_is_computed_again_when_a_rank_is_killed_meanwhile() {
    // Prompts of many chunks; the kill comes at whichever of them the machine has got to.
    let cluster = Setup::demo(LOCKSTEP).ranks(2).flags(&["--max-batch-prefill-tokens", "32"]).start();
    let client = cluster.client();
    let long = |number: u32| format!("Number {number}. {}", "Rex the dog went to the park. ".repeat(120));
    let request = |number| Generate::greedy(&long(number), 8).seeded(2);
    let mut expected = Vec::new();
    for number in 0..2 {
        expected.push(rest(open(&client, &request(number)).await).await);
    }
    // Away with the prefix cache, which would have the prompts.
    kill(&cluster, 0);
    for (number, expected) in (0..2).zip(expected) {
        wait_for_restarts(&client, number + 1).await;
        let stream = open(&client, &request(number)).await;
        kill(&cluster, number);
        assert_eq!(rest(stream).await, expected, "prompt {number}");
    }
}

#[tokio::test]
async fn thirty_two_streams_go_on_together() {
    let cluster = Setup::demo(LOCKSTEP).ranks(2).start();
    let client = cluster.client();
    let request = |number: u64| {
        let prompt = format!("Once upon a time, there were {number} little dogs");
        let greedy = Generate::greedy(&prompt, TOKENS);
        if number.is_multiple_of(2) { greedy } else { greedy.seeded(number) }
    };
    let seen = AtomicUsize::new(0);
    let one = async |number| {
        let mut stream = open(&client, &request(number)).await;
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            events.push(event.expect("the connection holds"));
            seen.fetch_add(1, Ordering::Relaxed);
        }
        events
    };
    let all = || join_all((0..32).map(&one));
    let undisturbed = all().await;
    let total = seen.swap(0, Ordering::Relaxed);
    // Each time some have gone on since: requests that are lost again and again at one place are given up.
    let killer = async {
        for (part, rank) in [(1, 0), (3, 1), (5, 0)] {
            while seen.load(Ordering::Relaxed) < total * part / 8 {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            kill(&cluster, rank);
        }
    };
    let (events, ()) =
        tokio::time::timeout(DEADLINE, async { tokio::join!(all(), killer) }).await.expect("they end");
    assert_eq!(events, undisturbed);
}
