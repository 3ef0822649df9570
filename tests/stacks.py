"""Which functions of ours are on a stack."""

from __future__ import annotations

from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parent.parent
ROOMS = tuple(str(ROOT / room) for room in ("pipeline", "cluster", "jobs"))


def functions_of_ours(frame: FrameType | None) -> list[str]:
    """The names of the product's functions from the first called to the given frame.

    Modules and comprehensions are left out.
    """
    names: list[str] = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(ROOMS) and not code.co_name.startswith("<"):
            names.append(code.co_name)
        frame = frame.f_back
    return names[::-1]
