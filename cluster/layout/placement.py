"""Finds room for a job's actors among the nodes of a cluster, or says what is missing."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cluster.job import CannotRun, Job
from cluster.layout.choice import Choice, Pool, Room, asked_ranks, choose, number
from cluster.layout.idle import idle
from cluster.layout.packing import merged, pack
from cluster.layout.scorers import NO_SCORERS, SHARE, Scorers, cpus_of, scorers_of
from cluster.layout.work import Amount
from cluster.settings import GroupSettings

Resources = Mapping[str, float]

NVIDIA_GPUS = ("/proc/driver/nvidia/gpus/*", "/dev/nvidia[0-9]*")
"""Where Linux shows one entry for each; some sandboxes have the second alone."""
OTHER_GPUS = ("/dev/kfd", "/dev/dxg")
"""What there is where GPUs are AMD's, or Windows' lent to WSL: how many is not seen there."""
LOCAL = ("", "local")
"""Values of RAY_ADDRESS that name no cluster: one is started here."""
KIND = "accelerator_type:"
"""What stands before the kind of a node's GPUs, in the name of a resource that Ray makes of it."""
NODE_ID = "ray.io/node-id"
"""The label that Ray gives to each node."""
OTHERS = 2
"""CPUs for what is no rank group: reading and checking rows, and splitting blocks."""


@dataclass(frozen=True)
class Node:
    """A node of a cluster.

    Args:
        name: for messages.
        has: all its resources, and
        free: those that no actor reserves now.
        id: Ray's; empty where there is no Ray yet.
    """

    name: str
    has: Resources
    free: Resources
    id: str = ""


@dataclass(frozen=True)
class Placement:
    """Where a job's ranks run.

    Args:
        device: `cpu` or `gpu`.
        layout: `shared` or `split`.
        pools: the text encoders, then the groups that work on videos.
        notes: sentences for the user: what stays idle, and why.
        places: for pools that could take each other's room, the ids of the nodes that each size of
            groups fills, one after the other.
        threads: of each rank on CPUs.
        memories: bytes of memory that no actor reserves now, of each node with a free CPU, where
            that is known.
        without: the ids of nodes that get no group.
        scorers: the actors that score edits, beside the groups.
    """

    device: Literal["cpu", "gpu"]
    layout: str
    pools: tuple[Pool, ...]
    notes: tuple[str, ...] = ()
    places: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    threads: int = 1
    memories: tuple[float, ...] = ()
    without: tuple[str, ...] = ()
    scorers: Scorers = NO_SCORERS

    def scorer_options(self) -> dict[str, Any]:
        """What each actor that scores reserves, and where: options of `map_batches`."""
        if not self.scorers.gpus:
            return {"num_cpus": SHARE}
        there = {NODE_ID: f"in({','.join(self.scorers.nodes)})"}
        where = {"label_selector": there} if all(self.scorers.nodes) else {}
        return {"num_gpus": self.scorers.gpus, "num_cpus": SHARE, **where}

    def options(self, pool: Pool) -> dict[str, Any]:
        """What each actor of a pool reserves, and on which nodes: options of `map_batches`."""
        others = {NODE_ID: f"!in({','.join(self.without)})"}
        if not self.on_gpus(pool):
            elsewhere = {"label_selector": others} if self.without else {}
            return {"num_cpus": max(1, pool.size), **elsewhere}
        ids = self.places.get(pool.size, ())
        labels = [{NODE_ID: f"in({','.join(some)})"} for some in (ids[:-1], ids[-1:]) if some]
        # By itself Ray Data adds a CPU for each, and a node may have fewer CPUs than GPUs.
        options: dict[str, Any] = {"num_gpus": pool.size, "num_cpus": 0}
        if labels or self.without:
            options["label_selector"] = labels[0] if labels else others
        if labels[1:]:
            options["fallback_strategy"] = [{"label_selector": one} for one in labels[1:]]
        return options

    def on_gpus(self, pool: Pool) -> bool:
        """Whether the ranks of a pool have GPUs."""
        return self.device == "gpu" and pool.size > 0


def gpu_kinds(nodes: Sequence[Node]) -> dict[str, int]:
    """How many GPUs of each kind nodes have, as Ray calls it: `H100`; "" where it does not say."""
    found: dict[str, int] = {}
    for node in nodes:
        kinds = [name.removeprefix(KIND) for name in node.has if name.startswith(KIND)]
        if gpus := int(node.has.get("GPU", 0)):
            kind = kinds[0] if len(kinds) == 1 else ""
            found[kind] = found.get(kind, 0) + gpus
    return found


def given_address() -> str:
    """The address of the cluster to join; empty where one is to be started here."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address in LOCAL else address


def check_machine(job: Job, amount: Amount | None = None) -> Placement | None:
    """Where the job's groups go on this machine, found out without Ray.

    Where RAY_ADDRESS names a cluster, and where GPUs cannot be counted, nothing is known yet.

    Raises:
        CannotRun: it does not have what the job asks for.
    """
    if given_address() or any(map(os.path.exists, OTHER_GPUS)):
        return None
    has = {"GPU": float(visible_gpus()), "CPU": float(max(os.cpu_count() or 1, slots(job)))}
    return place(job, [Node("this machine", has, has)], amount)


def visible_gpus() -> int:
    """The NVIDIA GPUs of this machine that CUDA_VISIBLE_DEVICES leaves, as Ray counts them."""
    there = node_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    return min(there, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


def node_gpus() -> int:
    """The NVIDIA GPUs of this machine, also those that this process may not use."""
    return max(len(glob.glob(pattern)) for pattern in NVIDIA_GPUS)


def place(job: Job, nodes: Sequence[Node], amount: Amount | None = None) -> Placement:
    """Where the job's actors go in a cluster.

    Args:
        amount: what the run is going to do, where that is known.

    Raises:
        CannotRun: the nodes do not have what the job asks for, or do not have it free.
    """
    device = job.cluster.device
    gpus = sum(node.has.get("GPU", 0.0) for node in nodes)
    on_gpus = device == "gpu" or (device == "auto" and gpus > 0)
    what = "GPU" if on_gpus else "CPU"
    memories = tuple(
        node.free.get("memory", 0.0)
        for node in nodes
        if "memory" in node.has and node.free.get("CPU", 0.0) >= 1
    )
    everywhere, nodes = nodes, [node for node in nodes if node.has.get(what)]
    has = [int(node.has[what]) for node in nodes]
    scorers = scorers_of(job, has, [node.id for node in nodes], on_gpus=on_gpus)
    if scorers.actors and nodes and amount == Amount(0, 0):  # scores alone are pending
        alone = _encoder_threads(everywhere) if on_gpus else 1
        return Placement("gpu" if on_gpus else "cpu", "no", (), threads=alone, scorers=scorers)
    free = _free(nodes, has, what, scorers)
    room = Room(free if on_gpus else _beside_others(free, cpus_of(job)), on_gpus, amount)
    choice = choose(job, room)
    if choice is None:
        raise CannotRun(_refusal(job, nodes or everywhere, what, scorers))
    pools, layout = choice.pools, choice.layout
    if not on_gpus:
        threads = _threads(choice, nodes)
        found = Placement("cpu", layout, pools, threads=threads, memories=memories)
        return replace(found, scorers=scorers)
    _check_cpus(choice, everywhere, cpus_of(job))
    kinds = merged([pool.kind for pool in choice.pools])
    packed = pack(room.free, kinds)
    assert packed is not None
    places: dict[int, tuple[str, ...]] = {}
    if len(kinds) > 1 and len(nodes) > 1:
        places = {
            kind.size: tuple(nodes[node].id for node in where)
            for kind, where in zip(kinds, packed, strict=True)
        }
    left = list(room.free)
    for kind, where in zip(kinds, packed, strict=True):
        for node, groups in where.items():
            left[node] -= kind.size * groups
    held = [has[n] - room.free[n] - scorers.left_out.get(n, 0) for n in range(len(nodes))]
    notes = tuple(idle(job.cluster, choice, [node.name for node in nodes], held, left, amount))
    threads = _encoder_threads(everywhere)
    found = Placement("gpu", layout, pools, notes, places, threads, memories=memories)
    return replace(found, scorers=scorers)


def _free(
    nodes: Sequence[Node], has: Sequence[int], what: str, scorers: Scorers
) -> tuple[int, ...]:
    """What groups may have of each node; a GPU of which a part is taken is none."""
    free = [int(node.free.get(what, 0.0)) for node in nodes]
    out = scorers.left_out
    return tuple(min(free[node], has[node] - out.get(node, 0)) for node in range(len(nodes)))


def slots(job: Job) -> int:
    """CPUs that a job's actors take together at least where there are no GPUs."""
    ranks = asked_ranks(job.cluster) + number(job.cluster.prompts.groups)
    return OTHERS + ranks + cpus_of(job)


def _beside_others(free: Sequence[int], more: int) -> tuple[int, ...]:
    """CPUs of each node that rank groups may take.

    Args:
        more: CPUs for others than those of every job.
    """
    left, others = list(free), OTHERS + more
    for node in sorted(range(len(left)), key=lambda node: -left[node]):
        taken = min(left[node], others)
        left[node] -= taken
        others -= taken
    return tuple(left)


def _check_cpus(choice: Choice, nodes: Sequence[Node], scoring: int) -> None:
    """Refuse a job whose stages on CPUs would wait for them for ever beside its groups on GPUs."""
    encoders = choice.pools[0].groups if choice.pools[0].size == 0 else 0
    needed = OTHERS + encoders + scoring
    has, free = (int(sum(p.get("CPU", 0.0) for p in parts)) for parts in _resources(nodes))
    if free >= needed:
        return
    ways = ["have fewer cluster.prompts.groups"] * (encoders > 1)
    ways += ["wait for the other jobs"] * (needed <= has)
    scores = f", {scoring} for scores" if scoring else ""
    raise CannotRun(
        f"beside its GPUs the job needs {needed} CPUs ({OTHERS} to read and check rows, {encoders} "
        f"for text encoders{scores}); the cluster has {has}{_taken(has, free)}. "
        f"{_sentence([*ways, 'start Ray with more CPUs (`ray start --num-cpus`)'])}"
    )


def _resources(nodes: Sequence[Node]) -> tuple[list[Resources], list[Resources]]:
    return [node.has for node in nodes], [node.free for node in nodes]


def _taken(has: float, free: float) -> str:
    return f", of which {free:g} are free: other jobs hold the rest" if free < has else ""


def _threads(choice: Choice, nodes: Sequence[Node]) -> int:
    """CPU threads of a rank, where ranks share the cores of their node.

    Ray may have been given more CPUs than this machine has cores.
    """
    ranks = max(-(-choice.working // len(nodes)), choice.pools[-1].size)
    cores = min(node.has["CPU"] for node in nodes)
    if len(nodes) == 1:
        cores = min(cores, os.cpu_count() or 1)
    return max(1, int(cores) // ranks)


def _encoder_threads(nodes: Sequence[Node]) -> int:
    """CPU threads of a text encoder beside groups on GPUs: its node's cores for each GPU."""
    shares = [
        node.has["CPU"] // max(1.0, node.has.get("GPU", 0.0)) for node in nodes if "CPU" in node.has
    ]
    return max(1, int(min(shares, default=1)))


def _refusal(job: Job, nodes: Sequence[Node], what: str, scorers: Scorers) -> str:
    """What is missing for the groups that a job asks for at least."""
    pools, scoring = _asked(job, what), sum(scorers.left_out.values())
    needed = sum(pool.groups * pool.size for pool in pools) + scoring
    needed += (OTHERS + cpus_of(job)) * (what == "CPU")
    has, free = (sum(part.get(what, 0.0) for part in parts) for parts in _resources(nodes))
    here = any(node.name.startswith("this ") for node in nodes)
    where = "this machine" if here else "the cluster"
    if what == "GPU" and not has:
        return (
            f"cluster.device is gpu, and {where} has no GPU that Ray sees. Set cluster.device to "
            "auto or cpu, or add nodes with GPUs"
        )
    groups = ", ".join(
        f"{p.stage} {p.groups} group{'s' * (p.groups != 1)} of {p.size}"
        for p in (*pools[1:], pools[0])
        if p.size
    )
    groups += f", {OTHERS} for rows" * (what == "CPU")
    groups += f", scoring {scoring}" * (scoring > 0)
    taken = _taken(has, free)
    if free < needed:
        ways = _ways_out(job, pools, what)
        ways += ["set cluster.scoring.gpus to 0"] * (scoring > 0)
        if needed <= has:
            ways.append("wait for the other jobs")
        return (
            f"the job's groups need {needed:g} {what}{'s' * (needed != 1)} ({groups}); {where} has "
            f"{has:g}{taken}. {_sentence([*ways, 'add nodes'])}"
        )
    large = max(pools, key=lambda pool: pool.size)
    of_nodes = [node.free.get(what, 0.0) for node in nodes]
    section = "reconstruction" if large.stage == "editing" else large.stage
    beside = (
        f"; the job's groups ({groups}) leave no node so many"
        if max(of_nodes) >= large.size
        else ""
    )
    fewer = ", have fewer groups" if beside else ""
    return (
        f"a group of cluster.{section} takes {large.size} {what}s of one node{beside}; the largest "
        f"node has {max(of_nodes):g}{' free' if taken else ''}, all {len(nodes)} together have "
        f"{sum(of_nodes):g}. Set cluster.{section}.gpus lower (groups can be higher then){fewer}, "
        f"or add a node with {large.size} {what}s"
    )


def _ways_out(job: Job, pools: Sequence[Pool], what: str) -> list[str]:
    """What to set where there are too few GPUs or CPUs."""
    ways = []
    for pool in pools[1:]:
        section = "reconstruction" if pool.stage == "editing" else pool.stage
        lower = {"groups": number(pool.shape.groups), "gpus": pool.shape.gpus}
        ways += [f"set cluster.{section}.{name} lower" for name, n in lower.items() if n > 1]
    if what == "GPU" and pools[0].size:
        ways.append("set cluster.prompts.gpus to 0")
    elif what == "CPU" and pools[0].groups > 1:
        ways.append("set cluster.prompts.groups lower")
    if len(pools) > 2:
        asked = job.cluster.asks_for_split
        ways.append("leave out cluster.inversion" if asked else "set cluster.layout to shared")
    return ways


def _sentence(ways: Sequence[str]) -> str:
    """Ways out, each of which helps or may help."""
    text = f"{', '.join(ways[:-1])}, or {ways[-1]}" if ways[1:] else ways[0]
    return text[0].upper() + text[1:]


def _asked(job: Job, what: str) -> tuple[Pool, ...]:
    """The fewest groups that a job asks for."""
    cluster = job.cluster
    prompts = cluster.prompts
    size = 1 if what == "CPU" else int(prompts.gpus == 1)
    encoders = Pool("prompts", number(prompts.groups), GroupSettings(), size)
    stages = {"inversion": cluster.inversion, "reconstruction": cluster.reconstruction}
    if cluster.layout == "shared" or not (cluster.layout == "split" or cluster.asks_for_split):
        stages = {"editing": cluster.reconstruction}
    return (
        encoders,
        *(Pool(name, number(one.groups), one, one.gpus) for name, one in stages.items()),
    )
