"""Where a job's actors go, and which clusters are too small for it."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.job import CannotRun
from cluster.layout.placement import NODE_ID, Node, Placement, place
from cluster.layout.work import Amount
from cluster.settings import ClusterSettings, GroupSettings, PromptSettings
from pipeline.settings import TrajectorySettings
from tests.small_jobs import a_job

PAIR, FOUR = GroupSettings(gpus=2), GroupSettings(gpus=4)
THREE = GroupSettings(gpus=3)
ONE = GroupSettings(groups=1)
MANY = Amount(10_000, 40_000)
ON_GPU = PromptSettings(gpus=1)


def gpu_nodes(*gpus: int, held: int = 0) -> list[Node]:
    """Nodes with so many GPUs each; other jobs hold some of the first one's."""
    has = [{"CPU": 16.0, "GPU": float(one)} for one in gpus]
    return [
        Node(f"n{i}", one, {**one, "GPU": one["GPU"] - held * (i == 0)}, f"id{i}")
        for i, one in enumerate(has)
    ]


def cpu_nodes(*cpus: float) -> list[Node]:
    return [Node(f"n{i}", {"CPU": one}, {"CPU": one}, f"id{i}") for i, one in enumerate(cpus)]


def groups(placement: Placement) -> dict[str, int]:
    return {pool.stage: pool.groups for pool in placement.pools}


def encoders_on_gpus(placement: Placement) -> int:
    return placement.pools[0].groups * placement.on_gpus(placement.pools[0])


@pytest.mark.parametrize(
    ("cluster", "nodes", "expected"),
    [
        ({}, cpu_nodes(8), {"editing": 1}),
        ({}, cpu_nodes(64, 64, 64), {"editing": 3}),
        ({"layout": "split"}, cpu_nodes(64, 64, 64), {"inversion": 1, "reconstruction": 2}),
        ({}, gpu_nodes(1), {"editing": 1}),
        ({}, gpu_nodes(8), {"editing": 8}),
        ({}, gpu_nodes(8, 8), {"editing": 16}),
        ({"device": "cpu"}, gpu_nodes(8), {"editing": 1}),
        ({"reconstruction": FOUR}, gpu_nodes(8, 8, 6), {"editing": 5}),
        ({"inversion": FOUR, "reconstruction": FOUR}, gpu_nodes(4), {"editing": 1}),
        ({"reconstruction": GroupSettings(groups=3)}, gpu_nodes(8), {"editing": 3}),
        ({"inversion": ONE, "reconstruction": ONE}, gpu_nodes(1), {"editing": 1}),
        (
            {"inversion": ONE, "reconstruction": ONE},
            gpu_nodes(2),
            {"inversion": 1, "reconstruction": 1},
        ),
        (
            {"inversion": ONE, "reconstruction": GroupSettings(groups=7)},
            gpu_nodes(8),
            {"inversion": 1, "reconstruction": 7},
        ),
        ({"inversion": ONE}, gpu_nodes(8), {"inversion": 1, "reconstruction": 7}),
        ({"layout": "split"}, gpu_nodes(8), {"inversion": 1, "reconstruction": 7}),
        ({"layout": "split"}, gpu_nodes(*[8] * 10), {"inversion": 8, "reconstruction": 72}),
        ({"inversion": PAIR}, gpu_nodes(8), {"inversion": 1, "reconstruction": 6}),
        ({"layout": "split"}, cpu_nodes(8), {"inversion": 1, "reconstruction": 1}),
    ],
)
def test_the_groups_fill_the_cluster(
    cluster: dict[str, Any], nodes: list[Node], expected: dict[str, int]
) -> None:
    prompts = PromptSettings(gpus=0)
    placement = place(a_job(prompts=prompts, **cluster), nodes, MANY)
    assert {name: count for name, count in groups(placement).items() if name != "prompts"} == (
        expected
    )
    assert placement.layout == ("shared" if "editing" in expected else "split")
    assert placement.device == (
        "gpu" if "GPU" in nodes[0].has and not cluster.get("device") else "cpu"
    )


@pytest.mark.parametrize(
    ("prompts", "gpus", "reconstruction", "encoders", "editing"),
    [
        ({}, [8], {}, (1, 0), 8),
        ({}, [8, 8, 8], {}, (3, 0), 24),
        ({}, [8] * 4, {}, (1, 1), 31),
        ({}, [8], {"gpus": 3}, (1, 1), 2),
        ({}, [8, 8], {"groups": 5}, (1, 1), 5),
        ({"gpus": 1}, [8], {}, (1, 1), 7),
        ({"gpus": 1, "groups": 2}, [8], {}, (2, 1), 6),
        ({"gpus": 0}, [8], {"gpus": 3}, (1, 0), 2),
        ({"groups": 5}, [8] * 4, {}, (5, 0), 32),
        ({"gpus": 0, "groups": 2}, [1], {}, (2, 0), 1),
    ],
)
def test_prompts_get_a_gpu_where_one_is_left_over_or_costs_little(
    prompts: dict[str, Any],
    gpus: list[int],
    reconstruction: dict[str, Any],
    encoders: tuple[int, int],
    editing: int,
) -> None:
    job = a_job(prompts=PromptSettings(**prompts), reconstruction=GroupSettings(**reconstruction))
    placement = place(job, gpu_nodes(*gpus), MANY)
    assert groups(placement) == {"prompts": encoders[0], "editing": editing}
    assert encoders_on_gpus(placement) == encoders[0] * encoders[1]


@pytest.mark.parametrize(
    ("cluster", "nodes", "complaint"),
    [
        (
            {"inversion": ONE},
            cpu_nodes(4),
            "need 5 CPUs (inversion 1 group of 1, reconstruction 1 group of 1",
        ),
        (
            {},
            cpu_nodes(3),
            "(editing 1 group of 1, prompts 1 group of 1, 2 for rows); the cluster has 3",
        ),
        (
            {"inversion": PAIR},
            gpu_nodes(2),
            "need 3 GPUs (inversion 1 group of 2, reconstruction 1 group of 1",
        ),
        (
            {"prompts": ON_GPU},
            gpu_nodes(1),
            "(editing 1 group of 1, prompts 1 group of 1); the cluster has 1. Set "
            "cluster.prompts.gpus to 0, or",
        ),
        (
            {"device": "gpu"},
            cpu_nodes(64),
            "cluster.device is gpu, and the cluster has no GPU that Ray sees. Set",
        ),
        (
            {"layout": "split"},
            gpu_nodes(1),
            "has 1. Set cluster.layout to shared, or add nodes",
        ),
        (
            {"reconstruction": GroupSettings(groups=9)},
            gpu_nodes(8),
            "need 9 GPUs (editing 9 groups of 1",
        ),
        (
            {"inversion": PAIR},
            gpu_nodes(1),
            "inversion.gpus lower, leave out cluster.inversion, or",
        ),
        (
            {},
            gpu_nodes(2, held=2),
            "0 are free: other jobs hold the rest. Wait for the other jobs,",
        ),
        (
            {"reconstruction": GroupSettings(groups=6)},
            gpu_nodes(8, held=4),
            "need 6 GPUs (editing 6 groups of 1); the cluster has 8, of which 4 are free",
        ),
        ({"inversion": FOUR}, gpu_nodes(*[1] * 8), "a group of cluster.inversion takes 4 GPUs of"),
        (
            {"reconstruction": FOUR},
            gpu_nodes(3, 3),
            "the largest node has 3, all 2 together have 6",
        ),
        (
            {"reconstruction": GroupSettings(groups=2, gpus=4)},
            gpu_nodes(6, 6, held=3),
            "the largest node has 6 free, all 2 together have 9",
        ),
    ],
)
def test_a_cluster_that_is_too_small_is_refused_with_the_numbers(
    cluster: dict[str, Any], nodes: list[Node], complaint: str
) -> None:
    with pytest.raises(CannotRun) as caught:
        place(a_job(**cluster), nodes, MANY)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("cpus", "editing", "threads"),
    [
        ([0, 16], 1, 16),  # a head that takes no work
        ([0, 16, 16], 2, 16),
        ([2, 2], 1, 2),
        ([1] * 10, 7, 1),
        ([4], 1, 4),
    ],
)
def test_groups_on_cpus_fill_what_the_other_stages_leave(
    monkeypatch: pytest.MonkeyPatch, cpus: list[float], editing: int, threads: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    has = [{"CPU": one} if one else {} for one in cpus]  # Ray names no resource of which is none
    placement = place(a_job(), [Node(f"n{i}", one, one) for i, one in enumerate(has)], MANY)
    assert (groups(placement)["editing"], placement.threads) == (editing, threads)


def test_ranks_of_one_group_share_the_cores_of_their_node() -> None:
    job = a_job(reconstruction=GroupSettings(groups=1, gpus=4))
    assert place(job, cpu_nodes(8, 8, 8), MANY).threads == 2


def test_a_text_encoder_on_cpus_has_the_cores_that_a_gpu_leaves_it() -> None:
    no_gpu = cpu_nodes(32)
    for nodes, threads in ((gpu_nodes(1), 16), (gpu_nodes(8, 4), 2), (gpu_nodes(2) + no_gpu, 8)):
        placement = place(a_job(prompts=PromptSettings(gpus=0)), nodes, MANY)
        assert placement.threads == threads


@pytest.mark.parametrize(
    ("cpus", "held", "encoders", "complaint"),
    [
        (0, 0, 1, "the job needs 3 CPUs (2 to read and check rows, 1 for text encoders); the clus"),
        (2, 0, 1, "the cluster has 2. Start Ray with more CPUs"),
        (4, 0, 3, "the cluster has 4. Have fewer cluster.prompts.groups, or start Ray"),
        (8, 6, 1, "has 8, of which 2 are free: other jobs hold the rest. Wait for the other jobs"),
    ],
)
def test_gpus_without_cpus_beside_them_are_refused_since_ray_would_wait(
    cpus: int, held: int, encoders: int, complaint: str
) -> None:
    node = Node("n", {"CPU": cpus, "GPU": 1.0}, {"CPU": cpus - held, "GPU": 1.0})
    with pytest.raises(CannotRun) as caught:
        place(a_job(prompts=PromptSettings(groups=encoders)), [node], MANY)
    assert complaint in str(caught.value)
    enough = Node("n", {"CPU": 2.0 + encoders, "GPU": 1.0}, {"CPU": 2.0 + encoders, "GPU": 1.0})
    place(a_job(prompts=PromptSettings(groups=encoders)), [enough], MANY)


def test_memory_that_other_jobs_hold_is_none_for_a_text_encoder() -> None:
    has = {"CPU": 8.0, "GPU": 1.0, "memory": 64e9}
    nodes = [Node("a", has, {**has, "memory": 5e9}), Node("b", has, {"CPU": 8.0, "GPU": 1.0})]
    head = {"memory": 64e9}  # which takes no work
    assert place(a_job(), [Node("h", head, head), *nodes], MANY).memories == (5e9, 0.0)


def test_what_other_jobs_hold_is_waited_for_only_by_those_who_choose_so() -> None:
    job = a_job(reconstruction=GroupSettings(groups=8))
    with pytest.raises(CannotRun, match=r"of which 5 are free.* wait for the other jobs, or add"):
        place(job, gpu_nodes(8, held=3), MANY)
    placement = place(a_job(), gpu_nodes(8, held=3), MANY)
    assert groups(placement)["editing"] == 5
    assert placement.notes == ("other jobs hold 3 GPUs of node n0: this job does without them",)


@pytest.mark.parametrize(
    ("cluster", "gpus", "amount", "note"),
    [
        ({"reconstruction": THREE}, [8], MANY, "1 GPU of node n0 stays idle: a group takes 3. Set"),
        ({"reconstruction": THREE}, [8] * 5, MANY, "1 GPU of one node and 2 GPUs of each of 4 nod"),
        ({"reconstruction": THREE}, [8, 7], MANY, "2 GPUs of node n0 stay idle: a group takes 3"),
        (
            {"reconstruction": GroupSettings(groups=3)},
            [8, 8],
            MANY,
            "12 GPUs stay idle: cluster.reconstruction.groups is 3. Leave it out",
        ),
        (
            {"inversion": ONE, "reconstruction": PAIR, "prompts": PromptSettings(gpus=0)},
            [8],
            MANY,
            "1 GPU of node n0 stays idle: a group takes 2. Set cluster.reconstruction.gpus",
        ),
        ({}, [8, 8], Amount(3, 3), "12 GPUs stay idle: the run has 3 videos, and a group takes a"),
        (
            {"inversion": ONE, "reconstruction": ONE},
            [1],
            MANY,
            "ask for a group each, and there is one GPU: one group does both",
        ),
    ],
)
def test_what_stays_idle_is_a_note_with_the_reason(
    cluster: dict[str, Any], gpus: list[int], amount: Amount, note: str
) -> None:
    (text,) = place(a_job(**cluster), gpu_nodes(*gpus), amount).notes
    assert note in text


def test_a_cluster_in_which_all_gpus_work_has_no_notes() -> None:
    for gpus in ([1], [8], [8] * 4):
        assert place(a_job(), gpu_nodes(*gpus), MANY).notes == ()


def test_a_group_reserves_all_its_gpus_at_once() -> None:
    for shape, options in (
        (GroupSettings(), {"num_gpus": 1, "num_cpus": 0}),
        (FOUR, {"num_gpus": 4, "num_cpus": 0}),
    ):
        placement = place(a_job(reconstruction=shape), gpu_nodes(8), MANY)
        assert placement.options(placement.pools[-1]) == options
        assert placement.options(placement.pools[0]) == {"num_cpus": 1}
    placement = place(a_job(reconstruction=PAIR), cpu_nodes(8), MANY)
    assert placement.options(placement.pools[-1]) == {"num_cpus": 2}


def test_pools_that_could_take_each_others_room_fill_nodes_in_an_order() -> None:
    cluster = {
        "inversion": GroupSettings(groups=4),
        "reconstruction": GroupSettings(groups=3, gpus=4),
        "prompts": PromptSettings(gpus=0),
    }
    placement = place(a_job(**cluster), gpu_nodes(8, 8), MANY)
    _, inversion, reconstruction = map(placement.options, placement.pools)
    assert reconstruction == {
        "num_gpus": 4,
        "num_cpus": 0,
        "label_selector": {NODE_ID: "in(id0)"},
        "fallback_strategy": [{"label_selector": {NODE_ID: "in(id1)"}}],
    }
    assert inversion == {"num_gpus": 1, "num_cpus": 0, "label_selector": {NODE_ID: "in(id1)"}}


def test_pools_of_one_size_go_wherever_ray_likes() -> None:
    placement = place(a_job(layout="split"), gpu_nodes(8, 8), MANY)
    assert [placement.options(pool) for pool in placement.pools[1:]] == [
        {"num_gpus": 1, "num_cpus": 0}
    ] * 2


@pytest.mark.parametrize(
    ("gpus", "amount", "layout"),
    [
        (8, MANY, "shared"),  # both are busy
        (4, MANY, "shared"),
        (16, Amount(160, 160), "shared"),
        (16, Amount(4, 256), "split"),  # whole videos would keep 4 groups of 16 busy
        (8, Amount(9, 144), "split"),
        (8, Amount(3, 3), "shared"),  # no layout has more to do at once
        (1, Amount(1, 100), "shared"),
    ],
)
def test_the_layout_is_the_one_that_keeps_the_groups_busier(
    gpus: int, amount: Amount, layout: str
) -> None:
    assert place(a_job(), gpu_nodes(gpus), amount).layout == layout


def test_a_video_whose_trajectory_is_not_kept_is_one_unit_in_both_layouts() -> None:
    job = a_job()
    settings = TrajectorySettings(keep="never")
    job = replace(job, editing=replace(job.editing, trajectory=settings))
    assert place(job, gpu_nodes(16), Amount(4, 256)).layout == "shared"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"inversion": ONE}, "layout is shared, where no group only inverts, and inversion.groups"),
        ({"inversion": FOUR}, "inversion has gpus 4, reconstruction gpus 1; leave inversion out"),
    ],
)
def test_a_shared_layout_with_groups_of_two_kinds_is_refused(
    settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        ClusterSettings(layout="shared", **settings)
    ClusterSettings(layout="shared", inversion=FOUR, reconstruction=FOUR)
