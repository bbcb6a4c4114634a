"""Rows about returns: how long a stream pauses when the process of a rank is killed in the middle of it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import models
from servers import Server, folder
from turns import median

KILLS = 9
KILLED_AFTER = 8  # Tokens of a stream.
# What was started a moment ago is not started again at once: a kill comes when the group has served for a while.
SERVED_S = 0.5
PATIENCE_S = 120
REQUEST = json.dumps({"inputs": "Once upon a time, there was a little dog named Rex.",
                      "parameters": {"max_new_tokens": 4 * KILLED_AFTER, "ignore_eos": True}})


def rank_process(launcher, rank):
    """The process of a rank, among those that the launcher has started."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if int(parent) == launcher and words[words.index(b"--rank") + 1] == str(rank).encode():
                return int(folder.name)
    return None


def until_ready(server):
    begun = time.perf_counter()
    while time.perf_counter() - begun < PATIENCE_S:
        with contextlib.suppress(urllib.error.URLError, OSError):
            with urllib.request.urlopen(f"{server.url}/readyz", timeout=PATIENCE_S):
                return
        time.sleep(0.01)
    raise RuntimeError(f"the server is not ready after {PATIENCE_S} s")


def pause(server, rank):
    """Seconds from SIGKILL until a stream's next token has come; the client has read every token before."""
    head = f"POST /generate_stream HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nx-use-cache: false\r\n" \
           f"content-length: {len(REQUEST)}\r\nconnection: close\r\n\r\n"
    victim = rank_process(server.process.pid, rank)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
        connection.sendall((head + REQUEST).encode())
        answer, times = b"", []
        while more := connection.recv(1 << 16):
            times.append(time.perf_counter())
            answer += more
            if answer.count(b"\ndata:") >= KILLED_AFTER and victim:
                killed, before = time.perf_counter(), len(times)
                os.kill(victim, signal.SIGKILL)
                victim = None
        if victim or answer.count(b"\ndata:") != 4 * KILLED_AFTER:
            raise RuntimeError(f"the stream broke: {answer[-300:]!r}")
        # What was on its way already is not what the next group says: that comes after the longest gap.
        after = [killed, *times[before:]]
        longest = max(range(1, len(after)), key=lambda at: after[at] - after[at - 1])
        return after[longest] - killed


def pauses(suite, rank, *flags):
    with Server(suite.lockstep(), *flags) as server:
        server.first_token()
        times = []
        for _ in range(KILLS):
            until_ready(server)
            time.sleep(SERVED_S)
            times.append(pause(server, rank))
    return times


def row(ranks, rank, name=None, *flags):
    """Measures one model, so cut and held."""
    def measure(suite):
        model = [] if name is None else ["--model-id", of(suite, name)]
        times = pauses(suite, rank, "--num-shard", ranks, *model, *flags)
        shown = f"{1e3 * median(times):.0f} ms" if median(times) < 1 else f"{median(times):.2f} s"
        return [shown, f"SIGKILL of rank {rank} to the stream's next token, median of {len(times)} "
                       f"({1e3 * min(times):.0f} to {1e3 * max(times):.0f} ms)"]
    return measure


def of(suite, name):
    """A folder, or a GGUF file."""
    if "-" not in name:
        return folder(suite, name)
    path = suite.given.models / f"{name}.gguf"
    if not path.exists():
        shape, kind = name.split("-")
        here = Path(__file__).resolve().parent
        subprocess.run([suite.given.peer_python, "-B", here / "models.py", shape, kind, path], check=True)
    return path


ROWS = {
    "return, demo model, 1 rank": row(1, 0),
    "return, demo model, 2 ranks, rank 0": row(2, 0),
    "return, demo model, 2 ranks, rank 1": row(2, 1),
    "return, Llama-3.2-1B shape, bf16, 1 rank": row(1, 0, "1b"),
    "return, Llama-3.2-1B shape, bf16, 2 ranks, rank 0": row(2, 0, "1b"),
    "return, Llama-3.2-1B shape, bf16, 2 ranks, rank 1": row(2, 1, "1b"),
    "return, Llama-3.2-1B shape, int8, 1 rank": row(1, 0, "1b", "--quantize", "int8"),
    "return, Llama-3.2-1B shape, int4, 1 rank": row(1, 0, "1b", "--quantize", "int4"),
    "return, Llama-3.2-1B shape, GGUF Q8_0, 1 rank": row(1, 0, "1b-q8_0"),
    "return, Llama-3.2-1B shape, GGUF Q4_0, 1 rank": row(1, 0, "1b-q4_0"),
}
