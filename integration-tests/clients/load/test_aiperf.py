"""aiperf as a load client: what it counts is what the server counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cases import KEY

# The demo model's folder has its tokenizer.
TOKENIZER = Path(__file__).parents[3] / "models" / "demo"
REQUESTS = 24
INPUT = 30
OUTPUT = 20
# It starts fewer processes so.
LESS = ["--no-server-metrics", "--no-gpu-telemetry"]


@pytest.fixture
def load(tmp_path, monkeypatch, model):
    """Runs a small load and gives its report and its requests; there is no report where no request succeeds."""
    # With it, a local tokenizer is looked for on the Hub.
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def load(server, kind, *flags):
        command = [Path(sys.executable).parent / "aiperf", "profile"]
        command += [
            "--model",
            model,
            "--url",
            server.url,
            "--endpoint-type",
            kind,
            "--tokenizer",
            TOKENIZER,
        ]
        command += [
            "--request-count",
            str(REQUESTS),
            "--concurrency",
            "4",
            "--workers-max",
            "1",
            "--random-seed",
            "1",
        ]
        command += ["--synthetic-input-tokens-mean", str(INPUT), "--output-tokens-mean", str(OUTPUT)]
        command += ["--ui-type", "none", "--artifact-dir", tmp_path, "--streaming", *flags]
        words = [str(word) for word in command]
        run = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
        records = tmp_path / "profile_export.jsonl"
        assert records.exists(), run.stdout + run.stderr
        requests = [json.loads(line) for line in records.read_text().splitlines()]
        report = tmp_path / "profile_export_aiperf.json"
        return json.loads(report.read_text()) if report.exists() else None, requests

    return load


def totals(server):
    """Requests, tokens generated, and tokens of prompts, as the server counts them."""
    names = ["tgi_request_success", "tgi_request_generated_tokens_sum", "tgi_request_input_length_sum"]
    return [server.value(name) for name in names]


def test_chats(load, keyed):
    before = totals(keyed)
    flags = ["--api-key", KEY, "--use-server-token-count", "--extra-inputs", "ignore_eos:true"]
    report, _ = load(keyed, "chat", *flags, *LESS)
    assert report["error_summary"] == [] and report["request_count"]["avg"] == REQUESTS
    assert report["output_sequence_length"]["min"] == report["output_sequence_length"]["max"] == OUTPUT
    told = [REQUESTS, report["total_output_tokens"]["avg"], report["total_isl"]["avg"]]
    assert [now - then for now, then in zip(totals(keyed), before, strict=True)] == told
    assert report["time_to_first_token"]["count"] == REQUESTS


def test_the_native_route(load, server):
    before = totals(server)
    report, _ = load(server, "huggingface_generate")
    assert report["error_summary"] == [] and report["request_count"]["avg"] == REQUESTS
    assert totals(server)[0] - before[0] == REQUESTS
    assert 0 < report["output_sequence_length"]["avg"] <= OUTPUT
    assert report["input_sequence_length"]["avg"] == INPUT


def test_refusals_are_told_apart(load, full):
    report, requests = load(full, "chat", *LESS)
    assert report is None and len(requests) == REQUESTS
    assert {request["error"]["code"] for request in requests} == {429}
    assert all("overloaded" in request["error"]["message"] for request in requests)
