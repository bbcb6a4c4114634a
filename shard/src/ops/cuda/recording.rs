//! Work on a device that is recorded once and replayed: the host starts one graph in place of each of its kernels.

use std::convert::Infallible;

use candle_core::cuda_backend::cudarc::driver::CudaGraph;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode,
};
use candle_core::{CudaDevice, Error, Result};

use super::recent::Recent;

/// Recordings that are kept; who was used longest ago goes first. A device keeps a few megabytes for each.
pub(crate) const MOST_KEPT: usize = 32;

/// What was recorded. The addresses in it stay as they were.
pub(crate) struct Recording(CudaGraph);

// SAFETY: a recording is of one rank, whose one thread at a time records, replays and drops it.
unsafe impl Send for Recording {}
// SAFETY: it is replayed through an exclusive reference alone.
unsafe impl Sync for Recording {}

impl Recording {
    /// Records what `work` starts on the device's stream, and runs none of it. Memory that `work` takes it must give back;
    /// such memory is there whenever the recording is replayed.
    ///
    /// # Errors
    /// Those of `work`, and when something in it cannot be recorded. The device is as it was before.
    pub(crate) fn of<E: From<Error>>(
        device: &CudaDevice,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Self, E> {
        let stream = device.cuda_stream();
        let wrap = |error| E::from(Error::wrap(error));
        stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(wrap)?;
        let worked = work();
        let ended = stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
        let recorded = worked.and_then(|()| match ended.map_err(wrap)? {
            Some(graph) => Ok(Self(graph)),
            None => Err(E::from(Error::msg("record work on a device: nothing was recorded"))),
        });
        if recorded.is_err() {
            // Memory that was given back while the recording was broken has left an error for the next call.
            let _ = stream.context().check_err();
        }
        recorded
    }

    /// Starts it all, after what was started before.
    ///
    /// # Errors
    /// When the device refuses it.
    pub(crate) fn replay(&mut self) -> Result<()> {
        self.0.launch().map_err(Error::wrap)
    }
}

/// What a recording was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Rows it computes.
    pub(crate) rows: usize,
    /// Positions its rows see at most; 0 where it does not matter.
    pub(crate) context: usize,
}

/// What is to be done where work comes up again.
#[derive(Debug)]
pub(crate) enum Turn<T> {
    /// The first time: run it, so that libraries load the kernels they need for it, which they may not while it is
    /// recorded.
    Run,
    /// The second time: record it.
    Record,
    /// From then on.
    Replay(T),
}

/// Recordings by what they were made for; none where it was run and not yet recorded.
pub(crate) struct Kept<R>(Recent<Key, Option<R>>);

impl<R> Kept<R> {
    pub(crate) fn new() -> Self {
        Self(Recent::new(MOST_KEPT))
    }

    /// Whose turn it is.
    pub(crate) fn turn(&mut self, key: Key) -> Turn<&mut R> {
        let was_run = self.0.has(key);
        match self.of(key) {
            Some(recording) => Turn::Replay(recording),
            None if was_run => Turn::Record,
            None => Turn::Run,
        }
    }

    /// Keeps what was recorded for a key whose turn it is.
    pub(crate) fn keep(&mut self, key: Key, recording: R) -> &mut R {
        self.of(key).insert(recording)
    }

    fn of(&mut self, key: Key) -> &mut Option<R> {
        let Ok(known) = self.0.get(key, || Ok::<_, Infallible>(None));
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(rows: usize) -> Key {
        Key { rows, context: 256 }
    }

    /// What is done for a key, `Record` followed by keeping the key's rows.
    fn done(kept: &mut Kept<usize>, rows: usize) -> &'static str {
        match kept.turn(key(rows)) {
            Turn::Run => "run",
            Turn::Replay(recording) => {
                assert_eq!(*recording, rows);
                "replay"
            }
            Turn::Record => {
                kept.keep(key(rows), rows);
                "record"
            }
        }
    }

    #[test]
    fn work_is_run_recorded_and_replayed() {
        let mut kept = Kept::new();
        assert_eq!(done(&mut kept, 4), "run");
        assert_eq!(done(&mut kept, 8), "run");
        assert_eq!(done(&mut kept, 4), "record");
        assert_eq!(done(&mut kept, 4), "replay");
        assert_eq!(done(&mut kept, 8), "record");
        assert_eq!(done(&mut kept, 4), "replay");
    }

    #[test]
    fn who_was_used_longest_ago_makes_room() {
        let mut kept = Kept::new();
        for rows in 0..MOST_KEPT {
            done(&mut kept, rows);
            done(&mut kept, rows);
        }
        assert_eq!(done(&mut kept, 0), "replay");
        assert_eq!(done(&mut kept, MOST_KEPT), "run");
        assert_eq!(done(&mut kept, 0), "replay");
        assert_eq!(done(&mut kept, 1), "run", "it has made room");
        assert_eq!(kept.0.len(), MOST_KEPT);
    }
}
