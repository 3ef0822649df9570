"""The fields of a RayJob that our files use, with their types, written down for the tests.

Source: `ray-operator/apis/ray/v1/rayjob_types.go` and `raycluster_types.go` of KubeRay v1.7.0
(commit 59d663a, Apache-2.0). Pod templates are left to Kubernetes' own schema. Whole files were
once held against the CRD itself: docs/operating.md.
"""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0}
YES_OR_NO: dict[str, Any] = {"type": "boolean"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}
POD: dict[str, Any] = {"type": "object"}


def record(required: list[str], **fields: dict[str, Any]) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": required,
        "additionalProperties": False,
    }


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


CONDITION = record(
    [],
    jobStatus=one_of("SUCCEEDED", "FAILED"),
    jobDeploymentStatus=one_of("Failed"),
    ttlSeconds=NUMBER,
) | {
    # The CRD says this in CEL: one of the two, and not both.
    "oneOf": [{"required": ["jobStatus"]}, {"required": ["jobDeploymentStatus"]}]
}
RULE = record(
    ["policy", "condition"],
    policy=one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"),
    condition=CONDITION,
)
HEAD = record(["template"], rayStartParams=TEXTS, template=POD)
WORKERS = record(
    ["groupName", "minReplicas", "maxReplicas", "template"],
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER = record(
    ["headGroupSpec"],
    rayVersion=TEXT,
    authOptions=record([], mode=one_of("disabled", "token"), secretName=TEXT),
    headGroupSpec=HEAD,
    workerGroupSpecs=listed(WORKERS),
)
SPEC = record(
    [],
    entrypoint=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    backoffLimit=NUMBER,
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    deletionStrategy=record(["deletionRules"], deletionRules=listed(RULE)),
    suspend=YES_OR_NO,
    shutdownAfterJobFinishes=YES_OR_NO,
    ttlSecondsAfterFinished=NUMBER,
    rayClusterSpec=CLUSTER,
)
RAYJOB = record(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion=one_of("ray.io/v1"),
    kind=one_of("RayJob"),
    metadata=record(["name"], name=TEXT | {"maxLength": 47}, labels=TEXTS),
    spec=SPEC,
)
