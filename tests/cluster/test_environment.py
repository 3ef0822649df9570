"""The environment of ranks: their share of the node's cores, and the GPU's allocator."""

import os
from pathlib import Path

import pytest

from cluster.stages import environment
from cluster.stages.environment import cores, rank_environment


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A node with 16 cores, and 4 GPUs of which Ray shows this process one."""
    for name in environment.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it for the actors of GPUs
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    for number in range(4):
        (tmp_path / f"nvidia{number}").touch()
    monkeypatch.setattr("cluster.layout.placement.NVIDIA_GPUS", (str(tmp_path / "nvidia[0-9]*"),))
    monkeypatch.setattr(environment, "CGROUPS", tmp_path / "none")
    return tmp_path


def test_a_rank_on_a_gpu_has_the_nodes_cores_divided_by_its_gpus() -> None:
    assert rank_environment("gpu", 1)["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize(("threads", "given"), [(5, "5"), (64, "16"), (0, "1")])
def test_a_rank_on_cpus_has_its_share_but_no_more_than_there_are(threads: int, given: str) -> None:
    variables = rank_environment("cpu", threads)
    assert variables == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": given}


def test_more_gpus_than_cores_leave_a_thread_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert rank_environment("gpu", 1)["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "9900000 100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "800000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({}, 16),
    ],
)
def test_the_limit_of_a_container_counts(node: Path, files: dict[str, str], count: int) -> None:
    for name, text in files.items():
        (node / name).parent.mkdir(exist_ok=True)
        (node / name).write_text(text)
    assert cores(node) == count


def test_gpu_memory_grows_by_segments_unless_the_user_chose_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rank_environment("gpu", 1)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in environment.ALLOCATOR:
        monkeypatch.setenv(name, "max_split_size_mb:512")
        assert environment.ALLOCATOR[0] not in rank_environment("gpu", 1)
        monkeypatch.delenv(name)


def test_torch_reads_the_allocators_variable_by_that_name() -> None:
    import torch

    library = Path(torch.__file__).parent / "lib/libc10.so"
    assert environment.ALLOCATOR[0].encode() + b"\0" in library.read_bytes()
