//! Generated messages and services. Rewritten by `cargo xtask codegen`.
#![expect(missing_docs, clippy::excessive_nesting, reason = "generated; documented in shard.proto")]
#![expect(clippy::allow_attributes, reason = "the generator writes `allow`")]

include!("generated/lockstep.shard.v1.rs");
