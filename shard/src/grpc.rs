//! The service: wire messages in, commands to the worker, wire messages out.
//!
//! A router has one `Run` stream to a rank. What becomes of a rank whose stream ends is for its lifeline to say.

use lockstep_process::tasks::{Fate, Tasks};
use lockstep_proto::wire::shard_server::Shard;
use lockstep_proto::{Blocks, Epoch, ShardDescription, Step, StepOutput, Tokens, wire};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::engine::Configuration;
use crate::error::{self, StreamEnd};
use crate::lifeline::Streams;
use crate::worker::{Command, STEPS_IN_FLIGHT, StepRefusal, StreamId};

/// Longest message taken or sent: a step that starts 64 sequences of 131,072 tokens, five bytes a token,
/// with a mask for each, is below it.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// One rank, as the router sees it.
pub(crate) struct ShardService {
    description: ShardDescription,
    commands: mpsc::Sender<Command>,
    tasks: Tasks,
    streams: Streams,
}

impl ShardService {
    /// Of a rank that is `description` and whose worker takes `commands`.
    pub(crate) fn new(
        description: ShardDescription,
        commands: mpsc::Sender<Command>,
        tasks: Tasks,
        streams: Streams,
    ) -> Self {
        Self { description, commands, tasks, streams }
    }

    async fn tell(&self, command: Command) -> Result<(), Status> {
        self.commands.send(command).await.map_err(|_| error::worker_is_gone())
    }
}

#[tonic::async_trait]
impl Shard for ShardService {
    async fn describe(
        &self,
        request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        if let Some(lost) = request.into_inner().lost_epoch {
            self.streams.on_lost(Epoch(lost), self.description.epoch);
        }
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
        let steps = configured.map_err(|reason| error::of_configure(&reason))?;
        Ok(Response::new(wire::ConfigureResponse { steps }))
    }

    type RunStream = std::pin::Pin<Box<dyn Stream<Item = Result<wire::StepOutput, Status>> + Send>>;

    async fn run(
        &self,
        request: Request<Streaming<wire::Step>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let stream = self.streams.open();
        self.tell(Command::OpenStream(stream)).await?;
        let (answers, outputs) = mpsc::channel(STEPS_IN_FLIGHT);
        let feed = Feed {
            stream,
            streams: self.streams.clone(),
            commands: self.commands.clone(),
            answers,
            tasks: self.tasks.clone(),
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
    streams: Streams,
    commands: mpsc::Sender<Command>,
    answers: mpsc::Sender<Result<StepOutput, StepRefusal>>,
    tasks: Tasks,
}

impl Feed {
    /// Until the router ends the stream, the stream fails or the process is told to stop.
    async fn run(self, mut steps: Streaming<wire::Step>) {
        let stop = self.tasks.stop_token().clone();
        let why = tokio::select! {
            biased;
            () = stop.cancelled() => return self.leave().await,
            why = self.pass_on(&mut steps) => why,
            // A worker that is stuck in a step frees no room to read the next, so that this alone shows.
            () = self.answers.closed() => StreamEnd::Unread,
        };
        self.streams.on_end(self.stream, why);
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
