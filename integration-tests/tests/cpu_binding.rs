//! Threads that compute keep to processors of their own where that is asked for, and say the same as others.

use std::collections::BTreeMap;

use lockstep_integration_tests::client::Generate;
use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_integration_tests::faults;
use lockstep_process::cpus::CpuList;
use rustix::process::Pid;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

/// Which processors each of a process's threads that compute may run on, by the thread's name.
fn threads_that_compute(process: Pid) -> BTreeMap<String, String> {
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        let path = task.ok()?.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?.trim().to_owned();
        let status = std::fs::read_to_string(path.join("status")).ok()?;
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Some((name, cpus.trim().to_owned()))
    };
    let all = std::fs::read_dir(tasks).expect("it lives").filter_map(of_task);
    all.filter(|(name, _)| name == "engine" || name.starts_with("helper-")).collect()
}

async fn story(cluster: &Cluster) -> serde_json::Value {
    // Long enough that a prompt is worth every thread there is.
    let prompt = "Rex the dog went to the park. ".repeat(60);
    cluster.client().generate(&Generate::greedy(&prompt, 20).seeded(4)).await.expect("it answers")
}

#[tokio::test]
async fn bound_threads_have_a_processor_each_and_say_what_others_say() {
    let allowed = CpuList::allowed().expect("the kernel tells");
    let free = Setup::demo(LOCKSTEP).flags(&["--cpu-binding", "none"]).start();
    let expected = story(&free).await;
    for cpus in threads_that_compute(faults::rank(&free, 0)).values() {
        assert_eq!(*cpus, allowed.to_string());
    }
    drop(free);

    let bound = Setup::demo(LOCKSTEP).flags(&["--cpu-binding", "cores"]).start();
    assert_eq!(story(&bound).await, expected);
    let threads = threads_that_compute(faults::rank(&bound, 0));
    let mut places: Vec<u32> = threads.values().map(|cpus| cpus.parse().expect("one processor")).collect();
    places.sort_unstable();
    assert_eq!(places, allowed.as_slice(), "{threads:?}");
}

#[tokio::test]
async fn ranks_share_no_processor() {
    let allowed = CpuList::allowed().expect("the kernel tells");
    let ranks = u32::try_from(allowed.as_slice().len().min(2)).expect("it is small");
    let cluster = Setup::demo(LOCKSTEP).ranks(ranks).flags(&["--cpu-binding", "cores"]).start();
    story(&cluster).await;
    let mut places = Vec::new();
    for rank in 0..ranks {
        places.extend(threads_that_compute(faults::rank(&cluster, rank)).into_values());
    }
    assert!(places.len() >= ranks as usize, "{places:?}");
    let different: std::collections::BTreeSet<&String> = places.iter().collect();
    assert_eq!(different.len(), places.len(), "{places:?}");
}
