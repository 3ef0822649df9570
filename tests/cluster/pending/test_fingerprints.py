"""Fingerprints by columns are those of checked rows, whatever the manifest holds."""

from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.job import Job
from cluster.pending.fingerprints import Resolved, edit_keys
from pipeline.locations import resolve_uri
from pipeline.settings import Reconstruction
from tests.pending_rows import work_of_row
from tests.small_jobs import a_job

EDIT = {
    "edit_id": pa.string(),
    "prompt": pa.string(),
    "negative_prompt": pa.string(),
    "guidance_scale": pa.float64(),
    "seed": pa.float64(),
    "mask": pa.string(),
    "instruction": pa.string(),
    "note": pa.string(),
}
SCHEMA = pa.schema(
    {
        "video": pa.string(),
        "video_id": pa.string(),
        "source_prompt": pa.string(),
        "edits": pa.list_(pa.struct(EDIT)),
        "start_frame": pa.int32(),
        "num_frames": pa.float64(),
        "fps": pa.float32(),
        "seed": pa.int64(),
        "mask": pa.string(),
        "split": pa.string(),
    }
)
TEXTS = st.none() | st.text(max_size=5) | st.sampled_from(['red {} \\ "x"', "猫\u2028\U0001f600"])
WHOLE = st.none() | st.sampled_from([0.0, -0.0, 3.0, 2.5, -1.0, 2.0**60, float("nan")])
REAL = st.none() | st.sampled_from([0.0, -0.0, 6.0, 1e22, 0.1, -1.0, float("nan"), float("inf")])
IDS = st.none() | st.sampled_from(["a", "b", "../c", "", "a b"])
VIDEOS = st.sampled_from(
    "a.mp4|./a.mp4|x/../a.mp4|/v/a.mp4|s3://b/x/../a.mp4|s3://b//a?x=/b.mp4|~/a|s3://| ||"
    "zip://a.mp4::s3://b/c.zip|https://h/a.mp4?q=1|file:/v/a.mp4".split("|")
)
MASKS = st.none() | st.sampled_from(["auto", "none", "m.png", "./m.png", "{}"]) | VIDEOS
EDITS = st.fixed_dictionaries(
    {
        "edit_id": IDS,
        "prompt": TEXTS,
        "negative_prompt": TEXTS,
        "guidance_scale": REAL,
        "seed": WHOLE,
        "mask": MASKS,
        "instruction": TEXTS,
        "note": st.none(),
    }
)
ROWS = st.fixed_dictionaries(
    {
        "video": st.none() | VIDEOS,
        "video_id": IDS,
        "source_prompt": TEXTS,
        "edits": st.none() | st.lists(st.none() | EDITS, max_size=4),
        "start_frame": st.none() | st.integers(-1, 3),
        "num_frames": WHOLE,
        "fps": REAL,
        "seed": st.none() | st.integers(-1, 2**63 - 1),
        "mask": MASKS,
        "split": TEXTS,
    }
)


def a_job_of(
    reference: Literal["empty", "source"],
    mask: Literal["none", "auto"] = "none",
    composite: bool = False,
) -> Job:
    job = a_job()
    how = Reconstruction(reference=reference, mask=mask, composite=composite)
    return replace(job, editing=replace(job.editing, reconstruction=how), base="s3://base/m")


def by_columns(job: Job, table: pa.Table) -> set[tuple[Any, ...]]:
    return set(zip(*edit_keys(job, job.fingerprint(), table), strict=True))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(ROWS, max_size=4),
    st.sampled_from(["empty", "source"]),
    st.sampled_from(["none", "auto"]),
    st.booleans(),
)
def test_each_edit_that_the_check_accepts_has_the_same_ids_and_fingerprint(
    rows: list[dict[str, Any]], reference: Any, mask: Any, composite: bool
) -> None:
    job = a_job_of(reference, mask, composite)
    table = pa.Table.from_pylist(rows, SCHEMA)
    checked = [work_of_row(job, row) for row in table.to_pylist()]
    accepted = {
        (video.video_id, edit.edit_id, edit.fingerprint)
        for video in checked
        if video and not video.error_code
        for edit in video.edits
        if edit.pending
    }
    assert accepted <= by_columns(job, table)
    lengths = sum(len(row["edits"] or ()) for row in rows)
    assert len(edit_keys(job, job.fingerprint(), table).fingerprint) == lengths


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.struct({"prompt": pa.string()})),
        pa.large_list(pa.struct({"prompt": pa.large_string(), "seed": pa.int8()})),
        pa.list_(pa.struct({"seed": pa.null(), "prompt": pa.string()}), 1),
        pa.list_(pa.struct({"guidance_scale": pa.int32(), "prompt": pa.string()})),
    ],
    ids=str,
)
def test_any_type_that_holds_the_edits_gives_the_same(kind: pa.DataType) -> None:
    job = a_job_of("empty")
    edit = {"prompt": "red", "seed": None, "guidance_scale": None}
    fields = [field.name for field in kind.value_type]
    rows = [{"video": "a", "edits": [{name: edit[name] for name in fields}]}] * 2
    table = pa.Table.from_pylist(rows, pa.schema({"video": pa.string(), "edits": kind}))
    work = work_of_row(job, rows[0])
    assert work is not None
    print_ = work.edits[0].fingerprint
    sliced = pa.concat_tables([table.slice(1), table.slice(0, 1)])
    assert edit_keys(job, job.fingerprint(), sliced).fingerprint == [print_, ""]


@pytest.mark.parametrize(
    ("kind", "given"),
    [(pa.null(), None), (pa.list_(pa.string()), ["red"]), (pa.list_(pa.null()), [None])],
    ids=str,
)
def test_edits_of_another_type_have_no_fingerprint(kind: pa.DataType, given: Any) -> None:
    job = a_job()
    table = pa.table({"video": pa.array(["a"]), "edits": pa.array([given], kind)})
    prints = edit_keys(job, job.fingerprint(), table).fingerprint
    assert prints == [""] * len(given or ())


@pytest.mark.parametrize(
    "base", ["/clips", "s3://b/m", "zip://in::s3://b/c.zip", ".", "http://h/d?t=/x"]
)
def test_a_location_is_resolved_by_its_folder_as_it_is_alone(base: str) -> None:
    names = ["a.mp4", "b.mp4", "a..b", "..", ".", ".x", "", "a b.mp4", "C:x", "~", "a?b", "x::y"]
    folders = ["", "/", "./", "v/", "../", "~/", "s3://b/", "s3://", "http://h/p?q=/", "file:/v/"]
    folders += ["C:/v/", "a::b/", "zip://v/", "s3:/", "//x/", "v//"]
    resolved = Resolved(base)
    for location in (f"{folder}{name}" for _ in range(2) for folder in folders for name in names):
        assert resolved[location] == resolve_uri(location, base), location
