//! Cases to read, and random histories against a fake shard.

mod cases;
mod client;
mod coverage;
mod fake_shard;
mod generator;
mod history;
mod shares;
mod tables;
mod world;

pub(crate) use generator::Generator;
