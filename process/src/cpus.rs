//! Which processors threads run on.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use thiserror::Error;

/// Processors by the kernel's numbers, each once and in ascending order, as the kernel writes them: `0-3,8`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(Vec<u32>);

/// What was written is no list of processors.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "read {found:?} as processors: expected numbers and ranges below {}, such as 0-3,8",
    CpuSet::MAX_CPU
)]
pub struct CpuListError {
    found: String,
}

impl CpuList {
    /// These processors, in whatever order and however often they are named; numbers beyond what the kernel's masks
    /// hold are left out.
    pub fn new(cpus: impl IntoIterator<Item = u32>) -> Self {
        let mut cpus: Vec<u32> = cpus.into_iter().filter(|cpu| (*cpu as usize) < CpuSet::MAX_CPU).collect();
        cpus.sort_unstable();
        cpus.dedup();
        Self(cpus)
    }

    /// Those that the calling thread may run on.
    ///
    /// # Errors
    /// When the kernel does not tell: it has more processors than a mask holds.
    pub fn allowed() -> io::Result<Self> {
        let set = sched_getaffinity(None)?;
        Ok(Self((0..CpuSet::MAX_CPU as u32).filter(|cpu| set.is_set(*cpu as usize)).collect()))
    }

    /// The numbers, ascending.
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }

    /// Binds the calling thread, and threads it starts later, to these processors.
    ///
    /// # Errors
    /// When none of them exists or is allowed to this process.
    pub fn bind_thread(&self) -> io::Result<()> {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|cpu| set.set(*cpu as usize));
        Ok(sched_setaffinity(None, &set)?)
    }
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, CpuListError> {
        let failed = || CpuListError { found: text.to_owned() };
        let number =
            |digits: &str| digits.parse::<u32>().ok().filter(|cpu| (*cpu as usize) < CpuSet::MAX_CPU);
        let mut cpus = Vec::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first = number(first).ok_or_else(failed)?;
            let last = number(last).filter(|last| *last >= first).ok_or_else(failed)?;
            cpus.extend(first..=last);
        }
        Ok(Self::new(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|cpu, next| *next == cpu + 1);
        for (index, run) in runs.enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match run {
                [] => {}
                [cpu] => write!(f, "{comma}{cpu}")?,
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for text in ["", "0", "0-3", "0-3,8", "1,3,5-6", "0-1023"] {
            assert_eq!(text.parse::<CpuList>().map(|list| list.to_string()), Ok(text.to_owned()));
        }
        let parsed = |text: &str| text.parse::<CpuList>().ok().map(|list| list.as_slice().to_vec());
        assert_eq!(parsed("8,0-2,2\n"), Some(vec![0, 1, 2, 8]));
        for wrong in ["a", "1-", "-1", "3-1", "1024", "0-4294967295", "0x1", "1 2"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_thread_that_is_bound_stays_where_it_was_put_and_so_do_its_children() {
        let allowed = CpuList::allowed().unwrap();
        for cpu in allowed.as_slice() {
            let one = CpuList::new([*cpu]);
            let child = std::thread::spawn({
                let one = one.clone();
                move || {
                    one.bind_thread().unwrap();
                    std::thread::spawn(|| CpuList::allowed().unwrap()).join().unwrap()
                }
            });
            assert_eq!(child.join().unwrap(), one);
        }
        assert_eq!(CpuList::allowed().unwrap(), allowed, "other threads are left alone");
    }

    #[test]
    fn processors_that_do_not_exist_are_an_error() {
        assert!(CpuList::new([1023]).bind_thread().is_err());
        assert!(CpuList::default().bind_thread().is_err());
    }
}
