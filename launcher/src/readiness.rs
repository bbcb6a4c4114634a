//! Asks the router over HTTP whether the whole service is ready.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Short, since a person waits for the first answer; long enough to cost nothing.
const BETWEEN_PROBES: Duration = Duration::from_millis(20);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until `GET /readyz` answers 200.
///
/// # Cancel safety
/// Dropping it loses nothing but the wait.
pub(crate) async fn until_ready(address: SocketAddr) {
    let address = reachable(address);
    while !matches!(timeout(PROBE_TIMEOUT, probe(address)).await, Ok(Ok(Answer::Ready))) {
        sleep(BETWEEN_PROBES).await;
    }
}

/// The address a client on this host uses for one that is listened on.
pub(crate) fn reachable(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, listening.port())
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Ready,
    NotReady,
}

async fn probe(address: SocketAddr) -> std::io::Result<Answer> {
    const STATUS: &[u8] = b"HTTP/1.1 200";
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut status = [0u8; STATUS.len()];
    stream.read_exact(&mut status).await?;
    Ok(if status == STATUS { Answer::Ready } else { Answer::NotReady })
}

#[cfg(test)]
mod tests {
    use lockstep_process::tasks::{Fate, Tasks};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn only_a_200_is_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let tasks = Tasks::new();
        tasks.spawn("answers", Fate::Log, async move {
            for status in ["503 Service Unavailable", "200 OK"] {
                let (mut stream, _) = listener.accept().await.expect("a probe comes");
                let mut request = [0u8; 1024];
                let read = stream.read(&mut request).await.expect("it asks");
                assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\n"));
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("it listens");
            }
        });
        assert_eq!(probe(address).await.expect("it answers"), Answer::NotReady);
        assert_eq!(probe(address).await.expect("it answers"), Answer::Ready);
    }

    #[test]
    fn every_address_is_reached_through_loopback() {
        let cases = [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.7:1", "10.0.0.7:1")];
        for (listening, expected) in cases {
            let listening: SocketAddr = listening.parse().expect("an address");
            assert_eq!(reachable(listening).to_string(), expected);
        }
    }
}
