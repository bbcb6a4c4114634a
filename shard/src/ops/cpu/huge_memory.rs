//! Zeroed memory on huge pages where the system gives them: what is streamed whole at every step is read
//! half as fast again for it.

use std::alloc::{Layout, alloc_zeroed};
use std::io;
use std::ops::Range;

use half::{bf16, f16};
use memmap2::MmapMut;
use thiserror::Error;

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
        let mapped = bytes.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapMut::map_anon(mapped.max(1))?;
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

/// Elements whose value zero is all zero bytes.
///
/// # Safety
/// As many zero bytes as an element has are a value of the type.
pub(crate) unsafe trait ZeroBytes {}

// SAFETY: they are 0.0.
unsafe impl ZeroBytes for f32 {}
// SAFETY: they are 0.0.
unsafe impl ZeroBytes for bf16 {}
// SAFETY: they are 0.0.
unsafe impl ZeroBytes for f16 {}
// SAFETY: one is 0.
unsafe impl ZeroBytes for u8 {}

/// Memory the system does not have.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("take memory for {elements} elements of {element_bytes} bytes: the system has no room for them")]
pub(crate) struct OutOfMemory {
    elements: usize,
    element_bytes: usize,
}

/// `elements` zeroes that take memory only when they are first written.
///
/// # Errors
/// When the system has no room for them. `vec!` would end the process.
pub(crate) fn on_huge_pages<T: ZeroBytes>(elements: usize) -> Result<Vec<T>, OutOfMemory> {
    let failed = OutOfMemory { elements, element_bytes: size_of::<T>() };
    let Ok(layout) = Layout::array::<T>(elements) else { return Err(failed) };
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout has a size.
    let start = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if start.is_null() {
        return Err(failed);
    }
    // SAFETY: the global allocator gave room for just so many elements, and zero bytes are elements.
    let mut memory = unsafe { Vec::from_raw_parts(start, elements, elements) };
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

    /// More than any address space; the last two are too many for a number, and for an allocation.
    const ABSURD: [usize; 4] = [1 << 48, 1 << 60, isize::MAX as usize, usize::MAX];

    #[test]
    fn absurd_sizes_are_errors() {
        for size in ABSURD {
            assert!(HugeMemory::zeroed(size).is_err(), "{size}");
            let failed = OutOfMemory { elements: size, element_bytes: 4 };
            assert_eq!(on_huge_pages::<f32>(size).unwrap_err(), failed);
            assert!(on_huge_pages::<bf16>(size).is_err(), "{size}");
        }
    }

    #[test]
    fn elements_of_any_number_are_zero_and_can_be_written() {
        for elements in [0, 1, 1000, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 5] {
            let mut memory = on_huge_pages::<bf16>(elements).unwrap();
            assert_eq!(memory.len(), elements);
            assert!(memory.iter().all(|element| *element == bf16::ZERO), "{elements}");
            memory.fill(bf16::ONE);
            memory.push(bf16::ONE);
        }
    }
}
