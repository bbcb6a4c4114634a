//! Every communicator gives every rank the same bits as a plain tree, and none lets a rank wait for ever.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::{Epoch, Rank};
use lockstep_shard::comm::{
    CommError, Communicator, Joining, Membership, SharedMemory, Solo, Tcp, Threads, create,
};
use proptest::prelude::*;

/// Longer than any test takes: none waits for it to pass.
const PATIENT: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug)]
enum Transport {
    Threads,
    SharedMemory,
    Tcp,
}

const TRANSPORTS: [Transport; 3] = [Transport::Threads, Transport::SharedMemory, Transport::Tcp];

fn joining(rank: u32, world_size: u32) -> Joining {
    let membership = Membership::new(Rank(rank), world_size).unwrap();
    Joining { membership, epoch: Epoch(1), watchdog: PATIENT }
}

fn path(memory: &OwnedFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd()).into()
}

fn group(transport: Transport, world_size: u32) -> Vec<Arc<dyn Communicator>> {
    match transport {
        Transport::Threads => {
            let ranks = Threads::group(world_size, PATIENT).unwrap();
            ranks.into_iter().map(|rank| Arc::new(rank) as Arc<dyn Communicator>).collect()
        }
        Transport::SharedMemory => {
            let memory = create(world_size).unwrap();
            let open = |rank| SharedMemory::open(&path(&memory), joining(rank, world_size)).unwrap();
            (0..world_size).map(|rank| Arc::new(open(rank)) as Arc<dyn Communicator>).collect()
        }
        Transport::Tcp => tcp_group(world_size),
    }
}

fn tcp_group(world_size: u32) -> Vec<Arc<dyn Communicator>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| Tcp::lead(&listener, joining(0, world_size), PATIENT).unwrap());
        let join = |rank| {
            let address = address.clone();
            scope.spawn(move || Tcp::join(&address, joining(rank, world_size), PATIENT).unwrap())
        };
        let followers: Vec<_> = (1..world_size).map(join).collect();
        let ranks = std::iter::once(leader).chain(followers);
        ranks.map(|rank| Arc::new(rank.join().unwrap()) as Arc<dyn Communicator>).collect()
    })
}

/// Runs `work` on every rank at once and returns what each made.
fn on_all<T: Send>(
    ranks: &[Arc<dyn Communicator>],
    work: impl Fn(&dyn Communicator) -> T + Sync,
) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.iter().map(|rank| scope.spawn(move || work(&**rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn plain_tree(values: &[f32]) -> f32 {
    if let [only] = values {
        return *only;
    }
    let (left, right) = values.split_at(values.len() / 2);
    plain_tree(left) + plain_tree(right)
}

fn value(rank: u32, index: usize, salt: u32) -> f32 {
    let mixed = (index as u32).wrapping_mul(0x9E37_79B9) ^ (rank + 1).wrapping_mul(0x85EB_CA6B) ^ salt;
    let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x2C1B_3C6D);
    // Magnitudes far apart, so that another order of addition gives other bits.
    (mixed as f32 - 2e9) * 10_f32.powi((mixed % 13) as i32 - 6)
}

fn vector(rank: u32, len: usize, salt: u32) -> Vec<f32> {
    (0..len).map(|index| value(rank, index, salt)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// All collectives, one after another, with buffers of `lens` values.
fn check(transport: Transport, world_size: u32, lens: &[usize]) {
    let ranks = group(transport, world_size);
    on_all(&ranks, |comm| {
        let Rank(rank) = comm.rank();
        assert_eq!(comm.world_size(), world_size);
        for (salt, len) in lens.iter().enumerate() {
            let salt = salt as u32;
            let all: Vec<Vec<f32>> = (0..world_size).map(|rank| vector(rank, *len, salt)).collect();
            let column = |index: usize| all.iter().map(|row| row[index]).collect::<Vec<_>>();
            let expected: Vec<f32> = (0..*len).map(|index| plain_tree(&column(index))).collect();

            let mut sum = all[rank as usize].clone();
            comm.all_reduce(&mut sum).unwrap();
            assert_eq!(bits(&sum), bits(&expected), "{transport:?} {world_size} all_reduce {len}");

            let mut gathered = vec![0.0; len * world_size as usize];
            comm.all_gather(&all[rank as usize], &mut gathered).unwrap();
            assert_eq!(bits(&gathered), bits(&all.concat()), "{transport:?} {world_size} all_gather {len}");

            let root = salt % world_size;
            let mut bytes = vec![u8::try_from(rank).unwrap(); *len];
            comm.broadcast(Rank(root), &mut bytes).unwrap();
            assert_eq!(bytes, vec![u8::try_from(root).unwrap(); *len], "{transport:?} broadcast {len}");
            comm.barrier().unwrap();
        }
    });
}

#[test]
fn exchanges_longer_than_a_slot_go_in_pieces() {
    for transport in TRANSPORTS {
        check(transport, 2, &[(1 << 18) - 1, 1 << 18, (1 << 18) + 1, (1 << 19) + 7]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
    #[test]
    fn all_ranks_get_the_bits_of_the_plain_tree(
        lens in proptest::collection::vec(prop_oneof![0..4_usize, 0..3_000_usize], 1..6),
    ) {
        for transport in TRANSPORTS {
            for world_size in [1, 2, 4, 8] {
                check(transport, world_size, &lens);
            }
        }
    }
}

#[test]
fn a_group_of_one_is_the_identity() {
    let mut values = vector(0, 9, 0);
    Solo.all_reduce(&mut values).unwrap();
    let mut all = vec![0.0; 9];
    Solo.all_gather(&values, &mut all).unwrap();
    assert_eq!(bits(&all), bits(&vector(0, 9, 0)));
    assert!(Solo.broadcast(Rank(1), &mut [0]).is_err());
}

#[test]
fn abort_wakes_every_rank_and_stays() {
    for transport in TRANSPORTS {
        for aborting in 0..4 {
            let ranks = group(transport, 4);
            on_all(&ranks, |comm| {
                comm.barrier().unwrap();
                if comm.rank() == Rank(aborting) {
                    comm.abort();
                    return;
                }
                let error = comm.barrier().unwrap_err();
                let told = matches!(error, CommError::Aborted | CommError::PeerLost { .. });
                assert!(told, "{transport:?}, rank {aborting} aborts: {error}");
            });
            for comm in &ranks {
                let error = comm.all_reduce(&mut [1.0]).unwrap_err();
                assert!(matches!(error, CommError::Aborted), "{transport:?}: {error}");
            }
        }
    }
}

#[test]
fn a_rank_that_does_not_come_is_noticed_by_the_watchdog() {
    let impatient = Joining { watchdog: Duration::from_millis(20), ..joining(0, 2) };
    let memory = create(2).unwrap();
    let alone = SharedMemory::open(&path(&memory), impatient).unwrap();
    assert!(matches!(alone.barrier(), Err(CommError::TimedOut { .. })));
    let late = SharedMemory::open(&path(&memory), joining(1, 2)).unwrap();
    assert!(matches!(late.barrier(), Err(CommError::Aborted)));

    let threads = Threads::group(2, Duration::from_millis(20)).unwrap();
    assert!(matches!(threads[0].barrier(), Err(CommError::TimedOut { .. })));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let joined = Tcp::lead(&listener, joining(0, 2), Duration::from_millis(20));
    assert!(matches!(joined, Err(CommError::TimedOut { .. })));
}

#[test]
fn a_waiting_rank_sleeps_instead_of_burning_a_core() {
    let memory = create(2).unwrap();
    let open = |rank| SharedMemory::open(&path(&memory), joining(rank, 2)).unwrap();
    let (first, second) = (open(0), open(1));
    std::thread::scope(|scope| {
        scope.spawn(|| first.barrier().unwrap());
        // The second rank comes only once the first sleeps: if it never did, this would not end.
        while first.sleeps() == 0 {
            std::thread::yield_now();
        }
        second.barrier().unwrap();
    });
}

#[test]
fn memory_of_another_group_is_refused() {
    let memory = create(2).unwrap();
    let open = |rank, world_size| SharedMemory::open(&path(&memory), joining(rank, world_size));
    let _first = open(0, 2).unwrap();
    for (rank, world_size) in [(0, 2), (0, 1), (1, 4)] {
        assert!(matches!(open(rank, world_size), Err(CommError::Open { .. })), "{rank} of {world_size}");
    }
    assert!(open(1, 2).is_ok());
    assert!(Membership::new(Rank(0), 3).is_err());
    assert!(Membership::new(Rank(2), 2).is_err());
}

#[test]
fn a_rank_of_another_group_is_refused_at_the_rendezvous() {
    use std::io::Write;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| Tcp::lead(&listener, joining(0, 2), PATIENT).unwrap());
        std::net::TcpStream::connect(&address).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n12345").unwrap();
        let old = Joining { epoch: Epoch(0), ..joining(1, 2) };
        assert!(matches!(Tcp::join(&address, old, PATIENT), Err(CommError::Protocol { .. })));
        let follower = Tcp::join(&address, joining(1, 2), PATIENT).unwrap();
        let leader = leader.join().unwrap();
        scope.spawn(move || leader.barrier().unwrap());
        follower.barrier().unwrap();
    });
}

#[test]
fn ranks_out_of_step_are_noticed() {
    let ranks = tcp_group(2);
    let errors = on_all(&ranks, |comm| match comm.rank() {
        Rank(0) => comm.all_reduce(&mut [1.0, 2.0]).unwrap_err().to_string(),
        _ => comm.barrier().unwrap_err().to_string(),
    });
    assert_eq!(
        errors[0],
        "exchange with rank 1: expected all-reduce number 0 of 8 bytes, found barrier number 0 of 0 bytes",
    );
}
