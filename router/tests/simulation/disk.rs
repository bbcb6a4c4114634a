//! The journal's disk: what was written and not brought to it is lost with the machine, in part or damaged, and any
//! call may fail or be the last of the process.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use lockstep_router::journal::{Medium, Stored};

use crate::world::{Death, Shared, World, lock};

const MAGIC: &[u8] = b"LSJRNL01";

/// One write in so many is slow, and takes so long at most.
const SLOW_WRITES: u64 = 4;
const LONGEST_WRITE_MS: u64 = 20;

#[derive(Default)]
pub(crate) struct Disk {
    segments: BTreeMap<u64, Segment>,
    /// Whose deletion may be undone by a machine that dies.
    deleted: BTreeMap<u64, Segment>,
    newest: u64,
    /// Whether a call of this router's failed.
    pub(crate) has_failed: bool,
}

struct Segment {
    bytes: Vec<u8>,
    /// How many of them outlive the machine.
    synced: usize,
    written: Duration,
}

/// One router's way to it.
pub(crate) struct Drive {
    world: Shared,
    life: u32,
}

impl Drive {
    pub(crate) fn new(world: Shared, life: u32) -> Self {
        Self { world, life }
    }

    /// Does something unless the call fails first. What a dead process does reaches nothing.
    fn call<T>(
        &self,
        what: std::fmt::Arguments<'_>,
        act: impl FnOnce(&mut World) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut world = lock(&self.world);
        if world.is_dead() || world.life != self.life {
            return Err(io::Error::other("its process is dead"));
        }
        world.log(format_args!("disk: {what}"));
        if world.is_met(|faults| faults.disk_fails) {
            world.disk.has_failed = true;
            world.log(format_args!("disk: it fails"));
            return Err(io::ErrorKind::StorageFull.into());
        }
        act(&mut world)
    }
}

impl Medium for Drive {
    fn segments(&self) -> io::Result<Vec<Stored>> {
        self.call(format_args!("read"), |world| {
            let now = world.now();
            world.disk.segments.values_mut().for_each(|segment| segment.synced = segment.bytes.len());
            let stored = |(number, segment): (&u64, &Segment)| Stored {
                number: *number,
                bytes: segment.bytes.clone(),
                age: now.saturating_sub(segment.written),
            };
            Ok(world.disk.segments.iter().map(stored).collect())
        })
    }

    fn begin(&mut self, number: u64) -> io::Result<()> {
        self.call(format_args!("begin {number}"), |world| {
            let segment = Segment { bytes: MAGIC.to_vec(), synced: 0, written: world.now() };
            world.disk.deleted.clear();
            world.disk.newest = number;
            if world.disk.segments.insert(number, segment).is_some() {
                world.violation(format!("segment {number} is begun twice"));
            }
            Ok(())
        })
    }

    fn latency(&mut self) -> Duration {
        let mut world = lock(&self.world);
        if !world.is_dead() && world.life == self.life && world.random.once_in(SLOW_WRITES) {
            world.random.millis(1, LONGEST_WRITE_MS)
        } else {
            Duration::ZERO
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.call(format_args!("append {}", bytes.len()), |world| {
            let dies = world.is_met(|faults| faults.dies_writing);
            let now = world.now();
            let count =
                if dies { world.random.between(0, bytes.len() as u64) as usize } else { bytes.len() };
            let newest = world.disk.newest;
            let segment = world.disk.segments.get_mut(&newest).ok_or(io::ErrorKind::NotFound)?;
            segment.bytes.extend_from_slice(&bytes[..count]);
            segment.written = now;
            if dies {
                let death = if world.random.once_in(2) { Death::Machine } else { Death::Process };
                world.die(death, "while it writes");
            }
            Ok(())
        });
        if written.is_err() {
            self.tear(bytes);
        }
        written
    }

    fn sync(&mut self) -> io::Result<()> {
        self.call(format_args!("sync"), |world| {
            let newest = world.disk.newest;
            world.disk.deleted.clear();
            if let Some(segment) = world.disk.segments.get_mut(&newest) {
                segment.synced = segment.bytes.len();
            }
            Ok(())
        })
    }

    fn delete(&mut self, number: u64) -> io::Result<()> {
        self.call(format_args!("delete {number}"), |world| {
            let segment = world.disk.segments.remove(&number).ok_or(io::ErrorKind::NotFound)?;
            world.disk.deleted.insert(number, segment);
            Ok(())
        })
    }
}

impl Drive {
    /// A write that fails may have written a part.
    fn tear(&self, bytes: &[u8]) {
        let mut world = lock(&self.world);
        if world.is_dead() || world.life != self.life {
            return;
        }
        let part = world.random.between(0, bytes.len() as u64) as usize;
        let newest = world.disk.newest;
        if let Some(segment) = world.disk.segments.get_mut(&newest) {
            segment.bytes.extend_from_slice(&bytes[..part]);
        }
    }
}

impl World {
    /// What a machine leaves that dies now.
    pub(crate) fn lose_unsynced(&mut self) {
        let Self { disk, random, .. } = self;
        for (number, segment) in std::mem::take(&mut disk.deleted) {
            if random.once_in(2) {
                disk.segments.insert(number, segment);
            }
        }
        for segment in disk.segments.values_mut() {
            let unsynced = (segment.bytes.len() - segment.synced) as u64;
            segment.bytes.truncate(segment.synced + random.between(0, unsynced) as usize);
            let kept = segment.bytes.len() - segment.synced;
            if kept > 0 && random.once_in(3) {
                let at = segment.synced + random.between(0, kept as u64 - 1) as usize;
                segment.bytes[at] ^= random.between(1, 255) as u8;
            }
            // What has survived one death survives the next.
            segment.synced = segment.bytes.len();
        }
        // A segment that was never brought to the disk may be gone as a whole.
        disk.segments.retain(|_, segment| !segment.bytes.is_empty());
    }

    /// Every segment's bytes, oldest first.
    pub(crate) fn on_disk(&self) -> impl Iterator<Item = &[u8]> {
        self.disk.segments.values().map(|segment| &segment.bytes[..])
    }
}
