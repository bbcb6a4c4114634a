//! Checks every operator on the first visible GPU against its twin on the CPU, and exchanges between GPUs where there
//! are two: one line a check, a summary last.
//!
//! With `--emulate` kernels run on the host instead. Ends with 0 where all is right, 1 where something is not, 2 where
//! the command line is not understood, and 77 where there is no GPU to check.

#![expect(clippy::print_stdout, reason = "a program that prints")]

use std::process::ExitCode;
use std::time::Instant;

use lockstep_shard::gpu_checks::{Machine, Outcome, kernels, on_gpus};

/// What other programs take for "nothing was checked".
const NO_GPU: u8 = 77;

/// What was found so far.
#[derive(Default)]
struct Tally {
    right: usize,
    wrong: usize,
    skipped: usize,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        println!("{outcome}");
        if outcome.is_failure() {
            self.wrong += 1;
        } else if outcome.result.is_ok() {
            self.right += 1;
        } else {
            self.skipped += 1;
        }
    }
}

fn main() -> ExitCode {
    let start = Instant::now();
    let mut tally = Tally::default();
    match std::env::args().nth(1).as_deref() {
        Some("--emulate") => {
            println!("kernels emulated on the host");
            kernels(&mut Machine::emulated(), &mut |outcome| tally.add(&outcome));
        }
        None => match Machine::gpu() {
            Ok((mut machine, name)) => {
                println!("{name}");
                kernels(&mut machine, &mut |outcome| tally.add(&outcome));
                if let Err(error) = on_gpus(&mut |outcome| tally.add(&outcome)) {
                    println!("FAILED  {error}");
                    tally.wrong += 1;
                }
            }
            Err(error) => {
                println!("nothing was checked: {error}");
                return ExitCode::from(NO_GPU);
            }
        },
        Some(argument) => {
            println!("read {argument:?}: give --emulate, or nothing");
            return ExitCode::from(2);
        }
    }
    let Tally { right, wrong, skipped } = tally;
    println!("{right} right, {wrong} wrong, {skipped} skipped, in {:.1} s", start.elapsed().as_secs_f32());
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
