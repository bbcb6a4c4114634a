//! Clients that are slow on real sockets: each costs its own connection and nothing else.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use lockstep_process::tasks::Fate;
use lockstep_router::http::connections;
use lockstep_router::shards::fake::FakeModel;
use serde_json::json;
use support::{Server, config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// So short that no test waits for it, and long enough for a client that does what it should.
const PATIENCE: Duration = Duration::from_millis(300);
/// Far less than an answer.
const SOCKET_BUFFER_BYTES: u32 = 4096;

/// Serves on a socket that holds little.
async fn listen() -> (Server, SocketAddr) {
    let mut config = config();
    config.patience.client_timeout = PATIENCE;
    let server = Server::start_with(FakeModel::Hash, config).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(16).unwrap();
    let address = listener.local_addr().unwrap();
    let serving = connections::serve(listener, server.router(), PATIENCE, server.tasks.clone());
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
