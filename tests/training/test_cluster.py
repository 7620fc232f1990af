"""The examples of `training/cluster/`: what they start, and how again."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

import training.train as program
from training.recipes import RECIPES

CLUSTER = Path(program.__file__).parent / "cluster"


def started(command, monkeypatch):
    """The arguments of `train` in the command of a container."""
    calls = []
    monkeypatch.setattr(program, "train", lambda *a: calls.append(a))
    with pytest.raises(SystemExit) as end:
        program.main(command[command.index("training.train") + 1 :])
    assert end.value.code == 0
    return calls[0]


def pod_of(name):
    manifest = yaml.safe_load((CLUSTER / name).read_text())
    if manifest["kind"] == "JobSet":
        (job,) = manifest["spec"]["replicatedJobs"]
        job = job["template"]["spec"]
        assert job["completionMode"] == "Indexed"
        return job, job["template"]["spec"]
    job = manifest["spec"]["tfReplicaSpecs"]["Worker"]
    return job, job["template"]["spec"]


@pytest.mark.parametrize("name", ["jobset.yaml", "tfjob.yaml"])
def test_manifest_trains_into_a_volume(name, monkeypatch):
    _, pod = pod_of(name)
    (container,) = pod["containers"]
    recipe, output, data_dir, strategy, *_ = started(
        container["command"], monkeypatch
    )
    assert recipe == RECIPES["s24-224"]
    assert strategy == "workers"
    (mount,) = container["volumeMounts"]
    (volume,) = pod["volumes"]
    assert mount["name"] == volume["name"]
    assert volume["persistentVolumeClaim"]["claimName"]
    for path in (output, data_dir):
        assert path.is_relative_to(mount["mountPath"])


def test_jobset_starts_all_again_and_names_its_workers():
    job, pod = pod_of("jobset.yaml")
    manifest = yaml.safe_load((CLUSTER / "jobset.yaml").read_text())
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert (pod["restartPolicy"], job["backoffLimit"]) == ("Never", 0)
    name = manifest["metadata"]["name"]
    (replicated,) = manifest["spec"]["replicatedJobs"]
    command = pod["containers"][0]["command"]
    assert command[1:3] == [
        "$(JOB_COMPLETION_INDEX)",
        ",".join(
            f"{name}-{replicated['name']}-0-{index}.{name}:2222"
            for index in range(job["completions"])
        ),
    ]
    assert command[0] == "training/cluster/worker.sh"
    assert job["parallelism"] == job["completions"]


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
