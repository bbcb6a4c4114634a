"""Servers with the demo model, started and ended as a person would.

LOCKSTEP_BIN is the binary. Waiting has long limits, which end a hung run and by which nothing is judged.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE_S = 60
BETWEEN_LOOKS_S = 0.02
MODEL = "lockstep/demo"
# What a demo server says when it serves, and what a router alone says when it listens.
SERVES = re.compile(r"serves .* on (\S+) ")
LISTENS = re.compile(r"listening address=(\S+)")


def wait_until(what, condition):
    """Looks at `condition` until it holds, and returns what it gave."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(BETWEEN_LOOKS_S)
    raise TimeoutError(f"{what}: not within {PATIENCE_S} s")


def binary():
    return os.environ["LOCKSTEP_BIN"]


class Server:
    """One run of the binary on a free port; `with` ends it."""

    def __init__(self, *flags, role=(), environment=None):
        self.folder = tempfile.TemporaryDirectory(prefix="lockstep-")
        command = [binary(), *role, "--hostname", "127.0.0.1", "--port", "0", *flags]
        settings = {"XDG_RUNTIME_DIR": self.folder.name, "NO_COLOR": "1", **(environment or {})}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **settings},
        )
        self.lines = []
        self.address = None
        self.reader = threading.Thread(target=self._read, args=(LISTENS if role else SERVES,), daemon=True)
        self.reader.start()
        try:
            self.url = wait_until("the server is ready", self._url)
        except BaseException:
            self.close()
            raise

    def _read(self, ready):
        # To the end: a full pipe would stop the server.
        for line in self.process.stdout:
            self.lines.append(line)
            if self.address is None and (found := ready.search(line)):
                self.address = found[1]

    def _url(self):
        if self.address is None:
            if self.process.poll() is not None:
                raise RuntimeError("the server ended before it was ready:\n" + self.log())
            return None
        return self.address if "://" in self.address else f"http://{self.address}"

    @classmethod
    def without_shards(cls, *flags):
        """A router whose shards never come: it is loading for as long as it lives."""
        return cls("--shard", "unix:/nonexistent/shard.sock", *flags, role=("router",))

    def log(self):
        return "".join(self.lines)

    @property
    def v1(self):
        """Where OpenAI's clients look."""
        return f"{self.url}/v1"

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}{path}", timeout=PATIENCE_S) as answer:
            return answer.read().decode()

    def post(self, path, body, method="POST", **headers):
        """Status and JSON body of an answer, whatever the status."""
        headers = {"content-type": "application/json", **headers}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.loads(refusal.read())

    def cancel(self, request_id):
        """Cancels a running request; it ends with an error."""
        status, body = self.post(f"/requests/{request_id}", None, method="DELETE")
        assert status == 200, body

    def series(self):
        """Every series of the page of metrics, by its name with labels."""
        lines = (line for line in self.get("/metrics").splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def value(self, name):
        """The sum of a metric's series."""
        series = self.series().items()
        return sum(value for key, value in series if key.split("{")[0] == name)

    def wait_until_idle(self):
        """Waits until no request holds anything."""
        names = ["tgi_queue_size", "tgi_batch_current_size"]
        wait_until("no request is under way", lambda: not any(self.value(name) for name in names))

    def shards(self):
        """The ids of the shards' processes."""
        shards = [child for child in children(self.process.pid) if b"shard" in arguments(child)[1:2]]
        assert shards, "a shard is there"
        return shards

    @contextlib.contextmanager
    def frozen(self):
        """Shards that stand still, so that what is under way stays so."""
        shards = self.shards()
        for shard in shards:
            os.kill(shard, signal.SIGSTOP)
        try:
            yield
        finally:
            for shard in shards:
                os.kill(shard, signal.SIGCONT)

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(PATIENCE_S)
        self.process.stdout.close()
        self.folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def children(pid):
    """The children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def arguments(pid):
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
