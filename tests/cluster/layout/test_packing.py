"""Groups of several sizes find room, whatever the order in which Ray starts them."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from cluster.connection import connected
from cluster.layout.packing import Kind, merged, most, pack
from cluster.layout.placement import Placement
from cluster.settings import GroupSettings, PromptSettings
from cluster.stages.blocks import WORK
from tests.small_jobs import a_job


@pytest.mark.parametrize(
    ("free", "kinds", "expected"),
    [
        ([8, 8], [Kind(4, 3), Kind(1, 4)], [{0: 2, 1: 1}, {1: 4}]),
        ([8, 8], [Kind(1, 4), Kind(4, 3)], [{1: 4}, {0: 2, 1: 1}]),
        ([4, 4], [Kind(1, 4), Kind(4, 1)], [{1: 4}, {0: 1}]),
        ([8], [Kind(3, 2), Kind(1, 2)], [{0: 2}, {0: 2}]),
        ([3, 8, 4], [Kind(4, 3)], [{1: 2, 2: 1}]),
        ([3, 3], [Kind(4, 1)], None),
        ([8, 8], [Kind(4, 3), Kind(1, 5)], None),
        ([], [], []),
        # There would be room, but singles on two nodes of large groups could take theirs.
        ([8, 8], [Kind(3, 4), Kind(1, 4)], None),
    ],
)
def test_the_largest_groups_are_packed_first(
    free: list[int], kinds: list[Kind], expected: Any
) -> None:
    assert pack(free, kinds) == expected


def filled(free: Sequence[int], kinds: Sequence[Kind], order: Sequence[int]) -> list[int]:
    """How many groups of each kind find room that start in an order and fill their nodes."""
    left, placed = list(free), [0] * len(kinds)
    packed = pack(free, kinds)
    assert packed is not None
    for number in order:
        kind = kinds[number]
        for node in packed[number]:
            if left[node] >= kind.size:
                left[node] -= kind.size
                placed[number] += 1
                break
    return placed


def test_a_packing_holds_in_every_order_in_which_groups_start() -> None:
    draw = np.random.default_rng(5)
    tried = 0
    while tried < 300:
        free = draw.integers(0, 9, draw.integers(1, 6)).tolist()
        sizes = draw.choice(6, draw.integers(1, 4), replace=False) + 1
        kinds = [Kind(int(size), int(draw.integers(1, 6))) for size in sizes]
        if pack(free, kinds) is None:
            continue
        tried += 1
        starts = [number for number, kind in enumerate(kinds) for _ in range(kind.groups)]
        for order in (starts, starts[::-1], *(draw.permutation(starts) for _ in range(5))):
            assert filled(free, kinds, order) == [kind.groups for kind in kinds]


def test_the_most_groups_are_those_that_can_be_packed_and_one_more_cannot() -> None:
    for nodes, size, others in product((1, 2, 3), (1, 2, 3, 4, 8), (0, 1, 2, 5)):
        free = [8] * nodes
        kinds = [Kind(1, others)] * bool(others)
        found = most(free, size, kinds)
        if found < 0:
            assert pack(free, kinds) is None
            continue
        assert pack(free, merged([Kind(size, found), *kinds])) is not None
        assert pack(free, merged([Kind(size, found + 1), *kinds])) is None


def test_thousands_of_gpus_take_a_moment() -> None:
    free = [8] * 500
    began = time.process_time()
    assert most(free, 3, merged([Kind(2, 900), Kind(1, 1)])) == 550
    assert time.process_time() - began < 1


@pytest.fixture
def nodes() -> Iterator[None]:
    """Connected to a cluster of two nodes that say they have 2 GPUs each."""
    from cluster import quiet  # noqa: F401
    import ray  # isort: skip
    from ray.cluster_utils import Cluster  # isort: skip

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "num_gpus": 2, "include_dashboard": False},
    )
    try:
        cluster.add_node(num_cpus=1, num_gpus=2)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.soak
@pytest.mark.ray
def test_large_groups_find_room_that_small_ones_would_take(nodes: None) -> None:
    import ray

    from cluster.driver.graph import graph
    from tests.in_process import Control

    job = a_job(
        inversion=GroupSettings(groups=2),
        reconstruction=GroupSettings(groups=1, gpus=2),
        prompts=PromptSettings(gpus=0),
    )
    with connected(job) as placement:
        assert placed(placement, labels=False) == {"inversion": 2}, "the naive way does as well"
        for _ in range(2):
            assert placed(placement) == {"inversion": 2, "reconstruction": 1}
        # Ray Data takes the same options, and its own actors find room too.
        rows = ray.data.range(2, override_num_blocks=2)
        for pool in placement.pools[1:]:
            rows = rows.map_batches(
                Where,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=pool.groups),
                **placement.options(pool),
            )
        assert rows.count() == 2
    for layout, prompts in product(("shared", "split"), (0, 1)):
        job = a_job(layout=layout, prompts=PromptSettings(gpus=prompts))
        with connected(job) as placement:
            dataset = graph(job, WORK.empty_table(), placement, Control())
            names = repr(dataset)
            assert ("EditVideos" in names) == (layout == "shared")
            assert ("InvertVideos" in names and "ReconstructEdits" in names) == (layout == "split")


class Where:
    """A stage without work."""

    def __call__(self, rows: Any) -> Any:
        return rows

    def node(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())


def placed(placement: Placement, *, labels: bool = True) -> Counter[str]:
    """How many actors of each pool find room, of pools that start as Ray Data starts them."""
    import ray

    actors = []
    for pool in placement.pools[1:]:
        options = placement.options(pool)
        if not labels:
            options = {name: value for name, value in options.items() if name.startswith("num_")}
        made = ray.remote(Where).options(**{"num_cpus": 0, **options}, scheduling_strategy="SPREAD")
        actors += [(pool.stage, made.remote()) for _ in range(pool.groups)]
    refs = {actor.node.remote(): stage for stage, actor in actors}
    # What finds no room is waited for a little only, once the others have answered.
    ray.wait(list(refs), num_returns=len(refs) - (not labels), timeout=60)
    found, _ = ray.wait(list(refs), num_returns=len(refs), timeout=6)
    for _, actor in actors:
        ray.kill(actor)
    return Counter(refs[ref] for ref in found)
