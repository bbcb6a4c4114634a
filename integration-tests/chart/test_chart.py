"""The chart renders, is what Kubernetes takes, and its pod is one that serves and ends as it should."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from lockstep_server import PATIENCE_S, binary, wait_until

CHART = Path(__file__).parents[2] / "deploy/helm/lockstep"
# The oldest schemas that are checked, which know no `sleep` before a stop, and newer ones.
VERSIONS = ["1.28.0", "1.34.0"]
# Ours to set, and not flags of the server.
NOT_FLAGS = {"HF_HOME", "HF_TOKEN", "XDG_RUNTIME_DIR"}
# Of an operator that has no schema here.
UNCHECKED = {"PodMonitor"}

IMAGE = {"image": {"repository": "registry.example.com/lockstep"}}
CASES = {
    "least": {},
    "everything": {
        "imagePullSecrets": [{"name": "pull"}],
        "model": {"id": "org/model", "revision": "main", "token": {"existingSecret": "hub"}},
        "numShard": 4,
        "groups": 2,
        "gpus": {"count": 8, "runtimeClassName": "nvidia"},
        "settings": {
            "MAX_TOTAL_TOKENS": 1000000,
            "STRICT": True,
            "QUANTIZE": "int8",
            "MAX_QUEUE_TIME": 1.5,
        },
        "env": [{"name": "RUST_BACKTRACE", "value": "1"}],
        "apiKeys": {"existingSecret": "keys"},
        "modelCache": {"create": True, "accessModes": ["ReadWriteMany"], "storageClassName": "shared"},
        "service": {"type": "LoadBalancer", "annotations": {"a/b": "c"}},
        "resources": {"requests": {"memory": "64Gi"}, "limits": {"memory": "64Gi"}},
        "autoscaling": {"enabled": True, "minReplicas": 2},
        "metrics": {"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "endpointPicker": {"enabled": True},
        "podAnnotations": {"a/b": "c"},
        "podLabels": {"team": "text"},
        "priorityClassName": "high",
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    },
    "several pods": {"replicaCount": 3},
    "a journal": {"journal": {"existingClaim": "streams"}, "shutdown": {"drainSeconds": 0}},
    "GPUs that are shared": {"numShard": 2, "gpus": {"count": 1}, "settings": {"RANKS_PER_GPU": 2}},
    "others' names": {
        "fullnameOverride": "text",
        "serviceAccount": {"create": False, "name": "mine"},
        "modelCache": {"existingClaim": "models"},
        "podDisruptionBudget": {"enabled": False},
        "replicaCount": 2,
    },
}
REFUSED = {
    "image.repository": {"image": {"repository": ""}},
    "gpus.count: 1, where numShard 2 times groups 1 takes 2": {"numShard": 2, "gpus": {"count": 1}},
    "journal.existingClaim": {"journal": {"existingClaim": "streams"}, "replicaCount": 2},
    "modelCache.create": {"modelCache": {"create": True}, "replicaCount": 2},
    "settings.PORT": {"settings": {"PORT": 80}},
}


def command(values, version, folder):
    file = folder / "values.json"
    file.write_text(json.dumps({**IMAGE, **values}))
    if helm := shutil.which("helm"):
        return [helm, "template", "my", str(CHART), "--kube-version", version, "--values", str(file)]
    return [os.environ["RENDERER"], str(CHART), "my", version, str(file)]


def render(values, version, folder):
    told = subprocess.run(command(values, version, folder), capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    documents = [document for document in yaml.safe_load_all(told.stdout) if document]
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents), "one document of each kind"
    return by_kind


def container(documents):
    (only,) = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def environment(documents):
    return {variable["name"]: variable.get("value") for variable in container(documents)["env"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_what_is_rendered_is_what_kubernetes_takes(case, version, tmp_path):
    for document in render(CASES[case], version, tmp_path).values():
        if document["kind"] not in UNCHECKED:
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_values_are_of_the_schema(case):
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
    jsonschema.validate({**values, **IMAGE, **CASES[case]}, schema)


@pytest.mark.parametrize("unknown", [{"replicas": 2}, {"model": {"id": ""}}, {"settings": {"strict": 1}}])
def test_values_that_mean_nothing_are_not(unknown):
    schema = json.loads((CHART / "values.schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**IMAGE, "model": {"id": "demo"}, **unknown}, schema)


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(reason, tmp_path):
    told = subprocess.run(command(REFUSED[reason], VERSIONS[-1], tmp_path), capture_output=True, text=True)
    assert told.returncode != 0 and reason in told.stderr, told.stderr


@pytest.mark.parametrize("case", CASES)
def test_documents_agree_with_each_other(case, tmp_path):
    documents = render(CASES[case], VERSIONS[-1], tmp_path)
    deployment = documents["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    selectors = [deployment["selector"]["matchLabels"], documents["Service"]["spec"]["selector"]]
    others = [documents[kind] for kind in ("PodDisruptionBudget", "PodMonitor") if kind in documents]
    selectors += [other["spec"]["selector"]["matchLabels"] for other in others]
    assert all(selector.items() <= labels for selector in selectors)
    pod = deployment["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container(documents)["volumeMounts"]} == volumes
    ports = {port["name"] for port in container(documents)["ports"]}
    probes = [container(documents)[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    assert {probe["httpGet"]["port"] for probe in probes} == ports
    settings = environment(documents)
    assert len(settings) == len(container(documents)["env"]), "no variable is set twice"
    running = int(settings["GRACEFUL_TERMINATION_TIMEOUT"])
    assert pod["terminationGracePeriodSeconds"] > running


def test_every_variable_is_a_flag_of_the_server(tmp_path):
    flags = subprocess.run([binary(), "serve", "--help"], capture_output=True, text=True, check=True).stdout
    for case in CASES.values():
        others = NOT_FLAGS | {variable["name"] for variable in case.get("env", [])}
        for name in environment(render(case, VERSIONS[-1], tmp_path)).keys() - others:
            assert f"[env: {name}=" in flags, name


def test_the_chart_is_of_the_servers_version():
    version = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True).stdout
    assert version.split() == ["lockstep", yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]]


def test_numbers_and_switches_are_written_as_the_server_reads_them(tmp_path):
    settings = environment(render(CASES["everything"], VERSIONS[-1], tmp_path))
    names = ("MAX_TOTAL_TOKENS", "STRICT", "MAX_QUEUE_TIME", "DEVICE", "REPLICAS")
    assert [settings[name] for name in names] == ["1000000", "true", "1.5", "cuda", "2"]


def status(url, **headers):
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return None


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.fixture
def anywhere():
    """A folder that every user finds, with a name that leaves room for those of sockets."""
    with tempfile.TemporaryDirectory(prefix="chart-") as folder:
        yield folder


def test_the_pod_serves_and_ends_as_it_is_asked_to(tmp_path, anywhere):
    """Its command and environment, its probes and its stop, as whoever the pod runs as."""
    values = {"apiKeys": {"existingSecret": "keys"}, "numShard": 2, "shutdown": {"requestSeconds": 20}}
    documents = render(values, VERSIONS[-1], tmp_path)
    pod, only = documents["Deployment"]["spec"]["template"]["spec"], container(documents)
    # What is mounted is somewhere else here; of the rest of the system the pod writes to nothing.
    folders = {mount["mountPath"]: Path(anywhere) / mount["name"] for mount in only["volumeMounts"]}
    Path(anywhere).chmod(0o755)
    for folder in folders.values():
        folder.mkdir()
        folder.chmod(0o777)
    (folders["/etc/lockstep/keys"] / "keys").write_text("alice: secret\n")
    settings = {name: value for name, value in environment(documents).items() if value is not None}
    for name, value in settings.items():
        mounted = next((mount for mount in folders if value.startswith(mount)), None)
        if mounted:
            settings[name] = value.replace(mounted, str(folders[mounted]), 1)
    port = free_port()
    settings |= {"PORT": str(port), "TMPDIR": str(folders["/tmp"]), "HOSTNAME": "my-lockstep-5d9c"}
    user = pod["securityContext"]["runAsUser"] if os.getuid() == 0 else None
    # Where it was built that user may not look.
    program = shutil.copy2(binary(), anywhere)
    log = tmp_path / "log"
    with log.open("w") as to:
        process = subprocess.Popen([program, *only["args"]], env=settings, stderr=to, user=user, cwd="/")
    try:
        url = f"http://127.0.0.1:{port}"
        probes = ("startup", "readiness", "liveness")
        looks = [only[f"{name}Probe"]["httpGet"]["path"] for name in probes]
        started = url + looks[0]
        wait_until("the pod has started", lambda: process.poll() is not None or status(started) == 200)
        assert process.poll() is None, log.read_text()
        assert [status(url + path) for path in looks] == [200, 200, 200], log.read_text()
        assert status(url + "/metrics") == 200
        assert status(url + "/v1/models") == 401
        assert status(url + "/v1/models", authorization="Bearer secret") == 200
        # A line of JSON each, for whoever collects them.
        assert all(json.loads(line) for line in log.read_text().splitlines())
        process.send_signal(signal.SIGTERM)
        process.wait(pod["terminationGracePeriodSeconds"])
        assert process.returncode == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
