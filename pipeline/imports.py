"""Imports of large libraries, without Python's garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def large_imports() -> Iterator[None]:
    """Import torch, diffusers or transformers inside: without the collector it takes 3/4 the time.

    What is imported stays, and the collector would look for garbage among all of it again and
    again. For imports alone: weights that are loaded may leave garbage.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
