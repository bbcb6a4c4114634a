//! The connection to one rank.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use lockstep_proto::wire::shard_client::ShardClient;
use lockstep_proto::{Epoch, Rank, ShardDescription, Step, StepId, StepOutput, TraceParent, wire};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tower::service_fn;

use super::{GroupConfig, ShardAddress, ShardError};

/// Steps on their way to a rank: the one it computes and the one it goes on with.
const STEPS_ON_THE_WAY: usize = 2;

/// Largest message in either direction. A step that starts a sequence carries its whole context (four bytes
/// a token: 16 MiB are four million tokens), an answer with prompt log-probabilities up to 20 entries of 10
/// bytes for each token of a step (4,096 of them: under 1 MiB).
const MESSAGE_BYTES: usize = 64 << 20;

/// How long connecting and each call besides a step may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// One rank.
pub(super) struct RankClient {
    rank: Rank,
    address: ShardAddress,
    client: ShardClient<Channel>,
    run: Option<Run>,
}

struct Run {
    steps: mpsc::Sender<wire::Step>,
    outputs: Streaming<wire::StepOutput>,
    /// The steps that are not answered, the oldest first.
    asked: VecDeque<(Epoch, StepId)>,
}

impl RankClient {
    /// Connects.
    pub(super) async fn connect(rank: Rank, address: &ShardAddress) -> Result<Self, ShardError> {
        let failed = |reason: String| ShardError::Connect { address: address.to_string(), reason };
        let connected = tokio::time::timeout(CALL_LIMIT, open(address)).await;
        let channel = connected
            .map_err(|_| failed(format!("no answer within {} s", CALL_LIMIT.as_secs())))?
            .map_err(|error| failed(with_causes(&error)))?;
        let client = ShardClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        Ok(Self { rank, address: address.clone(), client, run: None })
    }

    /// What the rank says of itself. It leaves if its epoch is `lost`.
    pub(super) async fn describe(&mut self, lost: Option<Epoch>) -> Result<ShardDescription, ShardError> {
        let request = wire::DescribeRequest { lost_epoch: lost.map(|epoch| epoch.0) };
        let call = self.client.describe(limited(request));
        let answer = call.await.map_err(|status| failed(&self.address, "Describe", &status))?;
        Ok(answer.into_inner().into())
    }

    /// Sizes its KV cache. Returns how many steps it has begun.
    pub(super) async fn configure(&mut self, config: GroupConfig) -> Result<u64, ShardError> {
        let GroupConfig { epoch, blocks, max_step_tokens } = config;
        let request = wire::ConfigureRequest { epoch: epoch.0, blocks: blocks.0, max_step_tokens };
        let call = self.client.configure(limited(request));
        let answer = call.await.map_err(|status| failed(&self.address, "Configure", &status))?;
        Ok(answer.into_inner().steps)
    }

    /// Opens its stream of steps.
    pub(super) async fn open(&mut self) -> Result<(), ShardError> {
        let (steps, queue) = mpsc::channel(STEPS_ON_THE_WAY);
        let opening = tokio::time::timeout(CALL_LIMIT, self.client.run(ReceiverStream::new(queue)));
        let opened = opening.await.map_err(|_| ShardError::TooSlow { limit: CALL_LIMIT })?;
        let outputs = opened.map_err(|status| failed(&self.address, "Run", &status))?.into_inner();
        self.run = Some(Run { steps, outputs, asked: VecDeque::new() });
        Ok(())
    }

    /// Hands it one step.
    pub(super) fn begin(&mut self, step: Step, traces: &[TraceParent]) -> Result<(), ShardError> {
        let rank = self.rank;
        let run = self.run.as_mut().ok_or(ShardError::StreamEnded { rank })?;
        let asked = (step.epoch, step.step_id);
        let mut message = wire::Step::from(step);
        message.trace_parents = traces.iter().copied().map(Into::into).collect();
        // There is room for all that may be on their way.
        run.steps.try_send(message).map_err(|_| ShardError::StreamEnded { rank })?;
        run.asked.push_back(asked);
        Ok(())
    }

    /// Waits for the answer to the oldest step that has none.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing but the wait.
    pub(super) async fn finish(&mut self) -> Result<StepOutput, ShardError> {
        let rank = self.rank;
        let run = self.run.as_mut().ok_or(ShardError::StreamEnded { rank })?;
        let answer = run.outputs.message().await.map_err(|status| failed(&self.address, "Run", &status))?;
        let answer = answer.ok_or(ShardError::StreamEnded { rank })?;
        let output = StepOutput::try_from(answer).map_err(|source| ShardError::Wire { rank, source })?;
        let Some((epoch, step_id)) = run.asked.pop_front() else {
            return Err(ShardError::Unasked { rank, step: output.step_id.0 });
        };
        if (output.epoch, output.step_id) != (epoch, step_id) {
            return Err(ShardError::Mismatch {
                rank,
                found_epoch: output.epoch,
                found_step: output.step_id.0,
                epoch,
                step: step_id.0,
            });
        }
        Ok(output)
    }

    /// Waits until the stream of steps ends, while no step is on its way.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing but the wait.
    pub(super) async fn lost(&mut self) -> ShardError {
        let rank = self.rank;
        let Some(run) = self.run.as_mut() else { return ShardError::StreamEnded { rank } };
        match run.outputs.message().await {
            Ok(Some(output)) => ShardError::Unasked { rank, step: output.step_id },
            Ok(None) => ShardError::StreamEnded { rank },
            Err(status) => failed(&self.address, "Run", &status),
        }
    }
}

async fn open(address: &ShardAddress) -> Result<Channel, tonic::transport::Error> {
    match address {
        ShardAddress::Tcp(host) => {
            Endpoint::from_shared(format!("http://{host}"))?.tcp_nodelay(true).connect().await
        }
        ShardAddress::Unix(path) => {
            let path = path.clone();
            let connector = service_fn(move |_| open_unix(path.clone()));
            // The URI names the host in headers only; the connector decides where bytes go.
            Endpoint::from_static("http://shard.local").connect_with_connector(connector).await
        }
    }
}

async fn open_unix(path: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}

fn limited<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

fn failed(address: &ShardAddress, call: &'static str, status: &Status) -> ShardError {
    let mut reason = format!("{}: {}", status.code(), status.message());
    if let Some(cause) = std::error::Error::source(status) {
        reason.push_str(": ");
        reason.push_str(&with_causes(cause));
    }
    ShardError::Call { address: address.to_string(), call, reason }
}

/// An error and what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
