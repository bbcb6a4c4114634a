//! Mixed load with a kill every twenty seconds, for as long as it is told to: every answer is compared with that of
//! an undisturbed run; memory, open files and KV blocks are sampled. Prints a report; fails where it should.
//!
//! `cargo run --release -p lockstep-integration-tests --example soak -- target/release/lockstep 30`

mod requests;
mod samples;
mod visitors;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::future::join_all;
use lockstep_integration_tests::client::Client;
use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_integration_tests::draws::Draws;
use lockstep_integration_tests::faults;

use requests::Question;
use samples::Samples;
use visitors::{Tally, Visitor};

const RANKS: u32 = 2;
const CLIENTS: u64 = 24;
const BETWEEN_KILLS: Duration = Duration::from_secs(20);
/// One kill in so many is a process that hangs instead.
const HANGS: u64 = 6;
/// A stream whose client has left goes on for so long.
const RESUME_WINDOW_S: &str = "2";
const FLAGS: [&str; 6] =
    ["--kv-cache-memory", "32MiB", "--resume-window", RESUME_WINDOW_S, "--max-concurrent-requests", "256"];
/// How long it may take until nothing is left of the visitors.
const TO_REST: Duration = Duration::from_secs(60);

/// Kills or freezes one rank after the other; returns how many of each.
async fn disturb(cluster: &Cluster, tally: &Tally) -> (u64, u64) {
    let (mut kills, mut hangs, mut draws) = (0, 0, Draws(7));
    loop {
        let next = Instant::now() + BETWEEN_KILLS;
        while Instant::now() < next {
            if tally.is_over() {
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

/// Waits until no block is held; what is held after a minute is lost.
async fn come_to_rest(client: &Client) -> Result<(), String> {
    let start = Instant::now();
    for gauge in ["lockstep_kv_blocks_used", "tgi_batch_current_size", "tgi_queue_size"] {
        while client.metric(gauge).await > 0.0 {
            if start.elapsed() > TO_REST {
                return Err(format!("{gauge} is {} though nobody asks", client.metric(gauge).await));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the report")]
async fn soak(program: &'static str, minutes: u64) -> Result<ExitCode, String> {
    let cluster = Setup::demo(program).ranks(RANKS).flags(&FLAGS).start();
    let client = cluster.client();
    let mut questions = requests::all();
    for question in &mut questions {
        question.ask(&client).await?;
    }
    let questions: &[Question] = &questions;
    let tally = Tally::default();
    let visitors =
        (0..CLIENTS).map(|seed| Visitor::new(client.clone(), seed, questions, &tally).come_and_go());
    let time = Duration::from_secs(60 * minutes);
    let watching = async {
        let samples = Samples::watch(&cluster, RANKS, time).await;
        tally.end();
        samples
    };
    let (_, (kills, hangs), samples) =
        tokio::join!(join_all(visitors), disturb(&cluster, &tally), watching);
    println!("{minutes} minutes, {CLIENTS} clients, {RANKS} ranks; {kills} ranks killed, {hangs} frozen");
    println!("{tally}\n{samples}");
    come_to_rest(&client).await?;
    samples.check_flatness(time)?;
    Ok(if tally.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
