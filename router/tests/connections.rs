//! Clients that are slow on real sockets: each costs its own connection and nothing else.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockstep_process::tasks::Fate;
use lockstep_router::http::connections::{self, Door};
use lockstep_router::shards::fake::FakeModel;
use serde_json::json;
use support::{Server, config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// So short that no test waits for it, and long enough for a client that does what it should.
const PATIENCE: Duration = Duration::from_millis(300);
/// Far less than an answer.
const SOCKET_BUFFER_BYTES: u32 = 4096;
/// Connections that are served as usual.
const MOST: usize = 4;

/// Serves on a socket that holds little.
async fn listen() -> (Server, SocketAddr) {
    listen_for(PATIENCE).await
}

/// With so much patience.
async fn listen_for(patience: Duration) -> (Server, SocketAddr) {
    let mut config = config();
    config.patience.client_timeout = patience;
    let server = Server::start_with(FakeModel::Hash, config).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(16).unwrap();
    let address = listener.local_addr().unwrap();
    let door = Door { most_connections: MOST, patience, metrics: Arc::clone(&server.app.metrics) };
    let serving = connections::serve(listener, server.router(), door, server.tasks.clone());
    server.tasks.spawn("http", Fate::Log, serving);
    (server, address)
}

async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES).unwrap();
    socket.connect(address).await.unwrap()
}

fn head(path: &str, content_length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {content_length}\r\n\r\n"
    )
}

fn story() -> String {
    json!({"inputs": "a", "parameters": {"max_new_tokens": 190, "ignore_eos": true}}).to_string()
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let (server, address) = listen().await;
    let mut client = connect(address).await;
    client.write_all((head("/generate_stream", story().len()) + &story()).as_bytes()).await.unwrap();
    server.until(async |server| server.app.requests_under_way() == 1).await;
    server.until(async |server| server.app.requests_under_way() == 0).await;
    assert_eq!(server.metric("tgi_request_failure{err=\"dropped\"}").await, 1.0);
    let mut rest = Vec::new();
    // What the sockets held is still there; an end of the answer is not.
    let _ = client.read_to_end(&mut rest).await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "the answer went through");
}

#[tokio::test]
async fn an_answer_that_is_read_slowly_comes_whole() {
    let (server, address) = listen().await;
    let mut client = connect(address).await;
    client.write_all((head("/generate_stream", story().len()) + &story()).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"0\r\n\r\n") {
        // Slower than the tokens come, faster than patience runs out.
        tokio::time::sleep(PATIENCE / 30).await;
        let count = client.read_buf(&mut answer).await.unwrap();
        assert!(count > 0, "the connection was closed after {} bytes", answer.len());
    }
    server.until(async |server| server.app.requests_under_way() == 0).await;
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let (_server, address) = listen().await;
    let mut client = connect(address).await;
    client.write_all(b"POST /generate HTTP/1.1\r\nhost: loc").await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408() {
    let (_server, address) = listen().await;
    for path in ["/generate", "/v1/chat/completions", "/tokenize"] {
        let mut client = connect(address).await;
        client.write_all((head(path, 100) + "{\"inputs\":").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("The request body did not come in time"), "{answer}");
    }
}

/// Each piece comes in time.
#[tokio::test]
async fn a_body_that_comes_a_byte_at_a_time_is_408() {
    let (_server, address) = listen().await;
    let mut client = connect(address).await;
    client.write_all((head("/generate", 1_000) + "{").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    loop {
        tokio::select! {
            biased;
            read = client.read_exact(&mut answer) => {
                read.unwrap();
                break;
            }
            () = tokio::time::sleep(PATIENCE / 10) => {}
        };
        // It may have been closed meanwhile.
        let _ = client.write_all(b" ").await;
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
}

/// All that is answered to a request with these headers more.
async fn answered(address: SocketAddr, headers: &str) -> String {
    answered_to_head(address, &format!("{headers}\r\n")).await
}

/// The same to a head with this after its first lines, which may not be its end.
async fn answered_to_head(address: SocketAddr, rest: &str) -> String {
    let mut client = connect(address).await;
    let head = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{rest}");
    // What is too long is refused before it has come whole.
    let _ = client.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    // A reset may follow the answer.
    let _ = client.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn heads_are_bounded_in_headers_and_in_bytes() {
    let (_server, address) = listen().await;
    let many = |count: usize| (0..count).map(|number| format!("x-{number}: a\r\n")).collect::<String>();
    assert!(answered(address, &many(90)).await.starts_with("HTTP/1.1 200"));
    assert!(answered(address, &many(101)).await.starts_with("HTTP/1.1 431"));
    let long = |bytes: usize| format!("x-long: {}\r\n", "a".repeat(bytes));
    assert!(answered(address, &long(32 << 10)).await.starts_with("HTTP/1.1 200"));
    let whole = answered(address, &long(512 << 10)).await;
    let unfinished = answered_to_head(address, &long(80 << 10)).await;
    for refused in [whole, unfinished] {
        // What is left of the head resets the connection, which may overtake the answer.
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431"), "{refused}");
    }
}

/// A client keeps its connection where it can, and is told where it cannot.
#[tokio::test]
async fn a_connection_is_kept_unless_a_body_was_not_read() {
    let (_server, address) = listen_for(Duration::from_secs(60)).await;
    let short = json!({"inputs": "a", "parameters": {"max_new_tokens": 2}}).to_string();
    let mut client = connect(address).await;
    for (body, status) in [(short.as_str(), "200"), ("{}", "422"), ("{", "400")] {
        client.write_all((head("/generate", body.len()) + body).as_bytes()).await.unwrap();
        let answer = read_head(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    client.write_all(head("/nowhere", 10).as_bytes()).await.unwrap();
    let answer = read_head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("connection: close\r\n"), "{answer}");
    let mut byte = [0];
    assert_eq!(client.read(&mut byte).await.unwrap(), 0);
}

/// The head of an answer, its body passed over.
async fn read_head(client: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next());
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    client.read_exact(&mut body).await.unwrap();
    head
}

#[tokio::test]
async fn connections_are_bounded_and_probes_are_answered_beyond() {
    let (server, address) = listen_for(Duration::from_secs(60)).await;
    let mut held = Vec::new();
    for _ in 0..MOST {
        held.push(connect(address).await);
    }
    server.until(async |server| server.metric("lockstep_connections").await >= MOST as f64).await;
    let crowded = |path: &'static str, body: String| async move {
        let mut client = connect(address).await;
        client.write_all((head(path, body.len()) + &body).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    let refused = crowded("/generate", story()).await;
    assert!(
        refused.starts_with("HTTP/1.1 429") && refused.contains("\"error_type\":\"overloaded\""),
        "{refused}"
    );
    assert!(refused.contains("retry-after: 1"), "{refused}");
    assert_eq!(server.metric("tgi_request_failure{err=\"overloaded\"}").await, 1.0);
    for path in ["/health", "/livez", "/readyz", "/metrics"] {
        let mut client = connect(address).await;
        client
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = Vec::new();
        // It is closed after one answer.
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{path}: {}", String::from_utf8_lossy(&answer));
    }
    // One who fills those as well is not talked to.
    for _ in 0..64 {
        held.push(connect(address).await);
    }
    let closed = async |_: &Server| {
        let mut byte = [0];
        held.last().unwrap().try_read(&mut byte).is_ok_and(|count| count == 0)
    };
    server.until(closed).await;
    held.clear();
    server.until(async |server| server.metric("lockstep_connections").await == 0.0).await;
    assert!(answered(address, "").await.starts_with("HTTP/1.1 200"), "served as usual again");
}
