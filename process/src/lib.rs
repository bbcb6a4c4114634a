//! What every role needs of its process: telemetry, traces, tasks with a fate, shutdown, processors, room for open files.

pub mod cpus;
pub mod datagrams;
pub mod open_files;
pub mod orders;
pub mod reports;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
pub mod traces;
