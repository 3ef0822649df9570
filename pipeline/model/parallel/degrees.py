"""Which degrees a rank group can have: plain arithmetic, done before a GPU is taken.

A group of ulysses * ring * cfg ranks computes one prediction together (`group.py` beside this).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.model.checkpoint import CheckpointInfo


@dataclass(frozen=True)
class Degrees:
    """How a group's ranks divide the work.

    Args:
        ulysses: ranks that trade tokens for heads in attention; it must divide the heads.
        ring: ranks that pass keys and values round.
        cfg: 2 gives the negative and the positive prompt of classifier-free guidance ranks of
            their own.
    """

    ulysses: int = 1
    ring: int = 1
    cfg: int = 1

    @property
    def ranks(self) -> int:
        return self.ulysses * self.ring * self.cfg

    @property
    def token_ranks(self) -> int:
        """Ranks over which the tokens of one branch are split."""
        return self.ulysses * self.ring

    def __str__(self) -> str:
        return f"ulysses {self.ulysses} x ring {self.ring} x cfg {self.cfg}"


def choose_degrees(info: CheckpointInfo, *, gpus: int, ring: int = 1, cfg: int = 1) -> Degrees:
    """What `ulysses: auto` means: the largest Ulysses degree that divides the heads, the rest ring.

    Args:
        ring: the least ring degree.

    Raises:
        ValueError: if the GPUs cannot be divided by ring and cfg.
    """
    if ring < 1 or cfg < 1 or gpus % (ring * cfg):
        raise ValueError(
            f"ring {ring} x cfg {cfg} does not divide a group of {gpus} GPUs; set both to 1"
        )
    ulysses = math.gcd(info.heads, gpus // cfg // ring)
    return Degrees(ulysses, gpus // cfg // ulysses, cfg)


def check_degrees(
    info: CheckpointInfo,
    *,
    gpus: int,
    ulysses: int | Literal["auto"],
    ring: int,
    cfg: int,
    frames: int,
    height: int,
    width: int,
) -> Degrees:
    """The degrees to start with, if a group of so many GPUs can run a clip of this size so.

    Args:
        ulysses: `auto` is replaced as `choose_degrees` does.
        frames, height, width: of the clip, in pixels.

    Raises:
        ValueError: names the value that is wrong, and lists the degrees that are legal.
    """
    if ulysses == "auto":
        degrees = choose_degrees(info, gpus=gpus, ring=ring, cfg=cfg)
    else:
        degrees = Degrees(ulysses, ring, cfg)
    tokens = info.video_tokens(frames, height, width)
    fault = _fault(degrees, gpus, info.heads, tokens)
    if fault is None:
        return degrees
    legal = "; ".join(map(str, legal_degrees(gpus, info.heads, tokens))) or "none, take fewer GPUs"
    raise ValueError(
        f"{fault}. Legal for {gpus} GPUs with this {info.family} checkpoint ({info.heads} heads) "
        f"at {frames} frames of {height}x{width} ({tokens} tokens): {legal}"
    )


def legal_degrees(gpus: int, heads: int, tokens: int) -> list[Degrees]:
    """All degrees that a group of so many GPUs can have; those that exchange least come first."""
    every = [
        Degrees(ulysses, gpus // cfg // ulysses, cfg)
        for cfg in (2, 1)
        for ulysses in range(gpus // cfg, 0, -1)
        if gpus % (cfg * ulysses) == 0
    ]
    return [degrees for degrees in every if _fault(degrees, gpus, heads, tokens) is None]


def _fault(degrees: Degrees, gpus: int, heads: int, tokens: int) -> str | None:
    for name in ("ulysses", "ring", "cfg"):
        if getattr(degrees, name) < 1:
            return f"{name} is {getattr(degrees, name)}, but must be at least 1"
    if degrees.cfg > 2:
        return f"cfg is {degrees.cfg}, but guidance has two branches: it must be 1 or 2"
    if heads % degrees.ulysses:
        return f"ulysses is {degrees.ulysses}, which does not divide {heads} heads"
    if degrees.ranks != gpus:
        return f"{degrees} makes {degrees.ranks} ranks, but the group has {gpus} GPUs"
    if tokens < degrees.token_ranks:
        return (
            f"{degrees} splits the tokens over {degrees.token_ranks} ranks, but there are {tokens}"
        )
    return None
