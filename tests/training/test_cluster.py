"""Workers, and `training/cluster/`: what its examples start, and how again."""

import json
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import tensorflow as tf
import yaml

import training.train as program
from tests.helpers import crds
from tests.helpers.commands import exit_status
from training.loop import strategies
from training.recipes import RECIPES

CLUSTER = Path(program.__file__).parent / "cluster"


def started(command, monkeypatch):
    """The arguments of `train` in the command of a container."""
    calls = []
    monkeypatch.setattr(program, "train", lambda *a: calls.append(a))
    arguments = command[command.index("training.train") + 1 :]
    assert exit_status(program.main, *arguments) == 0
    return calls[0]


def test_workers_that_differ_are_refused(monkeypatch):
    """As those do that resume from folders of their own."""
    devices = tf.distribute.get_strategy()
    added = []
    monkeypatch.setattr(strategies, "worker_count", lambda _: 2)
    monkeypatch.setattr(
        strategies, "sum_of_workers", lambda _, n: added.append(n) or sum(added)
    )
    strategies.check_alike(devices, {"data": "digits", "step": 50})
    assert 0 < added[0] < 2**14
    with pytest.raises(ValueError, match="The workers differ in data or step"):
        strategies.check_alike(devices, {"data": "digits", "step": 0})


MANIFESTS = sorted(path.name for path in CLUSTER.glob("*.yaml"))


def manifests(name):
    """The manifests of a file, by kind."""
    documents = yaml.safe_load_all((CLUSTER / name).read_text())
    return {document["kind"]: document for document in documents}


def pod_of(name):
    """The job of a manifest, and the specification of its pod."""
    found = manifests(name)
    if tfjob := found.get("TFJob"):
        job = tfjob["spec"]["tfReplicaSpecs"]["Worker"]
        return job, job["template"]["spec"]
    if runtime := found.get("TrainingRuntime"):
        (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        job = job["template"]["spec"]
        # What Trainer adds to the container of the runtime.
        trainer = found["TrainJob"]["spec"]["trainer"]
        pod = job["template"]["spec"]
        pod["containers"][0]["command"] = trainer["command"]
        job["parallelism"] = job["completions"] = trainer["numNodes"]
        return job, pod
    (job,) = found["JobSet"]["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    return job, job["template"]["spec"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_accepts_the_manifests(name):
    for manifest in manifests(name).values():
        crds.check(manifest)
        manifest["spec"]["suspended"] = True
        with pytest.raises(jsonschema.ValidationError, match="suspended"):
            crds.check(manifest)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_trains_into_a_volume(name, monkeypatch):
    _, pod = pod_of(name)
    (container,) = pod["containers"]
    recipe, output, data_dir, strategy, *_ = started(
        container["command"], monkeypatch
    )
    assert recipe == RECIPES["s24-224"]
    assert strategy == ("tpu" if name == "jobset-tpu.yaml" else "workers")
    (mount,) = container["volumeMounts"]
    (volume,) = pod["volumes"]
    assert mount["name"] == volume["name"]
    assert volume["persistentVolumeClaim"]["claimName"]
    for path in (output, data_dir):
        assert path.is_relative_to(mount["mountPath"])


@pytest.mark.parametrize("name", ["jobset.yaml", "trainjob.yaml"])
def test_jobset_starts_all_again_and_names_its_workers(name):
    job, pod = pod_of(name)
    found = manifests(name)
    if "JobSet" in found:
        jobset = owner = found["JobSet"]
    else:
        # Trainer makes a JobSet with the name of the TrainJob.
        jobset = found["TrainingRuntime"]["spec"]["template"]
        owner = found["TrainJob"]
        reference = owner["spec"]["runtimeRef"]
        runtime = found["TrainingRuntime"]
        assert reference["kind"] == runtime["kind"]
        assert reference["name"] == runtime["metadata"]["name"]
        assert runtime["spec"]["mlPolicy"]["numNodes"] == job["completions"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert (pod["restartPolicy"], job["backoffLimit"]) == ("Never", 0)
    owner = owner["metadata"]["name"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    command = pod["containers"][0]["command"]
    assert command[1:3] == [
        "$(JOB_COMPLETION_INDEX)",
        ",".join(
            f"{owner}-{replicated['name']}-0-{index}.{owner}:2222"
            for index in range(job["completions"])
        ),
    ]
    assert command[0] == "training/cluster/worker.sh"
    assert job["parallelism"] == job["completions"]


def test_images_of_the_manifests_are_built_from_what_exists():
    root = CLUSTER.parent.parent
    text = (root / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.M):
        for source in line.split()[:-1]:
            assert (root / source).exists()
    # Every target ends as another user than root.
    _, *targets = re.split(r"^FROM base AS ", text, flags=re.M)
    for target in targets:
        assert re.findall(r"^USER (.*)$", target, re.M) == ["65534:65534"]
    built = dict(re.findall(r"--target (\w+) --tag ([\w-]+)", text))
    assert set(built) == {target.split()[0] for target in targets}
    manifests = [*root.glob("*/cluster/*.yaml")]
    images = {
        image
        for path in manifests
        for image in re.findall(r"image: (\S+)", path.read_text())
    }
    assert images == set(built.values())


def test_tfjob_starts_failed_workers_again():
    job, pod = pod_of("tfjob.yaml")
    assert job["restartPolicy"] == "OnFailure"
    assert pod["containers"][0]["name"] == "tensorflow"


@pytest.mark.parametrize(
    ("statuses", "ends"), [("1 0", "0"), ("1 130", "requeue 7")]
)
def test_slurm_script_starts_workers_again(statuses, ends, tmp_path):
    commands = {
        # As worker 1, with the statuses in turn.
        "srun": 'shift; SLURM_PROCID=1 "$@" >> said; '
        "read -r status rest < statuses; echo $rest > statuses; exit $status",
        "scontrol": 'if [ "$1" = show ]; then printf "a\\nb\\n"; '
        'else echo "$@"; fi',
        "python": 'echo "$TF_CONFIG"; echo "$@"',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "statuses").write_text(statuses)
    (tmp_path / "training").symlink_to(CLUSTER.parent)
    done = subprocess.run(
        ["bash", CLUSTER / "slurm.sh", "s24-224", "--output", "a run"],
        cwd=tmp_path,
        env=os.environ
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert f"{done.returncode} {done.stdout}".strip().endswith(ends)
    first, second = (tmp_path / "said").read_text().splitlines()[:2]
    assert json.loads(first) == {
        "cluster": {"worker": ["a:2222", "b:2222"]},
        "task": {"type": "worker", "index": 1},
    }
    assert second == (
        "-m training.train s24-224 --output a run --strategy workers"
    )
