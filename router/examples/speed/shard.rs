//! One rank that computes nothing: whatever is asked, it answers with the same token, at once.

use std::error::Error;
use std::path::PathBuf;
use std::pin::Pin;

use futures::{Stream, StreamExt};
use lockstep_proto::wire;
use lockstep_proto::wire::sequence_result::Outcome;
use lockstep_proto::wire::shard_server::{Shard, ShardServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// An ordinary word of the demo model's vocabulary.
pub(crate) const TOKEN: u32 = 1_000;

struct AtOnce;

#[tonic::async_trait]
impl Shard for AtOnce {
    type RunStream = Pin<Box<dyn Stream<Item = Result<wire::StepOutput, Status>> + Send>>;

    async fn describe(
        &self,
        _: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        let blocks = 1 << 16;
        let block_bytes = 1 << 10;
        Ok(Response::new(wire::DescribeResponse {
            rank: 0,
            world_size: 1,
            epoch: 1,
            vocabulary_size: 4_096,
            max_positions: 2_048,
            block_size: 16,
            block_bytes,
            kv_budget_bytes: blocks * block_bytes,
            weight_bytes: 1 << 20,
            arithmetic: "none".to_owned(),
        }))
    }

    async fn configure(
        &self,
        _: Request<wire::ConfigureRequest>,
    ) -> Result<Response<wire::ConfigureResponse>, Status> {
        Ok(Response::new(wire::ConfigureResponse { steps: 0 }))
    }

    async fn run(
        &self,
        request: Request<Streaming<wire::Step>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        Ok(Response::new(request.into_inner().map(|step| step.map(answer)).boxed()))
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

fn answer(step: wire::Step) -> wire::StepOutput {
    let result = |work: &wire::Work| wire::SequenceResult {
        sequence: work.sequence,
        prompt: Vec::new(),
        outcome: Some(if work.sample {
            Outcome::Sampled(wire::TokenLogprobs { token: TOKEN, logprob: -0.5, top: Vec::new() })
        } else {
            Outcome::Chunk(wire::ChunkDone {})
        }),
    };
    wire::StepOutput {
        epoch: step.epoch,
        step_id: step.step_id,
        results: step.work.iter().map(result).collect(),
        forward_ns: 0,
        sample_ns: 0,
        comm_ns: 0,
    }
}

/// Serves at `socket` for as long as the process lives.
pub(crate) fn serve(socket: PathBuf) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _entered = runtime.enter();
        UnixListener::bind(socket)?
    };
    std::thread::Builder::new().name("shard".to_owned()).spawn(move || {
        let service = tonic::transport::Server::builder()
            .add_service(ShardServer::new(AtOnce))
            .serve_with_incoming(UnixListenerStream::new(listener));
        runtime.block_on(service)
    })?;
    Ok(())
}
