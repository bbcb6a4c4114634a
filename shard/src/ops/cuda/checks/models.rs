//! Whole models on a GPU: against the CPU, and against themselves.

use std::sync::Arc;

use half::bf16;
use lockstep_models::ModelFiles;
use lockstep_process::reports::Progress;
use lockstep_proto::{BlockId, Blocks, Position, TokenId};

use super::devices::{Checked, broken, rounding};
use super::{Checks, EXACT, Error, Numbers};
use crate::batch::{Batch, BatchSequence};
use crate::comm::{Communicator, Solo};
use crate::decoder::{Decoder, Dtype, LoadError, ModelSpec, Precision, Quantize};
use crate::device::Target;
use crate::kv::KvCacheDtype;
use crate::testing::{TinyLlama, write_tensors};

/// Largest error of a whole model whose activations are rounded to 8 bits on one side, relative to the largest logit.
const QUANTIZED_MODEL: f32 = 5e-2;

/// What weights and KV blocks are held in.
type Held = (Precision, KvCacheDtype);

pub(super) fn check(checks: &mut Checks<'_>, fast: &Target, exact: &Target) {
    for (target, how) in [(fast, "fast"), (exact, "exact")] {
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
            checks.check_or_skip(format!("a whole model, {how}, {dtype}"), || model(target, dtype));
        }
    }
    for quantize in [Quantize::Int8, Quantize::Int4] {
        checks.check_or_skip(format!("a whole model, {quantize}"), || quantized(fast, quantize));
    }
    let of = |quantize| Precision { dtype: Dtype::Bfloat16, quantize };
    for kv_cache in [KvCacheDtype::Auto, KvCacheDtype::Int8, KvCacheDtype::Float8] {
        let name = format!("a whole model in chunks and at once, exact, KV cache {kv_cache}");
        checks.check_or_skip(name, || chunks((exact, &TinyLlama::new(7)), (of(Quantize::None), kv_cache)));
    }
    checks.check_or_skip("a whole model in chunks and at once, exact, float16", || {
        chunks((exact, &TinyLlama::new(7)), (Dtype::Float16.into(), KvCacheDtype::Auto))
    });
    checks.check_or_skip("weights that float16 has no room for are refused", || overflow(fast));
    for (target, quantize) in [(fast, Quantize::Int4), (exact, Quantize::Fp8)] {
        let name = format!("a whole model in chunks and at once, {}", of(quantize));
        checks.check_or_skip(name, || {
            chunks((target, &TinyLlama::new(7)), (of(quantize), KvCacheDtype::Auto))
        });
    }
    let of_experts = TinyLlama { experts: Some(8), ..TinyLlama::new(7) };
    for held in [Dtype::Bfloat16.into(), of(Quantize::Int8), of(Quantize::Int4), of(Quantize::Fp8)] {
        checks.check_or_skip(
            format!("a whole model with experts in chunks and at once, exact, {held}"),
            || chunks((exact, &of_experts), (held, KvCacheDtype::Auto)),
        );
    }
}

fn overflow(target: &Target) -> Checked<Error> {
    const NAME: &str = "model.layers.1.self_attn.o_proj";
    let model = TinyLlama::new(7);
    let folder = Folder::of(&model)?;
    let mut tensors = model.tensors();
    if let Some(weights) = tensors.get_mut(&format!("{NAME}.weight")) {
        weights.bytes[..2].copy_from_slice(&bf16::from_f32(-1e5).to_le_bytes());
    }
    write_tensors(&folder.0, &tensors).map_err(broken)?;
    let files = folder.files();
    let spec = ModelSpec::read(&files).map_err(broken)?;
    let alone: Arc<dyn Communicator> = Arc::new(Solo);
    let of = (&spec, Dtype::Float16.into());
    let loaded = Decoder::load_onto((target, alone), &files, of, Progress::default());
    let is_named = matches!(loaded, Err(LoadError::Held { modules, .. }) if modules == NAME);
    Ok(Error::unless(is_named))
}

/// A folder with a random model in it, removed when this is dropped.
pub(super) struct Folder(std::path::PathBuf);

impl Folder {
    /// One at a time.
    pub(super) fn of(model: &TinyLlama) -> Checked<Self> {
        let name = format!("lockstep-gpu-checks-{}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&folder.0).map_err(broken)?;
        model.write(&folder.0).map_err(broken)?;
        Ok(folder)
    }

    pub(super) fn files(&self) -> ModelFiles {
        ModelFiles::Folder(self.0.clone())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Logits of every row of a prompt computed in chunks, and of one token after it.
fn logits(
    (target, model): (&Target, &TinyLlama),
    (precision, kv_cache): Held,
    chunk: usize,
) -> Checked<Vec<f32>> {
    let folder = Folder::of(model)?;
    let files = folder.files();
    let spec = ModelSpec::read(&files).map_err(broken)?;
    let alone: Arc<dyn Communicator> = Arc::new(Solo);
    let decoder = Decoder::load_onto((target, alone), &files, (&spec, precision), Progress::default());
    let decoder = decoder.map_err(broken)?.with_kv_cache(kv_cache);
    let mut kv = decoder.allocate_kv(Blocks(32)).map_err(broken)?;
    let mut numbers = Numbers::new(3);
    let tokens: Vec<TokenId> = (0..301).map(|_| TokenId(numbers.below(spec.vocabulary_size()))).collect();
    let blocks: Vec<BlockId> = (0..20).map(|at| BlockId(at * 7 % 32)).collect();
    let mut all = Vec::new();
    let ends = (0..300)
        .step_by(chunk)
        .map(|first| first..(first + chunk).min(300))
        .chain(std::iter::once(300..301));
    for rows in ends {
        let count = rows.len();
        let sequence = BatchSequence {
            first_row: 0,
            rows: count,
            first_position: Position(rows.start as u32),
            blocks: blocks.clone(),
        };
        let batch = Batch {
            token_ids: tokens[rows].to_vec(),
            sequences: vec![sequence],
            logit_rows: (0..count).collect(),
            fed: Vec::new(),
        };
        let hidden = decoder.forward(&batch, &mut kv).map_err(broken)?;
        let logits =
            decoder.logits(&hidden, 0..count).and_then(|logits| logits.on_host()).map_err(broken)?;
        all.extend(logits.rows().flatten());
    }
    Ok(all)
}

fn model(target: &Target, dtype: Dtype) -> Checked<Error> {
    let held = (dtype.into(), KvCacheDtype::Auto);
    let on = |target| logits((target, &TinyLlama::new(7)), held, 300);
    let (found, expected) = (on(target)?, on(&Target::cpu())?);
    // Of a whole model the errors of all operators add up.
    let allowed = match dtype {
        Dtype::Bfloat16 | Dtype::Float16 => 3.0 * rounding(dtype),
        Dtype::Float32 => 10.0 * rounding(dtype),
    };
    Ok(Error::of(&found, &expected, allowed))
}

/// The CPU rounds activations to 8 bits.
fn quantized(target: &Target, quantize: Quantize) -> Checked<Error> {
    let held = (Precision { dtype: Dtype::Bfloat16, quantize }, KvCacheDtype::Auto);
    let on = |target| logits((target, &TinyLlama::new(7)), held, 300);
    let (found, expected) = (on(target)?, on(&Target::cpu())?);
    Ok(Error::of(&found, &expected, QUANTIZED_MODEL))
}

/// Products with quantized weights have one order of sums whether others have it or not.
fn chunks(of: (&Target, &TinyLlama), held: Held) -> Checked<Error> {
    let whole = logits(of, held, 300)?;
    let mut error = Error::unless(true);
    for chunk in [1, 17, 256] {
        error = error.max(Error::of(&logits(of, held, chunk)?, &whole, EXACT));
    }
    Ok(error)
}
