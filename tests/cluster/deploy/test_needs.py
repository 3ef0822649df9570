"""What a job needs of machines: how many, of which size, with which names and variables."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from cluster.deploy.needs import label, warning_of
from cluster.deploy.sizing import Pool
from cluster.deploy.versions import installed
from cluster.job import CannotRun
from tests.cluster.deploy.jobs import HERE, ON_S3, SPLIT, needs


def test_groups_that_fill_the_cluster_take_as_many_nodes_as_the_user_says() -> None:
    size = needs(gpu_kind="H100", nodes=3).size
    assert (size.nodes, size.gpus, size.cpus, size.memory_gb) == (3, 8, 88, 1024)
    assert size.pools == (Pool("groups", 3, 8, 1, 88, 1024),)


def test_without_a_word_it_is_one_node_with_the_gpus_of_one_group() -> None:
    assert needs().size.nodes == 1
    assert needs().size.gpus == 1
    assert needs(cluster={"reconstruction": {"gpus": 4, "cfg": 2}}).size.gpus == 4


def test_groups_that_the_job_names_say_how_many_nodes() -> None:
    size = needs(cluster={"reconstruction": {"groups": 9}}, gpus_per_node=8).size
    assert (size.nodes, size.gpus) == (2, 8)
    assert [(pool.nodes, pool.gpus) for pool in size.pools] == [(2, 5)]  # 9 groups, 5 a node


def test_each_stage_has_its_pool_where_all_groups_are_named() -> None:
    size = needs(cluster=SPLIT, gpus_per_node=8).size
    pools = {pool.name: (pool.nodes, pool.gpus, pool.group_gpus) for pool in size.pools}
    assert pools == {"inversion": (1, 2, 1), "reconstruction": (2, 8, 4), "prompts": (1, 1, 1)}
    # Three groups of 4 and three of 1 are 15 GPUs: two whole machines hold them.
    assert (size.nodes, size.gpus) == (2, 8)


def test_gpus_of_a_group_must_fit_one_node() -> None:
    with pytest.raises(CannotRun, match=r"reconstruction\.gpus is 4, and a node has 2.*or more"):
        needs(cluster={"reconstruction": {"gpus": 4}}, gpus_per_node=2)


@pytest.mark.parametrize(
    ("cluster", "choices", "why"),
    [
        ({"reconstruction": {"groups": 4}}, {"nodes": 3}, "fill 4 of 1 GPUs"),
        (SPLIT | {"inversion": {}}, {"nodes": 1, "gpus_per_node": 8}, "need 2 nodes of 8 GPUs"),
        ({"device": "cpu"}, {"gpus_per_node": 4}, "cluster.device: cpu"),
        ({"device": "gpu"}, {"gpus_per_node": 0}, "cluster.device: gpu"),
        ({}, {"gpu_kind": "K80"}, "expected one of H200, H100"),
    ],
)
def test_what_contradicts_the_job_is_refused(
    cluster: dict[str, Any], choices: dict[str, Any], why: str
) -> None:
    with pytest.raises(CannotRun, match=why):
        needs(cluster=cluster, **choices)


def test_a_job_on_cpus_needs_no_gpus() -> None:
    size = needs(cluster={"device": "cpu", "prompts": {"gpus": 1}}, gpu_kind="H100").size
    assert (size.gpus, size.cpus, size.memory_gb) == (0, 8, 32)
    assert [pool.name for pool in size.pools] == ["groups"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("Horses, take 2", "horses-take-2"),
        ("2nd", "retake-2nd"),
        ("", "retake"),
        ("x" * 80, "x" * 40),
        ("a" * 39 + "-b", "a" * 39),
    ],
)
def test_a_name_becomes_a_dns_label(name: str, safe: str) -> None:
    assert label(name) == safe


def test_the_storage_says_which_variables_and_extras_are_needed() -> None:
    found = needs(env=("WANDB_API_KEY", "AWS_REGION"))
    assert found.extras == ("s3",)
    assert found.env[:2] == ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert found.env[-2:] == ("HF_TOKEN", "WANDB_API_KEY")
    assert needs(HERE).env == ()


def test_paths_of_this_machine_are_warned_of() -> None:
    assert needs(HERE).local == {key: HERE[key] for key in ("manifest", "output")}
    assert "manifest /data/manifest.parquet, output /data/out" in warning_of(needs(HERE))
    assert warning_of(needs(ON_S3)) == ""


def test_a_run_has_its_grace_and_rays_shutdown_to_end() -> None:
    assert needs(cluster={"stop_grace_s": 12.5}).stop_s == 33


def test_versions_are_those_that_are_installed() -> None:
    found = installed(("s3",))
    assert found.ray == version("ray")
    packages = dict(found.packages)
    assert packages["pyarrow"] == version("pyarrow")
    assert packages["s3fs"] == version("s3fs")
    assert packages["torch"] == version("torch").partition("+")[0]
    assert not {"retake", "pytest"} & set(packages)
    assert "\nray==" in found.constraints


def test_what_only_the_cpus_build_of_torch_names_is_left_open() -> None:
    """PyPI's torch 2.13.0 asks for another triton than the build for CPUs goes with."""
    ours = "cpu" in version("torch")
    assert ("triton" in dict(installed().packages)) is not ours
