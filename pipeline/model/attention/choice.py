"""Which attention kernel the blocks call: the fastest that is right, the same on all ranks.

Each candidate is tried on a few tokens, and those that are right there are looked at once more and
timed at the size that the blocks bring, before the first forward of that size. SDPA would take the
first that can run: FlashAttention-2 where cuDNN's kernel is 1.7-2.3 times faster (on capability
9.x, by PyTorch's published numbers). Untried on a GPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from pipeline.model.attention.kernels import (
    Kernel,
    fault,
    kernels_for,
    no_kernel,
    sdpa,
    tolerance_of,
)
from pipeline.model.memory import DeviceMemory, OutOfMemory, attempt
from pipeline.model.parallel.degrees import Degrees
from pipeline.redaction import log

CALLS, SECONDS = 4, 0.1
"""So many calls of each kernel are timed; after so many seconds two will do."""
PROBED, FAR_OFF = 8, 0.5
"""At the real size so many queries are compared with exact attention: numbers that have nothing to
do with it are off by more than this part of its largest value, a kernel in 8 bits by far less."""
ASKED_ONLY = ("sage",)
"""Kernels that change results beyond 16-bit rounding: `auto` never takes them."""


@dataclass(frozen=True)
class Shape:
    """What one rank's attention meets in a block with reference attention.

    Args:
        heads: of this rank.
        queries, keys: tokens; the keys are an edit's own and its reference's.
        logsumexp: whether the kernel must return it.
    """

    heads: int
    queries: int
    keys: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    logsumexp: bool = False

    def __str__(self) -> str:
        return (
            f"{self.queries} queries and {self.keys} keys in {self.heads} heads of "
            f"{self.head_dim}, {str(self.dtype).removeprefix('torch.')}, on {self.device}"
        )


def shape_of(transformer: Any, tokens: int, degrees: Degrees) -> Shape:
    """What a rank's attention meets in a model's blocks, with so many tokens in a branch."""
    weight, config = transformer.proj_out.weight, transformer.config
    queries = -(-tokens // degrees.ring)
    return Shape(
        heads=config.num_attention_heads // degrees.ulysses,
        queries=queries,
        keys=2 * queries,
        head_dim=config.attention_head_dim,
        dtype=weight.dtype,
        device=weight.device,
        logsumexp=degrees.ring > 1,
    )


Seconds = Callable[[Kernel, Shape], float]
GatherObjects = Callable[[Any], list[Any]]
"""A value of each rank of the group, in order, on every rank (`TokenGroup.gather_objects`)."""


@dataclass
class KernelChoice:
    """The kernels of one process' model: chosen once for each shape.

    Args:
        wanted: `speed.attention`: `auto`, or the name of the one to take.
    """

    wanted: str = "auto"
    _chosen: dict[Shape, Kernel] = field(default_factory=dict)

    def kernel(self, shape: Shape, gather: GatherObjects) -> Kernel:
        """As `choose_kernel`; a shape that was met before costs nothing."""
        if shape not in self._chosen:
            self._chosen[shape] = choose_kernel(shape, self.wanted, gather)
        return self._chosen[shape]

    def check(self, shape: Shape) -> None:
        """Raise ValueError where the wanted kernel does not work here; `shape` may be small."""
        if self.wanted != "auto":
            choose_kernel(shape, self.wanted, lambda found: [found])


def choose_kernel(shape: Shape, wanted: str, gather: GatherObjects) -> Kernel:
    """The kernel for a shape; every rank of a group must call this at the same point.

    On a CPU there is one kernel and nothing to time, and one rank's is torch's own choice: its
    bytes are those of all versions before.

    Args:
        wanted: `speed.attention`: `auto`, or the name of the one to take.

    Raises:
        ValueError: the wanted one does not work here; says which do.
        RuntimeError: none works; says why each does not.
    """
    if _on_gpu(shape.device):
        return fastest(kernels_for(shape.device, logsumexp=shape.logsumexp), shape, wanted, gather)
    if wanted != "auto":
        raise ValueError(
            f"speed.attention is {wanted}, a kernel for GPUs, and the model is on "
            f"{shape.device}, which has one kernel; make it auto"
        )
    kernels = kernels_for(shape.device, logsumexp=shape.logsumexp)
    (name,) = kernels
    if shape.logsumexp and (reason := _fault(name, kernels[name], shape)):
        raise RuntimeError(no_kernel({name: reason}, shape.dtype, shape.head_dim, shape.device))
    return kernels[name]


def fastest(
    kernels: Mapping[str, Kernel],
    shape: Shape,
    wanted: str,
    gather: GatherObjects,
    seconds: Seconds | None = None,
) -> Kernel:
    """The kernel with the least mean of all ranks' seconds, of those that are right on all.

    Args:
        kernels: by name, the preferred ones first.
        seconds: times one; by default on the device.

    Raises:
        ValueError, RuntimeError: as `choose_kernel`.
    """
    seconds = seconds or seconds_of
    found: dict[str, float | str] = {}
    for name, kernel in kernels.items():
        if name in ASKED_ONLY and name != wanted:
            continue
        # A rank that raised here would leave the others waiting: what went wrong is said below.
        reason = _fault(name, kernel, shape)
        found[name] = _seconds(seconds, kernel, shape) if reason is None else reason
    reasons: dict[str, str] = {}
    ranks = gather(found)
    names = dict.fromkeys(name for rank in ranks for name in rank)
    for rank, name in product(ranks, names):
        result = rank.get(name, "it is not installed for every rank")
        if isinstance(result, str):
            reasons.setdefault(name, result)
    right = {
        name: sum(rank[name] for rank in ranks) / len(ranks)
        for name in kernels
        if name in found and name not in reasons
    }
    if wanted != "auto":
        if wanted not in right:
            raise ValueError(_not_at_hand(wanted, right, reasons, shape))
        chosen = wanted
    elif right:
        chosen = min(right, key=right.__getitem__)
    elif not shape.logsumexp:
        _say("torch's own choice", wanted, right, reasons, shape)
        return sdpa
    else:
        raise RuntimeError(no_kernel(reasons, shape.dtype, shape.head_dim, shape.device))
    _say(chosen, wanted, right, reasons, shape)
    return kernels[chosen]


def seconds_of(kernel: Kernel, shape: Shape) -> float:
    """Seconds of a call at a shape, by the fastest of a few calls.

    Where memory is short fewer keys and queries are timed, and the rest counted in.

    Raises:
        Exception: the kernel fails at this size, or finds no memory at any.
    """
    part = shape
    while True:
        found = attempt(partial(_timed, kernel, part))
        if not isinstance(found, OutOfMemory):
            return found * (shape.queries * shape.keys) / (part.queries * part.keys)
        DeviceMemory(shape.device).release()
        if part.queries == 1:
            raise MemoryError(found.message)
        part = replace(part, queries=part.queries // 2, keys=part.keys // 2)


def _timed(kernel: Kernel, shape: Shape) -> float:
    # Zeros would draw less power than a latent's values, and so let a GPU run faster.
    generator = torch.Generator(shape.device).manual_seed(0)
    q, k, v = (
        torch.randn(
            *(1, tokens, shape.heads, shape.head_dim),
            generator=generator,
            dtype=shape.dtype,
            device=shape.device,
        ).transpose(1, 2)
        for tokens in (shape.queries, shape.keys, shape.keys)
    )
    for seen in (shape.queries, shape.keys):  # without a reference, and with one
        keys, values = k[:, :, :seen], v[:, :, :seen]
        _probe(kernel(q, keys, values)[0], q, keys, values)
    best, began = math.inf, time.perf_counter()
    for call in range(CALLS):
        if call > 1 and time.perf_counter() - began > SECONDS:
            break
        _wait(shape.device)
        start = time.perf_counter()
        kernel(q, k, v)
        _wait(shape.device)
        best = min(best, time.perf_counter() - start)
    return best


def _probe(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise where the last queries of the last head are far from exact attention."""
    few, keys, values, found = (x[:, -1:].float() for x in (q[:, :, -PROBED:], k, v, out))
    scores = few @ keys.mT * few.shape[-1] ** -0.5
    right = scores.softmax(-1) @ values
    off = (found[:, :, -PROBED:] - right).abs().max()
    if not off <= FAR_OFF * right.abs().max():  # nor NaN
        raise RuntimeError("wrong output at this size")


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(seconds: Seconds, kernel: Kernel, shape: Shape) -> float | str:
    """How long a kernel takes, or why it cannot be timed."""
    try:
        return seconds(kernel, shape)
    except Exception as error:
        return str(error).partition("\n")[0] or type(error).__name__


def _fault(name: str, kernel: Kernel, shape: Shape) -> str | None:
    like = torch.empty(1, 1, 1, shape.head_dim, dtype=shape.dtype, device=shape.device)
    return fault(kernel, like, logsumexp=shape.logsumexp, tolerance=tolerance_of(name))


def _not_at_hand(
    wanted: str, right: Mapping[str, float], reasons: Mapping[str, str], shape: Shape
) -> str:
    why = reasons.get(wanted, "it is not installed")
    names = ", ".join(name for name in right if name not in ASKED_ONLY) or "none by name"
    return (
        f"speed.attention is {wanted}, which does not work here ({why}); at hand for {shape}: "
        f"{names}. Take one of them, or auto"
    )


def _say(
    chosen: str,
    wanted: str,
    right: Mapping[str, float],
    reasons: Mapping[str, str],
    shape: Shape,
) -> None:
    times = ", ".join(
        f"{name} {1e3 * right[name]:.2f} ms" for name in sorted(right, key=right.__getitem__)
    )
    passed = "".join(f"; {name}: {reason}" for name, reason in reasons.items())
    log(f"attention by {chosen} (speed.attention {wanted}) for {shape}: {times}{passed}")
