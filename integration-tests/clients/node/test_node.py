"""The clients for Node: each .mjs file beside this one is run by Node's own test runner."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from cases import KEY

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def folder():
    """A copy of the tests where Node finds the packages: it looks for them from a test's folder upwards."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=os.environ["NODE_MODULES_AT"]) as copy:
        for file in HERE.glob("*.mjs"):
            shutil.copy(file, copy)
        yield Path(copy)


@pytest.mark.parametrize(
    "name",
    [
        "openai.test.mjs",
        "ai_sdk.test.mjs",
        "huggingface.test.mjs",
        pytest.param("tools.test.mjs", marks=pytest.mark.tools),
    ],
)
def test_node(name, folder, server, keyed, full, loading):
    servers = {"SERVER": server.url, "KEYED": keyed.url, "FULL": full.url, "LOADING": loading.url}
    settings = {**os.environ, **servers, "KEY": KEY, "SHARD": str(server.shards()[0])}
    command = ["node", "--test", "--test-timeout=120000", "--test-reporter=spec", str(folder / name)]
    run = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)
