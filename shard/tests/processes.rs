//! The whole role in processes of its own: ranks that share memory or a network, and how they end.
//!
//! Each rank is this test program again, told by an environment variable to run the shard's role.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod client;

use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use clap::Parser;
use lockstep_proto::wire::shard_client::ShardClient;
use lockstep_proto::{BlockId, Outcome, TokenLogprobs, Work, wire};
use lockstep_shard::args::ShardArgs;
use lockstep_shard::comm::create;
use lockstep_shard::testing::TinyLlama;
use tonic::Code;

use self::client::{EPOCH, Run, configuration, connect, decode, prefill, start, step, token};

/// The command line of a rank, one argument a line.
const RANK: &str = "LOCKSTEP_TEST_RANK";

const PROMPT: [u32; 6] = [7, 100, 31, 8, 254, 90];

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    shard: ShardArgs,
}

/// No test of its own: what a rank's process runs.
#[test]
fn as_a_rank() {
    #[expect(clippy::disallowed_methods, reason = "how a test program is told that it is a rank")]
    let Ok(arguments) = std::env::var(RANK) else { return };
    let cli = Cli::parse_from(std::iter::once("shard").chain(arguments.lines()));
    lockstep_shard::run(cli.shard).unwrap();
}

/// The ranks of one group.
struct Processes {
    folder: tempfile::TempDir,
    ranks: Vec<Child>,
    /// Kept open while the ranks may join.
    _memory: Option<OwnedFd>,
}

impl Processes {
    /// `world_size` ranks that share memory, or one alone.
    fn start(world_size: u32) -> Self {
        let memory = create(world_size).unwrap();
        let path = format!("shm:/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        let plain = |_| Command::new(std::env::current_exe().unwrap());
        let mut group = Self::start_with(world_size, &path, plain);
        group._memory = Some(memory);
        group
    }

    /// Ranks run by the commands that `program` makes.
    fn start_with(world_size: u32, communicator: &str, program: impl Fn(u32) -> Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        TinyLlama::new(5).write(folder.path()).unwrap();
        let start = |rank: u32| {
            let listen = format!("unix:{}", folder.path().join(format!("{rank}.sock")).display());
            let arguments = [
                ["--model".to_owned(), folder.path().display().to_string()],
                ["--rank".to_owned(), rank.to_string()],
                ["--world-size".to_owned(), world_size.to_string()],
                ["--epoch".to_owned(), EPOCH.to_string()],
                ["--listen".to_owned(), listen],
                ["--communicator".to_owned(), communicator.to_owned()],
                ["--threads".to_owned(), "1".to_owned()],
            ];
            let mut command = program(rank);
            command.args(["--exact", "as_a_rank", "--nocapture"]).env(RANK, arguments.concat().join("\n"));
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
        };
        let ranks = (0..world_size).map(start).collect();
        Self { folder, ranks, _memory: None }
    }

    fn socket(&self, rank: usize) -> PathBuf {
        self.folder.path().join(format!("{rank}.sock"))
    }

    /// A stream to each rank, its KV cache configured.
    async fn streams(&self) -> Vec<Run> {
        let mut streams = Vec::new();
        for rank in 0..self.ranks.len() {
            let mut client = ShardClient::new(connect(&self.socket(rank)).await);
            client.configure(configuration()).await.unwrap();
            streams.push(Run::open(&mut client).await);
        }
        streams
    }

    /// A router says that the group is lost.
    async fn give_up(&self, rank: usize) {
        let mut client = ShardClient::new(connect(&self.socket(rank)).await);
        // It may be faster to leave than to answer.
        let _ = client.describe(wire::DescribeRequest { lost_epoch: Some(EPOCH.0) }).await;
    }

    fn end(&mut self, rank: usize) -> ExitStatus {
        self.ranks[rank].wait().unwrap()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            // One that has ended already is fine.
            let _ = rank.kill();
            let _ = rank.wait();
        }
    }
}

/// The prompt and eleven tokens after it, on every rank; what rank 0 answers.
async fn answer(streams: &mut [Run]) -> Vec<TokenLogprobs> {
    answer_with(streams, 1).await
}

/// The same, so many steps being sent before the first of them is answered.
async fn answer_with(streams: &mut [Run], in_flight: u32) -> Vec<TokenLogprobs> {
    const STEPS: u32 = 12;
    let mut answer = Vec::new();
    for id in 0..STEPS + in_flight - 1 {
        if id < STEPS {
            send(streams, id).await;
        }
        if id + 1 < in_flight {
            continue;
        }
        let mut outcomes = Vec::new();
        for stream in &mut *streams {
            outcomes
                .extend(stream.receive().await.unwrap().results.into_iter().map(|result| result.outcome));
        }
        match outcomes.as_slice() {
            [Outcome::Sampled(sampled)] => answer.push(sampled.clone()),
            other => panic!("expected one token, found {other:?}"),
        }
    }
    answer
}

/// The step with the prompt, or one that computes what the one before it samples.
async fn send(streams: &mut [Run], id: u32) {
    let (starts, work) = match id {
        0 => (vec![start(1, &PROMPT)], prefill(1, &PROMPT, 3)),
        _ => (Vec::new(), decode(1, 5 + id)),
    };
    let new_blocks = if id == 11 { vec![BlockId(1)] } else { work.new_blocks.clone() };
    let step = step(u64::from(id), starts, vec![Work { new_blocks, ..work }]);
    for stream in &mut *streams {
        stream.send(step.clone()).await;
    }
}

#[tokio::test]
async fn a_step_that_waits_for_the_one_before_it_answers_with_the_same_bits() {
    for world_size in [1, 2] {
        let group = Processes::start(world_size);
        let one_by_one = answer(&mut group.streams().await).await;
        let ahead = answer_with(&mut group.streams().await, 2).await;
        assert_eq!(ahead, one_by_one, "{world_size} ranks");
    }
}

#[tokio::test]
async fn one_two_and_four_processes_answer_with_the_same_bits() {
    let alone = answer(&mut Processes::start(1).streams().await).await;
    for world_size in [2, 4] {
        let group = Processes::start(world_size);
        assert_eq!(answer(&mut group.streams().await).await, alone, "{world_size} ranks");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_stop_a_group_leaves_nothing() {
    let mut group = Processes::start(2);
    let mut streams = group.streams().await;
    answer(&mut streams).await;
    for rank in &group.ranks {
        let id = rustix::process::Pid::from_child(rank);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    }
    for stream in &mut streams {
        assert_eq!(stream.receive().await.unwrap_err().code(), Code::Unavailable);
    }
    for rank in 0..2 {
        assert!(group.end(rank).success(), "rank {rank}");
        assert!(!group.socket(rank).exists(), "rank {rank} leaves its socket");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_rank_takes_its_peers_along() {
    let mut group = Processes::start(2);
    let mut streams = group.streams().await;
    let outcomes = {
        let prefill = step(0, vec![start(1, &PROMPT)], vec![prefill(1, &PROMPT, 3)]);
        for stream in &mut streams {
            stream.send(prefill.clone()).await;
        }
        streams[0].receive().await.unwrap().results
    };
    assert!(token(&outcomes[0].outcome) < 331);
    group.ranks[1].kill().unwrap();
    let status = streams[0].run(Vec::new(), vec![decode(1, 6)]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(!group.end(0).success(), "rank 0 must not look well");
    assert!(!group.socket(0).exists(), "rank 0 leaves its socket");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_outlives_its_routers_until_one_gives_it_up() {
    let mut group = Processes::start(2);
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(answer(&mut group.streams().await).await);
    }
    assert_eq!((&answers[1], &answers[2]), (&answers[0], &answers[0]));
    for rank in 0..2 {
        group.give_up(rank).await;
        group.end(rank);
        assert!(!group.socket(rank).exists(), "rank {rank} leaves its socket");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_waits_for_its_peers_in_vain_ends_with_its_stream() {
    let mut group = Processes::start(2);
    let mut streams = group.streams().await;
    answer(&mut streams).await;
    // Rank 1 is not given this step, so that rank 0 is in its first exchange until its patience ends.
    streams[0].send(step(12, Vec::new(), vec![decode(1, 17)])).await;
    let [first, second] = streams.try_into().ok().unwrap();
    drop(first);
    // It may have been faster to close the stream than to send the step.
    group.give_up(0).await;
    group.end(0);
    drop(second);
    group.give_up(1).await;
    group.end(1);
}

#[tokio::test]
async fn ranks_on_two_hosts_answer_with_the_same_bits() {
    let alone = answer(&mut Processes::start(1).streams().await).await;
    let hosts = Hosts::new();
    println!("ranks are apart: {}", if hosts.is_some() { "two namespaces" } else { "no, over loopback" });
    let rendezvous = match &hosts {
        Some(hosts) => format!("tcp:{}:29500", hosts.addresses[0]),
        None => {
            let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            format!("tcp:{free}")
        }
    };
    let program = |rank: u32| match &hosts {
        Some(hosts) => hosts.command(rank),
        None => Command::new(std::env::current_exe().unwrap()),
    };
    let group = Processes::start_with(2, &rendezvous, program);
    assert_eq!(answer(&mut group.streams().await).await, alone);
}

/// Two network namespaces with a cable between them; removed when dropped.
struct Hosts {
    names: [String; 2],
    addresses: [&'static str; 2],
}

impl Hosts {
    /// `None` where this machine does not let us make any.
    fn new() -> Option<Self> {
        let name = |host| format!("lockstep-{}-{host}", std::process::id());
        let hosts = Self { names: [name("a"), name("b")], addresses: ["10.213.7.1", "10.213.7.2"] };
        let [a, b] = &hosts.names;
        let made = ip(&["netns", "add", a])
            && ip(&["netns", "add", b])
            && ip(&["-n", a, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b])
            && hosts.names.iter().zip(hosts.addresses).all(|(name, address)| {
                ip(&["-n", name, "address", "add", &format!("{address}/30"), "dev", "cable"])
                    && ip(&["-n", name, "link", "set", "cable", "up"])
            });
        made.then_some(hosts)
    }

    fn command(&self, rank: u32) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[rank as usize]]).arg(std::env::current_exe().unwrap());
        command
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&["netns", "delete", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    let ran = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
    ran.is_ok_and(|status| status.success())
}
