//! What needs candle's storage, cuBLASLt or several ranks: on GPUs alone.

use std::sync::Arc;
use std::time::Duration;

use candle_core::Tensor;
use lockstep_models::ModelFiles;
use lockstep_process::reports::Progress;
use lockstep_proto::{BlockId, Blocks, Epoch, Position, Rank, TokenId};

use super::{BF16, Checks, EXACT, Error, F32, Failure, Numbers};
use super::{behind, cublaslt, memory, recordings};
use crate::batch::{Batch, BatchSequence};
use crate::comm::{Communicator, Joining, Membership, Nccl, Solo, Threads};
use crate::decoder::{Decoder, Dtype, ForwardError, ModelSpec, Precision, Quantize};
use crate::device::{DeviceError, Target, gpus, visible_gpus};
use crate::kv::KvCacheDtype;
use crate::ops::cuda::product::Order;
use crate::ops::cuda::recording::Recording;
use crate::ops::cuda::storage::of_slice;
use crate::testing::TinyLlama;

/// Far longer than any exchange here takes.
pub(super) const WATCHDOG: Duration = Duration::from_secs(30);

/// Largest error of a whole model whose activations are rounded to 8 bits on one side, relative to the largest logit.
const QUANTIZED_MODEL: f32 = 5e-2;

/// What weights and KV blocks are held in.
type Held = (Precision, KvCacheDtype);

pub(super) type Checked<T> = Result<T, Failure>;

pub(super) fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::Broken(error.to_string())
}

pub(super) fn check(checks: &mut Checks<'_>) -> Result<(), DeviceError> {
    let gpus = visible_gpus()?;
    let fast = Target::open_gpu(0, false)?;
    memory::check(checks, &fast);
    cublaslt::check(checks, &fast);
    let exact = Target { exact: true, ..fast.clone() };
    for (target, how) in [(&fast, "fast"), (&exact, "exact")] {
        for dtype in [Dtype::Float32, Dtype::Bfloat16] {
            checks.check_or_skip(format!("a whole model, {how}, {dtype}"), || model(target, dtype));
        }
    }
    for quantize in [Quantize::Int8, Quantize::Int4] {
        checks.check_or_skip(format!("a whole model, {quantize}"), || quantized(&fast, quantize));
    }
    let of = |quantize| Precision { dtype: Dtype::Bfloat16, quantize };
    for kv_cache in [KvCacheDtype::Auto, KvCacheDtype::Int8, KvCacheDtype::Float8] {
        let name = format!("a whole model in chunks and at once, exact, KV cache {kv_cache}");
        checks.check_or_skip(name, || chunks(&exact, (of(Quantize::None), kv_cache)));
    }
    for (target, quantize) in [(&fast, Quantize::Int4), (&exact, Quantize::Fp8)] {
        let name = format!("a whole model in chunks and at once, {}", of(quantize));
        checks.check_or_skip(name, || chunks(target, (of(quantize), KvCacheDtype::Auto)));
    }
    recordings::check(checks, (&fast, &exact));
    behind::check(checks, &exact, gpus);
    for order in [Order::Fastest, Order::Exact] {
        checks
            .check_or_skip(format!("sums and gathers of two ranks, {order:?}"), || two_ranks(gpus, order));
    }
    checks.check_or_skip("a rank that is gone ends its group", || lost_rank(gpus));
    checks.check_or_skip("a rank that is gone ends its group, which has recordings", || {
        lost_rank_with_recordings(gpus)
    });
    Ok(())
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
fn logits(target: &Target, (precision, kv_cache): Held, chunk: usize) -> Checked<Vec<f32>> {
    let folder = Folder::of(&TinyLlama::new(7))?;
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
    let (found, expected) = (logits(target, held, 300)?, logits(&Target::cpu(), held, 300)?);
    // Of a whole model the errors of all operators add up.
    Ok(Error::of(&found, &expected, if dtype == Dtype::Bfloat16 { 3.0 * BF16 } else { 10.0 * F32 }))
}

/// The CPU rounds activations to 8 bits.
fn quantized(target: &Target, quantize: Quantize) -> Checked<Error> {
    let held = (Precision { dtype: Dtype::Bfloat16, quantize }, KvCacheDtype::Auto);
    let (found, expected) = (logits(target, held, 300)?, logits(&Target::cpu(), held, 300)?);
    Ok(Error::of(&found, &expected, QUANTIZED_MODEL))
}

/// Products with quantized weights have one order of sums whether others have it or not.
fn chunks(target: &Target, held: Held) -> Checked<Error> {
    let whole = logits(target, held, 300)?;
    let mut error = Error::unless(true);
    for chunk in [1, 17, 256] {
        error = error.max(Error::of(&logits(target, held, chunk)?, &whole, EXACT));
    }
    Ok(error)
}

/// Two ranks on threads of this process, each with a GPU of its own.
pub(super) fn on_two_ranks<T: Send>(
    gpus: usize,
    order: Order,
    work: impl Fn(&Target, Arc<Nccl>) -> Checked<T> + Sync,
) -> Checked<Vec<T>> {
    if gpus < 2 {
        return Err(Failure::Skipped(format!("needs two GPUs, {gpus} is visible")));
    }
    if !gpus::have_nccl() {
        return Err(Failure::Skipped("libnccl.so.2 cannot be opened".to_owned()));
    }
    let group = Threads::group(2, WATCHDOG).map_err(broken)?;
    let rank = |(index, host): (usize, Threads)| {
        let target = Target::open_gpu(index, order == Order::Exact).map_err(broken)?;
        let device = target.gpu().ok_or_else(|| broken("it is no GPU"))?.clone();
        let membership = Membership::new(Rank(index as u32), 2).map_err(broken)?;
        let joining = Joining { membership, epoch: Epoch(0), watchdog: WATCHDOG };
        let nccl = Nccl::join(Arc::new(host), device, joining, order).map_err(broken)?;
        work(&target, Arc::new(nccl))
    };
    std::thread::scope(|scope| {
        let rank = &rank;
        let ranks: Vec<_> =
            group.into_iter().enumerate().map(|part| scope.spawn(move || rank(part))).collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().unwrap_or_else(|_| Err(broken("a rank panicked"))))
            .collect()
    })
}

fn two_ranks(gpus: usize, order: Order) -> Checked<Error> {
    let parts = [Numbers::new(1).values(4099), Numbers::new(2).values(4099)];
    let sums = on_two_ranks(gpus, order, |target, nccl| {
        let part = &parts[nccl.rank().0 as usize];
        let values = Tensor::from_slice(part, part.len(), &target.device).map_err(broken)?;
        let reduce = crate::ops::all_reduce::AllReduce::over(&*nccl);
        values.inplace_op1(&reduce).map_err(broken)?;
        nccl.wait().map_err(broken)?;
        values.to_vec1::<f32>().map_err(broken)
    })?;
    let expected: Vec<f32> = parts[0].iter().zip(&parts[1]).map(|(a, b)| a + b).collect();
    // Two numbers have one order.
    let of = |sum: &Vec<f32>| Error::of(sum, &expected, EXACT);
    Ok(sums.iter().map(of).fold(Error::unless(true), Error::max))
}

/// One rank leaves; the other, whose kernel waits for it, must be told.
fn lost_rank(gpus: usize) -> Checked<Error> {
    let ended = on_two_ranks(gpus, Order::Fastest, |target, nccl| {
        if nccl.rank() == Rank(1) {
            nccl.abort();
            return Ok(true);
        }
        let values = Tensor::from_vec(vec![1.0_f32; 1 << 20], 1 << 20, &target.device).map_err(broken)?;
        let reduce = crate::ops::all_reduce::AllReduce::over(&*nccl);
        let outcome = values.inplace_op1(&reduce).map_err(|error| error.to_string());
        Ok(outcome.is_err() || nccl.wait().is_err())
    })?;
    Ok(Error::unless(ended == [true, true]))
}

/// The same where both have recorded an exchange: NCCL waits for recordings, so that nobody who has one may wait for it.
fn lost_rank_with_recordings(gpus: usize) -> Checked<Error> {
    let ended = on_two_ranks(gpus, Order::Fastest, |target, nccl| {
        let device = target.gpu().ok_or_else(|| broken("it is no GPU"))?;
        let values = device.clone_htod(&[1.0_f32; 4096]).map_err(broken)?;
        let sum = || nccl.all_reduce(of_slice(&values), values.len());
        sum().map_err(broken)?;
        nccl.wait().map_err(broken)?;
        let mut recording = Recording::of(device, || Ok::<_, ForwardError>(sum()?)).map_err(broken)?;
        recording.replay().map_err(broken)?;
        nccl.wait().map_err(broken)?;
        if nccl.rank() == Rank(1) {
            nccl.abort();
            return Ok(true);
        }
        Ok(recording.replay().is_err() || nccl.wait().is_err())
    })?;
    Ok(Error::unless(ended == [true, true]))
}
