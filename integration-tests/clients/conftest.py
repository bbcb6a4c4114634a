"""Servers for the tests of every client."""

import threading

import pytest

from cases import KEY, LONG
from lockstep_server import MODEL, Server, wait_until

# A shard that stands still for a test does not count as lost.
PATIENT = ["--step-timeout", "3600"]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No client finds a key or a proxy in the environment, or asks anyone but the server."""
    for name in ["HF_TOKEN", "OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="session")
def model():
    """What the server calls its model."""
    return MODEL


@pytest.fixture(scope="session")
def server():
    """A server for everyone. It computes each answer, so that an answer that comes again shows something."""
    with Server("--response-cache-bytes", "0", *PATIENT) as server:
        yield server


@pytest.fixture(scope="session")
def keyed():
    """A server that asks for KEY."""
    with Server("--api-key", KEY) as server:
        yield server


@pytest.fixture(scope="session")
def loading():
    """A server whose model is not there."""
    with Server.without_shards() as server:
        yield server


@pytest.fixture(scope="session")
def full():
    """A server whose one place is taken for as long as the tests run."""
    with Server("--max-concurrent-requests", "1", *PATIENT) as server, server.frozen():
        ask = {"inputs": "a", "parameters": {"grammar": LONG}}
        holder = threading.Thread(
            target=server.post, args=("/generate", ask), kwargs={"x-request-id": "holder"}
        )
        holder.start()
        names = ["tgi_queue_size", "tgi_batch_current_size"]
        wait_until("the place is taken", lambda: any(server.value(name) for name in names))
        yield server
        server.cancel("holder")
        holder.join()
