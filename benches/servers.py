"""Rows about whole servers: how soon they answer, what the prefix cache is worth, what a server costs."""

import contextlib
import json
import signal
import socket
import subprocess
import time

import models
from turns import Contestant, figure, median

PATIENCE_S = 120
STREAMS = 16
RANK_STREAMS = 8
ANSWER = 64
REQUEST = json.dumps({"inputs": "Once upon a time", "parameters": {"max_new_tokens": 2}})


class Server:
    """A `lockstep serve` on a free port of this machine."""

    def __init__(self, binary, *flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.binary = binary
        command = [binary, "serve", "--hostname", "127.0.0.1", "--port", self.port, "--log-level", "error", *flags]
        self.begun = time.perf_counter()
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)

    def first_token(self):
        """Seconds from exec until a request's first token has come."""
        while time.perf_counter() - self.begun < PATIENCE_S:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self.process.returncode}")
            if self.streams_a_token():
                return time.perf_counter() - self.begun
            time.sleep(0.001)
        raise RuntimeError(f"the server has answered nothing for {PATIENCE_S} s")

    def streams_a_token(self):
        head = f"POST /generate_stream HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n" \
               f"content-length: {len(REQUEST)}\r\nconnection: close\r\n\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as connection:
                connection.sendall((head + REQUEST).encode())
                answer = b""
                while more := connection.recv(1 << 16):
                    answer += more
                    if b"\ndata:" in answer and answer.startswith(b"HTTP/1.1 200"):
                        return True
        except OSError:
            pass
        return False

    def bench(self, *flags):
        """What the load generator reports."""
        command = [self.binary, "bench", "--json", "--url", self.url, *flags]
        run = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        report = json.loads(run.stdout)
        if report["errors"]:
            raise RuntimeError(f"requests failed: {report['errors']}")
        return report

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def folder(suite, name):
    path = suite.given.models / name
    models.write_folder(models.SHAPES[name], path)
    return path


def starts(suite, *flags):
    """The first start brings the files into the page cache."""
    times = []
    for _ in range(suite.given.pairs + 1):
        with Server(suite.lockstep(), *flags) as server:
            times.append(server.first_token())
    return times[1:]


def start_demo(suite):
    times = starts(suite)
    return [f"{1e3 * median(times):.0f} ms", f"exec to first token, median of {len(times)}"]


def start_1b(suite):
    times = starts(suite, "--model-id", folder(suite, "1b"))
    return [f"{median(times):.2f} s", f"exec to first token from a warm page cache, median of {len(times)}"]


def prefix(suite):
    """Without the cache fewer requests are sent: each takes as long as the next."""
    rates = {}
    for caching, requests in (("false", 16), ("true", 64)):
        flags = ["--model-id", folder(suite, "05b"), "--kv-cache-memory", "1GiB", "--prefix-caching", caching]
        with Server(suite.lockstep(), *flags) as server:
            server.first_token()
            report = server.bench("--concurrency", 8, "--requests", requests, "--prompt-tokens", 1016,
                                  "--shared-prefix", 1000, "--max-new-tokens", 16, "--warm-up", 0)
            rates[caching] = report["requests_per_second"]
    return [f"{rates['true'] / rates['false']:.1f}×",
            f"requests/s with the cache ({rates['true']:.2f}) over without ({rates['false']:.2f}); "
            "prompts of 1,016 tokens, 1,000 of them shared, answers of 16"]


def overhead(suite, name="05b"):
    """The time between a stream's tokens against that of a step, turn by turn."""
    shares, steps, gaps = [], [], []
    with contextlib.ExitStack() as stack:
        flags = ["--model-id", folder(suite, name), "--kv-cache-memory", "1GiB"]
        server = stack.enter_context(Server(suite.lockstep(), *flags))
        server.first_token()
        bare = stack.enter_context(
            Contestant("ours", [suite.speed, folder(suite, name), "--threads", suite.given.threads]))
        for turn in range(suite.given.pairs + 1):
            bare.ask("prefill 16")  # The streams of the turn before end, and new ones begin.
            step = 1e3 * bare.ask(f"decode {STREAMS} 16 {ANSWER}")["median_step_seconds"]
            report = server.bench("--concurrency", STREAMS, "--requests", STREAMS, "--prompt-tokens", 16,
                                  "--max-new-tokens", ANSWER, "--warm-up", 0, "--seed", turn)
            gap = report["latencies"]["inter_token_latency_ms"]["p50"]
            if turn > 0:
                steps.append(step)
                gaps.append(gap)
                shares.append(gap / step - 1)
    return [figure(median(shares), ".1%"),
            f"median time between tokens at {STREAMS} streams ({median(gaps):.1f} ms) over that of the bare "
            f"engine's steps ({median(steps):.1f} ms), load generator on the same cores"]


def ranks(suite, name="05b"):
    """The time between tokens of two ranks with a thread each against that of one rank with two, turn by turn."""
    gaps, ratios = {1: [], 2: []}, []
    with contextlib.ExitStack() as stack:
        servers = {}
        for count in gaps:
            flags = ["--model-id", folder(suite, name), "--kv-cache-memory", "1GiB", "--num-shard", count]
            servers[count] = stack.enter_context(Server(suite.lockstep(), *flags))
            servers[count].first_token()
        for turn in range(suite.given.pairs + 1):
            for count, server in servers.items():
                report = server.bench("--concurrency", RANK_STREAMS, "--requests", RANK_STREAMS, "--prompt-tokens", 16,
                                      "--max-new-tokens", ANSWER, "--warm-up", 0, "--seed", turn)
                gaps[count].append(report["latencies"]["inter_token_latency_ms"]["p50"])
            if turn > 0:
                ratios.append(gaps[2][-1] / gaps[1][-1])
    return [figure(median(ratios), ".2f"),
            f"median time between tokens at {RANK_STREAMS} streams with two ranks ({median(gaps[2]):.1f} ms) over that "
            f"with one ({median(gaps[1]):.1f} ms), all on the same two cores"]


ROWS = {
    "server start, demo model": start_demo,
    "server start, Llama-3.2-1B shape": start_1b,
    "server, shared prefix, Qwen2.5-0.5B shape": prefix,
    "server overhead, Qwen2.5-0.5B shape": overhead,
    "2 ranks of 1 thread, Qwen2.5-0.5B shape": ranks,
}
