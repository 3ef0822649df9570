"""Where a job's actors go, and which clusters are too small for it."""

import pytest

from cluster.job import CannotRun
from cluster.placement import Placement, place
from cluster.settings import GroupSettings, PromptSettings
from tests.cluster.test_stages import a_job

PAIR = GroupSettings(gpus=2)


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
    assert place(a_job(**cluster), have, slots=5) == expected


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
        place(a_job(**cluster), have, slots=5)
    assert complaint in str(caught.value)


def test_a_group_reserves_all_its_gpus_at_once() -> None:
    assert Placement("gpu", 1.0).of(GroupSettings(gpus=4)) == {"num_gpus": 4.0}
    assert Placement("gpu", 0.5).of(GroupSettings()) == {"num_gpus": 0.5}
    assert Placement("cpu", 0.0).of(PAIR) == {"num_cpus": 2}
