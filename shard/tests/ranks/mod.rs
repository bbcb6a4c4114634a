//! A group of engines, one a thread, that are given the same steps.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use lockstep_models::ModelFiles;
use lockstep_proto::{Blocks, Bytes, Epoch, Rank, Step, StepOutput, Tokens};
use lockstep_shard::Loaded;
use lockstep_shard::comm::{
    Communicator, Joining, Membership, SharedMemory, Solo, Tcp, Threads, Timed, create,
};
use lockstep_shard::decoder::{Decoder, ModelSpec, Precision};
use lockstep_shard::engine::{Configuration, Engine, Group};

pub(crate) const EPOCH: Epoch = Epoch(1);
/// Blocks of every group's KV cache.
pub(crate) const BLOCKS: Blocks = Blocks(1024);

/// Longer than any test takes: none waits for it to pass.
const PATIENT: Duration = Duration::from_secs(300);

/// How the ranks of a group exchange data, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport {
    Solo,
    Threads(u32),
    SharedMemory(u32),
    Tcp(u32),
}

/// Which threads a rank computes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pool {
    /// Those all tests here share.
    Shared,
    /// This many of its own, as a rank's process has.
    Own(usize),
}

/// The running ranks, in order.
pub(crate) struct Ranks {
    ranks: Vec<RankThread>,
}

struct RankThread {
    steps: SyncSender<Step>,
    outputs: Receiver<StepOutput>,
}

impl Ranks {
    /// Loads the model on every rank.
    pub(crate) fn start(files: &ModelFiles, precision: impl Into<Precision>, transport: Transport) -> Self {
        Self::start_on(files, precision.into(), transport, Pool::Shared)
    }

    /// Loads the model on every rank, each with its own `pool`.
    pub(crate) fn start_on(
        files: &ModelFiles,
        precision: Precision,
        transport: Transport,
        pool: Pool,
    ) -> Self {
        let start = |comm| RankThread::start(files.clone(), precision, comm, pool);
        Self { ranks: group(transport).into_iter().map(start).collect() }
    }

    /// Has every rank compute `step`; returns rank 0's answer.
    pub(crate) fn run(&mut self, step: &Step) -> StepOutput {
        for rank in &self.ranks {
            rank.steps.send(step.clone()).unwrap();
        }
        let mut outputs: Vec<StepOutput> =
            self.ranks.iter().map(|rank| rank.outputs.recv().unwrap()).collect();
        assert!(outputs[1..].iter().all(|output| output.results.is_empty()));
        outputs.swap_remove(0)
    }
}

impl RankThread {
    fn start(files: ModelFiles, precision: Precision, comm: Arc<dyn Communicator>, pool: Pool) -> Self {
        let (steps, inbox) = sync_channel::<Step>(1);
        let (outbox, outputs) = sync_channel(1);
        let live = move || live(&files, precision, comm, (inbox, outbox));
        std::thread::spawn(move || match pool {
            Pool::Shared => live(),
            Pool::Own(threads) => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(live);
            }
        });
        Self { steps, outputs }
    }
}

/// A rank's life: until nobody sends steps.
fn live(
    files: &ModelFiles,
    precision: Precision,
    comm: Arc<dyn Communicator>,
    (inbox, outbox): (Receiver<Step>, SyncSender<StepOutput>),
) {
    let comm = Arc::new(Timed::new(comm));
    let spec = ModelSpec::read(files).unwrap();
    let decoder =
        Decoder::load(files, &spec, precision, Arc::clone(&comm) as Arc<dyn Communicator>).unwrap();
    let group = Group { comm, epoch: EPOCH, kv_budget: Bytes(u64::MAX) };
    let mut engine = Engine::new(Loaded::new(decoder), group);
    let configuration = Configuration { epoch: EPOCH, blocks: BLOCKS, max_step_tokens: Tokens(8192) };
    engine.configure(configuration).unwrap();
    while let Ok(step) = inbox.recv() {
        // Steps are counted anew by each schedule, as on a new stream.
        if step.step_id.0 == 0 {
            engine.on_stream_opened();
        }
        outbox.send(engine.run_step(step).unwrap()).unwrap();
    }
}

fn joining(rank: u32, world_size: u32) -> Joining {
    let membership = Membership::new(Rank(rank), world_size).unwrap();
    Joining { membership, epoch: EPOCH, watchdog: PATIENT }
}

fn group(transport: Transport) -> Vec<Arc<dyn Communicator>> {
    match transport {
        Transport::Solo => vec![Arc::new(Solo)],
        Transport::Threads(world_size) => {
            let ranks = Threads::group(world_size, PATIENT).unwrap();
            ranks.into_iter().map(|rank| Arc::new(rank) as Arc<dyn Communicator>).collect()
        }
        Transport::SharedMemory(world_size) => {
            let memory = create(world_size).unwrap();
            let path: PathBuf = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd()).into();
            let open = |rank| SharedMemory::open(&path, joining(rank, world_size)).unwrap();
            (0..world_size).map(|rank| Arc::new(open(rank)) as Arc<dyn Communicator>).collect()
        }
        Transport::Tcp(world_size) => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let join = |rank| {
                let address = address.clone();
                std::thread::spawn(move || Tcp::join(&address, joining(rank, world_size), PATIENT).unwrap())
            };
            let followers: Vec<_> = (1..world_size).map(join).collect();
            let leader = Tcp::lead(&listener, joining(0, world_size), PATIENT).unwrap();
            let followers = followers.into_iter().map(|follower| follower.join().unwrap());
            std::iter::once(leader)
                .chain(followers)
                .map(|rank| Arc::new(rank) as Arc<dyn Communicator>)
                .collect()
        }
    }
}
