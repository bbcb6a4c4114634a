//! What can go wrong with a shard, and the one mapping of it to gRPC codes.

use std::io;

use lockstep_process::telemetry::TelemetryError;
use lockstep_process::traces::TraceError;
use thiserror::Error;
use tonic::{Code, Status};

use crate::comm::CommError;
use crate::config::ListenAddress;
use crate::engine::ConfigureError;
use crate::load::LoadError;
use crate::worker::{StepRefusal, WorkerError};

/// Why a shard did not start or did not go on.
#[derive(Debug, Error)]
pub enum ShardError {
    /// Its place in the group makes no sense.
    #[error(transparent)]
    Group(#[from] CommError),
    /// Logging cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// Spans cannot be sent.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// Whoever started it has gone.
    #[error("start under process {parent}: it has gone")]
    ParentGone {
        /// The process expected.
        parent: u32,
    },
    /// Threads cannot be had.
    #[error("start threads: {source}")]
    Threads {
        /// Why.
        source: io::Error,
    },
    /// The model cannot be served.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The worker ended.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The router's stream is over, and the rank with it.
    #[error("go on without a router's stream of steps: {why}; the rank's next epoch takes a new one")]
    StreamEnded {
        /// Why.
        why: StreamEnd,
    },
    /// The address cannot be listened at.
    #[error("listen at {address}: {source}")]
    Listen {
        /// Where.
        address: ListenAddress,
        /// Why.
        source: io::Error,
    },
    /// The server broke.
    #[error("serve: {source}")]
    Serve {
        /// Why.
        source: tonic::transport::Error,
    },
}

/// Why a stream of steps is over.
#[derive(Debug, Error)]
pub enum StreamEnd {
    /// The router sends no more.
    #[error("the router closed it")]
    Closed,
    /// The router, or the connection to it, is gone.
    #[error("it broke, {0}")]
    Broken(String),
    /// Nobody reads the answers.
    #[error("the router takes no more answers")]
    Unread,
    /// A router waits for the next epoch.
    #[error("the router has given this epoch up")]
    GivenUp,
    /// A message that is no step of this release. The router has been told.
    #[error("{0}")]
    Refused(String),
}

/// The status a stream ends with.
pub(crate) fn of_refusal(refusal: &StepRefusal) -> Status {
    let code = match refusal {
        StepRefusal::Invalid { .. } | StepRefusal::Wire(_) => Code::InvalidArgument,
        StepRefusal::StreamEnded => Code::Aborted,
        StepRefusal::RankLost { .. } | StepRefusal::Leaving => Code::Unavailable,
    };
    Status::new(code, sentence(refusal))
}

pub(crate) fn of_configure(error: &ConfigureError) -> Status {
    let code = match error {
        ConfigureError::Epoch { .. } => Code::FailedPrecondition,
        ConfigureError::Empty { .. } => Code::InvalidArgument,
        ConfigureError::OverBudget { .. } | ConfigureError::Allocate(_) => Code::ResourceExhausted,
    };
    Status::new(code, sentence(error))
}

pub(crate) fn worker_is_gone() -> Status {
    Status::unavailable("this rank has ended")
}

pub(crate) fn no_adapters() -> Status {
    Status::unimplemented("this shard serves its base model only; adapters are not supported yet")
}

fn sentence(error: &dyn std::error::Error) -> String {
    format!("failed to {error}")
}
