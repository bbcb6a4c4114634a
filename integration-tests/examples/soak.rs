//! Mixed load with a kill every twenty seconds, for as long as it is told to: every answer is compared with that of
//! an undisturbed run; memory, open files and KV blocks are sampled. Prints a report; fails where it should.
//!
//! `cargo run --release -p lockstep-integration-tests --example soak -- target/release/lockstep 30`

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use lockstep_integration_tests::client::{Client, Generate};
use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_integration_tests::draws::Draws;
use lockstep_integration_tests::faults;
use rustix::process::Pid;
use serde_json::json;

const RANKS: u32 = 2;
const CLIENTS: u64 = 24;
const BETWEEN_KILLS: Duration = Duration::from_secs(20);
const BETWEEN_SAMPLES: Duration = Duration::from_secs(5);
/// One kill in so many is a process that hangs instead.
const HANGS: u64 = 6;

/// What came of the requests.
#[derive(Default)]
struct Tally {
    is_over: AtomicBool,
    right: AtomicU64,
    wrong: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    abandoned: AtomicU64,
    tokens: AtomicU64,
}

/// The most of something, in the first half and in the second.
#[derive(Clone, Copy, Default)]
struct Halves {
    first: u64,
    second: u64,
}

fn requests() -> Vec<Generate> {
    let story = "Once upon a time, there was a little dog named Rex.";
    let long = "Rex the dog went to the park. ".repeat(40);
    let plain = |prompt: &str, tokens| Generate::greedy(prompt, tokens);
    let regex = json!({"type": "regex", "value": "[A-Z][a-z]{2,8} has [0-9]{2} (cats|dogs)"});
    let mut all = vec![
        plain(story, 40),
        plain(&long, 24),
        plain(story, 60).seeded(1).with("repetition_penalty", json!(1.3)),
        plain(story, 40).seeded(2).with("watermark", json!(true)),
        plain(story, 40).seeded(3).with("grammar", regex),
        plain(story, 60).with("stop", json!(["very far away", "happy. "])),
        plain(&long, 12).seeded(4).with("top_n_tokens", json!(4)),
    ];
    all.extend((10..18).map(|seed| plain("A little girl", 20 + seed as u32).seeded(seed)));
    all
}

/// Every event of the answer, or why there is none.
async fn answer(client: &Client, request: &Generate) -> Result<Vec<String>, String> {
    let stream = client.stream(request).await.map_err(|refusal| refusal.status.to_string())?;
    stream.rest().await
}

async fn come_and_go(client: Client, seed: u64, expected: &[(Generate, Vec<String>)], tally: &Tally) {
    let mut draws = Draws(seed);
    while !tally.is_over.load(Ordering::Relaxed) {
        let (request, events) = &expected[draws.below(expected.len() as u64) as usize];
        let Ok(mut stream) = client.stream(request).await else {
            // While shards load, newcomers are told to come back.
            tally.refused.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let patience = if draws.below(6) == 0 { draws.below(10) as usize } else { usize::MAX };
        let mut heard = Vec::new();
        let mut is_broken = false;
        while heard.len() < patience
            && let Some(event) = stream.next().await
        {
            match event {
                Ok(event) => heard.push(event),
                Err(_) => is_broken = true,
            }
        }
        tally.tokens.fetch_add(heard.len() as u64, Ordering::Relaxed);
        let has_failed = is_broken || heard.last().is_some_and(|last| last.contains("\"error_type\""));
        let count =
            match (has_failed, patience < usize::MAX, heard == events[..heard.len().min(events.len())]) {
                (true, ..) => &tally.failed,
                (false, true, true) => &tally.abandoned,
                (false, false, true) if heard.len() == events.len() => &tally.right,
                (false, _, _) => &tally.wrong,
            };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Kills or freezes one rank after the other; returns how many of each.
async fn disturb(cluster: &Cluster, tally: &Tally) -> (u64, u64) {
    let (mut kills, mut hangs, mut draws) = (0, 0, Draws(7));
    loop {
        let next = Instant::now() + BETWEEN_KILLS;
        while Instant::now() < next {
            if tally.is_over.load(Ordering::Relaxed) {
                return (kills, hangs);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let Some(victim) = faults::find_rank(cluster, draws.below(u64::from(RANKS)) as u32) else {
            continue;
        };
        if draws.below(HANGS) == 0 {
            faults::freeze(victim);
            hangs += 1;
        } else {
            faults::kill(victim);
            kills += 1;
        }
    }
}

fn open_files(process: Pid) -> u64 {
    let folder = format!("/proc/{}/fd", process.as_raw_nonzero());
    std::fs::read_dir(folder).map_or(0, |entries| entries.count() as u64)
}

/// Memory in bytes and open files of each role, at most.
async fn watch(cluster: &Cluster, time: Duration, tally: &Tally) -> BTreeMap<String, [Halves; 2]> {
    let mut seen: BTreeMap<String, [Halves; 2]> = BTreeMap::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let ranks = (0..RANKS)
            .filter_map(|rank| Some((format!("shard {rank}"), faults::find_rank(cluster, rank)?)));
        let router = std::iter::once(("router".to_owned(), faults::router(cluster)));
        let launcher = std::iter::once(("launcher".to_owned(), cluster.launcher()));
        for (name, process) in ranks.chain(router).chain(launcher) {
            let most = seen.entry(name).or_default();
            for (most, now) in most.iter_mut().zip([faults::anonymous_memory(process), open_files(process)])
            {
                let half = if start.elapsed() < time / 2 { &mut most.first } else { &mut most.second };
                *half = now.max(*half);
            }
        }
        tokio::time::sleep(BETWEEN_SAMPLES).await;
    }
    tally.is_over.store(true, Ordering::Relaxed);
    seen
}

#[expect(clippy::print_stdout, reason = "the report")]
fn report(tally: &Tally, (kills, hangs): (u64, u64), seen: &BTreeMap<String, [Halves; 2]>, minutes: u64) {
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!("{minutes} minutes, {CLIENTS} clients, {RANKS} ranks; {kills} ranks killed, {hangs} frozen");
    println!(
        "answers: {} right, {} wrong, {} failed, {} left by their clients; {} newcomers refused while shards loaded; {} tokens",
        count(&tally.right),
        count(&tally.wrong),
        count(&tally.failed),
        count(&tally.abandoned),
        count(&tally.refused),
        count(&tally.tokens),
    );
    println!(
        "| process | MiB, first half | second half | open files, first half | second half |\n|---|---|---|---|---|"
    );
    for (name, [memory, files]) in seen {
        let (first, second) = (memory.first >> 20, memory.second >> 20);
        println!("| {name} | {first} | {second} | {} | {} |", files.first, files.second);
    }
}

async fn soak(program: &'static str, minutes: u64) -> Result<ExitCode, String> {
    let cluster = Setup::demo(program).ranks(RANKS).flags(&["--kv-cache-memory", "32MiB"]).start();
    let client = cluster.client();
    let mut expected = Vec::new();
    for request in requests() {
        let events = answer(&client, &request).await?;
        expected.push((request, events));
    }
    let tally = Tally::default();
    let load = join_all((0..CLIENTS).map(|seed| come_and_go(client.clone(), seed, &expected, &tally)));
    let time = Duration::from_secs(60 * minutes);
    let (_, faults, seen) = tokio::join!(load, disturb(&cluster, &tally), watch(&cluster, time, &tally));
    report(&tally, faults, &seen, minutes);
    let start = Instant::now();
    while client.metric("lockstep_kv_blocks_used").await > 0.0 {
        if start.elapsed() > Duration::from_secs(60) {
            return Err("KV blocks are held though nobody asks".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let bad = tally.wrong.load(Ordering::Relaxed) + tally.failed.load(Ordering::Relaxed);
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[tokio::main]
#[expect(clippy::print_stderr, reason = "a program that people run")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let program: Option<&'static str> = arguments.next().map(|path| &*path.leak());
    let minutes = arguments.next().map_or(Some(30), |minutes| minutes.parse().ok());
    let (Some(program), Some(minutes)) = (program, minutes) else {
        eprintln!("say which binary, and for how many minutes");
        return ExitCode::FAILURE;
    };
    soak(program, minutes).await.unwrap_or_else(|error| {
        eprintln!("soak: {error}");
        ExitCode::FAILURE
    })
}
