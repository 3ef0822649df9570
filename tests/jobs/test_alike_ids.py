"""Ids that some file systems take for the same name are refused there, and nowhere else."""

from __future__ import annotations

import unicodedata
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs.errors import JobError
from jobs.manifest.writing import write_manifest
from jobs.prepare import prepare
from jobs.spec import load_job
from pipeline.storage import Folder
from tests.pending_rows import pending_of
from tests.small_jobs import a_job


class FoldingFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Takes names that differ in letter case only for the same, as macOS and Windows do."""

    protocol = "folding"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        path = path.removeprefix("folding://")
        return str(super()._strip_protocol(unicodedata.normalize("NFC", path).lower()))


fsspec.register_implementation("folding", f"{__name__}.FoldingFileSystem", clobber=True)
EACCENT = "é"

ALIKE = {
    "videos": ([("Cat", ["red"]), ("dog", ["red"]), ("cat", ["red"])], ("Cat", "cat")),
    "edits": ([("a", ["red"]), ("b", ["Red", "blue", "red"])], ("Red", "red")),
    "accents": (
        [(unicodedata.normalize(form, f"caf{EACCENT}"), ["x"]) for form in ("NFC", "NFD")],
        (f"caf{EACCENT}", unicodedata.normalize("NFD", f"caf{EACCENT}")),
    ),
}
FINE = [("a", ["red", "blue"]), ("b", ["Red"]), ("a", ["x"]), ("B2", ["red", "red"])]
"""The same names below different folders, and ids that are the same anyhow, which are refused."""


def rows_of(videos: list[tuple[str, list[str]]]) -> list[dict[str, Any]]:
    return [
        {"video": f"{n}.mp4", "video_id": name}
        | {"edits": [{"edit_id": edit, "prompt": edit} for edit in edits]}
        for n, (name, edits) in enumerate(videos)
    ]


def a_job_file(folder: Path, output: str, videos: list[tuple[str, list[str]]]) -> str:
    write_manifest(rows_of(videos), str(folder / "m.parquet"))
    (folder / "job.yaml").write_text(f"manifest: m.parquet\noutput: {output}\n")
    return str(folder / "job.yaml")


@pytest.mark.parametrize("name", ALIKE)
def test_ids_of_one_file_are_refused_where_the_output_takes_them_for_one(
    tmp_path: Path, name: str
) -> None:
    videos, (one, other) = ALIKE[name]
    output = f"folding://{uuid.uuid4().hex}"
    job = load_job(a_job_file(tmp_path, output, videos))
    with pytest.raises(JobError) as refused:
        prepare(job)
    assert str(refused.value) == (
        f"output {output}: its file system takes {one!r} and {other!r} for the same name, and both "
        "are ids in the manifest: give one of them another id, or take an output folder whose "
        "file system tells upper from lower case"
    )
    assert Folder(output).list(scratch=True) == [], "the probe is gone"
    (warning,) = prepare(job, write=False).warnings
    assert warning.startswith(f"the ids {one!r} and {other!r} are the same but for letter case; ")


def test_they_are_taken_elsewhere_and_other_ids_everywhere(tmp_path: Path) -> None:
    output = f"memory://{uuid.uuid4().hex}"
    videos, _ = ALIKE["videos"]
    prepared = prepare(load_job(a_job_file(tmp_path, output, videos)))
    assert [len(one.work) for one in pending_of(prepared.job)] == [3]
    fine = load_job(a_job_file(tmp_path, f"folding://{uuid.uuid4().hex}", FINE))
    assert prepare(fine).warnings == ()


def test_ids_are_compared_in_whatever_form_a_manifest_has_them() -> None:
    for edits in ([], None, [{"prompt": "x"}], [{"edit_id": 1}, {"edit_id": 1}]):
        rows = [{"video": "a.mp4", "edits": edits}, {"video": "A.mp4", "edits": edits}]
        assert pending_of(a_job(), rows).scan.alike is None, "a default id has a hash"
