//! Speaks HTTP, owns every request, assembles steps and drives the shards.
//!
//! In the order of a request: `http` reads it, `chat` and `tokenizer` turn it into tokens on the
//! `cpu_pool`, `validation` checks it, `engine` schedules it and delivers its text, the `journal` keeps it, `shards` computes.

#![forbid(unsafe_code)]

pub mod args;
pub mod config;
mod launcher;
pub mod serve;

pub mod app;

pub mod http;

pub mod chat;
pub mod grammar;
pub mod tokenizer;
pub mod tools;
pub mod validation;

pub mod engine;
pub mod journal;
pub mod shards;

mod clock;
pub mod cpu_pool;
pub mod draws;
pub mod error;
pub mod metrics;
pub mod model;
pub mod testing;

pub use args::RouterArgs;
pub use serve::{RouterError, check, run};
