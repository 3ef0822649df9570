"""lance: a dataset that `lance.dataset` opens, with the videos as blobs.

    data/<name>.lance  _versions/*.manifest  _transactions/*.txn  README.md

A shard is a fragment: a file that Lance writes in a temporary folder, from where it is stored as
every file of an export. What Lance knows of it is kept in `.export/lance/<shard>.json`. When all
shards are committed, a version of the dataset with all fragments is made, in a temporary folder too
and without the videos, and stored. So a fragment of a shard without a commit is in no version, and
any storage will do. Lance finds a fragment's file by its name in `data/`, wherever the dataset is.

The videos have Lance's blob encoding in file format 2.1, which `LanceDataset.take_blobs` reads
without the rest of the row. Blobs of its second kind (`lance.blob.v2`) lie in files beside.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from jobs.errors import JobError
from jobs.export.card import write_card
from jobs.export.formats import Pair, Shard, Whole
from jobs.export.formats.tables import Layout, groups
from jobs.export.index import FOLDER
from jobs.export.target import Target
from pipeline.storage import Folder, from_json

FORMAT = "2.1"
"""The version of Lance's files: the last with blobs in the file."""
BLOB = {"lance-encoding:blob": "true"}
NOTES = f"{FOLDER}/lance"
VERSIONS = ("_transactions", "_versions")
"""The folders of what makes fragments a dataset; the second one's files are read first."""
HINT = "latest_version_hint.json"
"""Written beside the versions; Lance does without."""
BATCH_BYTES, BATCH_PAIRS = 32 << 20, 1000


class Lance:
    """Fragments, and a version of the dataset at the end of each run."""

    needs: ClassVar[tuple[str, ...]] = ("lance",)

    def __init__(self) -> None:
        self._checked = False

    def write(self, shard: Shard, pairs: Iterator[Pair], target: Target) -> None:
        from lance.fragment import LanceFragment

        layout = _layout(shard.schema)
        if not self._checked:
            _check_columns(layout.schema, target.to)
            self._checked = True
        batches = (
            batch
            for some in groups(pairs, BATCH_BYTES, BATCH_PAIRS)
            for batch in layout.table(some).combine_chunks().to_batches()
        )
        with tempfile.TemporaryDirectory() as scratch:
            made = LanceFragment.create(
                scratch,
                pa.RecordBatchReader.from_batches(layout.schema, batches),
                data_storage_version=FORMAT,
            )
            about = made.to_json()
            for one in about["files"]:
                with (
                    open(f"{scratch}/data/{one['path']}", "rb") as written,
                    target.file(f"data/{one['path']}") as file,
                ):
                    shutil.copyfileobj(written, file, 1 << 20)
        note = {"fragment": about, "schema": _packed(layout.schema)}
        target.put(f"{NOTES}/{shard.name}.json", json.dumps(note).encode())

    def leftovers(self, name: str) -> bool:
        """Versions are none: what one of a killed process names is whole."""
        return name.startswith((f"{NOTES}/", "data/"))

    def finish(self, whole: Whole, target: Target) -> None:
        if whole.shards:
            _store_version(whole, target)
        write_card(whole, target)


def _check_columns(schema: pa.Schema, to: Folder) -> None:
    """All fragments have the same columns: Lance finds them by their place.

    Raises:
        JobError: the shards that are there have other ones.
    """
    for name in to.list(NOTES)[:1]:
        before = _unpacked(from_json(to.read(name))["schema"])
        if not before.equals(schema):
            other = sorted({*map(str, before)} ^ {*map(str, schema)})
            raise JobError(
                f"{to.uri}: has other columns than the results have now ({other[0]}), and a Lance "
                "dataset is written with the same ones throughout: export into a new folder"
            )


def _store_version(whole: Whole, target: Target) -> None:
    """A version of the dataset with all fragments; nothing new where the last one has them."""
    from lance import LanceDataset, LanceOperation
    from lance.fragment import FragmentMetadata

    notes = [from_json(whole.to.read(f"{NOTES}/{name}.json")) for name in whole.shards]
    with tempfile.TemporaryDirectory() as scratch:
        there = _copy_versions(whole.to, scratch)
        fragments = [FragmentMetadata.from_json(json.dumps(note["fragment"])) for note in notes]
        if there:
            known, version = _fragments_of_last(scratch, whole.to)
            wanted = {_file(note): one for note, one in zip(notes, fragments, strict=True)}
            if stray := known - wanted.keys():
                raise JobError(
                    f"{whole.to.uri}: something else has changed the dataset ({min(stray)} is no "
                    "file of a shard); export into a new folder"
                )
            new = [one for name, one in wanted.items() if name not in known]
            if new:
                LanceDataset.commit(scratch, LanceOperation.Append(new), read_version=version)
        else:
            schema = _unpacked(notes[0]["schema"])
            LanceDataset.commit(scratch, LanceOperation.Overwrite(schema, fragments))
        for folder in VERSIONS:
            for file in sorted(Path(scratch, folder).glob("*")):
                if file.name != HINT:
                    target.put(f"{folder}/{file.name}", file.read_bytes())


def _copy_versions(to: Folder, scratch: str) -> bool:
    """Bring what makes the dataset to this machine; whether there is one."""
    there = False
    for folder in VERSIONS:
        os.mkdir(f"{scratch}/{folder}")
        for name in to.list(folder):
            if name.rpartition("/")[2] != HINT:
                Path(scratch, name).write_bytes(to.read(name))
                there = there or name.endswith(".manifest")
    return there


def _fragments_of_last(scratch: str, to: Folder) -> tuple[set[str], int]:
    """The files of the dataset's last version, and its number."""
    import lance

    try:
        dataset = lance.dataset(scratch)
        files = {file.path for one in dataset.get_fragments() for file in one.data_files()}
        return files, dataset.version
    except (OSError, ValueError) as error:
        raise JobError(
            f"{to.uri}: its Lance dataset cannot be read: {error}; restore it, or export into a "
            "new folder"
        ) from error


def _file(note: Mapping[str, Any]) -> str:
    (one,) = note["fragment"]["files"]
    return str(one["path"])


def _packed(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def _unpacked(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def _layout(row: pa.Schema) -> Layout:
    return Layout.of(
        row,
        lambda name: pa.field(name, pa.large_binary(), metadata=BLOB),
        lambda pair, kind: pair.files[kind],
        dots=False,
    )
