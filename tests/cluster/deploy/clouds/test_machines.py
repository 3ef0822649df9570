"""The machines of clouds: their GPUs, and what is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import moto
import pytest

from cluster.deploy.clouds.aws import HEAD as AWS_HEAD
from cluster.deploy.clouds.aws import aws
from cluster.deploy.clouds.gcp import gcp
from cluster.deploy.clouds.machines import AWS, AWS_WITHOUT, GCP, machine_of
from cluster.deploy.clouds.skypilot import skypilot
from cluster.deploy.gpus import GPUS
from cluster.deploy.needs import Needs
from cluster.job import CannotRun
from cluster.settings import ClusterSettings, GroupSettings
from tests.cluster.deploy.clouds.needs import needs

LISTED = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
ALIKE = {"A100-40GB": ("A100", 40), "A100-80GB": ("A100", 80)}
TARGETS = (aws, gcp, skypilot)


def test_awss_machines_have_the_gpus_and_cores_that_aws_lists() -> None:
    listed = json.loads(gzip.decompress(LISTED.read_bytes()))
    for kind, machines in AWS.items():
        name, memory_gb = ALIKE.get(kind, (kind, GPUS[kind].memory_gb))
        for number, machine in machines.items():
            (gpu,) = listed[machine.name]["GpuInfo"]["Gpus"]
            assert (gpu["Name"], gpu["Count"]) == (name, number)
            assert abs(gpu["MemoryInfo"]["SizeInMiB"] / 1024 - memory_gb) <= 3.5
            assert listed[machine.name]["VCpuInfo"]["DefaultVCpus"] == machine.cpus
            memory = listed[machine.name]["MemoryInfo"]["SizeInMiB"] / 1024
            assert memory >= number * GPUS[kind].ram_gb
    for cpus, machine in AWS_WITHOUT.items():
        assert listed[machine.name]["VCpuInfo"]["DefaultVCpus"] == cpus == machine.cpus
    assert AWS_HEAD in listed


def test_every_kind_has_a_machine_somewhere() -> None:
    assert {*AWS, *GCP} == set(GPUS)


@pytest.mark.parametrize("target", TARGETS)
def test_the_kind_of_gpu_must_be_named(target: Callable[[Needs], dict[str, str]]) -> None:
    with pytest.raises(CannotRun, match=r"--gpu-kind is missing: .* H200, H100"):
        target(needs(project="p"))


def test_a_kind_that_a_cloud_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(CannotRun, match="gcp has no such machines; expected one of H200, H100"):
        gcp(needs(gpu_kind="A10G", project="p"))


def test_a_number_of_gpus_that_no_machine_has_is_refused_with_the_numbers() -> None:
    with pytest.raises(CannotRun, match="--gpus-per-node 2: aws has machines with 1, 8 H100"):
        aws(needs(gpu_kind="H100", gpus_per_node=2))


def test_without_gpus_the_smallest_machine_with_the_cores_is_taken() -> None:
    wide = ClusterSettings(device="cpu", reconstruction=GroupSettings(gpus=12))
    assert "InstanceType: m7i.4xlarge" in aws(needs(settings=wide))["cluster.yaml"]
    with pytest.raises(CannotRun, match=r"a group asks for 14 cores.* the largest machine .* 8;"):
        machine_of(needs(settings=wide), "aws", AWS, {8: AWS_WITHOUT[8]})


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("choice", "value"),
    [("image", "me/retake:1"), ("queue", "gpus"), ("zone", "a\nb: c"), ("project", "Mine")],
)
def test_what_means_nothing_there_is_refused(
    target: Callable[[Needs], dict[str, str]], choice: str, value: str
) -> None:
    chosen = {"project": "p", choice: value}
    with pytest.raises(CannotRun, match=f"--{choice}"):
        target(needs(gpu_kind="L4", **chosen))
