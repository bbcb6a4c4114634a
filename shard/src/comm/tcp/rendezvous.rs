//! How the ranks of a group find each other.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use lockstep_proto::Rank;
use rustix::event::{PollFd, PollFlags, poll};
use tracing::{debug, warn};

use super::frame::{Hello, REFUSED, WELCOME};
use super::{Peer, timespec};
use crate::comm::{CommError, Joining};

/// How long whoever connects may take to say who it is. Others wait meanwhile.
const HELLO_LIMIT: Duration = Duration::from_secs(2);

/// Between two attempts to connect to a rank 0 that does not listen yet.
const RETRY_EVERY: Duration = Duration::from_millis(50);

/// Longest wait for one attempt to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// As rank 0: the connections of all other ranks, in order.
pub(super) fn lead(
    listener: &TcpListener,
    joining: Joining,
    limit: Duration,
) -> Result<Vec<Peer>, CommError> {
    let deadline = Instant::now() + limit;
    let mut peers: Vec<Peer> = Vec::new();
    while peers.len() + 1 < joining.membership.ranks() {
        let stream = accept(listener, deadline).map_err(|source| {
            let timed_out = source.kind() == ErrorKind::TimedOut;
            if timed_out { CommError::TimedOut { waited: limit } } else { CommError::Io { source } }
        })?;
        match welcome(stream, joining, &peers) {
            Ok(peer) => peers.push(peer),
            // A port is open to anyone; a stranger must not keep the group from meeting.
            Err(error) => warn!(%error, "refused a connection to the rendezvous"),
        }
    }
    peers.sort_by_key(|peer| peer.rank);
    Ok(peers)
}

fn accept(listener: &TcpListener, deadline: Instant) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, address)) => {
                debug!(%address, "a rank connects");
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let mut watched = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        match poll(&mut watched, Some(&timespec(left))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn welcome(mut stream: TcpStream, joining: Joining, peers: &[Peer]) -> io::Result<Peer> {
    let mut hello = [0; Hello::BYTES];
    stream.set_read_timeout(Some(HELLO_LIMIT))?;
    stream.set_write_timeout(Some(HELLO_LIMIT))?;
    stream.read_exact(&mut hello)?;
    let refuse = |found: String| Err(io::Error::new(ErrorKind::InvalidData, found));
    let Some(hello) = Hello::decode(hello) else {
        return refuse("not a rank of this release".to_owned());
    };
    let ours = Hello { rank: hello.rank, ..Hello::of(joining) };
    let taken = hello.rank == Rank(0) || peers.iter().any(|peer| peer.rank == hello.rank);
    if hello != ours || taken || hello.rank.0 >= joining.membership.world_size() {
        stream.write_all(&[REFUSED])?;
        return refuse(format!("{hello:?}, expected a rank not seen yet and {ours:?}"));
    }
    stream.write_all(&[WELCOME])?;
    prepare(stream, hello.rank, joining)
}

/// As any other rank: the connection to rank 0, retried until it listens.
pub(super) fn follow(address: &str, joining: Joining, limit: Duration) -> Result<Vec<Peer>, CommError> {
    let deadline = Instant::now() + limit;
    let failed = |source| CommError::Open { what: format!("tcp:{address}"), source };
    let mut stream = loop {
        let attempt = addresses(address).and_then(|addresses| connect(&addresses));
        match attempt {
            Ok(stream) => break stream,
            Err(error) if Instant::now() >= deadline => return Err(failed(error)),
            Err(error) => debug!(%error, address, "rank 0 does not listen yet"),
        }
        std::thread::sleep(RETRY_EVERY);
    };
    let left = deadline.saturating_duration_since(Instant::now()).max(HELLO_LIMIT);
    let answer = introduce(&mut stream, joining, left).map_err(failed)?;
    if answer != WELCOME {
        return Err(CommError::Protocol {
            rank: Rank(0),
            expected: "to be welcomed".to_owned(),
            found: "that this rank is taken, or the group has another size or epoch".to_owned(),
        });
    }
    Ok(vec![prepare(stream, Rank(0), joining).map_err(failed)?])
}

fn addresses(address: &str) -> io::Result<Vec<SocketAddr>> {
    Ok(address.to_socket_addrs()?.collect())
}

fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT_LIMIT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn introduce(stream: &mut TcpStream, joining: Joining, limit: Duration) -> io::Result<u8> {
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(&Hello::of(joining).encode())?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

fn prepare(stream: TcpStream, rank: Rank, joining: Joining) -> io::Result<Peer> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(joining.watchdog))?;
    stream.set_write_timeout(Some(joining.watchdog))?;
    Ok(Peer { rank, stream })
}
