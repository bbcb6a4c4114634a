//! A router's side of the connection: one stream of steps.

use std::path::Path;

use lockstep_proto::wire::shard_client::ShardClient;
use lockstep_proto::{
    BlockId, ContextLogprobs, Epoch, Outcome, Position, Sampling, SamplingParams, SequenceId,
    SequenceStart, Step, StepId, StepOutput, TokenId, Tokens, Work, WorkTokens, wire,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

pub(crate) const EPOCH: Epoch = Epoch(7);

/// A connection to the shard that listens at `socket`, once it does.
pub(crate) async fn connect(socket: &Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return channel,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

pub(crate) fn configuration() -> wire::ConfigureRequest {
    wire::ConfigureRequest { epoch: EPOCH.0, blocks: 64, max_step_tokens: 40 }
}

/// One `Run` stream.
pub(crate) struct Run {
    steps: mpsc::Sender<wire::Step>,
    outputs: Streaming<wire::StepOutput>,
    next: u64,
}

impl Run {
    pub(crate) async fn open(client: &mut ShardClient<Channel>) -> Self {
        let (steps, outgoing) = mpsc::channel(16);
        let outputs = client.run(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Self { steps, outputs, next: 0 }
    }

    pub(crate) async fn send(&mut self, step: Step) {
        self.next = step.step_id.0 + 1;
        self.steps.send(step.into()).await.unwrap();
    }

    pub(crate) async fn receive(&mut self) -> Result<StepOutput, Status> {
        match self.outputs.message().await {
            Ok(Some(output)) => Ok(output.try_into().unwrap()),
            Ok(None) => Err(Status::cancelled("the stream ended")),
            Err(status) => Err(status),
        }
    }

    /// Sends a step and returns its outcomes.
    pub(crate) async fn run(
        &mut self,
        starts: Vec<SequenceStart>,
        work: Vec<Work>,
    ) -> Result<Vec<Outcome>, Status> {
        let step = step(self.next, starts, work);
        self.send(step).await;
        let output = self.receive().await?;
        assert_eq!((output.epoch, output.step_id), (EPOCH, StepId(self.next - 1)));
        Ok(output.results.into_iter().map(|result| result.outcome).collect())
    }
}

pub(crate) fn step(id: u64, starts: Vec<SequenceStart>, work: Vec<Work>) -> Step {
    Step { epoch: EPOCH, step_id: StepId(id), starts, work, masks: Vec::new(), releases: Vec::new() }
}

pub(crate) fn start(sequence: u64, context: &[u32]) -> SequenceStart {
    SequenceStart {
        sequence: SequenceId(sequence),
        sampling: SamplingParams::greedy(),
        context: context.iter().copied().map(TokenId).collect(),
        prompt_tokens: Tokens::of_len(context.len()),
    }
}

/// The whole of a short prompt, in block `block`, and a token after it.
pub(crate) fn prefill(sequence: u64, context: &[u32], block: u32) -> Work {
    Work {
        sequence: SequenceId(sequence),
        first_position: Position(0),
        tokens: WorkTokens::Ids(context.iter().copied().map(TokenId).collect()),
        new_blocks: vec![BlockId(block)],
        sampling: Sampling::Sample,
        logprobs: ContextLogprobs::Skip,
        appended: Vec::new(),
    }
}

pub(crate) fn decode(sequence: u64, position: u32) -> Work {
    Work {
        sequence: SequenceId(sequence),
        first_position: Position(position),
        tokens: WorkTokens::LastSampled,
        new_blocks: Vec::new(),
        sampling: Sampling::Sample,
        logprobs: ContextLogprobs::Skip,
        appended: Vec::new(),
    }
}

pub(crate) fn token(outcome: &Outcome) -> u32 {
    match outcome {
        Outcome::Sampled(sampled) => sampled.token.0,
        Outcome::Computed | Outcome::Failed(_) => panic!("nothing was sampled: {outcome:?}"),
    }
}
