"""A real Prometheus scrapes a server under load, and promtool reads the page."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from lockstep_server import PATIENCE_S, Server, wait_until

KEY = "a-key-of-the-tests"
REQUESTS = 12
# The counters that are named as in the reference server, whose dashboards read them.
KEPT = [
    "tgi_batch_concat",
    "tgi_batch_inference_count",
    "tgi_batch_inference_failure",
    "tgi_batch_inference_success",
    "tgi_request_count",
    "tgi_request_failure",
    "tgi_request_success",
]
SUFFIX = '{} counter metrics should have "_total" suffix'
COUNT = '{} non-histogram and non-summary metrics should not have "_count" suffix'
COLON = "{} metric names should not contain ':'"
# Names of vLLM, told where --vllm-metrics asks for them.
ALIASES = [
    "vllm:cache_config_info",
    "vllm:kv_cache_usage_perc",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
]

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="Prometheus cannot be had"
)


class Prometheus:
    """A Prometheus that scrapes one server."""

    def __init__(self, folder, target, credentials=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        scrape = {
            "job_name": "lockstep",
            "scrape_interval": "1s",
            "static_configs": [{"targets": [target.removeprefix("http://")]}],
        }
        if credentials:
            scrape["authorization"] = {"credentials": credentials}
        # JSON is YAML.
        config = folder / "prometheus.yml"
        config.write_text(json.dumps({"scrape_configs": [scrape]}))
        subprocess.run(["promtool", "check", "config", config], check=True, capture_output=True)
        self.log = (folder / "log").open("w+")
        command = ["prometheus", "--config.file", config, "--storage.tsdb.path", folder / "data"]
        command += ["--web.listen-address", self.address, "--log.level", "warn"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def ask(self, path, **parameters):
        """The data of an answer; none while it does not listen."""
        assert self.process.poll() is None, self.told()
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as refusal:
            if refusal.code != 503:
                raise AssertionError(refusal.read().decode()) from refusal
        except OSError:
            pass
        return None

    def value(self, expression):
        """The value of an expression that gives one series; none where it gives no series."""
        data = self.ask("query", query=expression)
        if not data or not data["result"]:
            return None
        (series,) = data["result"]
        return float(series["value"][1])

    def wait_for(self, expression, expected):
        wait_until(f"{expression} is {expected}", lambda: self.value(expression) == expected)

    def told(self):
        self.log.seek(0)
        return self.log.read()

    def close(self):
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self.log.close()


@pytest.fixture(scope="module")
def server():
    with Server("--vllm-metrics", "--api-key", KEY, "--protect-metrics") as server:
        yield server


@pytest.fixture(scope="module")
def page(server):
    """The page of metrics after some load, as it is scraped."""
    bearer = {"authorization": f"Bearer {KEY}"}
    for number in range(REQUESTS):
        body = {"inputs": f"Story {number}", "parameters": {"max_new_tokens": 8}}
        assert server.post("/generate", body, **bearer)[0] == 200
    assert server.post("/generate", {"inputs": ""}, **bearer)[0] == 422
    request = urllib.request.Request(f"{server.url}/metrics", headers=bearer)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        assert answer.headers["content-type"].startswith("text/plain")
        return answer.read().decode()


@pytest.fixture(scope="module")
def prometheus(server, page, tmp_path_factory):
    with contextlib.closing(
        Prometheus(tmp_path_factory.mktemp("prometheus"), server.url, KEY)
    ) as prometheus:
        prometheus.wait_for('up{job="lockstep"}', 1)
        yield prometheus


def test_a_query_gives_what_was_served(prometheus):
    prometheus.wait_for("sum(tgi_request_success)", REQUESTS)
    prometheus.wait_for("sum(tgi_request_count)", REQUESTS + 1)
    prometheus.wait_for('tgi_request_failure{err="validation"}', 1)
    prometheus.wait_for("sum(tgi_request_generated_tokens_count)", REQUESTS)
    generated = prometheus.value("sum(tgi_request_generated_tokens_sum)")
    assert REQUESTS <= generated <= 8 * REQUESTS


def test_quantiles_are_computed_from_the_buckets(prometheus):
    for name in [
        "lockstep_time_to_first_token_seconds",
        "lockstep_inter_token_latency_seconds",
        "tgi_request_duration",
    ]:
        seconds = wait_until(
            name,
            lambda name=name: prometheus.value(f"histogram_quantile(0.5, sum by (le) ({name}_bucket))"),
        )
        assert 0 < seconds < PATIENCE_S


def test_every_family_is_taken_in_with_its_type(prometheus, page):
    told = dict(line.split()[2:4] for line in page.splitlines() if line.startswith("# TYPE "))
    metadata = prometheus.ask("metadata")
    assert told and {name: entries[0]["type"] for name, entries in metadata.items()} == told
    assert all(entries[0]["help"] for entries in metadata.values())
    for name, kind in told.items():
        series = f"{name}_bucket" if kind == "histogram" else name
        assert prometheus.value(f"count({series})") > 0, name


def test_no_scrape_is_complained_of(prometheus):
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert "level=" not in prometheus.told()


def test_without_its_key_nothing_is_scraped(server, tmp_path):
    with contextlib.closing(Prometheus(tmp_path, server.url)) as prometheus:
        prometheus.wait_for('up{job="lockstep"}', 0)
        (target,) = prometheus.ask("targets")["activeTargets"]
        assert "401" in target["lastError"]


def test_promtool_complains_of_the_kept_names_alone(page):
    command = ["promtool", "check", "metrics"]
    lint = subprocess.run(command, input=page, capture_output=True, text=True, check=False)
    complaints = [SUFFIX.format(name) for name in KEPT]
    complaints += [COUNT.format(name) for name in KEPT if name.endswith("_count")]
    complaints += [COLON.format(name) for name in ALIASES]
    assert sorted(lint.stderr.splitlines()) == sorted(complaints)


def test_the_endpoint_picker_is_told_names_that_are_there():
    """What `deploy/endpoint-picker.yaml` names is on the page."""
    text = (Path(__file__).parents[2] / "deploy" / "endpoint-picker.yaml").read_text()
    named = re.findall(r'Spec: "([^"]+)"', text)
    assert len(named) == 4
    with Server("--vllm-metrics") as server:
        told = {series.split("{")[0] for series in server.series()}
    assert set(named) <= told
