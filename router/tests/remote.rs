//! Ranks behind sockets: the same answers, and the way back after a loss.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt};
use lockstep_process::tasks::{Fate, Tasks};
use lockstep_proto::wire::shard_server::{Shard, ShardServer};
use lockstep_proto::{Blocks, Epoch, Step, Tokens, wire};
use lockstep_router::app::App;
use lockstep_router::shards::fake::{FakeControl, FakeGroup, FakeModel, FakeShape};
use lockstep_router::shards::{GroupConfig, RemoteGroup, ShardAddress, ShardGroup};
use lockstep_router::testing::VOCABULARY_SIZE;
use serde_json::{Value, json};
use support::{BLOCKS, Server, config, model};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// One rank's gRPC service over a fake group that computes everything.
struct FakeRank {
    rank: u32,
    world_size: u32,
    group: Arc<Mutex<Option<FakeGroup>>>,
    /// Begun under an earlier router.
    steps: u64,
    /// The last epoch a router said it has lost.
    lost: Arc<Mutex<Option<u64>>>,
}

/// A group on loan to a stream of steps; the next stream takes over when this one ends.
struct OnLoan {
    group: Option<FakeGroup>,
    home: Arc<Mutex<Option<FakeGroup>>>,
}

impl Drop for OnLoan {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.group.take();
    }
}

impl FakeRank {
    fn take(&self) -> Result<FakeGroup, Status> {
        let group = self.group.lock().unwrap_or_else(PoisonError::into_inner).take();
        group.ok_or_else(|| Status::unavailable("busy"))
    }

    fn put_back(&self, group: FakeGroup) {
        *self.group.lock().unwrap_or_else(PoisonError::into_inner) = Some(group);
    }
}

#[tonic::async_trait]
impl Shard for FakeRank {
    type RunStream = Pin<Box<dyn Stream<Item = Result<wire::StepOutput, Status>> + Send>>;

    async fn describe(
        &self,
        request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        let lost = request.into_inner().lost_epoch;
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = lost;
        let mut group = self.take()?;
        let described = group.describe(lost.map(Epoch)).await;
        self.put_back(group);
        let mut ranks = described.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut answer: wire::DescribeResponse = ranks.remove(0).into();
        (answer.rank, answer.world_size) = (self.rank, self.world_size);
        Ok(Response::new(answer))
    }

    async fn configure(
        &self,
        request: Request<wire::ConfigureRequest>,
    ) -> Result<Response<wire::ConfigureResponse>, Status> {
        let mut group = self.take()?;
        let wire::ConfigureRequest { epoch, blocks, max_step_tokens } = request.into_inner();
        let config = GroupConfig { epoch: Epoch(epoch), blocks: Blocks(blocks), max_step_tokens };
        let configured = group.configure(config).await;
        self.put_back(group);
        configured.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(wire::ConfigureResponse { steps: self.steps }))
    }

    async fn run(
        &self,
        request: Request<Streaming<wire::Step>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let rank = self.rank;
        let group = OnLoan { group: Some(self.take()?), home: Arc::clone(&self.group) };
        let outputs = futures::stream::unfold(
            (request.into_inner(), group),
            move |(mut steps, mut group): (Streaming<wire::Step>, OnLoan)| async move {
                let step = Step::try_from(steps.message().await.ok()??).unwrap();
                let ranks = group.group.as_mut()?;
                let output = match ranks.begin(step, &[]) {
                    Ok(()) => ranks.finish().await,
                    Err(error) => Err(error),
                };
                let answer =
                    output.map_err(|error| Status::unavailable(error.to_string())).map(|mut output| {
                        if rank > 0 {
                            output.results.clear();
                        }
                        output.into()
                    });
                Some((answer, (steps, group)))
            },
        );
        Ok(Response::new(outputs.boxed()))
    }

    async fn load_adapter(
        &self,
        _: Request<wire::LoadAdapterRequest>,
    ) -> Result<Response<wire::LoadAdapterResponse>, Status> {
        Err(Status::unimplemented("no adapters"))
    }

    async fn unload_adapter(
        &self,
        _: Request<wire::UnloadAdapterRequest>,
    ) -> Result<Response<wire::UnloadAdapterResponse>, Status> {
        Err(Status::unimplemented("no adapters"))
    }
}

/// Serves a rank of incarnation `epoch` at `path` until its tasks stop.
fn serve(path: &Path, place: (u32, u32), epoch: u64, tasks: &Tasks) -> FakeControl {
    serve_begun(path, place, (epoch, 0), tasks).0
}

/// The same, of a rank that has begun so many steps; with it comes the last epoch that a router has lost.
fn serve_begun(
    path: &Path,
    (rank, world_size): (u32, u32),
    (epoch, steps): (u64, u64),
    tasks: &Tasks,
) -> (FakeControl, Arc<Mutex<Option<u64>>>) {
    let lost: Arc<Mutex<Option<u64>>> = Arc::default();
    let shape = FakeShape {
        vocabulary_size: VOCABULARY_SIZE,
        max_positions: Tokens(200),
        block_size: Tokens(4),
        blocks: BLOCKS,
    };
    let (group, control) = FakeGroup::new(FakeModel::Hash, shape);
    (0..epoch).for_each(|_| control.come_back());
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    let group = Arc::new(Mutex::new(Some(group)));
    let service = FakeRank { rank, world_size, group, steps, lost: Arc::clone(&lost) };
    let stop = tasks.stop_token().clone();
    let server = tonic::transport::Server::builder()
        .add_service(ShardServer::new(service))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tasks.spawn("rank", Fate::Log, async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            served = server => served.unwrap(),
        }
    });
    (control, lost)
}

fn sockets(folder: &Path) -> [PathBuf; 2] {
    [folder.join("0.sock"), folder.join("1.sock")]
}

async fn ask(server: &Server) -> Value {
    let body = json!({"inputs": "a prompt", "parameters": {"max_new_tokens": 20, "ignore_eos": true}});
    server.post("/generate", body).await.json()
}

#[tokio::test]
async fn ranks_behind_sockets_answer_and_come_back() {
    let expected = ask(&Server::start_with(FakeModel::Hash, config()).await).await;
    let folder = tempfile::tempdir().unwrap();
    let paths = sockets(folder.path());
    let addresses = paths.iter().map(|path| ShardAddress::Unix(path.clone())).collect();
    let tasks = Tasks::new();
    let app = App::start(config(), model(), vec![RemoteGroup::new(addresses)], &tasks).unwrap();

    let first = Tasks::new();
    let control = serve(&paths[0], (0, 2), 1, &first);
    serve(&paths[1], (1, 2), 1, &first);
    let server = Server { app, control, tasks };
    server.app.wait_until_ready().await.unwrap();
    assert_eq!(ask(&server).await, expected);

    // The ranks die in the middle of an answer; new ones of the next epoch take their place.
    server.control.pause();
    server.control.allow_steps(5);
    let second = Tasks::new();
    let dying = async {
        let steps = server.control.steps();
        server.until(async |server| server.control.steps() >= steps + 5).await;
        server.control.lose();
        first.stop_and_wait().await;
        server.until(async |server| !server.app.is_ready()).await;
        serve(&paths[0], (0, 2), 2, &second);
        serve(&paths[1], (1, 2), 2, &second);
    };
    let (answer, ()) = futures::join!(ask(&server), dying);
    assert_eq!(answer, expected);
}

/// A router died when it had told one rank of a step and not the other: they would exchange data of different steps.
#[tokio::test]
async fn ranks_that_stopped_at_different_steps_are_given_up_until_they_come_anew() {
    let expected = ask(&Server::start_with(FakeModel::Hash, config()).await).await;
    let folder = tempfile::tempdir().unwrap();
    let paths = sockets(folder.path());
    let addresses = paths.iter().map(|path| ShardAddress::Unix(path.clone())).collect();
    let first = Tasks::new();
    let (control, lost) = serve_begun(&paths[0], (0, 2), (1, 7), &first);
    let (_, also_lost) = serve_begun(&paths[1], (1, 2), (1, 6), &first);
    let tasks = Tasks::new();
    let app = App::start(config(), model(), vec![RemoteGroup::new(addresses)], &tasks).unwrap();
    let server = Server { app, control, tasks };
    let told = |lost: &Mutex<Option<u64>>| *lost.lock().unwrap();
    server.until(async |_| told(&lost) == Some(1) && told(&also_lost) == Some(1)).await;
    assert!(!server.app.is_ready());
    first.stop_and_wait().await;
    let second = Tasks::new();
    serve_begun(&paths[0], (0, 2), (2, 5), &second);
    serve_begun(&paths[1], (1, 2), (2, 5), &second);
    server.app.wait_until_ready().await.unwrap();
    assert_eq!(ask(&server).await, expected);
}
