//! What this machine can do at most, for benchmarks to compare with: reading memory that lies on huge pages, and
//! multiplying pairs of bf16 and quads of 8-bit integers.

use std::io;
use std::time::Instant;

use super::huge_memory::HugeMemory;

/// Rounds of multiply-adds in a measurement of a peak: some ten milliseconds.
const ROUNDS: u64 = 2_000_000;

/// Independent sums: more than a multiply-add takes cycles times how many begin in each.
const SUMS: usize = 16;

/// Memory that is too large for any cache, to be read from end to end.
pub struct ReadProbe {
    memory: HugeMemory,
}

impl ReadProbe {
    /// Takes and touches `bytes` of memory.
    ///
    /// # Errors
    /// When the system has no memory to give.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let mut memory = HugeMemory::zeroed(bytes)?;
        memory.as_mut_slice().fill(1);
        Ok(Self { memory })
    }

    /// Bytes a second at which `threads` threads read the memory once, each a part of its own.
    pub fn bytes_per_second(&self, threads: usize) -> f64 {
        let bytes = self.memory.as_slice();
        let part = (bytes.len() / threads.max(1)).next_multiple_of(4096);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for part in bytes.chunks(part) {
                scope.spawn(|| std::hint::black_box(kernels::read(part)));
            }
        });
        bytes.len() as f64 / begun.elapsed().as_secs_f64()
    }
}

/// Floating-point operations a second of fused bf16 dot products on `threads` threads, two for each pair that is
/// multiplied and added; nothing where the machine has no such instruction.
pub fn bf16_operations_per_second(threads: usize) -> Option<f64> {
    let work = kernels::bf16()?;
    Some(operations_per_second(threads, 2 * 32, work))
}

/// Integer operations a second of 8-bit dot products on `threads` threads, two for each pair that is multiplied
/// and added; nothing where the machine has no such instruction.
pub fn int8_operations_per_second(threads: usize) -> Option<f64> {
    let work = kernels::int8()?;
    Some(operations_per_second(threads, 2 * 64, work))
}

/// `each` operations are one instruction's; `work` runs `rounds * SUMS` instructions.
fn operations_per_second(threads: usize, each: u64, work: fn(u64)) -> f64 {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(ROUNDS));
        }
    });
    let done = threads as u64 * ROUNDS * SUMS as u64 * each;
    done as f64 / begun.elapsed().as_secs_f64()
}

#[cfg(target_arch = "x86_64")]
mod kernels {
    use std::arch::x86_64::*;

    use super::SUMS;

    /// Bytes that are fetched ahead.
    const AHEAD: usize = 4096;

    pub(super) fn read(bytes: &[u8]) -> u64 {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the set was detected.
            unsafe { read_avx512(bytes) }
        } else {
            super::read_plainly(bytes)
        }
    }

    pub(super) fn bf16() -> Option<fn(u64)> {
        let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        // SAFETY: the sets were detected.
        found.then_some(|rounds| unsafe { multiply_bf16(rounds) })
    }

    pub(super) fn int8() -> Option<fn(u64)> {
        let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
        // SAFETY: the sets were detected.
        found.then_some(|rounds| unsafe { multiply_int8(rounds) })
    }

    #[target_feature(enable = "avx512f")]
    fn read_avx512(bytes: &[u8]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 4];
        for lines in bytes.chunks_exact(256) {
            let start = lines.as_ptr();
            for (sum, at) in sums.iter_mut().zip([0, 64, 128, 192]) {
                _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(at + AHEAD).cast());
                // SAFETY: the line lies within the 256 bytes.
                let line = unsafe { _mm512_loadu_si512(start.add(at).cast()) };
                *sum = _mm512_xor_si512(*sum, line);
            }
        }
        let all = sums.into_iter().fold(_mm512_setzero_si512(), |all, sum| _mm512_xor_si512(all, sum));
        _mm512_reduce_add_epi64(all).cast_unsigned()
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn multiply_bf16(rounds: u64) {
        let zero = _mm512_cvtne2ps_pbh(_mm512_setzero_ps(), _mm512_setzero_ps());
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, zero, zero);
            }
        }
        std::hint::black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn multiply_int8(rounds: u64) {
        let mut sums = [_mm512_setzero_si512(); SUMS];
        let (ones, twos) = (_mm512_set1_epi8(1), _mm512_set1_epi8(2));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, ones, twos);
            }
        }
        std::hint::black_box(sums);
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod kernels {
    pub(super) use super::read_plainly as read;

    pub(super) fn bf16() -> Option<fn(u64)> {
        None
    }

    pub(super) fn int8() -> Option<fn(u64)> {
        None
    }
}

/// The sum of the memory's words, as the compiler makes it.
fn read_plainly(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_a_number_where_there_is_one() {
        let probe = ReadProbe::new(3 << 20).unwrap();
        for threads in [1, 2] {
            assert!(probe.bytes_per_second(threads) > 0.0);
        }
        assert!(bf16_operations_per_second(1).is_none_or(|peak| peak > 0.0));
        assert!(int8_operations_per_second(1).is_none_or(|peak| peak > 0.0));
    }
}
