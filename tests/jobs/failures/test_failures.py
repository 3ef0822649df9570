"""`retake failures`: the failed edits of an output as text, as a table and as a manifest."""

import csv
import json
import random
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from cluster.pending.missing import Places
from cluster.pending.rows import PendingRows
from cluster.stages.blocks import EditWork, work_of
from jobs.manifest.writing import write_manifest
from jobs.prepare import Prepared, prepare
from jobs.spec import load_job
from jobs.trial import pending_rows
from pipeline.records import derived_seed
from pipeline.storage import Folder
from tests.cluster.test_results import a_result, store
from tests.jobs.test_cli import retake
from tests.pending_rows import answer


def failed(video_id: str, edit: str | None, code: str, **values: Any) -> dict:
    error = f"{code} happened\nat line 3"
    values |= {"video_id": video_id, "edit_id": edit, "error_code": code, "error": error}
    return a_result("", "", "failed", attempts=2) | values


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    """Results of two runs: `cat/red` was repaired by the second, and `dog` is quarantined."""
    output = Folder(str(tmp_path / "out"))
    store(
        output,
        "r1",
        a_result("horse", "blue", run="r1"),
        failed("horse", "red", "out_of_memory", run="r1"),
        failed("cat", "red", "out_of_memory", run="r1"),
        a_result("dog", "red", "quarantined", error_code="deadline", error="slow", run="r1"),
        failed("bad", None, "no_edits", run="r1", fingerprint=None),
    )
    store(output, "r2", a_result("cat", "red", run="r2", minute=1))
    return output


def test_the_newest_row_of_each_edit_says_whether_it_failed(output: Folder) -> None:
    status, text = retake("failures", output.uri)
    assert status == 0
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["3", "failed", "edits"]
    assert sorted(lines[1:4]) == [["deadline", "1"], ["no_edits", "1"], ["out_of_memory", "1"]]
    assert "horse/red  out_of_memory  2 tries  out_of_memory happened" in text
    assert "line 3" not in text
    assert "dog/red" in text
    assert "cat" not in text


def test_codes_and_a_limit_say_which_are_listed(output: Folder) -> None:
    _, text = retake("failures", output.uri, "--code", "deadline", "--code", "no_edits")
    assert "2 failed edits with deadline, no_edits" in text
    assert "horse" not in text
    _, text = retake("failures", output.uri, "--limit", "1")
    assert "... and 2 more" in text


def test_nothing_failed_is_said(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, "r1", a_result("horse", "blue", run="r1"))
    assert retake("failures", output.uri) == (0, "no edit failed\n")


def test_an_unknown_code_is_refused_with_those_that_are_there(output: Folder) -> None:
    status, text = retake("failures", output.uri, "--code", "out_of_memry")
    assert status == 2
    assert "did you mean 'out_of_memory'?" in text
    assert "deadline (1)" in text
    assert "video_not_found" in text


def test_a_code_that_another_version_wrote_is_taken(output: Folder) -> None:
    store(output, "r3", failed("cow", "red", "too_purple", run="r3"))
    assert (
        "1 failed edit with too_purple" in retake("failures", output.uri, "--code", "too_purple")[1]
    )


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_all_of_them_are_written_as_a_table(output: Folder, tmp_path: Path, ending: str) -> None:
    place = tmp_path / f"t.{ending}"
    status, text = retake("failures", output.uri, "--to", str(place), "--limit", "0")
    assert status == 0, text
    if ending == "parquet":
        rows = pq.read_table(place).to_pylist()
    elif ending == "csv":
        rows = list(csv.DictReader(place.open()))
    else:
        rows = [json.loads(line) for line in place.read_text().splitlines()]
    by_video = {row["video_id"]: row for row in rows}
    assert sorted(by_video) == ["bad", "dog", "horse"]
    assert by_video["horse"]["error_code"] == "out_of_memory"
    assert int(by_video["horse"]["attempts"]) == 2
    assert "at line 3" in by_video["horse"]["error"]
    assert not by_video["bad"]["edit_id"]


def test_a_table_needs_a_known_ending(output: Folder) -> None:
    status, text = retake("failures", output.uri, "--to", "t.xlsx")
    assert status == 2
    assert "--to t.xlsx: expected a file that ends in .parquet, .csv, .jsonl" in text


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    status, text = retake("failures", str(tmp_path))
    assert status == 1
    assert "no rows in results/*.parquet" in text


def drawn_rows(draw: random.Random, folder: Path) -> list[dict[str, Any]]:
    """Rows as people write them: ids given or not, paths of all kinds, settings of edits."""
    rows: list[dict[str, Any]] = []
    for number in range(draw.randrange(1, 12)):
        name = f"v{number}.mp4"
        places = [name, f"./{name}", f"sub/../{name}", f"{folder}/{name}", f"s3://b/{name}"]
        edits = [
            {
                "edit_id": draw.choice([None, f"e{place}"]),
                "prompt": f"prompt {place} é",
                "negative_prompt": draw.choice([None, "blurred"]),
                "guidance_scale": draw.choice([None, 3.5]),
                "seed": draw.choice([None, place]),
                "mask": draw.choice([None, "auto", *places]),
                "instruction": draw.choice([None, "make it so"]),
            }
            for place in range(draw.randrange(1, 5))
        ]
        rows.append(
            {
                "video": draw.choice(places),
                "video_id": draw.choice([None, f"id {number}"]),
                "edits": edits,
                "fps": draw.choice([None, 8.0]),
                "seed": draw.choice([None, 5]),
                "mask": draw.choice([None, "none", *places]),
                "shot": number,
                "tags": draw.choice([None, [f"t{number}"]]),
            }
        )
    return rows


def everywhere(prepared: Prepared) -> PendingRows:
    """What is pending, wherever its videos may be: none is looked for."""
    return replace(pending_rows(prepared), places=Places.NOWHERE)


def works(job: str, *changes: str) -> dict[tuple[str, str], tuple[EditWork, int, str, Any]]:
    """The pending edits of a job by their ids: each with its seed, its video and other columns."""
    prepared = prepare(load_job(job, changes))
    seed = prepared.spec.seed
    return {
        (str(video.video_id), str(edit.edit_id)): (
            edit,
            derived_seed(seed, video.video_id, edit.edit_id),
            video.video,
            (video.start_frame, video.num_frames, video.fps, video.seed, shot, tags),
        )
        for checked in everywhere(prepared)
        for video, shot, tags in zip(
            work_of(checked.work),
            *(checked.work[name].to_pylist() for name in ("shot", "tags")),
            strict=True,
        )
        for edit in video.edits
    }


def a_job(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """A job whose videos are all there, and that a run has begun."""
    for row in rows:
        (folder / Path(row["video"]).name).write_bytes(b"v")
    (folder / "sub").mkdir()
    write_manifest(rows, str(folder / "m.parquet"))
    (folder / "job.yaml").write_text(yaml.safe_dump({"manifest": "m.parquet", "output": "out"}))
    from jobs.run import resolved

    prepared = prepare(load_job(str(folder / "job.yaml")))
    Folder(str(folder / "out")).write("job.yaml", resolved(prepared).encode())
    return str(folder / "job.yaml")


@pytest.mark.parametrize("seed", range(4))
def test_a_manifest_of_failures_has_the_same_edits_as_the_job(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    home, away = tmp_path / "home", tmp_path / draw.choice(["home", "away/deep"])
    home.mkdir()
    job = a_job(home, drawn_rows(draw, home))
    before = works(job)
    chosen = {name for name in before if draw.random() < 0.4}
    everything = everywhere(prepare(load_job(job)))
    answer(everything, run="r1", takes=lambda *names: names not in chosen)
    answer(everything, "failed", run="r2", takes=lambda *names: names in chosen)
    place = away / "failed.parquet"
    status, text = retake("failures", str(home / "out"), "--manifest", str(place), "--limit", "0")
    assert status == 0, text
    assert place.exists() == bool(chosen)
    if chosen:
        after = works(job, f"manifest={place}", f"output={tmp_path}/elsewhere")
        assert after == {name: before[name] for name in chosen}
        assert works(str(home / "out/job.yaml"), f"manifest={place}") == after


def test_a_manifest_has_no_row_that_another_one_stands_for(tmp_path: Path) -> None:
    rows = [
        {"video": "a.mp4", "video_id": "a", "edits": [{"edit_id": "x", "prompt": "one"}]},
        {"video": "b.mp4", "video_id": "a", "edits": [{"edit_id": "x", "prompt": "two"}]},
        {"video": "c.mp4", "video_id": "c", "edits": []},
        {"video": "d.mp4", "video_id": "d", "edits": [{"edit_id": "x", "prompt": " "}]},
        {
            "video": "e.mp4",
            "video_id": "e",
            "edits": [{"edit_id": "x", "prompt": "one"}, {"edit_id": "x", "prompt": "two"}],
        },
    ]
    job = a_job(tmp_path, rows)
    output = Folder(str(tmp_path / "out"))
    refused = {"run": "r1", "fingerprint": None}
    store(
        output,
        "r1",
        a_result("a", "x", run="r1"),
        failed("a", "x", "duplicate_video_id", video="b.mp4", **refused),
        failed("c", None, "no_edits", **refused),
        failed("d", "x", "empty_prompt", **refused),
        failed("e", "x", "out_of_memory", run="r1"),
        failed("e", "x:2", "duplicate_edit_id", **refused),
        failed("gone", "x", "out_of_memory", run="r1"),
    )
    status, text = retake("failures", output.uri, "--manifest", str(tmp_path / "f.parquet"))
    assert status == 0, text
    made = pq.read_table(tmp_path / "f.parquet").to_pylist()
    assert [(row["video_id"], [e["prompt"] for e in row["edits"]]) for row in made] == [
        ("d", [" "]),
        ("e", ["one"]),
    ]
    assert "f.parquet: 2 videos, 2 edits" in text
    assert "4 failed edits left out" in text
    assert f"retake run {output.uri}/job.yaml --set manifest={tmp_path}/f.parquet" in text
    assert retake("run", job, "--dry-run", "--set", f"manifest={tmp_path}/f.parquet")[0] == 0


def test_a_manifest_needs_a_job_that_ran(output: Folder, tmp_path: Path) -> None:
    status, text = retake("failures", output.uri, "--manifest", str(tmp_path / "f.parquet"))
    assert status == 1
    assert "has no job.yaml that a run wrote" in text


def test_a_manifest_is_not_written_over_the_jobs_own(tmp_path: Path) -> None:
    a_job(tmp_path, [{"video": "a.mp4", "video_id": "a", "edits": [{"prompt": "one"}]}])
    store(Folder(str(tmp_path / "out")), "r1", failed("a", "x", "internal", run="r1"))
    status, text = retake(
        "failures", str(tmp_path / "out"), "--manifest", str(tmp_path / "m.parquet")
    )
    assert status == 1
    assert "give it another name" in text


@pytest.mark.parametrize(
    ("manifest", "place", "inside"),
    [
        ("m", "m/new.parquet", True),
        ("m", "m/deep/new.parquet", True),
        ("m", "m/out/new.parquet", False),
        ("m", "m2/new.parquet", False),
        ("m/*.parquet", "m/new.parquet", True),
        ("m/*.parquet", "m/deep/new.parquet", False),
        ("m/one.parquet", "m/new.parquet", False),
        ("*", "m/new.parquet", True),
    ],
)
def test_a_manifest_is_not_written_among_the_files_of_the_jobs_own(
    tmp_path: Path, manifest: str, place: str, inside: bool
) -> None:
    """The next run of the job would find each of its edits twice."""
    (tmp_path / "m").mkdir()
    edits = [{"edit_id": "x", "prompt": "one"}]
    write_manifest(
        [{"video": "a.mp4", "video_id": "a", "edits": edits}], f"{tmp_path}/m/one.parquet"
    )
    output = Folder(f"{tmp_path}/m/out")
    values = {"manifest": f"{tmp_path}/{manifest}", "output": output.uri, "about": {}}
    output.write("job.yaml", yaml.safe_dump(values).encode())
    store(output, "r1", failed("a", "x", "internal", run="r1"))
    status, text = retake("failures", output.uri, "--manifest", f"{tmp_path}/{place}")
    assert (status, "Choose a place outside" in text) == ((1, True) if inside else (0, False)), text
    assert (tmp_path / place).exists() != inside


def test_a_manifest_without_an_edit_is_not_said_to_be_written(tmp_path: Path) -> None:
    a_job(tmp_path, [{"video": "a.mp4", "video_id": "a", "edits": [{"prompt": "one"}]}])
    store(Folder(str(tmp_path / "out")), "r1", failed("gone", "x", "internal", run="r1"))
    place = tmp_path / "f.parquet"
    status, text = retake("failures", str(tmp_path / "out"), "--manifest", str(place))
    assert status == 0
    assert f"{place}: not written, since there is no edit for it" in text
    assert not place.exists()


def test_the_command_for_a_manifest_can_be_pasted(tmp_path: Path) -> None:
    home = tmp_path / "my clips"
    home.mkdir()
    a_job(
        home,
        [{"video": "a.mp4", "video_id": "a", "edits": [{"edit_id": "x", "prompt": "one"}]}],
    )
    store(Folder(str(home / "out")), "r1", failed("a", "x", "internal", run="r1"))
    _, text = retake("failures", str(home / "out"), "--manifest", f"{home}/f.parquet")
    command = text.splitlines()[-1].partition("run them with: ")[2]
    *_, job, _, change = shlex.split(command)
    assert (job, change) == (f"{home}/out/job.yaml", f"manifest={home}/f.parquet")
