//! Ranks as processes of one host, exchanging through memory they all map.
//!
//! The memory is an unnamed file the launcher holds open; ranks open it by path, and nothing is left behind
//! when they end. Each rank has two slots and uses them in turn: whoever is at exchange *n* has seen all
//! ranks arrive at *n - 1*, so all have read the slots of *n - 2* and that half may be written again. One
//! meeting an exchange is therefore enough.

mod map;
mod meeting;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockstep_proto::Rank;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use self::map::{Map, SLOT_BYTES, SLOT_FLOATS, map_bytes};
use self::meeting::Patience;
use super::{CommError, Communicator, Joining, Membership, tree};

/// Makes the memory for a group of `world_size` ranks. Keep it open as long as ranks may join; a group's
/// next incarnation needs a new one.
///
/// # Errors
/// When the system has no memory files or no memory.
pub fn create(world_size: u32) -> io::Result<OwnedFd> {
    let file = memfd_create("lockstep-ranks", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, map_bytes(world_size as usize) as u64)?;
    Ok(file)
}

/// One rank of a group of processes.
pub struct SharedMemory {
    membership: Membership,
    patience: Patience,
    map: Map,
    /// Exchanges done so far; held for the length of one.
    exchanges: Mutex<u32>,
}

impl SharedMemory {
    /// Joins the group whose memory is at `path`, such as `/proc/PID/fd/N`.
    ///
    /// # Errors
    /// When the memory cannot be mapped or was made for another number of ranks.
    pub fn open(path: &Path, joining: Joining) -> Result<Self, CommError> {
        let failed = |source| CommError::Open { what: path.display().to_string(), source };
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        Self::join(file, joining).map_err(failed)
    }

    fn join(file: File, joining: Joining) -> io::Result<Self> {
        let map = Map::new(&file, joining.membership.ranks())?;
        map.announce(joining.membership)?;
        Ok(Self {
            membership: joining.membership,
            patience: Patience::new(joining),
            map,
            exchanges: Mutex::new(0),
        })
    }

    /// How often this rank has gone to sleep while it waited for others.
    pub fn sleeps(&self) -> u64 {
        self.map.process(self.membership.index()).sleeps.load(Ordering::Relaxed)
    }

    fn begin(&self) -> Result<Writing<'_>, CommError> {
        self.map.check_alive()?;
        let exchanges = self.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Writing { of: self, exchanges })
    }
}

/// An exchange this rank has begun: its part may be written.
struct Writing<'a> {
    of: &'a SharedMemory,
    exchanges: MutexGuard<'a, u32>,
}

impl<'a> Writing<'a> {
    /// Where this rank's part goes.
    fn mine(&mut self) -> &mut [u8] {
        let rank = self.of.membership.index();
        #[expect(unsafe_code, reason = "shared memory is written in place")]
        // SAFETY: this rank alone writes its slots, under the lock this value holds, and the other ranks have
        // left this half: they read it two exchanges ago and came to the one after, which this rank has left.
        unsafe {
            self.of.map.slot_mut(rank, half(*self.exchanges))
        }
    }

    /// Meets the other ranks, which have written theirs.
    fn meet(mut self) -> Result<Reading<'a>, CommError> {
        meeting::meet(&self.of.map, self.of.patience).inspect_err(|_| self.of.map.abort())?;
        let half = half(*self.exchanges);
        *self.exchanges = self.exchanges.wrapping_add(1);
        Ok(Reading { map: &self.of.map, half, _exchanges: self.exchanges })
    }
}

/// An exchange to which every rank has brought its part.
struct Reading<'a> {
    map: &'a Map,
    half: usize,
    /// Held so that this rank begins no other exchange while the slots are read.
    _exchanges: MutexGuard<'a, u32>,
}

impl Reading<'_> {
    fn bytes(&self, rank: usize, len: usize) -> &[u8] {
        #[expect(unsafe_code, reason = "shared memory is read in place")]
        // SAFETY: every rank wrote this half before the meeting this rank has just left, and writes it again
        // only after the next one, to which this rank comes once this value is dropped.
        let slot = unsafe { self.map.slot(rank, self.half) };
        &slot[..len]
    }

    fn floats(&self, rank: usize, len: usize) -> &[f32] {
        let bytes = self.bytes(rank, len * size_of::<f32>());
        #[expect(unsafe_code, reason = "bytes written as f32 are read as such")]
        // SAFETY: slots begin on page boundaries, the length is that of the bytes, and every bit pattern is
        // an f32.
        unsafe {
            std::slice::from_raw_parts(bytes.as_ptr().cast::<f32>(), len)
        }
    }
}

fn half(exchanges: u32) -> usize {
    (exchanges % 2) as usize
}

impl Communicator for SharedMemory {
    fn rank(&self) -> Rank {
        self.membership.rank()
    }

    fn world_size(&self) -> u32 {
        self.membership.world_size()
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<(), CommError> {
        for chunk in values.chunks_mut(SLOT_FLOATS) {
            let mut exchange = self.begin()?;
            write_floats(chunk, exchange.mine());
            let brought = exchange.meet()?;
            let ranks = 0..self.membership.ranks();
            let parts: Vec<&[f32]> = ranks.map(|rank| brought.floats(rank, chunk.len())).collect();
            tree::add(&parts, chunk);
        }
        Ok(())
    }

    fn all_gather(&self, mine: &[f32], all: &mut [f32]) -> Result<(), CommError> {
        self.membership.check_gather(mine.len(), all.len())?;
        for (index, chunk) in mine.chunks(SLOT_FLOATS).enumerate() {
            let mut exchange = self.begin()?;
            write_floats(chunk, exchange.mine());
            let brought = exchange.meet()?;
            for (rank, part) in all.chunks_mut(mine.len()).enumerate() {
                let place = &mut part[index * SLOT_FLOATS..][..chunk.len()];
                place.copy_from_slice(brought.floats(rank, chunk.len()));
            }
        }
        Ok(())
    }

    fn broadcast(&self, root: Rank, bytes: &mut [u8]) -> Result<(), CommError> {
        self.membership.check_root(root)?;
        for chunk in bytes.chunks_mut(SLOT_BYTES) {
            let mut exchange = self.begin()?;
            if root == self.rank() {
                exchange.mine()[..chunk.len()].copy_from_slice(chunk);
            }
            let brought = exchange.meet()?;
            chunk.copy_from_slice(brought.bytes(root.0 as usize, chunk.len()));
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.begin()?.meet().map(|_| ())
    }

    fn abort(&self) {
        self.map.abort();
    }
}

fn write_floats(values: &[f32], slot: &mut [u8]) {
    let (words, _) = slot.as_chunks_mut::<4>();
    for (word, value) in words.iter_mut().zip(values) {
        *word = value.to_ne_bytes();
    }
}

#[cfg(test)]
mod tests;
