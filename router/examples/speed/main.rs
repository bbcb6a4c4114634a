//! Prints what the router adds to a request and how many tokens a second it streams, with a shard that
//! answers at once: `speed [SECONDS]`, 5 unless said otherwise. Router, shard and clients share the machine.
//! Figures are context for people, not a verdict.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod clients;
mod cpu;
mod floor;
mod in_process;
mod shard;

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use lockstep_router::RouterArgs;

use crate::clients::{Latencies, Load};
use crate::cpu::CpuTimes;

/// Streams that are open at once.
const STREAMS: usize = 256;
/// Tokens of each stream.
const STREAM_TOKENS: u32 = 500;
/// Requests for one token that come in a second.
const RATE: u32 = 2_000;
/// Connections that they come on.
const CONNECTIONS: u32 = 32;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    router: RouterArgs,
}

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(5), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("shard.sock");
    let address = free_address()?;
    shard::serve(socket.clone())?;
    let args = router_args(&socket, address)?;
    let alone = in_process::serve(args.clone())?;
    start_router(args)?;
    let load = Load { address, time: Duration::from_secs(seconds) };

    for (path, address) in [
        ("nothing but sockets", floor::serve()?),
        ("router, its shard in the same process", alone),
        ("router, its shard behind gRPC", address),
    ] {
        clients::wait_until_ready(address)?;
        let before = CpuTimes::read()?;
        let latencies = clients::ask(Load { address, ..load }, RATE, CONNECTIONS)?;
        report_latencies(path, &latencies);
        report_cpu(&before, latencies.count(), "request")?;
    }

    let before = CpuTimes::read()?;
    let streamed = clients::stream(load, STREAMS, STREAM_TOKENS)?;
    println!(
        "{STREAMS} streams: {:.0} tokens/s in total, {:.0} bytes a token",
        streamed.tokens as f64 / streamed.took.as_secs_f64(),
        streamed.bytes as f64 / streamed.tokens.max(1) as f64,
    );
    report_cpu(&before, streamed.tokens, "token")
}

/// Nobody else has it a moment later, as a rule.
fn free_address() -> Result<SocketAddr, Box<dyn Error>> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn router_args(socket: &Path, address: SocketAddr) -> Result<RouterArgs, clap::Error> {
    let shard = format!("unix:{}", socket.display());
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let arguments = ["router", "--shard", &shard, "--hostname", &host, "--port", &port];
    let limits = ["--max-concurrent-requests", "512", "--response-cache-bytes", "0"];
    Ok(Command::try_parse_from(arguments.into_iter().chain(limits))?.router)
}

/// The router as it is served, in threads of this process.
fn start_router(args: RouterArgs) -> Result<(), Box<dyn Error>> {
    std::thread::Builder::new().name("router-main".to_owned()).spawn(move || {
        if let Err(error) = lockstep_router::run(args) {
            // The clients find nobody, and that is how the program ends.
            println!("failed to {error}");
        }
    })?;
    Ok(())
}

fn report_latencies(path: &str, latencies: &Latencies) {
    let at = |share| latencies.at(share).as_secs_f64() * 1e6;
    println!(
        "{path}, {RATE} requests/s asked, {:.0} answered: p50 {:.0} µs, p90 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs",
        latencies.rate(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
    );
}

/// Who had the processors meanwhile.
fn report_cpu(before: &CpuTimes, count: u64, unit: &str) -> Result<(), Box<dyn Error>> {
    for (thread, time) in CpuTimes::read()?.since(before) {
        println!("  {thread}: {:.2} µs a {unit}", time.as_secs_f64() * 1e6 / count.max(1) as f64);
    }
    Ok(())
}
