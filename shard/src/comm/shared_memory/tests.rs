//! What only a look inside shows: that a rank whose process has ended is noticed.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockstep_proto::Epoch;

use super::*;

fn joining(rank: u32) -> Joining {
    let membership = Membership::new(Rank(rank), 2).unwrap();
    Joining { membership, epoch: Epoch(0), watchdog: Duration::from_secs(300) }
}

/// A process that lives until its input is closed.
fn process() -> Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// Rank 0 waits for a rank 1 that is the process `peer`, which never comes.
fn wait_for(peer: &Child, meanwhile: impl FnOnce(&SharedMemory)) -> CommError {
    let memory = File::from(create(2).unwrap());
    let alone = SharedMemory::join(memory.try_clone().unwrap(), joining(0)).unwrap();
    alone.map.process(1).id.store(peer.id(), Ordering::SeqCst);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| alone.barrier().unwrap_err());
        while alone.sleeps() < 2 {
            std::thread::yield_now();
        }
        meanwhile(&alone);
        waiting.join().unwrap()
    })
}

#[test]
fn a_rank_that_dies_is_noticed_before_its_parent_asks() {
    let mut peer = process();
    let input = peer.stdin.take();
    // Not waited for: it stays a zombie, whose id still exists.
    let error = wait_for(&peer, |_| drop(input));
    assert!(matches!(error, CommError::PeerLost { rank: Rank(1) }), "{error}");
    peer.wait().unwrap();
}

#[test]
fn a_rank_that_died_and_was_waited_for_is_noticed() {
    let mut peer = process();
    drop(peer.stdin.take());
    peer.wait().unwrap();
    let memory = File::from(create(2).unwrap());
    let alone = SharedMemory::join(memory, joining(0)).unwrap();
    alone.map.process(1).id.store(peer.id(), Ordering::SeqCst);
    let error = alone.barrier().unwrap_err();
    assert!(matches!(error, CommError::PeerLost { rank: Rank(1) }), "{error}");
}

#[test]
fn a_rank_that_lives_is_waited_for() {
    let mut peer = process();
    let error = wait_for(&peer, Communicator::abort);
    assert!(matches!(error, CommError::Aborted), "{error}");
    drop(peer.stdin.take());
    peer.wait().unwrap();
}
