"""The RayJob: its fields, its pods by Kubernetes' schema, what the operator asks, and its entry."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.deploy.commented import plain
from cluster.deploy.kuberay import MOUNTED, kuberay, kuberay_next, rayjob
from cluster.results.parts import read_parts
from jobs.deployment.files import job_text
from jobs.spec import parse_job
from pipeline.storage import Folder
from tests.cluster.deploy.jobs import HERE, MANY, needs
from tests.cluster.deploy.rayjob_fields import RAYJOB
from tests.cluster.deploy.shells import shellcheck

KUBERNETES = "1.37"
BIN = str(Path(sys.executable).parent)


@pytest.fixture(params=MANY)
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A RayJob as the operator reads it."""
    text = kuberay(MANY[request.param])["rayjob.yaml"]
    return yaml.safe_load(text)


def templates(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates, the head's first."""
    cluster = job["spec"]["rayClusterSpec"]
    return [one["template"] for one in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_a_rayjob_has_only_fields_of_kuberay_and_their_types(spec: dict[str, Any]) -> None:
    jsonschema.validate(spec, RAYJOB)


def test_its_pods_pass_kubernetes_strict_schema(spec: dict[str, Any]) -> None:
    for template in templates(spec):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_schemas_notice_a_field_that_is_not_there(spec: dict[str, Any]) -> None:
    wrong = copy.deepcopy(spec)
    wrong["spec"]["ttlSecondsAfterFinish"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, RAYJOB)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **templates(spec)[0]}
    pod["spec"]["containers"][0]["shmSize"] = "1Gi"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", MANY)
def test_the_config_map_passes_kubernetes_strict_schema(name: str) -> None:
    made = yaml.safe_load(kuberay(MANY[name])["configmap.yaml"])
    kubernetes_validate.validate(made, KUBERNETES, strict=True)
    assert made["data"]["job.yaml"] == MANY[name].job_text


def test_what_the_operator_refuses_beyond_the_schema_is_not_there(spec: dict[str, Any]) -> None:
    """As `ValidateRayJobSpec` of KubeRay v1.7.0 asks."""
    inner = spec["spec"]
    head = inner["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    if inner.get("suspend"):
        assert inner["shutdownAfterJobFinishes"] is True
    else:
        assert "ttlSecondsAfterFinished" not in inner
    assert ("deletionStrategy" in inner) is not inner.get("shutdownAfterJobFinishes", False)
    rules = inner.get("deletionStrategy", {}).get("deletionRules", [])
    order = ["DeleteWorkers", "DeleteCluster", "DeleteSelf"]
    for status in ("SUCCEEDED", "FAILED"):
        found = {r["policy"]: r["condition"] for r in rules}
        found = {
            r["policy"]: r["condition"]["ttlSeconds"]
            for r in rules
            if r["condition"].get("jobStatus") == status
        }
        waits = [found[policy] for policy in order if policy in found]
        assert waits == sorted(waits)
    assert inner["submissionMode"] == "SidecarMode"
    assert head.get("restartPolicy", "Never") == "Never"
    assert inner["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert "submitterPodTemplate" not in inner


def test_every_mount_has_its_volume(spec: dict[str, Any]) -> None:
    for template in templates(spec):
        volumes = [volume["name"] for volume in template["spec"]["volumes"]]
        (container,) = template["spec"]["containers"]
        assert sorted(mount["name"] for mount in container["volumeMounts"]) == sorted(volumes)


def test_each_stage_has_its_worker_group() -> None:
    cluster = plain(rayjob(MANY["split"]))["spec"]["rayClusterSpec"]
    found = {
        group["groupName"]: (
            group["replicas"],
            group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"],
        )
        for group in cluster["workerGroupSpecs"]
    }
    assert found == {"inversion": (1, "2"), "reconstruction": (2, "8"), "prompts": (1, "1")}


def test_the_head_has_no_gpu_no_work_and_time_to_end() -> None:
    cluster = plain(rayjob(needs(cluster={"stop_grace_s": 100})))["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert head["template"]["spec"]["terminationGracePeriodSeconds"] >= 120


def test_spot_nodes_are_asked_for_by_the_workers_and_shunned_by_the_head() -> None:
    head, worker = templates(plain(rayjob(MANY["spot"])))
    path = ("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")

    def terms(template: dict[str, Any]) -> list[list[tuple[str, str]]]:
        inner = template["spec"]
        for key in path:
            inner = inner[key]
        return [
            [(one["key"], one["operator"]) for one in term["matchExpressions"]]
            for term in inner["nodeSelectorTerms"]
        ]

    assert len(terms(head)) == 1
    assert {operator for _, operator in terms(head)[0]} == {"NotIn"}
    gke = [("cloud.google.com/gke-accelerator", "In"), ("cloud.google.com/gke-spot", "In")]
    assert gke in terms(worker)
    assert len(terms(worker)) == 6  # no label of one cloud beside another's
    tolerated = {one["key"] for one in worker["spec"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= tolerated


def test_with_kueue_the_job_waits_for_its_queue() -> None:
    job = plain(rayjob(MANY["queue"]))
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert job["spec"]["suspend"] is True


def test_secrets_are_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-written-anywhere")
    made = "".join(kuberay(needs()).values())
    assert "not-to-be-written-anywhere" not in made
    (head, _) = templates(plain(rayjob(needs())))
    assert head["spec"]["containers"][0]["envFrom"] == [
        {"secretRef": {"name": "horses-env", "optional": True}}
    ]


def test_local_paths_are_warned_of_in_the_file() -> None:
    assert "# WARNING: these are paths of this machine" in kuberay(needs(HERE))["rayjob.yaml"]


# The entry command.


def entry(folder: Path, text: str = "") -> list[str]:
    """The RayJob's entry command as a shell runs it, its mounted folder put at `folder`."""
    made = kuberay(needs())
    for name, content in yaml.safe_load(made["configmap.yaml"])["data"].items():
        (folder / name).write_text(content.replace(MOUNTED, str(folder)))
    if text:
        (folder / "job.yaml").write_text(text)
    command = yaml.safe_load(made["rayjob.yaml"])["spec"]["entrypoint"]
    return ["bash", "-ce", command.replace(MOUNTED, str(folder))]


def environment(folder: Path, *first: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    path = os.pathsep.join([*map(str, first), BIN, kept["PATH"]])
    return kept | {"PATH": path, "TMPDIR": str(folder)}


def pretended(folder: Path, script: str) -> Path:
    """A folder with a `retake` that does this."""
    place = folder / "bin"
    place.mkdir()
    (place / "retake").write_text(f"#!/bin/bash\n{script}\n")
    (place / "retake").chmod(0o755)
    return place


def test_shellcheck_finds_nothing_in_its_scripts(tmp_path: Path) -> None:
    entry(tmp_path)
    shellcheck(tmp_path / "run.sh", tmp_path / "stop.sh")


@pytest.mark.parametrize(("of_the_run", "of_the_entry"), [(0, 0), (3, 0), (1, 1), (143, 0)])
def test_a_job_with_failed_edits_or_that_retake_stop_ended_is_not_tried_again(
    tmp_path: Path, of_the_run: int, of_the_entry: int
) -> None:
    bin_ = pretended(tmp_path, f'echo "$@"; exit {of_the_run}')
    done = subprocess.run(
        entry(tmp_path),
        env=environment(tmp_path, bin_),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == of_the_entry
    assert done.stdout.startswith(f"run --wait {tmp_path}/job.yaml\n")


@pytest.mark.parametrize("by", ["signal", "hook", "both"])
def test_a_pod_that_goes_has_the_run_end_in_order(tmp_path: Path, by: str) -> None:
    bin_ = pretended(
        tmp_path,
        'asked=; trap "echo asked; asked=1" TERM; echo works\n'
        'while [ -z "$asked" ]; do read -t 0.1 <> <(:) || true; done\n'
        "end=$((SECONDS + 2)); while [ $SECONDS -lt $end ]; do read -t 0.1 <> <(:) || true; done\n"
        "echo ended in order; exit 143",
    )
    env = environment(tmp_path, bin_)
    run = subprocess.Popen(entry(tmp_path), env=env, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "works\n"
    while not (tmp_path / "retake.pid").exists():
        assert run.poll() is None
    if by != "hook":
        run.send_signal(signal.SIGTERM)
        assert run.stdout.readline() == "asked\n"
    if by != "signal":
        hook = plain(rayjob(needs()))["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        command = hook["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        here = [word.replace(MOUNTED, str(tmp_path)) for word in command]
        subprocess.run(here, env=env, check=True, timeout=20)
    out, _ = run.communicate(timeout=20)
    # asked once, since a second signal ends a run at once
    assert (run.returncode, out) == (143, "asked\n" * (by == "hook") + "ended in order\n")


@pytest.mark.soak
@pytest.mark.ray
def test_the_entry_command_makes_the_edits_of_a_small_job(tmp_path: Path) -> None:
    """With a real `retake run`, which starts Ray; on a cluster it finds RAY_ADDRESS."""
    from jobs.demo.job import write_demo

    job = write_demo(tmp_path / "demo")
    manifest = pq.read_table(job["manifest"]).slice(0, 1)
    pq.write_table(manifest, job["manifest"])
    small = {"video": {"height": 32, "width": 32, "frames": 5}, "inversion": {"steps": 2}}
    values = {**job, **small, "output": str(tmp_path / "out"), "cluster": {"device": "cpu"}}
    command = entry(tmp_path, job_text(parse_job(values, source="the demo")))
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # sockets' paths are of 107 bytes
        env = environment(tmp_path) | {"RAY_TMPDIR": short}
        subprocess.run(command, env=env, check=True, timeout=200)
    parts = read_parts(Folder(str(tmp_path / "out")))
    results = [row for _, part in parts for row in part.to_pylist()]
    assert [row["status"] for row in results] == ["ok", "ok"]


def test_paths_of_this_machine_are_not_in_the_secret() -> None:
    made = needs({"manifest": "gs://in/m.parquet", "output": "gs://out"}, env=("MINE",))
    assert "GOOGLE_APPLICATION_CREDENTIALS" in made.env
    (command,) = [one for one in kuberay_next(made) if "create secret" in one]
    assert "'^(MINE)='" in command
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in kuberay(made)["rayjob.yaml"]
    without = needs({"manifest": "gs://in/m.parquet", "output": "gs://out"})
    assert not [one for one in kuberay_next(without) if "secret" in one]


def test_ray_gives_a_run_whose_rayjob_is_deleted_the_time_to_end() -> None:
    made = plain(rayjob(needs(cluster={"stop_grace_s": 90.0})))["spec"]["rayClusterSpec"]
    pod = made["headGroupSpec"]["template"]["spec"]
    (seconds,) = [
        one["value"]
        for one in pod["containers"][0]["env"]
        if one["name"] == "RAY_JOB_STOP_WAIT_TIME_S"
    ]
    assert seconds == "110"
    assert pod["terminationGracePeriodSeconds"] > 110
