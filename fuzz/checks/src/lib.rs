//! What must hold of every parser that sees bytes from outside, whatever the bytes: one function for each target. The
//! fuzzer calls them with what it finds, and a test with the corpora that are kept (`tests/corpora.rs`).
//!
//! A check panics where something does not hold. That nothing takes too long or too much memory is the fuzzer's to
//! see.

#![forbid(unsafe_code)]

mod bodies;
mod event_ids;
mod folder;
mod gguf;
mod grammars;
mod journal;
mod model_files;
mod protobuf;
mod safetensors;
mod server;
mod templates;
mod tool_calls;

pub use bodies::check as bodies;
pub use event_ids::check as event_ids;
pub use gguf::check as gguf;
pub use grammars::check as grammars;
pub use journal::check as journal;
pub use model_files::check as model_files;
pub use protobuf::check as protobuf;
pub use safetensors::check as safetensors;
pub use templates::check as templates;
pub use tool_calls::check as tool_calls;

/// What is done with each input of a target.
pub type Check = fn(&[u8]);

/// Every target by name, which is also that of its corpus.
pub const TARGETS: [(&str, Check); 10] = [
    ("bodies", bodies),
    ("event_ids", event_ids),
    ("gguf", gguf),
    ("grammars", grammars),
    ("journal", journal),
    ("model_files", model_files),
    ("protobuf", protobuf),
    ("safetensors", safetensors),
    ("templates", templates),
    ("tool_calls", tool_calls),
];
