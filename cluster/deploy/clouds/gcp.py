"""Files for Ray's cluster launcher on Google Cloud."""

from __future__ import annotations

import shlex

from cluster.deploy.clouds.launcher import (
    CLUSTER,
    DISK_GB,
    HEAD_DISK_GB,
    IAM,
    RUN,
    buckets,
    cluster_yaml,
    resources,
    run_sh,
)
from cluster.deploy.clouds.machines import GCP, GCP_WITHOUT, machine_of
from cluster.deploy.clouds.setup import CONSTRAINTS
from cluster.deploy.needs import Needs
from cluster.job import CannotRun

ZONE = "us-central1-a"
HEAD = "n2-standard-8"
IMAGE = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
GPU_IMAGE = (
    "projects/ubuntu-os-accelerator-images/global/images/family/"
    "ubuntu-accelerator-2404-amd64-with-nvidia-580"
)
CLIENT = "google-api-python-client==2.202.0"
HYPERDISK = ("a3-ultragpu",)
"""Machines that take no other disk."""
ACCOUNT = 30
"""Characters that the name of a service account has at most."""


def gcp(needs: Needs) -> dict[str, str]:
    """The launcher's file, the account that nodes open storage with, and the commands.

    Raises:
        CannotRun: Google Cloud has no machine with these GPUs, or the project is not named.
    """
    machine = machine_of(needs, "gcp", GCP, GCP_WITHOUT)
    if not needs.project:
        raise CannotRun(
            "--project is missing: gcp rents machines in a project; name its id, as "
            "`gcloud config get-value project` prints it"
        )
    zone = needs.zone or ZONE
    provider = f"""\
provider:
  type: gcp
  project_id: {needs.project}
  region: {zone.rpartition("-")[0]}
  # Where the machines are; GPUs are not to be had in all zones. The project's quota for this kind
  # of GPU{" (preemptible)" if needs.spot else ""} must allow {needs.size.nodes} x \
{needs.size.gpus}.
  availability_zone: {zone}
  # Machines are given back, and not stopped: a stopped one costs its disk.
  cache_stopped_nodes: false
"""
    kind = "hyperdisk-balanced" if machine.name.startswith(HYPERDISK) else "pd-balanced"
    account = f"{_account(needs)}@{needs.project}.iam.gserviceaccount.com"
    types = f"""\
# The driver of the job, and Ray's own processes: no work of the job (CPU: 0), never spot. Ray gives
# it an account of its own, ray-autoscaler-sa-v1, which may read and write the project's buckets.
head:
  resources: {{CPU: 0}}
  node_config:
    machineType: {HEAD}
{_disk(HEAD_DISK_GB, IMAGE, zone, "pd-balanced")}
worker:
  min_workers: {needs.size.nodes}
  max_workers: {needs.size.nodes}
  resources: {resources(machine, needs.size.gpus)}
  node_config:
    # Its GPUs are part of the machine's type.
    machineType: {machine.name}
    serviceAccounts:
      - email: {account}
        scopes: [https://www.googleapis.com/auth/cloud-platform]
{_scheduling(needs)}{_disk(DISK_GB, GPU_IMAGE if needs.size.gpus else IMAGE, zone, kind)}
"""
    return {
        CLUSTER: cluster_yaml(needs, provider=provider, types=types, also=CLIENT),
        IAM: _iam(needs, account),
        RUN: run_sh(
            needs,
            client=f"{CLIENT}, gcloud",
            before=f"Once before: `gcloud auth application-default login`, and ./{IAM}.",
        ),
        CONSTRAINTS: needs.versions.constraints,
    }


def _account(needs: Needs) -> str:
    return f"{needs.name[: ACCOUNT - 7].strip('-')}-worker"


def _scheduling(needs: Needs) -> str:
    if needs.spot:
        return """\
    # May be taken away 30 s after a notice; the autoscaler asks for another one.
    scheduling:
      provisioningModel: SPOT
      instanceTerminationAction: DELETE
      onHostMaintenance: TERMINATE
      automaticRestart: false
"""
    if needs.size.gpus:
        return """\
    # A machine with GPUs cannot be moved while it runs.
    scheduling: {onHostMaintenance: TERMINATE, automaticRestart: true}
"""
    return ""


def _disk(size_gb: int, image: str, zone: str, kind: str) -> str:
    return f"""\
    disks:
      - boot: true
        autoDelete: true
        type: PERSISTENT
        initializeParams:
          diskSizeGb: {size_gb}
          diskType: zones/{zone}/diskTypes/{kind}
          sourceImage: {image}"""


def _iam(needs: Needs, account: str) -> str:
    """The script that makes the account of the workers: Ray gives them none."""
    grants = "\n".join(
        f"gcloud storage buckets add-iam-policy-binding {shlex.quote(f'gs://{name}')} \\\n"
        f'  --member="serviceAccount:{account}" --role=roles/storage.objectUser >/dev/null'
        for name in buckets(needs, "gcs", ("gs", "gcs"))
    )
    return f"""\
#!/usr/bin/env bash
# The account of the workers of {needs.name}, with which they open the job's storage: no key is
# copied to them. Once for each project; a second time it changes nothing. It needs gcloud.
# To remove it: gcloud iam service-accounts delete {account}
set -euo pipefail

gcloud services enable compute.googleapis.com iam.googleapis.com \\
  cloudresourcemanager.googleapis.com --project={needs.project}
gcloud iam service-accounts describe {account} --project={needs.project} >/dev/null 2>&1 ||
  gcloud iam service-accounts create {_account(needs)} --project={needs.project}
{grants}
"""
