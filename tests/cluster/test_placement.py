"""Where a job's actors go, and which clusters are too small for it."""

from typing import Any

import pytest

from cluster.job import CannotRun
from cluster.placement import Placement, place
from cluster.settings import GroupSettings, PromptSettings
from tests.cluster.test_stages import a_job

PAIR, FOUR = GroupSettings(gpus=2), GroupSettings(gpus=4)


@pytest.mark.parametrize(
    ("cluster", "have", "expected"),
    [
        ({}, {"CPU": 8}, Placement("cpu", 0.0)),
        ({}, {"CPU": 1, "GPU": 2}, Placement("gpu", 1.0)),
        ({}, {"CPU": 1, "GPU": 1}, Placement("gpu", 0.5)),
        ({"device": "cpu"}, {"CPU": 8, "GPU": 8}, Placement("cpu", 0.0)),
        ({"inversion": PAIR, "reconstruction": PAIR}, {"GPU": 4}, Placement("gpu", 1.0)),
        ({"prompts": PromptSettings(gpus=1)}, {"GPU": 3}, Placement("gpu", 1.0)),
    ],
)
def test_a_job_is_placed(cluster: dict, have: dict, expected: Placement) -> None:
    assert place(a_job(**cluster), [have], slots=5) == expected


@pytest.mark.parametrize(
    ("cluster", "have", "complaint"),
    [
        ({}, {"CPU": 4}, "need 5 CPUs (inversion 1 x 1, reconstruction 1 x 1, prompts 1 x 0)"),
        ({"inversion": PAIR}, {"GPU": 2}, "need 3 GPUs (inversion 1 x 2, reconstruction 1 x 1"),
        ({"prompts": PromptSettings(gpus=1)}, {"GPU": 1}, "need 3 GPUs"),
        ({"device": "gpu"}, {"CPU": 64}, "the cluster has 0"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(cluster: dict, have: dict, complaint: str) -> None:
    with pytest.raises(CannotRun) as caught:
        place(a_job(**cluster), [have], slots=5)
    assert complaint in str(caught.value)


def test_a_group_reserves_all_its_gpus_at_once() -> None:
    assert Placement("gpu", 1.0).of(GroupSettings(gpus=4)) == {"num_gpus": 4.0}
    assert Placement("gpu", 0.5).of(GroupSettings()) == {"num_gpus": 0.5}
    assert Placement("cpu", 0.0).of(PAIR) == {"num_cpus": 2}


@pytest.mark.parametrize(
    ("cluster", "nodes", "complaint"),
    [
        ({"inversion": FOUR}, [1] * 8, "a group of cluster.inversion takes 4 GPUs of one node"),
        ({"inversion": FOUR}, [3, 3], "the largest node has 3, all 2 together have 6"),
        ({"inversion": FOUR, "reconstruction": FOUR}, [6, 6, 0], None),
        ({"inversion": FOUR, "reconstruction": FOUR}, [6, 3], "of cluster.reconstruction takes 4"),
        ({"reconstruction": FOUR, "inversion": GroupSettings(groups=3)}, [1, 1, 1, 4], None),
        ({"inversion": PAIR, "prompts": PromptSettings(gpus=1)}, [2, 2], None),
    ],
)
def test_each_group_needs_room_on_one_node(
    cluster: dict[str, Any], nodes: list[float], complaint: str | None
) -> None:
    have = [{"CPU": 8.0, "GPU": gpus} for gpus in nodes]
    if complaint is None:
        assert place(a_job(**cluster), have, slots=5) == Placement("gpu", 1.0)
        return
    with pytest.raises(CannotRun) as caught:
        place(a_job(**cluster), have, slots=5)
    assert complaint in str(caught.value)
    assert "gpus lower" in str(caught.value)


def test_a_group_of_cpu_ranks_needs_room_on_one_node_too() -> None:
    with pytest.raises(CannotRun, match="takes 4 CPUs of one node.* the largest node has 3"):
        place(a_job(inversion=FOUR), [{"CPU": 3.0}] * 3, slots=8)
