//! The private folder of one run, in which the shards listen. Gone with the run.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::LaunchError;

/// Removed when dropped.
pub(crate) struct SocketFolder {
    folder: TempDir,
}

impl SocketFolder {
    /// Makes one that only this user can enter, under `runtime_folder` or the system's folder for
    /// temporary files.
    pub(crate) fn create(runtime_folder: Option<&Path>) -> Result<Self, LaunchError> {
        let place = runtime_folder.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let folder = tempfile::Builder::new()
            .prefix("lockstep-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&place)
            .map_err(|source| LaunchError::SocketFolder { place: place.display().to_string(), source })?;
        Ok(Self { folder })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().to_path_buf()
    }
}
