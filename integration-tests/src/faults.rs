//! Finds processes and makes them fail.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use crate::cluster::Cluster;
use crate::wait_until;

/// Every living process below this one, zombies left out.
pub fn descendants(root: Pid) -> Vec<Pid> {
    let parents = parents();
    let mut found = vec![root.as_raw_nonzero().get()];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| **of == parent).map(|(child, _)| *child));
        next += 1;
    }
    found.into_iter().skip(1).filter_map(Pid::from_raw).collect()
}

/// Whether the process is there and no zombie.
pub fn is_alive(process: Pid) -> bool {
    parents().contains_key(&process.as_raw_nonzero().get())
}

/// The arguments of a process.
pub fn arguments(process: Pid) -> Vec<String> {
    let path = format!("/proc/{}/cmdline", process.as_raw_nonzero());
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// The process of a rank.
///
/// # Panics
/// When it is not there.
#[track_caller]
pub fn rank(cluster: &Cluster, rank: u32) -> Pid {
    find_rank(cluster, rank).unwrap_or_else(|| panic!("no process plays rank {rank}"))
}

/// The same, where it is there.
pub fn find_rank(cluster: &Cluster, rank: u32) -> Option<Pid> {
    let is_it = |arguments: &[String]| {
        arguments.windows(2).any(|pair| pair[0] == "--rank" && pair[1] == rank.to_string())
    };
    find(cluster, is_it)
}

/// The process of a rank of one of several replicas.
///
/// # Panics
/// When it is not there.
#[track_caller]
pub fn rank_of(cluster: &Cluster, replica: u32, rank: u32) -> Pid {
    find_rank_of(cluster, replica, rank)
        .unwrap_or_else(|| panic!("no process plays rank {rank} of replica {replica}"))
}

/// The same, where it is there.
pub fn find_rank_of(cluster: &Cluster, replica: u32, rank: u32) -> Option<Pid> {
    let socket = format!("/replica-{replica}-shard-{rank}.sock");
    find(cluster, |arguments| {
        arguments.windows(2).any(|pair| pair[0] == "--listen" && pair[1].ends_with(&socket))
    })
}

/// The router's process.
///
/// # Panics
/// When it is not there.
#[track_caller]
pub fn router(cluster: &Cluster) -> Pid {
    let is_it = |arguments: &[String]| arguments.get(1).is_some_and(|role| role == "router");
    find(cluster, is_it).expect("a router is there")
}

/// Kills a process, as the kernel does when memory runs out, and waits until it is gone.
pub fn kill(process: Pid) {
    strike(process);
    wait_until("the killed process is gone", || !is_alive(process));
}

/// Kills a process and waits for nothing.
pub fn strike(process: Pid) {
    // It may have ended by itself; then there is nothing to kill.
    let _ = kill_process(process, Signal::KILL);
}

/// Stops a process without ending it, as a machine that swaps or a debugger does.
pub fn freeze(process: Pid) {
    kill_process(process, Signal::STOP).expect("it is there");
}

/// Allows a living process no more of something than this.
///
/// # Panics
/// When it is gone.
pub fn limit(process: Pid, resource: Resource, most: u64) {
    let limit = Rlimit { current: Some(most), maximum: getrlimit(resource).maximum };
    prlimit(Some(process), resource, limit).expect("it is there");
}

/// How many files a process has open.
pub fn open_files(process: Pid) -> u64 {
    let folder = format!("/proc/{}/fd", process.as_raw_nonzero());
    std::fs::read_dir(folder).map_or(0, |entries| entries.count() as u64)
}

/// Bytes of memory a process holds: resident, files it maps left out.
pub fn anonymous_memory(process: Pid) -> u64 {
    let path = format!("/proc/{}/status", process.as_raw_nonzero());
    let status = std::fs::read_to_string(path).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

fn find(cluster: &Cluster, is_it: impl Fn(&[String]) -> bool) -> Option<Pid> {
    descendants(cluster.launcher()).into_iter().find(|process| is_it(&arguments(*process)))
}

/// The parent of every living process that is no zombie.
fn parents() -> BTreeMap<i32, i32> {
    let entries = std::fs::read_dir("/proc").expect("this is Linux");
    entries.flatten().filter_map(|entry| parent_of(&entry.path())).collect()
}

fn parent_of(folder: &Path) -> Option<(i32, i32)> {
    let process: i32 = folder.file_name()?.to_str()?.parse().ok()?;
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    // The name in parentheses may hold anything, so what follows is counted from its end.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
    (state != "Z").then_some((process, parent))
}
