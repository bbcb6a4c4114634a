#!/usr/bin/env python3
"""Whole servers on a GPU: one line a check, a summary last. Needs no more than Python, so that it runs on GPU hosts.

    integration-tests/card.py BINARY

BINARY is `lockstep` built with the feature `cuda`; it serves its demo model. Ends with 0 where all is right, else with 1.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PATIENCE_S = 120
EXACT = ["--exact"]
SHARED = ["--num-shard", "2", "--ranks-per-gpu", "2"]
REQUESTS = [
    {"inputs": prompt, "parameters": {"max_new_tokens": 40, "seed": seed, "details": True} | more}
    for seed, (prompt, more) in enumerate([
        ("Once upon a time", {}),
        ("A little red bird sat on a tree. It looked down at the river", {"do_sample": True, "temperature": 0.8}),
        ("Tom", {"do_sample": True, "top_p": 0.9, "top_k": 40}),
        ("The dog", {"repetition_penalty": 1.3}),
    ])
]


class Server:
    """A `lockstep serve` on a free port of this machine."""

    def __init__(self, binary, *flags, **variables):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.sockets = tempfile.TemporaryDirectory()
        command = [binary, "serve", "--hostname", "127.0.0.1", "--port", str(port), *flags]
        environment = os.environ | {"XDG_RUNTIME_DIR": self.sockets.name} | variables
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment)

    def __enter__(self):
        begun = time.monotonic()
        while time.monotonic() < begun + PATIENCE_S:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return self
            time.sleep(0.05)
        self.process.kill()
        raise RuntimeError(f"the server does not become ready:\n{self.said()}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def said(self):
        return Path(self.log.name).read_text()

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        return urllib.request.urlopen(request, timeout=PATIENCE_S)

    def answer(self, request):
        with self.post("/generate", request) as answer:
            return json.load(answer)

    def alone(self):
        return [self.answer(request) for request in REQUESTS]

    def crowd(self, times=4):
        with ThreadPoolExecutor(times * len(REQUESTS)) as threads:
            return list(threads.map(self.answer, REQUESTS * times))

    def events(self, request, after_three=lambda: None):
        events = []
        with self.post("/generate_stream", request) as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    events.append(line)
                    if len(events) == 3:
                        after_three()
        return events

    def ranks(self):
        """The processes that compute, by what the system says of them."""
        found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        rows = [line.split(None, 1) for line in found.stdout.splitlines()]
        return [int(pid) for pid, args in rows if " shard" in args]


class Checks:
    def __init__(self, binary):
        self.binary = binary
        self.counts = {"ok": 0, "FAILED": 0}

    def check(self, name, work):
        begun = time.monotonic()
        try:
            said = work()
            outcome = "ok" if said is None or said.startswith("(") else "FAILED"
        except Exception as error:
            outcome, said = "FAILED", f"{type(error).__name__}: {error}"
        self.counts[outcome] += 1
        print(f"{outcome:<7} {name:<70} {time.monotonic() - begun:6.1f} s  {said or ''}", flush=True)

    def server(self, *flags, **variables):
        return Server(self.binary, "--device", "cuda", *flags, **variables)

    def run(self):
        reference = []

        def alone():
            with self.server(*EXACT) as server:
                reference.extend(server.alone())
                if "on a GPU" not in server.said() and "memory of the GPU" not in server.said():
                    return "the log does not say that it computes on a GPU"

        self.check("it starts on a GPU and answers", alone)
        same = lambda answers: None if answers == reference * (len(answers) // len(reference)) else "other bytes"

        def crowd(*flags, **variables):
            with self.server(*EXACT, *flags, **variables) as server:
                return same(server.crowd()) or same(server.alone())

        self.check("exact: the same bytes in a crowd", crowd)
        self.check("exact: the same bytes in small chunks", lambda: crowd("--max-batch-prefill-tokens", "24"))
        self.check("exact: the same bytes without recorded steps", lambda: crowd("--cuda-graphs", "off"))
        self.check("exact: the same bytes on two ranks of one GPU, through main memory", lambda: crowd(*SHARED))
        nccl = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_NVLS_ENABLE": "0"}
        self.check("exact: the same bytes on two ranks of one GPU, by an NCCL that takes both", lambda: crowd(*SHARED, **nccl))

        def killed(*flags):
            with self.server(*EXACT, *flags) as server:
                undisturbed = server.events(REQUESTS[1])
                ranks = server.ranks()
                disturbed = server.events(REQUESTS[1], lambda: os.kill(ranks[-1], signal.SIGKILL))
                if not ranks or disturbed != undisturbed:
                    return f"other events after one of the ranks {ranks} was killed"

        self.check("a stream goes on after its rank was killed", killed)
        self.check("a stream goes on after one of two ranks was killed", lambda: killed(*SHARED))

        def default():
            with self.server() as gpu, Server(self.binary, "--device", "cpu") as cpu:
                ours, theirs = gpu.alone(), cpu.alone()
            equal = sum(one["generated_text"] == other["generated_text"] for one, other in zip(ours, theirs))
            return f"({equal} of {len(ours)} texts are those of the CPU)"

        self.check("the default mode answers", default)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    checks = Checks(str(Path(sys.argv[1]).resolve()))
    checks.run()
    print(", ".join(f"{count} {outcome}" for outcome, count in checks.counts.items()))
    sys.exit(checks.counts["FAILED"] > 0)


if __name__ == "__main__":
    main()
