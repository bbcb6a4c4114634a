"""docs/clients.md names the versions that are tried."""

import json
import re
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parents[1]
TABLE = (CLIENTS.parents[1] / "docs" / "clients.md").read_text()
TESTED_WITH = {"aiohttp", "mcp", "pydantic", "pytest", "pytest-timeout", "tenacity", "tiktoken", "zod"}


def versions():
    """Every client with its version; of the older group, which repeats one client, that client is left out."""
    for file in sorted(CLIENTS.glob("*/requirements.txt")):
        pins = dict(re.findall(r"^(\S+)==(\S+)$", file.read_text().split("\n\n")[0], re.MULTILINE))
        for name, version in pins.items():
            if name not in TESTED_WITH and (file.parent.name, name) != ("older_hub", "huggingface_hub"):
                yield name.replace("lm_eval", "lm-eval"), version
    for name, version in json.loads((CLIENTS / "node" / "package.json").read_text())[
        "dependencies"
    ].items():
        if name not in TESTED_WITH:
            yield name, version


@pytest.mark.parametrize(("name", "version"), list(versions()))
def test_the_table_names(name, version):
    rows = [line for line in TABLE.splitlines() if line.startswith("|") and f"`{name}`" in line]
    assert any(version in row for row in rows)
