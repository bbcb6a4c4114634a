//! Processor time of this process by the name of its threads.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

/// Ticks of the clock that the kernel counts processor time with; fixed on Linux.
const TICKS_PER_SECOND: u64 = 100;

/// What threads have used so far, those of one name together.
pub(crate) struct CpuTimes(BTreeMap<String, Duration>);

impl CpuTimes {
    /// As of now. Threads that have ended are not in it.
    pub(crate) fn read() -> io::Result<Self> {
        let mut times = BTreeMap::new();
        for task in std::fs::read_dir("/proc/self/task")? {
            let line = std::fs::read_to_string(task?.path().join("stat"))?;
            if let Some((name, time)) = parse(&line) {
                *times.entry(name).or_insert(Duration::ZERO) += time;
            }
        }
        Ok(Self(times))
    }

    /// What was used since `before`.
    pub(crate) fn since(&self, before: &Self) -> impl Iterator<Item = (&str, Duration)> {
        let used = self.0.iter().map(|(name, time)| {
            let earlier = before.0.get(name).copied().unwrap_or_default();
            (name.as_str(), time.saturating_sub(earlier))
        });
        used.filter(|(_, time)| !time.is_zero())
    }
}

/// A line of `/proc/<pid>/stat`: name in brackets, then user and system time as fields 14 and 15 of all.
fn parse(line: &str) -> Option<(String, Duration)> {
    let (head, rest) = line.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    let fields: Vec<u64> =
        rest.split(' ').skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let ticks: u64 = fields.iter().sum();
    Some((name.to_owned(), Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)))
}
