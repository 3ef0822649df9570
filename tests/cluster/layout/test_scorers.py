"""Where edits are scored: beside the groups, whatever these take."""

from dataclasses import replace

import pytest

from cluster.job import CannotRun, Job
from cluster.layout.placement import Node, place, slots
from cluster.layout.scorers import Scorers
from cluster.layout.work import Amount
from cluster.settings import ClusterSettings, GroupSettings, ScoringSettings
from pipeline.settings import ScoreSettings
from tests.cluster.layout.test_placement import gpu_nodes
from tests.small_jobs import a_job

MANY = Amount(10_000, 40_000)


def scoring(
    actors: int | str = "auto", gpus: float = 0.0, score: bool = True, size: int = 1
) -> Job:
    cluster = ClusterSettings(
        scoring=ScoringSettings(actors=actors, gpus=gpus),
        reconstruction=GroupSettings(gpus=size),
        layout="shared",
    )
    return replace(a_job(), cluster=cluster, score=ScoreSettings(frames=score))


@pytest.mark.parametrize(
    ("job", "gpus", "actors", "taken"),
    [
        (scoring(), (8, 8), 2, 16),
        (scoring(gpus=0.25), (8, 8), 2, 15),
        (scoring(4, 0.25), (8,), 4, 7),
        (scoring(5, 0.25), (8,), 5, 6),
        (scoring(2, 1.0), (8,), 2, 6),
        (scoring(2, 0.3, size=2), (8, 3), 2, 10),  # the one that groups of 2 leave over
        (scoring(score=False, gpus=1.0), (8,), 0, 8),
    ],
)
def test_gpus_for_scores_are_left_out_of_those_of_groups(
    job: Job, gpus: tuple[int, ...], actors: int, taken: int
) -> None:
    placement = place(job, gpu_nodes(*gpus), MANY)
    assert placement.scorers.actors == actors
    assert sum(pool.groups * pool.size for pool in placement.pools) == taken


def test_they_are_the_same_while_scoring_holds_them_and_while_it_does_not() -> None:
    job = scoring(2, 0.5)
    free, (held,) = place(job, gpu_nodes(8), MANY), gpu_nodes(8)
    busy = replace(held, free={**held.free, "GPU": 7.0, "CPU": 15.8})
    assert place(job, [busy], MANY) == free
    assert free.scorer_options() == {
        "num_gpus": 0.5,
        "num_cpus": 0.1,
        "label_selector": {"ray.io/node-id": "in(id0)"},
    }
    assert (free.scorers.holds("GPU", "id0"), free.scorers.holds("GPU", "other")) == (1.0, 0.0)
    assert free.scorers.device == "cuda"


def test_without_room_beside_scores_the_job_is_refused_with_the_way_out() -> None:
    with pytest.raises(CannotRun, match=r"(?i)set cluster\.scoring\.gpus to 0"):
        place(scoring(gpus=0.5), gpu_nodes(1), MANY)


def test_on_cpus_scores_take_no_slot_of_their_own_until_there_are_many_actors() -> None:
    laptop = [Node("laptop", {"CPU": 4.0}, {"CPU": 4.0}, "id")]
    placement = place(scoring(gpus=0.5), laptop, MANY)
    assert placement.pools == place(scoring(score=False), laptop, MANY).pools
    assert placement.scorer_options() == {"num_cpus": 0.1}
    assert slots(scoring()) == slots(scoring(score=False))
    assert slots(scoring(20)) == slots(scoring(score=False)) + 2


def test_scores_alone_need_no_room_for_groups() -> None:
    nothing, one_gpu = Amount(0, 0), gpu_nodes(1)
    placement = place(scoring(gpus=0.5, size=8), one_gpu, nothing)
    assert (placement.pools, placement.scorers.actors) == ((), 1)
    assert place(scoring(score=False), one_gpu, nothing).scorers == Scorers()
