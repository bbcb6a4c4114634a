//! The binary that ships, under a name of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockstep_launcher::main()
}
