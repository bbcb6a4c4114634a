//! The service: wire messages in, commands to the worker, wire messages out.
//!
//! A router has one `Run` stream to a rank, for as long as the rank lives: a stream that ends, for whatever
//! reason, ends the rank, unless a second stream has taken over from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_process::tasks::{Fate, Tasks};
use lockstep_proto::wire::shard_server::Shard;
use lockstep_proto::{Blocks, Epoch, ShardDescription, Step, StepOutput, Tokens, wire};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use crate::engine::Configuration;
use crate::error::{self, StreamEnd};
use crate::worker::{Command, STEPS_IN_FLIGHT, StepRefusal, StreamId};

/// Longest message taken or sent: a step that starts 64 sequences of 131,072 tokens, five bytes a token,
/// with a mask for each, is below it.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Ends of streams that wait to be told: the first ends the rank, so that no other matters.
const STREAM_ENDS: usize = 1;

/// One rank, as the router sees it.
pub(crate) struct ShardService {
    description: ShardDescription,
    commands: mpsc::Sender<Command>,
    tasks: Tasks,
    /// How many streams were opened: the last of them is the one steps are taken from.
    streams: Arc<AtomicU64>,
    ended: mpsc::Sender<StreamEnd>,
}

impl ShardService {
    /// A service, and where it says that the stream steps were taken from is over.
    pub(crate) fn new(
        description: ShardDescription,
        commands: mpsc::Sender<Command>,
        tasks: Tasks,
    ) -> (Self, mpsc::Receiver<StreamEnd>) {
        let (ended, stream_end) = mpsc::channel(STREAM_ENDS);
        (Self { description, commands, tasks, streams: Arc::default(), ended }, stream_end)
    }

    async fn tell(&self, command: Command) -> Result<(), Status> {
        self.commands.send(command).await.map_err(|_| error::worker_is_gone())
    }
}

#[tonic::async_trait]
impl Shard for ShardService {
    async fn describe(
        &self,
        _request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        Ok(Response::new(self.description.clone().into()))
    }

    async fn configure(
        &self,
        request: Request<wire::ConfigureRequest>,
    ) -> Result<Response<wire::ConfigureResponse>, Status> {
        let wire::ConfigureRequest { epoch, blocks, max_step_tokens } = request.into_inner();
        let configuration = Configuration {
            epoch: Epoch(epoch),
            blocks: Blocks(blocks),
            max_step_tokens: Tokens(max_step_tokens),
        };
        let (answer, configured) = oneshot::channel();
        self.tell(Command::Configure(configuration, answer)).await?;
        let configured = configured.await.map_err(|_| error::worker_is_gone())?;
        configured.map_err(|reason| error::of_configure(&reason))?;
        Ok(Response::new(wire::ConfigureResponse {}))
    }

    type RunStream = std::pin::Pin<Box<dyn Stream<Item = Result<wire::StepOutput, Status>> + Send>>;

    async fn run(
        &self,
        request: Request<Streaming<wire::Step>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let stream = StreamId(self.streams.fetch_add(1, Ordering::Relaxed));
        self.tell(Command::OpenStream(stream)).await?;
        let (answers, outputs) = mpsc::channel(STEPS_IN_FLIGHT);
        let feed = Feed {
            stream,
            streams: Arc::clone(&self.streams),
            commands: self.commands.clone(),
            answers,
            tasks: self.tasks.clone(),
            ended: self.ended.clone(),
        };
        self.tasks.spawn("run stream", Fate::Log, feed.run(request.into_inner()));
        let outputs = ReceiverStream::new(outputs).map(|answer| match answer {
            Ok(output) => Ok(output.into()),
            Err(refusal) => Err(error::of_refusal(&refusal)),
        });
        Ok(Response::new(Box::pin(outputs)))
    }

    async fn load_adapter(
        &self,
        _request: Request<wire::LoadAdapterRequest>,
    ) -> Result<Response<wire::LoadAdapterResponse>, Status> {
        Err(error::no_adapters())
    }

    async fn unload_adapter(
        &self,
        _request: Request<wire::UnloadAdapterRequest>,
    ) -> Result<Response<wire::UnloadAdapterResponse>, Status> {
        Err(error::no_adapters())
    }
}

/// Passes one stream's steps to the worker.
struct Feed {
    stream: StreamId,
    streams: Arc<AtomicU64>,
    commands: mpsc::Sender<Command>,
    answers: mpsc::Sender<Result<StepOutput, StepRefusal>>,
    tasks: Tasks,
    ended: mpsc::Sender<StreamEnd>,
}

impl Feed {
    /// Until the router ends the stream, the stream fails or the process is told to stop.
    ///
    /// A router keeps its stream for as long as the rank lives. Where it is over all the same and no other has
    /// taken over, the router waits for the next epoch, so the rank must end for one to come.
    async fn run(self, mut steps: Streaming<wire::Step>) {
        let stop = self.tasks.stop_token().clone();
        let why = tokio::select! {
            biased;
            () = stop.cancelled() => return self.leave().await,
            why = self.pass_on(&mut steps) => why,
            // A worker that is stuck in a step frees no room to read the next, so that this alone shows.
            () = self.answers.closed() => StreamEnd::Unread,
        };
        if self.stream.0 + 1 == self.streams.load(Ordering::Relaxed) {
            // Where there is no room an end was told before.
            let _ = self.ended.try_send(why);
        } else {
            debug!(%why, "a stream that another has taken over from is over");
        }
    }

    /// Why the stream is over.
    async fn pass_on(&self, steps: &mut Streaming<wire::Step>) -> StreamEnd {
        loop {
            // A step is read once there is room for its answer, so that the worker never waits for a router
            // that reads slowly.
            let Ok(answer) = self.answers.clone().reserve_owned().await else { return StreamEnd::Unread };
            let step = match steps.message().await {
                Ok(Some(step)) => step,
                Ok(None) => return StreamEnd::Closed,
                Err(status) => return StreamEnd::Broken(status.message().to_owned()),
            };
            let traces = step.trace_parents.iter().copied().map(Into::into).collect();
            let step = match Step::try_from(step) {
                Ok(step) => step,
                Err(error) => {
                    let why = StreamEnd::Refused(error.to_string());
                    answer.send(Err(error.into()));
                    return why;
                }
            };
            let command = Command::Step { stream: self.stream, step, traces, answer };
            if self.commands.send(command).await.is_err() {
                return StreamEnd::Broken("this rank's worker has ended".to_owned());
            }
        }
    }

    /// Says so once every step that was taken is answered.
    async fn leave(&self) {
        if let Ok(mut all_room) = self.answers.reserve_many(STEPS_IN_FLIGHT).await
            && let Some(room) = all_room.next()
        {
            room.send(Err(StepRefusal::Leaving));
        }
    }
}
