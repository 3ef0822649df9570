"""Files for Ray's cluster launcher on AWS."""

from __future__ import annotations

import json
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
from cluster.deploy.clouds.machines import AWS, AWS_WITHOUT, machine_of
from cluster.deploy.clouds.setup import CONSTRAINTS
from cluster.deploy.needs import Needs

REGION = "us-east-1"
HEAD = "m7i.2xlarge"
PARAMETER = "resolve:ssm:/aws/service"
GPU_IMAGE = (
    f"{PARAMETER}/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
)
IMAGE = f"{PARAMETER}/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ec2.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}


def aws(needs: Needs) -> dict[str, str]:
    """The launcher's file, the roles that nodes open storage with, and the commands.

    Raises:
        CannotRun: AWS has no machine with these GPUs.
    """
    machine = machine_of(needs, "aws", AWS, AWS_WITHOUT)
    region = needs.zone or REGION
    provider = f"""\
provider:
  type: aws
  # Where the machines are; GPUs are not to be had in all regions. The account's quota of vCPUs for
  # this family of machines{" (spot)" if needs.spot else ""} must allow {needs.size.nodes} x \
{machine.cpus}.
  region: {region}
  # Machines are given back, and not stopped: a stopped one costs its disk.
  cache_stopped_nodes: false
"""
    market = (
        "\n    # May be taken away two minutes after a notice; the autoscaler asks for another one."
        "\n    InstanceMarketOptions: {MarketType: spot}"
        if needs.spot
        else ""
    )
    image = GPU_IMAGE if needs.size.gpus else IMAGE
    types = f"""\
# The driver of the job, and Ray's own processes: no work of the job (CPU: 0), never spot.
head:
  resources: {{CPU: 0}}
  node_config:
    InstanceType: {HEAD}
    ImageId: {IMAGE}
    IamInstanceProfile: {{Name: {_head(needs)}}}
{_disk(HEAD_DISK_GB)}
worker:
  min_workers: {needs.size.nodes}
  max_workers: {needs.size.nodes}
  resources: {resources(machine, needs.size.gpus)}
  node_config:
    InstanceType: {machine.name}
    # {"Ubuntu 24.04 with NVIDIA's driver" if needs.size.gpus else "Ubuntu 24.04"}. EC2 looks up \
which is the newest; `ami-...` holds one.
    ImageId: {image}
    IamInstanceProfile: {{Name: {_worker(needs)}}}{market}
{_disk(DISK_GB)}
"""
    return {
        CLUSTER: cluster_yaml(needs, provider=provider, types=types, also="boto3"),
        IAM: _iam(needs),
        RUN: run_sh(
            needs,
            client="boto3",
            before=f"Once before: ./{IAM}, which makes the roles of the nodes.",
        ),
        CONSTRAINTS: needs.versions.constraints,
    }


def _head(needs: Needs) -> str:
    return f"{needs.name}-head"


def _worker(needs: Needs) -> str:
    return f"{needs.name}-worker"


def _disk(size_gb: int) -> str:
    return (
        "    BlockDeviceMappings:\n"
        f"      - {{DeviceName: /dev/sda1, Ebs: {{VolumeSize: {size_gb}, VolumeType: gp3}}}}"
    )


def _iam(needs: Needs) -> str:
    """The script that makes the roles.

    Ray's own role for the head may not start machines that have a role, and it gives workers none.
    """
    storage = _storage(buckets(needs, "s3", ("s3", "s3a")))
    head = [
        {
            "Effect": "Allow",
            "Action": "iam:PassRole",
            "Resource": f"arn:aws:iam::*:role/{_worker(needs)}",
        },
        {"Effect": "Allow", "Action": "ssm:GetParameters", "Resource": "*"},
        *storage,
    ]
    worker = storage or [{"Effect": "Allow", "Action": "sts:GetCallerIdentity", "Resource": "*"}]
    return f"""\
#!/usr/bin/env bash
# The roles of the nodes of {needs.name}, with which they open the job's storage: no key is copied
# to them. Once for each account; a second time it changes nothing. It needs the AWS CLI.
# To remove them: {_head(needs)} and {_worker(needs)}, in IAM.
set -euo pipefail

trust={_json(TRUST)}
head={_json({"Version": "2012-10-17", "Statement": head})}
worker={_json({"Version": "2012-10-17", "Statement": worker})}

role() {{ # name, policy
  aws iam get-role --role-name "$1" >/dev/null 2>&1 ||
    aws iam create-role --role-name "$1" --assume-role-policy-document "$trust" >/dev/null
  aws iam put-role-policy --role-name "$1" --policy-name job --policy-document "$2"
  aws iam get-instance-profile --instance-profile-name "$1" >/dev/null 2>&1 || {{
    aws iam create-instance-profile --instance-profile-name "$1" >/dev/null
    aws iam add-role-to-instance-profile --instance-profile-name "$1" --role-name "$1"
  }}
}}

role {_worker(needs)} "$worker"
role {_head(needs)} "$head"
# The head starts and ends the workers.
aws iam attach-role-policy --role-name {_head(needs)} \\
  --policy-arn arn:aws:iam::aws:policy/AmazonEC2FullAccess
"""


def _storage(names: tuple[str, ...]) -> list[dict[str, object]]:
    if not names:
        return []
    return [
        {
            "Effect": "Allow",
            "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"],
            "Resource": [f"arn:aws:s3:::{name}" for name in names],
        },
        {
            "Effect": "Allow",
            "Action": [
                "s3:GetObject",
                "s3:PutObject",
                "s3:DeleteObject",
                "s3:AbortMultipartUpload",
                "s3:ListMultipartUploadParts",
            ],
            "Resource": [f"arn:aws:s3:::{name}/*" for name in names],
        },
    ]


def _json(value: object) -> str:
    """As one word of a shell."""
    return shlex.quote(json.dumps(value, indent=2))
