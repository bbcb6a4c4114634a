//! What every role needs of its process: telemetry, tasks with a fate, shutdown.

pub mod loss_report;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
