//! Which processor each thread that computes runs on.

use std::sync::OnceLock;

use lockstep_process::cpus::CpuList;
use tracing::warn;

static PLACES: OnceLock<Vec<CpuList>> = OnceLock::new();

/// Gives each thread that computes a processor of its own, from when it next [takes its place](take_place). Memory that
/// threads then write first lies beside them. Without this the system puts threads where it likes. Counts once a
/// process, before there are such threads.
pub(crate) fn compute_on(cpus: &CpuList) {
    let places = cpus.as_slice().iter().map(|cpu| CpuList::new([*cpu])).collect();
    // A second call finds threads that are placed.
    let _ = PLACES.set(places);
}

/// Binds the calling thread, which is the `index`th of those that work together, where processors were given out.
pub(crate) fn take_place(index: usize) {
    let Some(places) = PLACES.get().filter(|places| !places.is_empty()) else { return };
    let place = &places[index % places.len()];
    // Only speed depends on it.
    if let Err(error) = place.bind_thread() {
        warn!(cpu = %place, %error, "a thread that computes cannot be bound to its processor");
    }
}
