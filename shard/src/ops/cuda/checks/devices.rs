//! What needs candle's storage, cuBLASLt or several ranks: on GPUs alone.

use std::sync::Arc;
use std::time::Duration;

use candle_core::Tensor;
use lockstep_proto::{Epoch, Rank};

use super::{BF16, Checks, EXACT, Error, F16, F32, Failure, Numbers};
use super::{behind, cublaslt, memory, models, recordings};
use crate::comm::{Communicator, Joining, Membership, Nccl, Threads};
use crate::decoder::{Dtype, ForwardError};
use crate::device::{DeviceError, Target, gpus, visible_gpus};
use crate::ops::cuda::product::Order;
use crate::ops::cuda::recording::Recording;
use crate::ops::cuda::storage::of_slice;

/// Far longer than any exchange here takes.
pub(super) const WATCHDOG: Duration = Duration::from_secs(30);

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
    models::check(checks, &fast, &exact);
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

/// Largest error of a product whose inputs and weights are rounded so.
pub(super) fn rounding(held: Dtype) -> f32 {
    match held {
        Dtype::Bfloat16 => BF16,
        Dtype::Float16 => F16,
        Dtype::Float32 => F32,
    }
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
