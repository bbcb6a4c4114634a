//! A server that answers the same bytes whatever it is asked: what clients and sockets cost by themselves.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// As long as an answer of the router, heads included.
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 27\r\n\
                      x-compute-type: nothing-at-all\r\nx-prompt-tokens: 10\r\n\r\n\
                      {\"generated_text\":\" router\"}";

/// Serves for as long as the process lives; returns where.
#[expect(clippy::disallowed_methods, reason = "nothing here is ever stopped in good order")]
pub(crate) fn serve() -> io::Result<SocketAddr> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    let serving = async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(answer(connection));
        }
    };
    std::thread::Builder::new().name("floor".to_owned()).spawn(move || runtime.block_on(serving))?;
    Ok(address)
}

/// Requests are small enough to come in one piece.
async fn answer(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    while connection.read(&mut buffer).await? > 0 {
        connection.write_all(ANSWER.as_bytes()).await?;
    }
    Ok(())
}
