"""A job on Kubernetes: a RayJob of KubeRay 1.7, which brings up a Ray cluster for it."""

from __future__ import annotations

from typing import Any

from cluster.deploy.commented import Why, commented
from cluster.deploy.docker import CACHE, SHM_PART, USER
from cluster.deploy.needs import FILES, JOB, Needs, warning_of
from cluster.deploy.sizing import Pool
from cluster.submission.environment import STOP_WAIT

MOUNTED = "/etc/retake"
"""Where the job file and the script that runs it are, in every container."""
HEAD_CPUS = 4
HEAD_MEMORY_GB = 16
PRE_STOP_S = 10
"""Kubernetes counts what a hook takes as part of the grace, so it gets a little more."""

SPOT = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
"""How clouds label nodes that may be taken away."""
SPOT_TAINTS = ("cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority")

RUN = """\
#!/bin/bash
# Runs the job on Ray's head. KubeRay calls it, and again for each try (backoffLimit).
set -u

# --wait: the try before may still hold the output folder, for a minute after it was killed.
stopping="${{TMPDIR:-/tmp}}/retake.stopping" # is there once the run was asked to end
trap 'touch "$stopping"; kill -TERM "$(jobs -p)"' TERM INT
retake run --wait "{mounted}/{job}" &
run=$!
echo "$run" >"${{TMPDIR:-/tmp}}/retake.pid" # for stop.sh

wait "$run"
status=$?
while kill -0 "$run" 2>/dev/null; do # a signal ended the wait, not the run
  wait "$run"
  status=$?
done

# 3: the job came to its end, and some edits failed. A new cluster would fail them again.
if [ "$status" -eq 3 ]; then
  echo "some edits failed; the output folder says which, and the next run tries them again"
  exit 0
fi
# 143 without a signal to this script or a pod that goes: `retake stop` ended the run. Nor is that
# tried again.
if [ "$status" -eq 143 ] && [ ! -e "$stopping" ]; then
  echo "the run was stopped; create the RayJob again to go on"
  exit 0
fi
exit "$status"
"""
STOP = """\
#!/bin/bash
# Asks the run to end in order, and waits for it, before the head's container is stopped.
run=$(cat "${TMPDIR:-/tmp}/retake.pid" 2>/dev/null) || exit 0
# Where the RayJob is deleted Ray has asked it just before: a second signal would end it at once.
if [ ! -e "${TMPDIR:-/tmp}/retake.stopping" ]; then
  touch "${TMPDIR:-/tmp}/retake.stopping"
  kill -TERM "$run" 2>/dev/null || exit 0
fi
while kill -0 "$run" 2>/dev/null; do
  sleep 0.2
done
"""


def kuberay(needs: Needs) -> dict[str, str]:
    """`configmap.yaml` with the job, `rayjob.yaml` with the cluster that runs it."""
    warning = warning_of(needs)
    return {
        "configmap.yaml": commented(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": needs.name},
                "data": {
                    JOB: needs.job_text,
                    "run.sh": RUN.format(mounted=MOUNTED, job=JOB),
                    "stop.sh": STOP,
                },
            },
            "The job, and the scripts that start and stop it. After a change: apply it again, "
            "delete the RayJob and create it again.",
        ),
        "rayjob.yaml": commented(
            rayjob(needs),
            f"Runs the job {needs.name} on Kubernetes with KubeRay 1.7 or newer.\n"
            f"retake {needs.versions.retake}, ray {needs.versions.ray}, torch "
            f"{needs.versions.torch}, Python {needs.versions.short_python} must be in the image."
            + (f"\nWARNING: {warning}." if warning else ""),
        ),
    }


def kuberay_next(needs: Needs) -> list[str]:
    commands = ["kubectl apply -f configmap.yaml"]
    if env := _secret(needs):
        found = "|".join(env)
        commands.append(
            f"kubectl create secret generic {needs.name}-env --from-env-file=<(env | grep -E "
            f"'^({found})=')"
        )
    return [*commands, "kubectl apply -f rayjob.yaml", f"kubectl get rayjob {needs.name} --watch"]


def rayjob(needs: Needs) -> dict[str, Any]:
    """The RayJob as values, with why each is so."""
    labels = {"app.kubernetes.io/name": "retake"}
    queue: dict[str, Any] = {}
    if needs.queue:
        queue = {
            "kueue.x-k8s.io/queue-name": Why(needs.queue, "Kueue starts the job when it has room.")
        }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": needs.name, "labels": {**labels, **queue}},
        "spec": {
            "entrypoint": Why(
                f"bash {MOUNTED}/run.sh",
                "On the head, which has no GPU. A script, since KubeRay puts this line into "
                "another shell's.",
            ),
            "submissionMode": Why(
                "SidecarMode",
                "The job is submitted from a container beside the head's: no third pod must pull "
                "the image, no network lies between, and what submits ends with what runs. With "
                "K8sJobMode a submitter could be evicted while the job runs.",
            ),
            "backoffLimit": Why(
                3,
                "A lost head is answered by a new cluster, so often. It goes on where the results "
                "end: only the last seconds are made again.",
            ),
            "preRunningDeadlineSeconds": Why(
                3600,
                "A job that cannot start (no GPUs to be had, an image that is not there) fails "
                "after an hour instead of waiting for ever. Raise it where GPUs are rare.",
            ),
            **_end(needs),
            "rayClusterSpec": {
                "rayVersion": needs.versions.ray,
                "authOptions": Why(
                    {"mode": "token"},
                    "The operator makes a token, and a Secret that holds it: nobody else in the "
                    "network can give work to this cluster.",
                ),
                "headGroupSpec": _head(needs),
                "workerGroupSpecs": [_worker(pool, needs) for pool in needs.size.pools],
            },
        },
    }


def _end(needs: Needs) -> dict[str, Any]:
    """What becomes of the cluster when the job is over."""
    if needs.queue:
        return {
            "suspend": Why(
                True, "Kueue ends the suspension; without Kueue the job would wait for ever."
            ),
            "shutdownAfterJobFinishes": Why(
                True,
                "What Kueue asks for; KubeRay takes no deletionRules beside it. The cluster, with "
                "the logs on it, stays for ttlSecondsAfterFinished.",
            ),
            "ttlSecondsAfterFinished": 60,
        }
    rules = [
        ({"jobStatus": "SUCCEEDED", "ttlSeconds": 0}, "DeleteWorkers"),
        ({"jobStatus": "SUCCEEDED", "ttlSeconds": 600}, "DeleteCluster"),
        ({"jobStatus": "FAILED", "ttlSeconds": 0}, "DeleteWorkers"),
        ({"jobStatus": "FAILED", "ttlSeconds": 3600}, "DeleteCluster"),
        ({"jobDeploymentStatus": "Failed", "ttlSeconds": 3600}, "DeleteCluster"),
    ]
    return {
        "deletionStrategy": Why(
            {"deletionRules": [{"policy": policy, "condition": when} for when, policy in rules]},
            "GPUs are given back at once; the head stays for its logs, ten minutes after a success "
            "and an hour after a failure. (ttlSecondsAfterFinished cannot stand beside rules.)\n"
            "`retake stop OUTPUT` counts as a success. KubeRay has no rule for a job that `ray job "
            "stop` or `retake stop JOB_ID` ends (STOPPED): its GPUs stay until `kubectl delete "
            "rayjob`.",
        )
    }


def _head(needs: Needs) -> dict[str, Any]:
    container = _container("ray-head", needs)
    container["env"] = [
        *container["env"],
        Why(
            {"name": STOP_WAIT, "value": str(needs.stop_s)},
            "Where the RayJob is deleted, KubeRay has Ray stop the job first. By itself Ray would "
            "kill it after 3 s.",
        ),
    ]
    container |= {
        "ports": [
            {"containerPort": needs.ports["gcs"], "name": "gcs-server"},
            {"containerPort": needs.ports["dashboard"], "name": "dashboard"},
            {"containerPort": needs.ports["client"], "name": "client"},
            {"containerPort": needs.ports["metrics"], "name": "metrics"},
        ],
        "resources": _resources(HEAD_CPUS, HEAD_MEMORY_GB, 0),
        "lifecycle": Why(
            {"preStop": {"exec": {"command": ["bash", f"{MOUNTED}/stop.sh"]}}},
            "Before this pod goes, the run ends in order: what is finished is stored.",
        ),
    }
    affinity: dict[str, Any] = {}
    if needs.spot:
        terms = [{"key": key, "operator": "NotIn", "values": [SPOT[key]]} for key in SPOT]
        affinity = {
            "affinity": Why(
                _node_affinity([{"matchExpressions": terms}]),
                "The head ends the whole try when it goes, so it is on no spot node.",
            )
        }
    return {
        "rayStartParams": {
            "num-cpus": Why("0", "No work of the job goes to the head: it has the driver."),
            "dashboard-host": "0.0.0.0",
        },
        "template": {"spec": {**_pod(needs, container, HEAD_MEMORY_GB), **affinity}},
    }


def _worker(pool: Pool, needs: Needs) -> dict[str, Any]:
    container = {
        **_container("ray-worker", needs),
        "resources": _resources(pool.cpus, pool.memory_gb, pool.gpus),
    }
    of = "GPUs" if pool.gpus else "cores"
    return {
        "groupName": Why(
            pool.name,
            f"{pool.nodes} node(s) with {pool.gpus or pool.cpus} {of} each; a group takes "
            f"{pool.group_gpus} of one node.",
        ),
        "replicas": Why(
            pool.nodes, "No autoscaling: Retake looks at the nodes when it starts, and fills them."
        ),
        "minReplicas": pool.nodes,
        "maxReplicas": pool.nodes,
        "rayStartParams": {},
        "template": {
            "spec": {**_pod(needs, container, pool.memory_gb), **_placing(needs, bool(pool.gpus))}
        },
    }


def _container(name: str, needs: Needs) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "image": needs.image,
        "env": [
            {"name": "RETAKE_CACHE", "value": f"{CACHE}/retake"},
            {"name": "HF_HOME", "value": f"{CACHE}/huggingface"},
        ],
    }
    if env := _secret(needs):
        container["envFrom"] = Why(
            [{"secretRef": {"name": f"{needs.name}-env", "optional": True}}],
            f"May hold {', '.join(env)}. Not needed where the pods' service account opens "
            "the storage.",
        )
    container["volumeMounts"] = [
        {"name": "job", "mountPath": MOUNTED, "readOnly": True},
        {"name": "cache", "mountPath": CACHE},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    return container


def _secret(needs: Needs) -> tuple[str, ...]:
    """The variables of the Secret: without those whose value is a path, which no pod has."""
    return tuple(name for name in needs.env if name not in FILES)


def _resources(cpus: int, memory_gb: int, gpus: int) -> dict[str, Any]:
    amount = {"cpu": str(cpus), "memory": f"{memory_gb}Gi"}
    if gpus:
        amount["nvidia.com/gpu"] = str(gpus)
    return {"limits": amount, "requests": dict(amount)}


def _pod(needs: Needs, container: dict[str, Any], memory_gb: int) -> dict[str, Any]:
    return {
        "securityContext": Why(
            {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER},
            "The user of the image that `retake deploy docker` describes.",
        ),
        "terminationGracePeriodSeconds": Why(
            needs.stop_s + PRE_STOP_S,
            "cluster.stop_grace_s, 20 s for Ray's end, and a little more.",
        ),
        "containers": [container],
        "volumes": [
            {"name": "job", "configMap": {"name": needs.name}},
            {"name": "cache", "emptyDir": {}},
            {
                "name": "shm",
                "emptyDir": Why(
                    {"medium": "Memory", "sizeLimit": f"{int(memory_gb * SHM_PART)}Gi"},
                    "Ray's objects and NCCL use shared memory; a container has 64 MB by itself. "
                    "What lies there counts as memory of the container.",
                ),
            },
        ],
    }


def _placing(needs: Needs, on_gpus: bool) -> dict[str, Any]:
    """On which nodes a worker may go."""
    tolerations: list[dict[str, Any]] = []
    terms: list[list[dict[str, Any]]] = [[]]
    if on_gpus:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
        labels = {
            "nvidia.com/gpu.product": needs.gpu.products,
            "cloud.google.com/gke-accelerator": needs.gpu.gke,
            "karpenter.k8s.aws/instance-gpu-name": tuple(filter(None, [needs.gpu.karpenter])),
        }
        terms = [[_is_in(key, list(values))] for key, values in labels.items() if values] or [[]]
    if needs.spot:
        tolerations += [
            {"key": key, "operator": "Equal", "value": SPOT[key], "effect": "NoSchedule"}
            for key in SPOT_TAINTS
        ]
        terms = [
            [*term, _is_in(key, [SPOT[key]])] for term in terms for key in SPOT if _meet(term, key)
        ]
    placing: dict[str, Any] = {}
    if tolerations:
        placing["tolerations"] = tolerations
    if any(terms):
        placing["affinity"] = Why(
            _node_affinity([{"matchExpressions": term} for term in terms]),
            "One of these is enough: clouds label nodes in ways of their own. A nodeSelector would "
            "ask for all at once. Remove what your cluster does not have, if you like.",
        )
    return placing


def _meet(term: list[dict[str, Any]], spot: str) -> bool:
    """Whether a node may have both labels: what one cloud's Kubernetes says, no other does."""
    cloud = next((one["key"].partition(".")[0] for one in term), "nvidia")
    return cloud == "nvidia" or spot.startswith(f"{cloud}.")


def _is_in(key: str, values: list[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": values}


def _node_affinity(terms: list[dict[str, Any]]) -> dict[str, Any]:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"nodeAffinity": required}
