//! What every role needs of its process: telemetry, traces, tasks with a fate, shutdown, room for open files.

pub mod open_files;
pub mod reports;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
pub mod traces;
