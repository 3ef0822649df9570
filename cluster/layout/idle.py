"""What of a cluster a job leaves idle, in sentences with the reason and the way out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from cluster.layout.choice import Choice
from cluster.layout.work import Amount
from cluster.settings import ClusterSettings

NODES_NAMED = 3


def idle(
    cluster: ClusterSettings,
    choice: Choice,
    nodes: Sequence[str],
    held: Sequence[int],
    left: Sequence[int],
    amount: Amount | None,
) -> Iterator[str]:
    """Sentences about GPUs that do nothing for a job, and about what it was asked for and is not.

    Args:
        nodes: their names.
        held: GPUs of each node that other jobs have.
        left: GPUs of each node that this job leaves.
        amount: what the run is going to do, where that is known.
    """
    if choice.one_for_both:
        yield (
            "cluster.inversion and cluster.reconstruction ask for a group each, and there is one "
            "GPU: one group does both (cluster.layout: shared)"
        )
    if any(held):
        yield f"other jobs hold {_of_nodes(nodes, held)}: this job does without them"
    size = choice.pools[-1].size
    too_few = [gpus if gpus < size else 0 for gpus in left]
    if any(too_few):
        yield (
            f"{_of_nodes(nodes, too_few)} {_stay(sum(too_few))} idle: a group takes {size}. Set "
            "cluster.reconstruction.gpus to a number that divides the GPUs of a node"
        )
    if rest := sum(gpus for gpus in left if gpus >= size):
        yield f"{_gpus(rest)} {_stay(rest)} idle: {_why_no_more_groups(cluster, choice, amount)}"


def _why_no_more_groups(cluster: ClusterSettings, choice: Choice, amount: Amount | None) -> str:
    editing = choice.pools[-1]
    if cluster.reconstruction.groups != "auto" or amount is None:
        return (
            f"cluster.reconstruction.groups is {editing.groups}. Leave it out, and a run takes all "
            "GPUs that are free"
        )
    if choice.layout == "split":
        if choice.pools[1].size != editing.size and amount.videos > editing.groups:
            return "groups of several sizes leave no room for another one beside them"
        return "there are no more edits to make at once"
    instead = ""
    if cluster.layout == "shared" and amount.edits_a_video > 1:
        instead = ". Set cluster.layout to split, and the edits of one video go to many groups"
    return (
        f"the run has {amount.videos} video{'s' * (amount.videos != 1)}, and a group takes a whole "
        f"one{instead}"
    )


def _of_nodes(nodes: Sequence[str], gpus: Sequence[int]) -> str:
    """`2 GPUs of node a`, `2 GPUs of each of 5 nodes`."""
    some = [(name, count) for name, count in zip(nodes, gpus, strict=True) if count]
    if len(some) <= NODES_NAMED:
        return " and ".join(f"{_gpus(count)} of {_node(name)}" for name, count in some)
    counts = Counter(count for _, count in some)
    return " and ".join(
        f"{_gpus(count)} of {f'each of {number} nodes' if number > 1 else 'one node'}"
        for count, number in sorted(counts.items())
    )


def _node(name: str) -> str:
    return name if name.startswith("this ") else f"node {name}"


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' * (count != 1)}"


def _stay(count: int) -> str:
    return "stays" if count == 1 else "stay"
