//! Ranks on CUDA devices: sums and gathers device to device, everything else through the group's other transport.
//!
//! A communicator lives as long as its epoch: rank 0 makes its id, the group's other transport carries it to the
//! others. Calls do not block; whoever waits for the device asks NCCL whether a peer was lost meanwhile, and gives the
//! group up when it was or when the watchdog says so.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, sys as driver};
use candle_core::cuda_backend::cudarc::nccl::result::{self, NcclError, NcclStatus};
use candle_core::cuda_backend::cudarc::nccl::sys::{
    self, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId,
};
use lockstep_proto::Rank;
use tracing::info;

use super::{CommError, Communicator, Joining};
use crate::ops::cuda::gpu::Gpu;
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::product::Order;
use crate::ops::cuda::rows::{TreeParameters, sum_parts};
use crate::ops::cuda::storage::{of_slice, room};

/// Between two looks at what NCCL, or the device, is doing.
const LOOK_AGAIN: Duration = Duration::from_micros(20);

/// What NCCL takes for a number nobody has set.
const UNSET: i32 = i32::MIN;

/// What a configuration begins with.
const MAGIC: u32 = 0xcafe_beef;

/// One rank of a group of devices.
pub struct Nccl {
    /// What carries the id, and all that is on the host.
    host: Arc<dyn Communicator>,
    device: CudaDevice,
    watchdog: Duration,
    order: Order,
    group: Mutex<Option<Handle>>,
    aborted: AtomicBool,
}

/// NCCL's own.
struct Handle(ncclComm_t);

// SAFETY: NCCL takes calls from any thread, one at a time, which the lock around it sees to.
unsafe impl Send for Handle {}

impl Nccl {
    /// Joins the devices of a group that `host` connects already. Every rank calls it.
    ///
    /// # Errors
    /// When the id cannot be made or carried, or the ranks do not all come in time.
    pub(crate) fn join(
        host: Arc<dyn Communicator>,
        device: CudaDevice,
        joining: Joining,
        order: Order,
    ) -> Result<Self, CommError> {
        let id = carried_id(&*host)?;
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().map_err(|error| failed("take the device", &error))?;
        let version = result::get_nccl_version().map_err(|error| of_nccl("find its version", &error))?;
        let mut config = configuration(version);
        let mut comm: ncclComm_t = ptr::null_mut();
        let (rank, ranks) = (joining.membership.rank().0, joining.membership.world_size());
        // SAFETY: the pointers are of this function; the configuration is copied.
        let begun = unsafe {
            result::comm_init_rank_config(&raw mut comm, ranks as i32, id, rank as i32, &raw mut config)
        };
        begun.map_err(|error| of_nccl("join", &error))?;
        let group = Self {
            host,
            device,
            watchdog: joining.watchdog,
            order,
            group: Mutex::new(Some(Handle(comm))),
            aborted: AtomicBool::new(false),
        };
        group.settle_calls()?;
        info!(version, rank, ranks, "joined the group's devices");
        Ok(group)
    }

    /// Replaces `count` numbers by their sum over all ranks, in the order the group was made with.
    ///
    /// # Errors
    /// When the group was aborted, a peer was lost, or the device has no memory for all parts.
    pub(crate) fn all_reduce(&self, values: Address, count: usize) -> Result<(), CommError> {
        match self.order {
            Order::Fastest => self.call("sum", |comm, stream| {
                let place = values.0 as *mut c_void;
                let sum = ncclRedOp_t::ncclSum;
                // SAFETY: the address is of `count` numbers on the stream's device.
                unsafe {
                    result::all_reduce(place, place, count, ncclDataType_t::ncclFloat, sum, comm, stream)
                }
            }),
            Order::Exact => self.all_reduce_exactly(values, count),
        }
    }

    /// Every rank's part goes to every rank, which adds them in the one tree.
    fn all_reduce_exactly(&self, values: Address, count: usize) -> Result<(), CommError> {
        let ranks = self.world_size();
        let of_device = |error: candle_core::Error| failed("add the ranks' parts", &error);
        let all = room::<f32>(&self.device, count * ranks as usize).map_err(of_device)?;
        let parts = of_slice(&all);
        self.all_gather(values, parts, count)?;
        let call = TreeParameters { parts, sum: values, elements: count as u64, count: ranks };
        sum_parts(&Gpu(&self.device), &call).map_err(of_device)
    }

    /// Writes every rank's `count` numbers into `all`, in the order of ranks.
    ///
    /// # Errors
    /// When the group was aborted or a peer was lost.
    pub(crate) fn all_gather(&self, mine: Address, all: Address, count: usize) -> Result<(), CommError> {
        self.call("gather", |comm, stream| {
            let (mine, all) = (mine.0 as *const c_void, all.0 as *mut c_void);
            // SAFETY: the addresses are of `count` numbers, and of as many from each rank, on the stream's device.
            unsafe { result::all_gather(mine, all, count, ncclDataType_t::ncclFloat, comm, stream) }
        })
    }

    /// Returns once the device has done all that was asked of it.
    ///
    /// # Errors
    /// When the group was aborted, a peer was lost, or the watchdog's time is over.
    pub(crate) fn wait(&self) -> Result<(), CommError> {
        let stream = self.device.cuda_stream();
        let event = stream.record_event(None).map_err(|error| failed("watch the device", &error))?;
        self.wait_for(&event)
    }

    /// Returns once the device has come to an event.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub(crate) fn wait_for(&self, event: &CudaEvent) -> Result<(), CommError> {
        let start = Instant::now();
        while !self.has_come_to(event)? {
            self.check_time(start)?;
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Whether the device has come to an event.
    ///
    /// # Errors
    /// When the group was aborted, a peer was lost, or the device has failed.
    pub(crate) fn has_come_to(&self, event: &CudaEvent) -> Result<bool, CommError> {
        if event.try_is_complete().map_err(|error| failed("wait for the device", &error))? {
            return Ok(true);
        }
        self.look().map(|_| false)
    }

    /// Makes a call and waits until NCCL has taken it.
    fn call(
        &self,
        what: &'static str,
        call: impl FnOnce(ncclComm_t, sys::cudaStream_t) -> Result<NcclStatus, NcclError>,
    ) -> Result<(), CommError> {
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().map_err(|error| failed("take the device", &error))?;
        let taken = {
            let group = self.lock();
            let comm = group.as_ref().ok_or(CommError::Aborted)?.0;
            call(comm, raw(&stream))
        };
        match taken.map_err(|error| of_nccl(what, &error))? {
            NcclStatus::Success => Ok(()),
            NcclStatus::InProgress | NcclStatus::NumResults => self.settle_calls(),
        }
    }

    /// Waits until NCCL has nothing in progress.
    fn settle_calls(&self) -> Result<(), CommError> {
        let start = Instant::now();
        while self.look()? == ncclResult_t::ncclInProgress {
            self.check_time(start)?;
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Whether the group is still there.
    ///
    /// # Errors
    /// When it was aborted, or a peer was lost.
    pub(crate) fn check(&self) -> Result<(), CommError> {
        self.look().map(drop)
    }

    /// What NCCL is doing; an error where it has failed.
    fn look(&self) -> Result<ncclResult_t, CommError> {
        let group = self.lock();
        let comm = group.as_ref().ok_or(CommError::Aborted)?.0;
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is there as long as the lock is held.
        let asked = unsafe { sys::ncclCommGetAsyncError(comm, &raw mut state) };
        drop(group);
        for found in [asked, state] {
            if found != ncclResult_t::ncclSuccess && found != ncclResult_t::ncclInProgress {
                self.abort();
                return Err(of_nccl("exchange", &NcclError(found)));
            }
        }
        Ok(state)
    }

    /// Gives the group up where something has taken longer than the watchdog allows.
    pub(crate) fn check_time(&self, start: Instant) -> Result<(), CommError> {
        if start.elapsed() < self.watchdog {
            return Ok(());
        }
        self.abort();
        Err(CommError::TimedOut { waited: self.watchdog })
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Option<Handle>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Communicator for Nccl {
    fn rank(&self) -> Rank {
        self.host.rank()
    }

    fn world_size(&self) -> u32 {
        self.host.world_size()
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<(), CommError> {
        self.host.all_reduce(values)
    }

    fn all_gather(&self, mine: &[f32], all: &mut [f32]) -> Result<(), CommError> {
        self.host.all_gather(mine, all)
    }

    fn broadcast(&self, root: Rank, bytes: &mut [u8]) -> Result<(), CommError> {
        self.host.broadcast(root, bytes)
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.host.barrier()
    }

    /// Kernels that wait for a peer end as well.
    fn abort(&self) {
        self.host.abort();
        if self.aborted.swap(true, Ordering::SeqCst) {
            return;
        }
        let taken = self.lock().take();
        taken.into_iter().for_each(leave);
    }

    fn nccl(&self) -> Option<&Nccl> {
        Some(self)
    }
}

impl Drop for Nccl {
    /// A group ends as a whole, so that no rank waits here for another.
    fn drop(&mut self) {
        let taken = self.lock().take();
        taken.into_iter().for_each(leave);
    }
}

/// Aborts what nobody else has any more, on a thread of its own: kernels that wait for a peer end at once, but the call
/// returns only when every recording with an exchange is gone, and whoever calls this may have those.
fn leave(handle: Handle) {
    let abort = move || {
        // All of it, and not the pointer alone, which may not change threads.
        let whole = handle;
        let Handle(comm) = whole;
        // SAFETY: nobody has it afterwards. What it says is of no use any more.
        let _ = unsafe { result::comm_abort(comm) };
    };
    // Where no thread can be had the process is about to end, and the driver ends what it has begun.
    let _ = std::thread::Builder::new().name("nccl-abort".to_owned()).spawn(abort);
}

/// NCCL and the driver each have their name for the same stream.
fn raw(stream: &CudaStream) -> sys::cudaStream_t {
    let stream: driver::CUstream = stream.cu_stream();
    stream.cast()
}

/// Rank 0's id on every rank. Where rank 0 has none, all find out together.
fn carried_id(host: &dyn Communicator) -> Result<ncclUniqueId, CommError> {
    let mut bytes = [0; 1 + 128];
    let mut made = Ok(());
    if host.rank() == Rank(0) {
        match result::get_uniqueid() {
            Ok(id) => {
                bytes[0] = 1;
                for (byte, of_id) in bytes[1..].iter_mut().zip(id.internal) {
                    *byte = of_id.cast_unsigned();
                }
            }
            Err(error) => made = Err(of_nccl("make an id", &error)),
        }
    }
    host.broadcast(Rank(0), &mut bytes)?;
    made?;
    if bytes[0] == 0 {
        return Err(CommError::Device { what: "join", reason: "rank 0 could not make an id".to_owned() });
    }
    let mut id = ncclUniqueId { internal: [0; 128] };
    for (of_id, byte) in id.internal.iter_mut().zip(&bytes[1..]) {
        *of_id = byte.cast_signed();
    }
    Ok(id)
}

/// Calls that do not block; all else as NCCL likes.
fn configuration(version: i32) -> ncclConfig_t {
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: MAGIC,
        version: version.cast_unsigned(),
        blocking: 0,
        cgaClusterSize: UNSET,
        minCTAs: UNSET,
        maxCTAs: UNSET,
        netName: ptr::null(),
        splitShare: UNSET,
        trafficClass: UNSET,
        commName: ptr::null(),
        collnetEnable: UNSET,
        CTAPolicy: UNSET,
        shrinkShare: UNSET,
        nvlsCTAs: UNSET,
        nChannelsPerNetPeer: UNSET,
        nvlinkCentricSched: UNSET,
        graphUsageMode: UNSET,
        numRmaCtx: UNSET,
        maxP2pPeers: UNSET,
    }
}

fn of_nccl(what: &'static str, NcclError(code): &NcclError) -> CommError {
    CommError::Device { what, reason: format!("NCCL says {code:?}") }
}

fn failed(what: &'static str, error: &impl std::fmt::Display) -> CommError {
    CommError::Device { what, reason: error.to_string() }
}
