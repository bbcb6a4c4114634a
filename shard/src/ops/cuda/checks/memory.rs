//! What a process leaves of a device's memory to others, and to its KV blocks.

use std::sync::Arc;

use lockstep_process::reports::Progress;
use lockstep_proto::{Bytes, Tokens};

use super::devices::{Checked, broken};
use super::models::Folder;
use super::{Checks, Error};
use crate::comm::Solo;
use crate::decoder::{Decoder, Dtype, ModelSpec, Precision, Quantize};
use crate::device::memory_pool::MemoryPool;
use crate::device::{Target, gpus};
use crate::engine::Model;
use crate::load::Loaded;
use crate::load::warm_up::warm_up;
use crate::testing::TinyLlama;

/// How much a pool may have beyond what it is to keep: it takes memory from the device in pieces.
const PIECES: u64 = 40 << 20;

/// Elements of the pieces that are taken and given back: 96 MiB.
const TAKEN: usize = 24 << 20;

/// Tokens of the step: one block.
const STEP: Tokens = Tokens(16);

pub(super) fn check(checks: &mut Checks<'_>, target: &Target) {
    checks.check_or_skip("memory that nobody uses goes back, but for what is kept", || given_back(target));
    checks
        .check_or_skip("a step's values stay after the first one, its blocks do not", || warmed_up(target));
}

fn free(target: &Target) -> Checked<u64> {
    let device = target.gpu().ok_or_else(|| broken("it is no GPU"))?;
    gpus::memory(device).map(|(free, _)| free).map_err(broken)
}

fn pool(target: &Target) -> Checked<MemoryPool> {
    let device = target.gpu().ok_or_else(|| broken("it is no GPU"))?;
    MemoryPool::of(device).map_err(broken)
}

fn given_back(target: &Target) -> Checked<Error> {
    let device = target.gpu().ok_or_else(|| broken("it is no GPU"))?;
    let pool = pool(target)?;
    pool.give_back_all_but(Bytes(0)).map_err(broken)?;
    let (before, bytes) = (free(target)?, (TAKEN * size_of::<f32>()) as u64);
    let all = pool.reserved().map_err(broken)? + Bytes(bytes);
    // The device has not given it back when it is given back here.
    drop(device.alloc_zeros::<f32>(TAKEN).map_err(broken)?);
    pool.give_back_all_but(all).map_err(broken)?;
    let (kept, reserved) = (free(target)?, pool.reserved().map_err(broken)?);
    pool.give_back_all_but(Bytes(0)).map_err(broken)?;
    let after = free(target)?;
    let right = kept + bytes <= before + PIECES && reserved >= all && after + PIECES >= before;
    Ok(Error::unless(right && after + PIECES >= kept + bytes))
}

/// A model whose blocks are far larger than what a step's values take.
fn warmed_up(target: &Target) -> Checked<Error> {
    let folder = Folder::of(&TinyLlama {
        hidden: 8,
        layers: 32,
        query_heads: 32,
        kv_heads: 32,
        head_width: 256,
        intermediate: 16,
        ..TinyLlama::new(9)
    })?;
    let files = folder.files();
    let spec = ModelSpec::read(&files).map_err(broken)?;
    let of = (&spec, Precision { dtype: Dtype::Float32, quantize: Quantize::None });
    let decoder = Decoder::load_onto((target, Arc::new(Solo)), &files, of, Progress::default());
    let mut loaded = Loaded::new(decoder.map_err(broken)?);
    let pool = pool(target)?;
    pool.give_back_all_but(Bytes(0)).map_err(broken)?;
    let before = pool.reserved().map_err(broken)?;
    let warmed = warm_up(&mut loaded, (target, &Solo), STEP).map_err(broken)?;
    // Queries, keys and values of one layer.
    let values = (STEP.len() * 3 * 32 * 256 * size_of::<f32>()) as u64;
    let blocks = 2 * loaded.block_bytes().0;
    let kept = pool.reserved().map_err(broken)?.saturating_sub(before);
    let right = blocks > PIECES && kept.0 < PIECES && kept >= warmed.step && warmed.step.0 >= values;
    Ok(Error::unless(right))
}
