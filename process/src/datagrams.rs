//! Short messages between the processes of one run: datagrams on a socket in its private folder. None is ever waited
//! for; one that is lost is sent again by whoever needs it heard.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::str::FromStr;

use tokio::net::UnixDatagram;
use tracing::error;

/// Longest message, in bytes: a word and two numbers.
const MESSAGE_BYTES: usize = 64;

/// What is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise;

/// Where messages of one kind are heard.
#[derive(Debug)]
pub struct Inbox<T> {
    socket: UnixDatagram,
    heard: PhantomData<fn() -> T>,
}

impl<T: FromStr<Err = Noise>> Inbox<T> {
    /// Listens at `path`, in the place of whoever listened there and is gone.
    ///
    /// # Errors
    /// When nothing can be bound there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(Self { socket: UnixDatagram::bind(path)?, heard: PhantomData })
    }

    /// The next message. What is none is passed over; after a socket that breaks there is none.
    ///
    /// # Cancel safety
    /// No message is lost.
    pub async fn next(&self) -> T {
        loop {
            let mut message = [0; MESSAGE_BYTES];
            let count = match self.socket.recv(&mut message).await {
                Ok(count) => count,
                Err(error) => {
                    error!(%error, "nothing is heard of other processes any more");
                    std::future::pending().await
                }
            };
            let text = std::str::from_utf8(&message[..count]).ok();
            if let Some(message) = text.and_then(|text| text.parse().ok()) {
                return message;
            }
        }
    }
}

/// Tells whoever listens at `path`, without waiting.
///
/// # Errors
/// When nobody listens, or has read nothing for long.
pub fn send(path: &Path, message: impl fmt::Display) -> io::Result<()> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(message.to_string().as_bytes(), path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::Order;

    #[tokio::test]
    async fn messages_arrive_and_noise_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("orders.sock");
        let orders = [1, 2].map(|replica| Order::Drain { replica, epoch: 7 });
        assert!(send(&path, orders[0]).is_err(), "nobody listens yet");
        for _ in 0..2 {
            let inbox = Inbox::<Order>::bind(&path).expect("it is ours");
            send(&path, "drain").expect("it listens");
            send(&path, [u8::MAX; 3].map(char::from).iter().collect::<String>()).expect("it listens");
            for order in orders {
                send(&path, order).expect("it listens");
                assert_eq!(inbox.next().await, order);
            }
        }
    }
}
