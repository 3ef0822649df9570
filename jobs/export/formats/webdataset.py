"""webdataset: a tar for each shard, with the videos of each pair and what is known of it as JSON.

    <key>.source.mp4  <key>.edit.mp4  <key>.mask.mp4  <key>.json

webdataset takes the text before the first dot for the key of a sample, and files that follow each
other with one key for one sample (`webdataset/tariterators.py`, `base_plus_ext` and
`group_by_keys`).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from typing import ClassVar

from jobs.export.card import write_card
from jobs.export.formats import MEDIA, Pair, Shard, Whole
from jobs.export.target import Target
from jobs.export.values import as_json

SHARD = re.compile(r"(train|validation)-\d{6,}\.tar")


class WebDataset:
    """Tar files; to write them needs no package of webdataset."""

    needs: ClassVar[tuple[str, ...]] = ()

    def write(self, shard: Shard, pairs: Iterator[Pair], target: Target) -> None:
        with (
            target.file(f"{shard.name}.tar") as file,
            tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for pair in pairs:
                for kind in MEDIA:
                    if kind in pair.files:
                        _add(tar, f"{pair.key}.{kind}{pair.endings[kind]}", pair.files[kind])
                _add(tar, f"{pair.key}.json", as_json(pair.row))

    def leftovers(self, name: str) -> bool:
        return SHARD.fullmatch(name) is not None

    def finish(self, whole: Whole, target: Target) -> None:
        write_card(whole, target)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A file of a tar; neither time nor owner are in it, so that the same pairs give the same
    bytes."""
    about = tarfile.TarInfo(name)  # its time, owner and group are 0, its mode is 0o644
    about.size = len(data)
    tar.addfile(about, io.BytesIO(data))
