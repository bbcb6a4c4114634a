//! The router as a process: what it says when it cannot start.

use clap::Parser;
use lockstep_router::{RouterArgs, run};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    router: RouterArgs,
}

#[test]
fn a_taken_port_is_told_in_one_line_with_a_hint() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let words = ["router", "--shard", "unix:/nonexistent.sock", "--hostname", "127.0.0.1", "--port", &port];
    let error = run(Cli::parse_from(words).router).unwrap_err().to_string();
    let expected = format!(
        "listen on 127.0.0.1:{port}: the port is taken; stop what uses it or choose another with --port"
    );
    assert_eq!(error, expected);
}
