//! Clients that cost as little as they can: bytes that are ready go out, bytes that come are counted.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Room for whatever comes at once.
const BUFFER_BYTES: usize = 16 << 10;
/// How a chunked body ends.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";
/// How an event ends.
const EVENT_END: &[u8] = b"\n\n";
/// How a head ends.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Where to send it, for how long.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    pub(crate) time: Duration,
}

/// How long answers took.
pub(crate) struct Latencies {
    sorted: Vec<Duration>,
    took: Duration,
}

/// What streams brought.
pub(crate) struct Streamed {
    pub(crate) tokens: u64,
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
}

impl Latencies {
    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.sorted.len() as u64
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.sorted.len() as f64 / self.took.as_secs_f64()
    }

    /// The latency that this share of the answers does not exceed.
    pub(crate) fn at(&self, share: f64) -> Duration {
        let place = (self.sorted.len() as f64 * share) as usize;
        self.sorted.get(place.min(self.sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

fn request(path: &str, tokens: u32) -> Vec<u8> {
    let parameters = json!({"max_new_tokens": tokens, "ignore_eos": true, "details": false});
    let body =
        json!({"inputs": "Once upon a time there was a router", "parameters": parameters}).to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// Waits until the server answers.
pub(crate) fn wait_until_ready(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let message = request("/generate", 1);
    loop {
        let answered =
            TcpStream::connect(address).and_then(|mut connection| exchange(&mut connection, &message));
        match answered {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > Duration::from_secs(30) => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// One request and its whole answer.
fn exchange(connection: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    connection.write_all(message)?;
    let mut buffer = [0; BUFFER_BYTES];
    let mut filled = 0;
    loop {
        let count = connection.read(&mut buffer[filled..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += count;
        let Some(head) = find(&buffer[..filled], HEAD_END) else { continue };
        if !buffer.starts_with(b"HTTP/1.1 200") {
            return Err(io::Error::other(String::from_utf8_lossy(&buffer[..filled]).into_owned()));
        }
        let head_text = std::str::from_utf8(&buffer[..head]).unwrap_or_default();
        let length = head_text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.and_then(|text| text.parse().ok()).unwrap_or(0);
        if filled >= head + HEAD_END.len() + length {
            return Ok(());
        }
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// `rate` requests for one token a second, evenly, whatever becomes of earlier ones.
pub(crate) fn ask(load: Load, rate: u32, connections: u32) -> Result<Latencies, Box<dyn Error>> {
    let message = request("/generate", 1);
    let begun = Instant::now() + Duration::from_millis(200);
    let period = Duration::from_secs(1) * connections / rate;
    let clients: Vec<_> = (0..connections)
        .map(|place| {
            let message = message.clone();
            let first = begun + period * place / connections;
            thread::Builder::new()
                .name("clients".to_owned())
                .spawn(move || ask_on_one(load, &message, first, period))
        })
        .collect::<Result<_, _>>()?;
    let mut sorted = Vec::new();
    for client in clients {
        sorted.extend(client.join().map_err(|_| "a client panicked")??);
    }
    sorted.sort_unstable();
    Ok(Latencies { sorted, took: begun.elapsed() })
}

/// A request every `period`. One that is late because of the answer before it counts from when it was due.
fn ask_on_one(load: Load, message: &[u8], first: Instant, period: Duration) -> io::Result<Vec<Duration>> {
    // Sleeping is exact to a few microseconds instead of fifty.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    let mut connection = TcpStream::connect(load.address)?;
    connection.set_nodelay(true)?;
    let mut latencies = Vec::new();
    let mut due = first;
    while due < first + load.time {
        let now = Instant::now();
        let begun = if now < due {
            thread::sleep(due - now);
            Instant::now()
        } else {
            due
        };
        exchange(&mut connection, message)?;
        latencies.push(begun.elapsed());
        due += period;
    }
    Ok(latencies)
}

/// So many streams at once, each followed by another one.
pub(crate) fn stream(load: Load, streams: usize, tokens: u32) -> Result<Streamed, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let clients = move || -> io::Result<Streamed> {
        runtime.block_on(async {
            let begun = Instant::now();
            let message = request("/generate_stream", tokens);
            let clients = (0..streams).map(|_| stream_on_one(load, &message, begun));
            let counts = futures::future::try_join_all(clients).await?;
            let (tokens, bytes) =
                counts.iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
            Ok(Streamed { tokens, bytes, took: begun.elapsed() })
        })
    };
    let thread = thread::Builder::new().name("clients".to_owned()).spawn(clients)?;
    Ok(thread.join().map_err(|_| "the clients panicked")??)
}

async fn stream_on_one(load: Load, message: &[u8], begun: Instant) -> io::Result<(u64, u64)> {
    let mut connection = tokio::net::TcpStream::connect(load.address).await?;
    connection.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut tokens, mut bytes) = (0, 0);
    while begun.elapsed() < load.time {
        connection.write_all(message).await?;
        loop {
            let count = connection.read(&mut buffer).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let piece = &buffer[..count];
            // Events are written whole, so none is cut in two unless the buffer is full.
            tokens += piece.windows(EVENT_END.len()).filter(|window| *window == EVENT_END).count() as u64;
            bytes += count as u64;
            if begun.elapsed() >= load.time || piece.ends_with(LAST_CHUNK) {
                break;
            }
        }
    }
    Ok((tokens, bytes))
}
