//! Ranks on different hosts: a star around rank 0, which adds in the same tree as everywhere.
//!
//! Rank 0 watches all of its peers at once, so it notices the end of any of them, and tells the others by
//! closing their connections.

mod frame;
mod rendezvous;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockstep_proto::Rank;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::frame::{Collective, Header};
use super::{CommError, Communicator, Joining, Membership, tree};

/// One rank of a group connected over TCP.
pub struct Tcp {
    membership: Membership,
    watchdog: Duration,
    /// On rank 0 the other ranks in order; elsewhere rank 0.
    peers: Vec<Peer>,
    aborted: AtomicBool,
    /// Exchanges done so far; held for the length of one.
    exchanges: Mutex<u32>,
}

struct Peer {
    rank: Rank,
    stream: TcpStream,
}

/// What one collective asks of the transport.
struct Exchange<'a> {
    collective: Collective,
    /// This rank's part.
    mine: &'a [u8],
    /// Bytes each rank's part has.
    part_bytes: &'a dyn Fn(Rank) -> usize,
    /// Bytes of what every rank gets.
    answer_bytes: usize,
}

impl Tcp {
    /// Joins the group that meets at `rendezvous`, a `host:port` at which rank 0 listens. Waits at most
    /// `limit` for all ranks to come.
    ///
    /// # Errors
    /// When the address cannot be used, or not all ranks come.
    pub fn join(rendezvous: &str, joining: Joining, limit: Duration) -> Result<Self, CommError> {
        if joining.membership.rank() == Rank(0) {
            let listening = TcpListener::bind(rendezvous);
            let listener = listening
                .map_err(|source| CommError::Open { what: format!("tcp:{rendezvous}"), source })?;
            Self::lead(&listener, joining, limit)
        } else {
            Ok(Self::connected(joining, rendezvous::follow(rendezvous, joining, limit)?))
        }
    }

    /// Waits at `listener`, as rank 0, for the other ranks.
    ///
    /// # Errors
    /// When not all ranks come within `limit`.
    pub fn lead(listener: &TcpListener, joining: Joining, limit: Duration) -> Result<Self, CommError> {
        Ok(Self::connected(joining, rendezvous::lead(listener, joining, limit)?))
    }

    fn connected(joining: Joining, peers: Vec<Peer>) -> Self {
        let Joining { membership, epoch: _, watchdog } = joining;
        Self { membership, watchdog, peers, aborted: AtomicBool::new(false), exchanges: Mutex::new(0) }
    }

    /// Brings this rank's part to rank 0, where `combine` makes one answer of all parts, and returns it.
    fn exchange(
        &self,
        exchange: &Exchange<'_>,
        combine: impl FnOnce(&[Vec<u8>]) -> Vec<u8>,
    ) -> Result<Vec<u8>, CommError> {
        if self.aborted.load(Ordering::SeqCst) {
            return Err(CommError::Aborted);
        }
        let mut exchanges = self.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        let header = Header { collective: exchange.collective, exchange: *exchanges, bytes: 0 };
        let result = if self.membership.rank() == Rank(0) {
            self.collect(exchange, header).and_then(|parts| {
                let answer = combine(&parts);
                self.peers.iter().try_for_each(|peer| self.send(peer, header, &answer))?;
                Ok(answer)
            })
        } else {
            self.peers.iter().try_for_each(|peer| self.send(peer, header, exchange.mine)).and_then(|()| {
                let mut answers =
                    self.peers.iter().map(|peer| self.receive(peer, header, exchange.answer_bytes));
                answers.next().unwrap_or(Err(CommError::Aborted))
            })
        };
        *exchanges = exchanges.wrapping_add(1);
        result.map_err(|error| self.end_after(error))
    }

    /// A group with a failed exchange is of no use: its peers are told. An error this rank's own abort has
    /// caused is reported as that.
    fn end_after(&self, error: CommError) -> CommError {
        if self.aborted.load(Ordering::SeqCst) {
            return CommError::Aborted;
        }
        self.abort();
        error
    }

    /// Every rank's part, in order.
    fn collect(&self, exchange: &Exchange<'_>, header: Header) -> Result<Vec<Vec<u8>>, CommError> {
        let deadline = Instant::now() + self.watchdog;
        let mut parts = vec![None; self.peers.len()];
        while parts.iter().any(Option::is_none) {
            for index in self.wait_for_any(deadline)? {
                let peer = &self.peers[index];
                if parts[index].is_some() {
                    // It has brought its part and has nothing to say before the answer: this is its end.
                    return Err(CommError::PeerLost { rank: peer.rank });
                }
                parts[index] = Some(self.receive(peer, header, (exchange.part_bytes)(peer.rank))?);
            }
        }
        Ok(std::iter::once(exchange.mine.to_vec()).chain(parts.into_iter().flatten()).collect())
    }

    /// Indexes of the peers that can be read, at least one.
    fn wait_for_any(&self, deadline: Instant) -> Result<Vec<usize>, CommError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CommError::TimedOut { waited: self.watchdog });
            }
            let mut watched: Vec<PollFd<'_>> = self
                .peers
                .iter()
                .map(|peer| PollFd::from_borrowed_fd(peer.stream.as_fd(), PollFlags::IN))
                .collect();
            match poll(&mut watched, Some(&timespec(left))) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(CommError::Io { source: error.into() }),
            }
            let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            return Ok((0..watched.len()).filter(|index| ready(&watched[*index])).collect());
        }
    }

    fn send(&self, peer: &Peer, header: Header, payload: &[u8]) -> Result<(), CommError> {
        let header = Header { bytes: payload.len() as u64, ..header };
        let mut stream = &peer.stream;
        let sent = stream.write_all(&header.encode()).and_then(|()| stream.write_all(payload));
        sent.map_err(|error| self.classify(peer.rank, error))
    }

    /// The payload of the frame `expected`, of `bytes` bytes.
    fn receive(&self, peer: &Peer, expected: Header, bytes: usize) -> Result<Vec<u8>, CommError> {
        let expected = Header { bytes: bytes as u64, ..expected }.encode();
        let mut found = [0; Header::BYTES];
        let mut stream = &peer.stream;
        stream.read_exact(&mut found).map_err(|error| self.classify(peer.rank, error))?;
        if found != expected {
            let name = |header: &[u8; Header::BYTES]| Header::describe(header);
            return Err(CommError::Protocol {
                rank: peer.rank,
                expected: name(&expected),
                found: name(&found),
            });
        }
        let mut payload = vec![0; bytes];
        stream.read_exact(&mut payload).map_err(|error| self.classify(peer.rank, error))?;
        Ok(payload)
    }

    fn classify(&self, rank: Rank, error: std::io::Error) -> CommError {
        let timed_out = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
        let gone = [
            ErrorKind::UnexpectedEof,
            ErrorKind::ConnectionReset,
            ErrorKind::ConnectionAborted,
            ErrorKind::BrokenPipe,
            ErrorKind::NotConnected,
        ];
        if timed_out.contains(&error.kind()) {
            CommError::TimedOut { waited: self.watchdog }
        } else if gone.contains(&error.kind()) {
            CommError::PeerLost { rank }
        } else {
            CommError::Io { source: error }
        }
    }
}

impl Communicator for Tcp {
    fn rank(&self) -> Rank {
        self.membership.rank()
    }

    fn world_size(&self) -> u32 {
        self.membership.world_size()
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<(), CommError> {
        let mine = to_bytes(values);
        let exchange = Exchange {
            collective: Collective::AllReduce,
            mine: &mine,
            part_bytes: &|_| mine.len(),
            answer_bytes: mine.len(),
        };
        let sum = self.exchange(&exchange, |parts| {
            let parts: Vec<Vec<f32>> = parts.iter().map(|part| from_bytes(part).collect()).collect();
            let parts: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
            let mut sum = vec![0.0; values.len()];
            tree::add(&parts, &mut sum);
            to_bytes(&sum)
        })?;
        fill(values, &sum);
        Ok(())
    }

    fn all_gather(&self, mine: &[f32], all: &mut [f32]) -> Result<(), CommError> {
        self.membership.check_gather(mine.len(), all.len())?;
        let mine = to_bytes(mine);
        let exchange = Exchange {
            collective: Collective::AllGather,
            mine: &mine,
            part_bytes: &|_| mine.len(),
            answer_bytes: size_of_val(all),
        };
        let gathered = self.exchange(&exchange, <[Vec<u8>]>::concat)?;
        fill(all, &gathered);
        Ok(())
    }

    fn broadcast(&self, root: Rank, bytes: &mut [u8]) -> Result<(), CommError> {
        self.membership.check_root(root)?;
        let len = bytes.len();
        let exchange = Exchange {
            collective: Collective::Broadcast,
            mine: if root == self.rank() { bytes } else { &[] },
            part_bytes: &|rank| if rank == root { len } else { 0 },
            answer_bytes: len,
        };
        let received = self.exchange(&exchange, |parts| parts.concat())?;
        bytes.copy_from_slice(&received);
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        let exchange =
            Exchange { collective: Collective::Barrier, mine: &[], part_bytes: &|_| 0, answer_bytes: 0 };
        self.exchange(&exchange, |_| Vec::new()).map(|_| ())
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        for peer in &self.peers {
            // Fails only where the connection is closed already.
            let _ = peer.stream.shutdown(Shutdown::Both);
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: i64::from(duration.subsec_nanos()) }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word))
}

fn fill(values: &mut [f32], bytes: &[u8]) {
    for (value, new) in values.iter_mut().zip(from_bytes(bytes)) {
        *value = new;
    }
}
