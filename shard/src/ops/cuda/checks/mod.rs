//! Every operator of GPUs against its twin on the CPU, on odd shapes, with outputs that hold no number before.
//!
//! Kernels are checked on a GPU, and, by the same code, on the host, which emulates them thread by thread. What needs
//! candle's storage, cuBLASLt or several ranks is checked on a GPU alone.

mod attention;
mod behind;
mod cublaslt;
mod devices;
mod experts;
mod heads;
mod machine;
mod memory;
mod models;
mod norms;
mod products;
mod quantized;
mod recordings;
mod rows;
mod sampling;

use std::fmt;
use std::time::{Duration, Instant};

use candle_core::Result;

pub use self::machine::Machine;
use crate::device::DeviceError;

/// Largest error of f32, relative to the largest number.
const F32: f32 = 1e-5;
/// Of what is rounded to bf16 on its way.
const BF16: f32 = 1e-2;
/// Of what is rounded to f16, which has three bits more.
const F16: f32 = BF16 / 8.0;
/// Of what must have the same bits.
const EXACT: f32 = 0.0;

/// How far a result was from its twin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Error {
    /// The largest difference, relative to the largest expected number.
    pub found: f32,
    /// What it may be.
    pub allowed: f32,
}

impl Error {
    /// Of numbers that should be `expected`. What is no number, or not there, is infinitely wrong.
    fn of(found: &[f32], expected: &[f32], allowed: f32) -> Self {
        let size = expected.iter().fold(f32::MIN_POSITIVE, |size, value| size.max(value.abs()));
        let difference = |(found, expected): (&f32, &f32)| {
            let difference = (found - expected).abs() / size;
            if difference.is_nan() { f32::INFINITY } else { difference }
        };
        let largest = found.iter().zip(expected).map(difference).fold(0.0, f32::max);
        let found = if found.len() == expected.len() { largest } else { f32::INFINITY };
        Self { found, allowed }
    }

    /// Of what must have the same bits, zeros included.
    fn of_bits(found: &[f32], expected: &[f32]) -> Self {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        Self::unless(bits(found) == bits(expected))
    }

    /// Of what is either right or wrong.
    fn unless(right: bool) -> Self {
        Self { found: if right { 0.0 } else { f32::INFINITY }, allowed: EXACT }
    }

    /// The worse of two of one kind.
    fn max(self, other: Self) -> Self {
        Self { found: self.found.max(other.found), allowed: self.allowed.max(other.allowed) }
    }

    /// Whether the result is right.
    pub fn is_small(self) -> bool {
        self.found <= self.allowed
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.allowed == EXACT {
            return f.write_str(if self.is_small() { "the same" } else { "not the same" });
        }
        write!(f, "error {:.1e}, allowed {:.0e}", self.found, self.allowed)
    }
}

/// What became of a check.
#[derive(Debug)]
pub struct Outcome {
    /// What was checked.
    pub name: String,
    /// How far it was from its twin, or why it was not checked.
    pub result: std::result::Result<Error, Failure>,
    /// How long it took, both sides together.
    pub took: Duration,
}

/// Why there is no error to tell.
#[derive(Debug)]
pub enum Failure {
    /// It could not be computed.
    Broken(String),
    /// This machine has not what it needs.
    Skipped(String),
}

impl Outcome {
    /// Whether something is wrong.
    pub fn is_failure(&self) -> bool {
        match &self.result {
            Ok(error) => !error.is_small(),
            Err(Failure::Broken(_)) => true,
            Err(Failure::Skipped(_)) => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match &self.result {
            Err(Failure::Skipped(_)) => "skipped",
            _ if self.is_failure() => "FAILED ",
            Ok(_) | Err(Failure::Broken(_)) => "ok     ",
        };
        write!(f, "{word} {:<58} {:>6} ms  ", self.name, self.took.as_millis())?;
        match &self.result {
            Ok(error) => write!(f, "{error}"),
            Err(Failure::Broken(reason) | Failure::Skipped(reason)) => f.write_str(reason),
        }
    }
}

/// Takes outcomes as they come.
pub struct Checks<'a> {
    tell: &'a mut dyn FnMut(Outcome),
}

impl Checks<'_> {
    fn check(&mut self, name: impl Into<String>, check: impl FnOnce() -> Result<Error>) {
        self.check_or_skip(name, || check().map_err(|error| Failure::Broken(error.to_string())));
    }

    fn check_or_skip(
        &mut self,
        name: impl Into<String>,
        check: impl FnOnce() -> std::result::Result<Error, Failure>,
    ) {
        let start = Instant::now();
        let result = check();
        (self.tell)(Outcome { name: name.into(), result, took: start.elapsed() });
    }
}

/// Checks every kernel on a machine, and tells of each check as it is done.
pub fn kernels(machine: &mut Machine, tell: &mut dyn FnMut(Outcome)) {
    let mut checks = Checks { tell };
    norms::check(machine, &mut checks);
    rows::check(machine, &mut checks);
    heads::check(machine, &mut checks);
    products::check(machine, &mut checks);
    quantized::check(machine, &mut checks);
    experts::check(machine, &mut checks);
    attention::check(machine, &mut checks);
    sampling::check(machine, &mut checks);
}

/// Checks what is there on GPUs alone: products by cuBLASLt, whole models, exchanges between ranks.
///
/// # Errors
/// When a GPU cannot be opened.
pub fn on_gpus(tell: &mut dyn FnMut(Outcome)) -> std::result::Result<(), DeviceError> {
    devices::check(&mut Checks { tell })
}

/// Repeatable numbers.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    /// From 0 to below `end`.
    fn below(&mut self, end: u32) -> u32 {
        self.bits() % end
    }

    /// Between -1 and 1.
    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.bits() >> 8) as f32 / (1_u32 << 23) as f32 - 1.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_emulated_on_the_host_agree_with_their_twins() {
        let mut failures = Vec::new();
        let mut count = 0;
        kernels(&mut Machine::emulated(), &mut |outcome| {
            count += 1;
            if outcome.is_failure() {
                failures.push(outcome.to_string());
            }
        });
        assert!(failures.is_empty(), "{} of {count} fail:\n{}", failures.len(), failures.join("\n"));
        assert!(count > 50, "only {count} checks");
    }

    #[test]
    fn errors_are_not_small_where_something_is_missing_or_no_number() {
        assert!(Error::of(&[1.0, 2.0], &[1.0, 2.00001], F32).is_small());
        assert!(!Error::of(&[1.0, 2.0], &[1.0, 2.001], F32).is_small());
        assert!(!Error::of(&[1.0], &[1.0, 2.0], BF16).is_small());
        assert!(!Error::of(&[f32::NAN], &[1.0], BF16).is_small());
        assert!(!Error::of(&[0.5], &[f32::NAN], BF16).is_small());
    }
}
