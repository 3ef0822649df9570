"""Runs of a part of a manifest: what `--only` and `--limit` take, and what `--dry-run` shows."""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.selection.entries import Entry
from jobs.manifest.writing import write_manifest
from jobs.trial import Part, part_of
from pipeline.storage import Folder
from tests.cluster.test_result_parts import of_before
from tests.cluster.test_results import a_result, store, store_table
from tests.jobs.test_cli import retake

GALLERY = """video_id,edit_id,pick,rating,note
horse,zebra,keep,5,"good, sharp"
horse,donkey,reject,1,
cat,,,,
dog,red,Reject ,,
"""
"""A list as the gallery writes it."""


def entries(*only: str) -> list[Entry]:
    part = part_of(only, None)
    assert part is not None
    assert part.selection is not None
    return part.selection.entries()


def test_without_options_a_run_takes_all() -> None:
    assert part_of([], None) is None
    assert part_of([], 3) == Part(None, 3)


def test_an_id_is_that_of_a_video_or_of_one_of_its_edits() -> None:
    assert entries("horse", "cat/red", "b*/x") == [("horse", None), ("cat", "red"), ("b*", "x")]


@pytest.mark.parametrize("name", ["picks.csv", "@picks.csv", "@picks.tsv"])
def test_a_list_is_what_the_gallery_writes_without_what_was_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name.removeprefix("@")).write_text(GALLERY, encoding="utf-8-sig")
    assert entries(name) == [("horse", "zebra"), ("cat", None)]


def test_a_list_may_be_parquet(tmp_path: Path) -> None:
    rows = [
        {"video_id": 7, "edit_id": "red", "pick": None, "rating": 0.5},
        {"video_id": 8, "edit_id": None, "pick": "keep", "rating": None},
        {"video_id": 9, "edit_id": "red", "pick": "reject", "rating": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "l.parquet")
    assert entries(f"{tmp_path}/l.parquet") == [("7", "red"), ("8", None)]


def test_a_list_may_be_text_with_an_id_a_line(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("horse/zebra\n\n  cat  \nb*\n")
    assert entries(f"@{tmp_path}/l.txt") == [("horse", "zebra"), ("cat", None), ("b*", None)]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("nowhere.csv", None, "nowhere.csv: cannot be read"),
        ("nowhere.txt", None, "nowhere.txt: there is no such file"),
        ("nowhere.parquet", None, "nowhere.parquet: there is no such file"),
        ("l.csv", "video,edit_id\na,b\n", "there is no column 'video_id'. It has 'video'"),
        ("l.csv", "video_id,edit_id\n,b\n", "line 2 has no video_id"),
        ("l.csv", "video_id,pick\na,reject\n", "names no video and no edit"),
        ("l.parquet", "no parquet", "cannot be read"),
        ("l.txt", "a/b/c\n", "expected video_id, video_id/edit_id"),
        ("l.txt", "\n", "names no video and no edit"),
    ],
)
def test_a_list_that_names_nothing_is_refused(
    tmp_path: Path, name: str, content: str | None, complaint: str
) -> None:
    from jobs.errors import UserError

    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        part_of([f"@{tmp_path}/{name}"], None)
    assert complaint in str(error.value)


@pytest.fixture
def job(tmp_path: Path) -> str:
    """A job of three videos with two edits each, and of one that is refused."""
    rows: list[dict[str, Any]] = [
        {
            "video": f"{name}.mp4",
            "video_id": name,
            "edits": [{"edit_id": edit, "prompt": edit} for edit in ("red", "blue")],
        }
        for name in ("horse", "cat", "dog")
    ]
    rows.append({**rows[0], "video_id": "bad", "fps": -1.0})
    write_manifest(rows, str(tmp_path / "m.parquet"))
    values = {"manifest": str(tmp_path / "m.parquet"), "output": str(tmp_path / "out")}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "job.yaml")


def dry_run(job: str, *options: str) -> dict[str, str]:
    """What a dry run prints, by the first word of each line."""
    status, text = retake("run", job, "--dry-run", *options)
    assert status == 0, text
    return {line[:16].strip(): line[16:] for line in text.splitlines()}


def test_a_dry_run_shows_the_plan_and_writes_nothing(job: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    shown = dry_run(job)
    assert shown["pending"] == "3 videos, 6 edits"
    assert shown["videos"] == "horse, cat, dog"
    assert shown["done"] == "0 edits"
    assert shown["refused"] == "2 (bad_value 2)"
    assert shown["to invert"].startswith("3 videos at most; 0 with a stored trajectory")
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_of_a_part_counts_the_part(job: str) -> None:
    assert dry_run(job, "--limit", "2")["videos"] == "horse, cat"
    shown = dry_run(job, "--only", "*/red", "--only", "dog")
    assert shown["pending"] == "3 videos, 4 edits"
    assert shown["refused"] == "1 (bad_value 1)"
    assert dry_run(job, "--only", "cat/blue", "--limit", "9")["pending"] == "1 video, 1 edit"


def test_a_dry_run_knows_what_is_done_and_what_is_stored(job: str, tmp_path: Path) -> None:
    from jobs.prepare import prepare
    from jobs.spec import load_job
    from tests.pending_rows import work_of_row

    prepared = prepare(load_job(job))
    row = pq.read_table(tmp_path / "m.parquet").to_pylist()[0]
    work = work_of_row(prepared.job, row)
    assert work is not None
    output = Folder(str(tmp_path / "out"))
    output.write("trajectories/k/index.json", b"{}")
    red = next(edit for edit in work.edits if edit.edit_id == "red")
    done = a_result("horse", "red", trajectory="k", fingerprint=red.fingerprint)
    store(output, "r", done)
    shown = dry_run(job, "--only", "horse")
    assert (shown["pending"], shown["done"]) == ("1 video, 1 edit", "1 edit")
    assert shown["to invert"].startswith("1 video at most; 1 with a stored trajectory")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("hrose", "'hrose' (is it 'horse'?)"),
        ("horse/blu", "'horse/blu' (is it 'horse/blue'?)"),
        ("z*", "'z*'"),
        ("horse/y*", "'horse/y*'"),
    ],
)
def test_a_name_that_the_manifest_does_not_have_is_an_error(job: str, name: str, near: str) -> None:
    status, text = retake("run", job, "--dry-run", "--only", name, "--only", "cat")
    assert status == 1
    assert f"error: --only: the manifest has no {near}" in text


def test_a_limit_below_one_is_wrong_usage(job: str) -> None:
    assert retake("run", job, "--limit", "0")[0] == 2


def test_a_dry_run_imports_no_ray(job: str) -> None:
    import json
    import subprocess

    program = (
        "import json, sys; from typer.testing import CliRunner; from jobs.cli import app\n"
        "done = CliRunner().invoke(app, ['run', sys.argv[1], '--dry-run'])\n"
        "print(json.dumps([done.exit_code, 'ray' in sys.modules]))"
    )
    command = [sys.executable, "-c", program, job]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [0, False]


@pytest.fixture
def failed_job(job: str, tmp_path: Path) -> str:
    """Of the job `horse/red` ran out of memory, `cat/red` is quarantined, and the rest is new."""
    store(
        Folder(str(tmp_path / "out")),
        "r",
        a_result("horse", "red", "failed", error_code="out_of_memory"),
        a_result("cat", "red", "quarantined", error_code="rank_died"),
    )
    return job


def test_a_dry_run_of_failed_edits_shows_what_it_leaves(failed_job: str) -> None:
    shown = dry_run(failed_job, "--retry-failed")
    assert (shown["pending"], shown["videos"]) == ("2 videos, 2 edits", "horse, cat")
    assert shown["not taken"] == "6 edits, pending but none of the failed ones"
    assert shown["refused"] == "0"


def test_failed_edits_are_chosen_by_code_and_by_id(failed_job: str) -> None:
    def videos(*options: str) -> str:
        return dry_run(failed_job, "--retry-failed", *options).get("videos", "")

    assert videos("--code", "out_of_memory") == "horse"
    assert videos("--code", "out_of_memory", "--code", "rank_died") == "horse, cat"
    assert videos("--code", "out_of_memory", "--retry-quarantined") == "horse, cat"
    assert videos("--code", "storage") == ""
    assert videos("--only", "cat") == "cat"
    assert videos("--limit", "1") == "horse"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--code", "storage"], "--code storage: expected --retry-failed beside it"),
        (["--retry-failed", "--code", "oom"], "--code 'oom': there is no such error code"),
        (["--retry-failed", "--code", "storag"], "did you mean 'storage'?"),
    ],
)
def test_a_code_that_says_nothing_is_wrong_usage(
    job: str, options: list[str], complaint: str
) -> None:
    status, text = retake("run", job, *options)
    assert status == 2
    assert complaint in text


def test_a_column_mask_that_was_the_manifests_own_is_no_mask_of_edits_that_are_done(
    job: str, tmp_path: Path
) -> None:
    output, rows = Folder(f"{tmp_path}/out"), pq.read_table(tmp_path / "m.parquet").to_pylist()
    write_manifest([row | {"mask": "yes"} for row in rows], str(tmp_path / "m.parquet"))
    store_table(output, "r1", of_before(a_result("horse", "red"), mask="yes"))
    status, text = retake("run", job, "--dry-run")
    assert status == 1
    assert "m.parquet: column 'mask': in the results of" in text
    assert "Rename the column to keep them" in text
    stored = output.list("results")
    assert retake("run", job)[0] == 1
    assert output.list("results") == stored, "nothing was touched"
    write_manifest([row | {"my_mask": "yes"} for row in rows], str(tmp_path / "m.parquet"))
    assert retake("run", job, "--dry-run")[0] == 0
