//! Memory and open files of each process over time, and whether they stay what they are.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use lockstep_integration_tests::cluster::Cluster;
use lockstep_integration_tests::faults;

const BETWEEN_SAMPLES: Duration = Duration::from_secs(2);
/// Caches, tables of metrics and the allocator's pools have found their size by then.
const WARM_UP: Duration = Duration::from_secs(120);
/// The second half of what follows over the first: noise of an allocator is far below, a leak of one answer's tokens
/// in ten is above.
const GROWTH_ALLOWED: f64 = 1.15;
const BYTES_ALLOWED: u64 = 16 << 20;
const FILES_ALLOWED: u64 = 16;

/// The most of something, in the first half and in the second.
#[derive(Clone, Copy, Default)]
struct Halves {
    first: u64,
    second: u64,
}

#[derive(Clone, Copy, Default)]
struct Most {
    memory: Halves,
    files: Halves,
}

/// By role.
#[derive(Default)]
pub(crate) struct Samples(BTreeMap<String, Most>);

impl Samples {
    /// Looks now and then for so long. A run that is long enough begins to count when it is warm.
    pub(crate) async fn watch(cluster: &Cluster, ranks: u32, time: Duration) -> Self {
        let mut samples = Self::default();
        let start = Instant::now();
        let warm = if time > 2 * WARM_UP { WARM_UP } else { Duration::ZERO };
        while start.elapsed() < time {
            let now = start.elapsed();
            if now >= warm {
                samples.take(cluster, ranks, now - warm < (time - warm) / 2);
            }
            tokio::time::sleep(BETWEEN_SAMPLES).await;
        }
        samples
    }

    fn take(&mut self, cluster: &Cluster, ranks: u32, is_first: bool) {
        let shards = (0..ranks)
            .filter_map(|rank| Some((format!("shard {rank}"), faults::find_rank(cluster, rank)?)));
        let router = std::iter::once(("router".to_owned(), faults::router(cluster)));
        let launcher = std::iter::once(("launcher".to_owned(), cluster.launcher()));
        for (name, process) in shards.chain(router).chain(launcher) {
            let Most { memory, files } = self.0.entry(name).or_default();
            for (most, now) in
                [(memory, faults::anonymous_memory(process)), (files, faults::open_files(process))]
            {
                let half = if is_first { &mut most.first } else { &mut most.second };
                *half = now.max(*half);
            }
        }
    }

    /// Whether nothing grows. A run that is too short to tell is not judged.
    pub(crate) fn check_flatness(&self, time: Duration) -> Result<(), String> {
        if time <= 2 * WARM_UP {
            return Ok(());
        }
        for (name, Most { memory, files }) in &self.0 {
            let bound = (memory.first as f64 * GROWTH_ALLOWED) as u64 + BYTES_ALLOWED;
            if memory.second > bound {
                return Err(format!("{name} grew from {} to {} bytes", memory.first, memory.second));
            }
            if files.second > files.first + FILES_ALLOWED {
                return Err(format!("{name} had {} files open, then {}", files.first, files.second));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| process | MiB, first half | second half | open files, first half | second half |\n|---|---|---|---|---|"
        )?;
        for (name, Most { memory, files }) in &self.0 {
            let (first, second) = (memory.first >> 20, memory.second >> 20);
            writeln!(f, "| {name} | {first} | {second} | {} | {} |", files.first, files.second)?;
        }
        Ok(())
    }
}
