"""Configuration of TensorFlow Serving, Docker Compose and Kubernetes."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

import export
from export.__main__ import app
from export.serving.configuration import configuration, read_config
from export.serving.memory import Memory
from tests.helpers import crds

MEMORY = Memory(request=1500, limit=12000)


@pytest.fixture(scope="module")
def files():
    labels = {"stable": 1, "canary": 2}
    return configuration("cait_tiny", [1, 2], labels, [2, 1], False, 2, MEMORY)


@pytest.fixture(scope="module")
def compose(files):
    return yaml.safe_load(files["compose.yaml"])


@pytest.fixture(scope="module")
def manifests(files):
    found = list(yaml.safe_load_all(files["kubernetes.yaml"]))
    by_kind = {manifest["kind"]: manifest for manifest in found}
    assert len(by_kind) == len(found)
    return by_kind


@pytest.fixture(scope="module")
def pod(manifests):
    return manifests["Deployment"]["spec"]["template"]


def test_kubernetes_accepts_the_manifests(manifests):
    assert set(manifests) == {
        "PersistentVolumeClaim",
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "NetworkPolicy",
    }
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_kubernetes_accepts_autoscaling_by_the_queue(files, manifests):
    scaler, metrics = yaml.safe_load_all(files["autoscaling.yaml"])
    for manifest in (scaler, metrics):
        kubernetes_validate.validate(manifest, "1.37", strict=True)
    old = manifests["HorizontalPodAutoscaler"]  # which it replaces
    assert scaler["metadata"] == old["metadata"]
    assert scaler["spec"]["scaleTargetRef"] == old["spec"]["scaleTargetRef"]
    (rule,) = yaml.safe_load(metrics["data"]["config.yaml"])["rules"]
    pods, _ = scaler["spec"]["metrics"]
    assert pods["pods"]["metric"] == {"name": rule["name"]["as"]}


def test_kserve_accepts_its_service(files, pod):
    (service,) = yaml.safe_load_all(files["kserve.yaml"])
    crds.check(service)
    model = service["spec"]["predictor"]["model"]
    (container,) = pod["spec"]["containers"]
    assert model["resources"] == container["resources"]
    for argument in model["args"]:
        name, _, value = argument.partition("=")
        assert any(name in other for other in container["args"])
        if value.startswith("/mnt/models/"):
            assert value.removeprefix("/mnt/models/") in files


def test_a_cluster_of_ray_accepts_its_job():
    path = Path(export.__file__).parent / "cluster/rayjob.yaml"
    job = yaml.safe_load(path.read_text())
    crds.check(job)
    for pod in crds.pod_templates(job):
        (container,) = pod["spec"]["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"/storage", "/tmp"}
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "export"]
    command, options, _ = app.parse_args(words[3:], exit_on_error=False)
    assert command.__name__ == "predict"
    assert options.arguments["address"] == "auto"
    assert options.arguments["resume"]
    constraints = (path.parents[2] / "constraints.txt").read_text()
    cluster = job["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}\n" in constraints
    (workers,) = cluster["workerGroupSpecs"]
    assert options.arguments["workers"] == workers["replicas"]


# Of TensorFlow Serving 2.21, with their labels: tensorflow_serving/servables/
# tensorflow/util.cc and batching/batching_session.cc. Its exporter,
# util/prometheus_exporter.cc, turns / into :.
METRICS = {
    ":tensorflow:serving:request_count": {"model_name", "status"},
    ":tensorflow:serving:request_latency_bucket": {"model_name"},
    ":tensorflow:serving:runtime_latency_bucket": {"model_name"},
    ":tensorflow:serving:batching_session:queuing_latency_bucket": set(),
    ":tensorflow:serving:batching_session:wrapped_run_count": set(),
    "up": set(),
}


def test_alerts_and_dashboard_ask_for_metrics_that_the_server_has(files):
    (job,) = yaml.safe_load(files["prometheus.yaml"])["scrape_configs"]
    (group,) = yaml.safe_load(files["alerts.yaml"])["groups"]
    dashboard = json.loads(files["dashboard.json"])
    targets = [t for panel in dashboard["panels"] for t in panel["targets"]]
    queries = [rule["expr"] for rule in group["rules"]]
    queries += [target["expr"] for target in targets]
    asked = set()
    for query in queries:
        selectors = re.findall(r"([a-z_:]+)\{(.*?)\}", query)
        assert selectors and query.count("{") == len(selectors)
        assert query.count("(") == query.count(")")
        for metric, labels in selectors:
            known = METRICS[metric] | {"job"}
            found = dict(re.findall(r'(\w+)[=!~]+"(.*?)"', labels))
            assert set(found) <= known
            assert found.get("job", job["job_name"]) == job["job_name"]
            assert found.get("model_name", "cait_tiny") == "cait_tiny"
            asked.add(metric)
    assert asked == set(METRICS)


def test_compose_accepts_its_file(files, tmp_path):
    path = tmp_path / "compose.yaml"

    def check(text):
        path.write_text(text)
        command = [sys.executable, "-m", "check_jsonschema", path]
        return subprocess.run(
            [*command, "--builtin-schema", "vendor.compose-spec"],
            capture_output=True,
            text=True,
        )

    checked = check(files["compose.yaml"])
    assert checked.returncode == 0, checked.stdout
    assert check(files["compose.yaml"].replace("user:", "usr:")).returncode


def test_containers_have_few_rights(compose, pod):
    """Those of the Pod Security Standard "restricted", and no writing."""
    for service in compose["services"].values():
        assert service["user"] == "65534:65534"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        limits = service["deploy"]["resources"]["limits"]
        assert set(limits) == {"cpus", "memory", "pids"}
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")
        assert not {"privileged", "cap_add", "network_mode"} & set(service)
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {
        "type": "RuntimeDefault"
    }
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_images_have_a_version(compose, pod):
    (container,) = pod["spec"]["containers"]
    images = [service["image"] for service in compose["services"].values()]
    for image in [*images, container["image"]]:
        assert re.search(r":v?\d+\.\d+\.\d+$", image)


def test_memory_and_cpus(compose, pod):
    (container,) = pod["spec"]["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "1500Mi"},
        "limits": {"cpu": "4", "memory": "12000Mi"},
    }
    limits = compose["services"]["serving"]["deploy"]["resources"]["limits"]
    assert (limits["cpus"], limits["memory"]) == ("4", "12000M")


def test_batching_and_monitoring(files):
    """By their text: the package of the server's API lacks their messages."""
    batching = files["batching_parameters.txt"]
    sizes = re.findall(r"^allowed_batch_sizes: (\d+)$", batching, re.M)
    assert sizes == ["1", "2"]
    assert "max_batch_size { value: 2 }" in batching
    (job,) = yaml.safe_load(files["prometheus.yaml"])["scrape_configs"]
    assert f'path: "{job["metrics_path"]}"' in files["monitoring.config"]


def test_containers_mount_what_they_are_told_to_read(files, compose, pod):
    (container,) = pod["spec"]["containers"]
    service = compose["services"]["serving"]
    assert service["command"] == container["args"]
    assert service["image"] == container["image"]
    assert service["volumes"] == [".:/models/cait_tiny:ro"]
    assert container["volumeMounts"][0] == {
        "name": "models",
        "mountPath": "/models/cait_tiny",
        "readOnly": True,
    }
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    for argument in service["command"]:
        _, _, value = argument.partition("=")
        if value.startswith("/models/cait_tiny/"):
            assert value.removeprefix("/models/cait_tiny/") in files


def test_all_manifests_select_the_pods(manifests, pod):
    labels = pod["metadata"]["labels"]
    assert labels == {"app": "cait-tiny"}
    specs = {kind: manifest["spec"] for kind, manifest in manifests.items()}
    assert specs["Service"]["selector"] == labels
    assert specs["Deployment"]["selector"]["matchLabels"] == labels
    assert specs["PodDisruptionBudget"]["selector"]["matchLabels"] == labels
    assert specs["NetworkPolicy"]["podSelector"]["matchLabels"] == labels
    scaler = specs["HorizontalPodAutoscaler"]
    name = manifests["Deployment"]["metadata"]["name"]
    assert scaler["scaleTargetRef"]["name"] == name
    # Otherwise no node could be drained.
    assert scaler["minReplicas"] > specs["PodDisruptionBudget"]["minAvailable"]


def test_only_calls_to_the_server_are_admitted(manifests, pod):
    policy = manifests["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy
    (rule,) = policy["ingress"]
    (container,) = pod["spec"]["containers"]
    ports = [port["containerPort"] for port in container["ports"]]
    assert [port["port"] for port in rule["ports"]] == ports


@pytest.mark.parametrize(
    "labels",
    [
        '# { key: "stable" value: 1 }\nversion_labels {key:"stable" value:2}',
        'version_labels { key: "stable", value: 2 }',
        'version_labels: { value: 2 key: "stable" }',
        "version_labels {\n  key: 'stable'\n  value: 2  # rolled back\n}",
    ],
)
def test_a_config_is_read_as_the_server_does(labels):
    text = (
        'model_config_list { config { name: "cait" '
        "model_version_policy { specific { "
        f"versions: [1, 2] }} }}\n{labels}\n}} }}"
    )
    assert read_config(text, "cait") == ([1, 2], {"stable": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list {}", "label stable"),
        ("model_config_list {", "Cannot read models.config, line:column 1:"),
        (
            "model_config_list { config { name: 'b' } }",
            "serves 'b', but an export serves only 'cait'",
        ),
    ],
)
def test_a_config_that_cannot_be_continued_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_config(text, "cait")
