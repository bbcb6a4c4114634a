//! Zeroed memory on huge pages where the system gives them: what is streamed whole at every step is read
//! half as fast again for it.

use std::collections::TryReserveError;
use std::io;
use std::ops::Range;

use memmap2::MmapMut;

/// Size and alignment of a huge page. Smaller memory is left on common pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Zeroed, private memory, aligned to a cache line at least.
pub(crate) struct HugeMemory {
    map: MmapMut,
    used: Range<usize>,
}

impl HugeMemory {
    /// Maps `bytes` of zeroes.
    ///
    /// # Errors
    /// When the system has no memory to give.
    pub(crate) fn zeroed(bytes: usize) -> io::Result<Self> {
        let large = bytes >= HUGE_PAGE_BYTES;
        let slack = if large { HUGE_PAGE_BYTES } else { 0 };
        let map = MmapMut::map_anon((bytes + slack).max(1))?;
        let start = if large { map.as_ptr().align_offset(HUGE_PAGE_BYTES) } else { 0 };
        #[cfg(target_os = "linux")]
        if large {
            // Only speed depends on it: a kernel without huge pages refuses.
            let _ = map.advise_range(memmap2::Advice::HugePage, start, bytes);
        }
        Ok(Self { map, used: start..start + bytes })
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.map[self.used.clone()]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.map[self.used.clone()]
    }
}

/// `elements` zeroes that take memory only when they are first written: `zeroed` makes them, as `vec!` does
/// for a constant zero.
///
/// # Errors
/// When the system has no room for them.
pub(crate) fn on_huge_pages<T>(
    elements: usize,
    zeroed: impl FnOnce(usize) -> Vec<T>,
) -> Result<Vec<T>, TryReserveError> {
    // Asked for first, because an allocation that fails in `vec!` ends the process.
    Vec::<T>::new().try_reserve_exact(elements)?;
    let mut memory = zeroed(elements);
    prefer_huge_pages(&mut memory);
    Ok(memory)
}

#[cfg(target_os = "linux")]
fn prefer_huge_pages<T>(memory: &mut [T]) {
    let bytes = size_of_val(memory);
    let start = memory.as_mut_ptr().cast::<u8>();
    let skipped = start.align_offset(HUGE_PAGE_BYTES);
    if bytes < skipped.saturating_add(HUGE_PAGE_BYTES) {
        return;
    }
    let whole = (bytes - skipped) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    // SAFETY: the range lies within `memory`, and the advice changes neither its contents nor its rights.
    // Only speed depends on it: a kernel without huge pages refuses.
    let _ =
        unsafe { rustix::mm::madvise(start.add(skipped).cast(), whole, rustix::mm::Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages<T>(_memory: &mut [T]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_any_size_is_zeroed_whole_and_aligned() {
        for bytes in [0, 1, 4096, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 5] {
            let mut memory = HugeMemory::zeroed(bytes).unwrap();
            assert_eq!(memory.as_slice().len(), bytes);
            assert_eq!(memory.as_slice().as_ptr().align_offset(64), 0, "{bytes}");
            assert!(memory.as_slice().iter().all(|byte| *byte == 0), "{bytes}");
            memory.as_mut_slice().fill(7);
        }
    }
}
