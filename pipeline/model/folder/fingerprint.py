"""The fingerprint of a checkpoint: equal for equal configurations and weights, wherever they lie.

Reading 20 GB to name a checkpoint would cost minutes for each job. Fine-tuning moves nearly every
value of each tensor that it trains, but it may train a few small ones only: so it takes the
configurations whole, and of the weights a sample of every tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.model.folder.weights import header_bytes
from pipeline.storage import from_json

SAMPLE_BYTES = 4096
NO_HEADER = (ValueError, KeyError, TypeError, AttributeError)
"""What reading the header of a file raises that is no safetensors file."""


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """16 hex digits for the files that count in a folder."""
    digest = hashlib.sha256()
    for file in files:
        name, size = file.relative_to(folder), file.stat().st_size
        digest.update(f"{name.as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if file.suffix != ".safetensors":
                digest.update(stream.read())
                continue
            try:
                for sample in samples(stream, size):
                    digest.update(sample)
            except NO_HEADER:
                # What is loaded was checked: this file is an extra one. Its beginning names it.
                stream.seek(0)
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def samples(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """The header of a safetensors file, then the middle of each tensor, up to `SAMPLE_BYTES`."""
    header = header_bytes(stream, size)
    yield header
    for first, last in _middles(header):
        stream.seek(first)
        yield stream.read(last - first)


def read_by_samples(path: Path) -> list[tuple[int, int]]:
    """The bytes first <= i < last that `samples` reads of a file behind its header."""
    with path.open("rb") as stream:
        try:
            return list(_middles(header_bytes(stream, path.stat().st_size)))
        except NO_HEADER:
            return []


def _middles(header: bytes) -> Iterator[tuple[int, int]]:
    start = 8 + len(header)
    for name, entry in sorted(from_json(header).items()):
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            middle = max(first, (first + last - SAMPLE_BYTES) // 2)
            yield start + middle, start + min(last, middle + SAMPLE_BYTES)
