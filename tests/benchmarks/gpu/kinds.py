"""Kinds of cards, and the numbers of one that a plan of a job can use.

The kinds have the names that `retake plan` gives them, so what is found here takes the place of its
assumptions: `retake plan job.yaml --rates tests/benchmarks/results/<model>_<hardware>_<date>.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """A kind of card.

    Args:
        name: as `retake plan` gives it.
        tflops: dense, of matrix products in 16 bits, summed in 32, from its data sheet.
    """

    name: str
    tflops: float


KINDS = (
    ("H200", None, Kind("H200", 989)),
    ("H100", None, Kind("H100", 989)),
    ("B200", None, Kind("B200", 2250)),
    ("A100", 60, Kind("A100-80GB", 312)),
    ("A100", 0, Kind("A100-40GB", 312)),
    ("L40S", None, Kind("L40S", 362)),
    ("L4", None, Kind("L4", 121)),
    ("A10G", None, Kind("A10G", 70)),
    ("4090", None, Kind("RTX-4090", 165)),
    ("5090", None, Kind("RTX-5090", 209)),
)
"""A word of the card's name, GB of memory that it has at least, and its kind."""


@dataclass
class Found:
    """Numbers that more than one section needs; what was not measured is None or empty.

    Args:
        seconds: of a plain and of an injected forward, by the way to make it fast (`native`).
        edit_s: seconds of an edit's forwards, with the defaults and K = 4, in the same way.
        shares: of the card's peak: `plain_mfu`, `injected_mfu`, `vae_mfu`.
        velocity: what a plain forward gives, [F, C, H, W], on the host.
    """

    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    edit_s: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    velocity: Tensor | None = None


def kind_of(hardware: str, memory_gb: float) -> Kind | None:
    """The kind of a card, by the name that its driver gives; None where it is not known."""
    words = hardware.upper().replace("-", " ").split()
    if "MIG" in words:  # a slice of a card, whose peak nobody published
        return None
    for word, least, kind in KINDS:
        if word in words and memory_gb >= (least or 0):
            return kind
    return None


def rates(kind: Kind, shares: Mapping[str, float], source: str) -> dict[str, Any]:
    """What `retake plan --rates` reads of a card.

    Args:
        shares: of the peak, each above 0.
        source: the file that shows the measurement.
    """
    rounded = {name: float(f"{share:.3g}") for name, share in shares.items()}
    entry = {"name": kind.name, **rounded, "basis": "measured", "source": source}
    return {"rates": [entry]}
