//! A stop loses no running request and leaves nothing behind.

use lockstep_integration_tests::client::{EventStream, Generate};
use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_integration_tests::oracle::check_stream;
use lockstep_integration_tests::{faults, wait_until};
use rustix::process::{Pid, Signal};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

/// A stream that is under way, and what it said so far.
async fn long_stream(cluster: &Cluster) -> (EventStream, Vec<String>) {
    let request = Generate::greedy("Once upon a time", 300);
    let mut stream = cluster.client().stream(&request).await.expect("it opens");
    let first = stream.next().await.expect("it begins").expect("it holds");
    (stream, vec![first])
}

#[track_caller]
fn assert_nothing_is_left(cluster: &Cluster, processes: &[Pid]) {
    assert!(processes.len() >= 2, "there were processes: {processes:?}");
    for process in processes {
        assert!(!faults::is_alive(*process), "{:?} is left", faults::arguments(*process));
    }
    assert_eq!(cluster.left_in_folder(), Vec::<std::path::PathBuf>::new(), "files are left");
    let address = cluster.url().trim_start_matches("http://");
    std::net::TcpListener::bind(address).expect("the port is free again");
}

#[tokio::test]
async fn a_stop_lets_running_streams_end_and_leaves_nothing() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut cluster = Setup::demo(LOCKSTEP).ranks(2).start();
        let processes = faults::descendants(cluster.launcher());
        assert!(!cluster.left_in_folder().is_empty(), "its sockets are in their folder");
        let (stream, mut events) = long_stream(&cluster).await;
        cluster.signal(signal);
        cluster.wait_for_log("asked to stop");
        events.extend(stream.rest().await.expect("the stream is not cut"));
        check_stream(&events);
        assert!(cluster.wait().success());
        assert_nothing_is_left(&cluster, &processes);
    }
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_leaves_nothing() {
    let mut cluster = Setup::demo(LOCKSTEP).ranks(2).start();
    let processes = faults::descendants(cluster.launcher());
    let (_stream, _) = long_stream(&cluster).await;
    cluster.signal(Signal::INT);
    cluster.wait_for_log("asked to stop");
    // It may have ended in between.
    let _ = rustix::process::kill_process(cluster.launcher(), Signal::INT);
    assert!(cluster.wait().success());
    assert_nothing_is_left(&cluster, &processes);
}

#[tokio::test]
async fn a_killed_launcher_takes_its_processes_along() {
    let mut cluster = Setup::demo(LOCKSTEP).ranks(2).start();
    let processes = faults::descendants(cluster.launcher());
    let (stream, _) = long_stream(&cluster).await;
    drop(stream);
    cluster.signal(Signal::KILL);
    cluster.wait();
    for process in processes {
        wait_until("its process is gone", || !faults::is_alive(process));
    }
}
