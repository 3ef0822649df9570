"""`ray up`'s way to its first machines, on moto's AWS, in a process of its own.

Ray and boto3 are the real ones. The process reads a folder with the files of the target `aws` as
its working directory, and prints what Ray made of them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import boto3
import yaml
from moto import mock_aws


def main() -> None:
    config = yaml.safe_load(Path("cluster.yaml").read_text())
    with mock_aws():
        _make_roles(Path("iam.sh").read_text(), config)
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler._private.commands import _bootstrap_config
        from ray.autoscaler._private.util import hash_runtime_conf

        made = _bootstrap_config(config, no_config_cache=True)
        hash_runtime_conf(made["file_mounts"], [], "", generate_file_mounts_contents_hash=True)
        provider = AWSNodeProvider(made["provider"], made["cluster_name"])
        types = made["available_node_types"]
        for name, number in (("head", 1), ("worker", types["worker"]["min_workers"])):
            for _ in range(number):  # moto makes as few at once as AWS may
                provider.create_node(types[name]["node_config"], {"ray-user-node-type": name}, 1)
        seen = {name: _machines(name) for name in types}
    resources = types["worker"]["resources"]
    print("MADE" + json.dumps({"machines": seen, "worker": resources}))


def _machines(name: str) -> list[dict[str, Any]]:
    """The machines of a node type, as AWS lists them."""
    tagged = [{"Name": "tag:ray-user-node-type", "Values": [name]}]
    keys = ("InstanceType", "ImageId", "InstanceLifecycle")
    return [
        {key: machine.get(key) for key in keys}
        for one in boto3.client("ec2").describe_instances(Filters=tagged)["Reservations"]
        for machine in one["Instances"]
    ]


def _make_roles(script: str, config: dict[str, Any]) -> None:
    """The roles of the script, whose policies moto checks as AWS does."""
    iam = boto3.client("iam")
    documents = dict(re.findall(r"^(trust|head|worker)='(.*?)'$", script, re.DOTALL | re.MULTILINE))
    for kind, described in config["available_node_types"].items():
        name = described["node_config"]["IamInstanceProfile"]["Name"]
        assert f'role {name} "${kind}"' in script
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=documents["trust"])
        iam.put_role_policy(RoleName=name, PolicyName="job", PolicyDocument=documents[kind])
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)


if __name__ == "__main__":
    main()
