//! What every role needs of its process: telemetry, traces, tasks with a fate, shutdown, processors.

pub mod cpus;
pub mod datagrams;
pub mod orders;
pub mod reports;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
pub mod traces;
