//! A GPU that is none: a driver that runs kernels on the host, made by `emulated-gpu/build`.

use std::ffi::OsString;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::cluster::{Cluster, Setup};

/// Where the driver is.
pub const FOLDER: &str = "LOCKSTEP_EMULATED_GPU";

/// What its reports begin with.
const REPORT: &str = "emulated GPU:";

/// The driver, and a place from which it takes failures.
#[derive(Debug)]
pub struct EmulatedGpu {
    libraries: OsString,
    folder: TempDir,
}

impl EmulatedGpu {
    /// Where it was built; says that a test is skipped where it was not.
    ///
    /// # Panics
    /// When what is named is no driver.
    pub fn find() -> Option<Self> {
        let Some(libraries) = std::env::var_os(FOLDER) else {
            #[expect(clippy::print_stderr, reason = "what is skipped is said")]
            {
                eprintln!(
                    "!! SKIPPED: {FOLDER} names no folder; integration-tests/emulated-gpu/build makes one"
                );
            }
            return None;
        };
        let driver = PathBuf::from(&libraries).join("libcuda.so.1");
        assert!(driver.is_file(), "{FOLDER} is set, and {} is not there", driver.display());
        Some(Self { libraries, folder: tempfile::tempdir().expect("a folder") })
    }

    /// A cluster of this binary that computes on it, where batches do not show in answers. Steps are small, so that the
    /// one that is computed at the start does not take long.
    pub fn setup(&self, program: &'static str) -> Setup {
        let flags = ["--device", "cuda", "--exact", "--kv-cache-memory", "32MiB"];
        let steps = ["--max-batch-prefill-tokens", "64"];
        Setup::demo(program)
            .flags(&flags)
            .flags(&steps)
            .variable("LD_LIBRARY_PATH", &self.libraries)
            .variable("EMULATED_GPU_FAULT", self.fault())
    }

    fn fault(&self) -> PathBuf {
        self.folder.path().join("fault")
    }

    /// Has the next work of a rank fail with an error of CUDA, by its number; or hang.
    ///
    /// # Panics
    /// When the file system refuses it.
    pub fn fail_with(&self, fault: &str) {
        let written = self.folder.path().join("fault-to-be");
        std::fs::write(&written, fault).expect("a file");
        // It is there whole or not at all.
        std::fs::rename(written, self.fault()).expect("a file");
    }
}

/// Whether the driver had nothing to report: no address that is none, no call that is not allowed.
///
/// # Panics
/// When it had.
#[track_caller]
pub fn check_log(cluster: &Cluster) {
    let log = cluster.log();
    let reports: Vec<&str> = log.lines().filter(|line| line.contains(REPORT)).collect();
    assert!(reports.is_empty(), "{reports:#?}");
}
