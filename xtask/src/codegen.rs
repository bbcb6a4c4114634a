//! Protobuf to committed Rust, so that building the workspace needs neither protoc nor a generator.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::workspace_root;

const PROTO: &str = "proto/protos/shard/v1/shard.proto";
const GENERATED: &str = "proto/src/generated";

/// What to do with the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Write it.
    Write,
    /// Fail where the committed file differs.
    Check,
}

/// Generates the wire types.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let root = workspace_root();
    let out = match mode {
        Mode::Write => root.join(GENERATED),
        Mode::Check => root.join("target/codegen"),
    };
    std::fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let descriptors =
        protox::compile([root.join(PROTO)], [root.join("proto/protos")]).context("compile shard.proto")?;
    tonic_prost_build::configure()
        .build_transport(true)
        .emit_rerun_if_changed(false)
        .out_dir(&out)
        .compile_fds(descriptors)
        .context("generate Rust from shard.proto")?;
    if mode == Mode::Check {
        check_equal(&root.join(GENERATED), &out)?;
    }
    Ok(())
}

fn check_equal(committed: &Path, fresh: &Path) -> Result<()> {
    for entry in std::fs::read_dir(fresh)? {
        let name = entry?.file_name();
        let want = std::fs::read_to_string(fresh.join(&name))?;
        let have = std::fs::read_to_string(committed.join(&name)).unwrap_or_default();
        ensure!(
            have == want,
            "{} is out of date: run `cargo xtask codegen`",
            committed.join(&name).display()
        );
    }
    Ok(())
}
