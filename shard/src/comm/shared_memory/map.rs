//! The memory a group shares: a header of atomics, then two slots a rank.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lockstep_proto::Rank;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::{Pid, test_kill_process};
use rustix::thread::futex;

use crate::comm::{CommError, Membership};

/// Bytes one rank can bring to one exchange; longer ones go in several. Small enough that a slot stays in
/// the cache between the rank that writes and those that read.
pub(super) const SLOT_BYTES: usize = 1 << 20;

/// Values one rank can bring to one exchange.
pub(super) const SLOT_FLOATS: usize = SLOT_BYTES / size_of::<f32>();

/// Room for [`Header`], in whole pages so that slots begin on one.
const HEADER_BYTES: usize = 8192;

/// Set in [`Header::generation`] once the group is aborted. Generations count by two above it.
const ABORTED: u32 = 1;
pub(super) const GENERATION_STEP: u32 = 2;

/// What the ranks meet at. All zero in a new file.
#[repr(C)]
pub(super) struct Header {
    /// Meetings held so far, times [`GENERATION_STEP`], and [`ABORTED`]. What sleeping ranks sleep on.
    pub(super) generation: CacheLine<AtomicU32>,
    /// Ranks that have come to the meeting under way.
    pub(super) arrivals: CacheLine<AtomicU32>,
    /// Ranks that sleep or are about to.
    pub(super) sleepers: CacheLine<AtomicU32>,
    world_size: CacheLine<AtomicU32>,
    processes: [CacheLine<Process>; Membership::MAX_WORLD_SIZE as usize],
}

const _: () = assert!(size_of::<Header>() <= HEADER_BYTES);

/// Keeps words that different ranks write from sharing a line.
#[repr(C, align(64))]
pub(super) struct CacheLine<T>(pub(super) T);

/// What a rank says of its process.
#[repr(C)]
pub(super) struct Process {
    /// 0 until the rank has joined.
    pub(super) id: AtomicU32,
    /// How often it went to sleep.
    pub(super) sleeps: AtomicU64,
}

/// The mapping of one rank.
pub(super) struct Map {
    start: NonNull<u8>,
    ranks: usize,
}

#[expect(unsafe_code, reason = "a mapping is a raw pointer")]
// SAFETY: the mapping belongs to the process, not to a thread. The header is made of atomics; who may touch
// the slots when is the callers' duty, stated at `slot` and `slot_mut`.
unsafe impl Send for Map {}
#[expect(unsafe_code, reason = "a mapping is a raw pointer")]
// SAFETY: as above.
unsafe impl Sync for Map {}

/// Bytes of the file a group of `ranks` needs.
pub(super) fn map_bytes(ranks: usize) -> usize {
    HEADER_BYTES + 2 * ranks * SLOT_BYTES
}

impl Map {
    pub(super) fn new(file: &File, ranks: usize) -> io::Result<Self> {
        let bytes = map_bytes(ranks);
        let found = file.metadata()?.len();
        if found != bytes as u64 {
            let message = format!("{ranks} ranks need {bytes} bytes, the memory has {found}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        #[expect(unsafe_code, reason = "shared memory is mapped")]
        // SAFETY: a fresh mapping at an address of the kernel's choice; the file is long enough.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, ranks })
    }

    /// Enters this process as a rank of the group.
    pub(super) fn announce(&self, membership: Membership) -> io::Result<()> {
        let taken = |what: &str, found: u32| {
            io::Error::new(io::ErrorKind::AlreadyExists, format!("the memory is in use: {what} {found}"))
        };
        let set =
            |word: &AtomicU32, value| word.compare_exchange(0, value, Ordering::SeqCst, Ordering::SeqCst);
        let world_size = membership.world_size();
        match set(&self.header().world_size.0, world_size) {
            Err(other) if other != world_size => return Err(taken("by a group of size", other)),
            Ok(_) | Err(_) => {}
        }
        let process = self.process(membership.index());
        match set(&process.id, std::process::id()) {
            Ok(_) => Ok(()),
            Err(other) => Err(taken("this rank is process", other)),
        }
    }

    pub(super) fn header(&self) -> &Header {
        #[expect(unsafe_code, reason = "the header lies in shared memory")]
        // SAFETY: the mapping begins with room for a header, page-aligned, lives as long as `self`, and all
        // bit patterns are valid atomics, which other processes may change at any time.
        unsafe {
            self.start.cast::<Header>().as_ref()
        }
    }

    pub(super) fn process(&self, rank: usize) -> &Process {
        &self.header().processes[rank].0
    }

    /// # Safety
    /// Nobody may write the slot while the slice lives.
    #[expect(unsafe_code, reason = "slots lie in shared memory")]
    pub(super) unsafe fn slot(&self, rank: usize, half: usize) -> &[u8] {
        // SAFETY: in bounds by `slot_start`; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.slot_start(rank, half).as_ptr(), SLOT_BYTES) }
    }

    /// # Safety
    /// Nobody else may read or write the slot while the slice lives.
    #[expect(unsafe_code, reason = "slots lie in shared memory")]
    #[expect(
        clippy::mut_from_ref,
        reason = "the memory is not owned by the map; the caller has exclusivity"
    )]
    pub(super) unsafe fn slot_mut(&self, rank: usize, half: usize) -> &mut [u8] {
        // SAFETY: in bounds by `slot_start`; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.slot_start(rank, half).as_ptr(), SLOT_BYTES) }
    }

    fn slot_start(&self, rank: usize, half: usize) -> NonNull<u8> {
        assert!(rank < self.ranks && half < 2, "slot {half} of rank {rank} of {}", self.ranks);
        #[expect(unsafe_code, reason = "slots lie in shared memory")]
        // SAFETY: the mapping holds a header and two slots for each of `ranks`.
        unsafe {
            self.start.add(HEADER_BYTES + (2 * rank + half) * SLOT_BYTES)
        }
    }

    /// Which meeting is under way: changes once it is held.
    pub(super) fn generation(&self) -> u32 {
        self.header().generation.0.load(Ordering::SeqCst) & !ABORTED
    }

    /// Ends the group and wakes whoever sleeps.
    pub(super) fn abort(&self) {
        let generation = &self.header().generation.0;
        generation.fetch_or(ABORTED, Ordering::SeqCst);
        wake_all(generation);
    }

    pub(super) fn check_alive(&self) -> Result<(), CommError> {
        match self.header().generation.0.load(Ordering::SeqCst) & ABORTED {
            0 => Ok(()),
            _ => Err(CommError::Aborted),
        }
    }

    /// The first rank whose process has ended. Ranks that have not joined yet are not missed here.
    pub(super) fn first_lost(&self) -> Option<Rank> {
        let lost = |rank: &usize| {
            let id = self.process(*rank).id.load(Ordering::SeqCst);
            id != 0 && is_gone(id)
        };
        let rank = (0..self.ranks).find(lost)?;
        u32::try_from(rank).ok().map(Rank)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "a mapping is unmapped by address")]
        // SAFETY: mapped by `new` with this length; no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), map_bytes(self.ranks)) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// Wakes every rank that sleeps on `word`.
pub(super) fn wake_all(word: &AtomicU32) {
    const ALL: u32 = i32::MAX as u32;
    let woken = futex::wake(word, futex::Flags::empty(), ALL);
    debug_assert!(woken.is_ok(), "{woken:?}");
}

fn is_gone(process: u32) -> bool {
    let Some(id) = i32::try_from(process).ok().and_then(Pid::from_raw) else { return false };
    match test_kill_process(id) {
        Err(rustix::io::Errno::SRCH) => true,
        Ok(()) | Err(_) => is_zombie(process),
    }
}

/// A process that has ended and whose parent has not yet asked how.
fn is_zombie(process: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    // The state follows the name, which is in parentheses and may hold any character.
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    matches!(state, Some('Z' | 'X'))
}
