"""`retake export`: which pairs are written, what a second run does, and what it refuses."""

import errno
import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.output.lease import held
from jobs.cli import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_SOME_FAILED, EXIT_USAGE
from jobs.export.index import read_commits
from pipeline.storage import Folder
from tests.jobs.export.outputs import export, files_of, make_pairs, store
from tests.report_results import make_failed_row

FORMATS = ("webdataset", "huggingface", "csv")
ONE_QUICKLY = [pytest.param(name, marks=[pytest.mark.soak] * (name != "csv")) for name in FORMATS]


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def exported(to: str | Path) -> list[tuple[str, str]]:
    """The ids of all pairs of an export, in order."""
    return [pair[1:3] for commit in read_commits(Folder(str(to))) for pair in commit.pairs]


@pytest.mark.parametrize("format", FORMATS)
def test_all_done_edits_are_exported_once_and_a_second_run_does_nothing(
    tmp_path: Path, output: str, format: str
) -> None:
    failed = make_failed_row("not_finite", "it went wrong", edit_id="bad")
    rows = make_pairs(output, 6, 2)
    store(output, [*rows, failed])
    first = export(output, tmp_path / "to", "--shard-mb", "0.001", format=format)
    assert first.exit_code == EXIT_DONE
    assert "12 pairs written" in first.output
    ids = exported(tmp_path / "to")
    assert sorted(ids) == sorted((row["video_id"], row["edit_id"]) for row in rows)
    before = files_of(tmp_path / "to")
    times = {name: os.stat(tmp_path / "to" / name).st_mtime_ns for name in before}
    again = export(output, tmp_path / "to", "--shard-mb", "0.001", format=format)
    assert "nothing to do" in again.output
    assert files_of(tmp_path / "to") == before
    assert {name: os.stat(tmp_path / "to" / name).st_mtime_ns for name in before} == times


@pytest.mark.parametrize("format", ONE_QUICKLY)
def test_the_checksums_are_those_that_sha256sum_finds(
    tmp_path: Path, output: str, format: str
) -> None:
    store(output, make_pairs(output, 5, 2))
    export(output, tmp_path / "to", format=format)
    command = ["sha256sum", "-c", "--strict", "--quiet", "checksums.sha256"]
    subprocess.run(command, cwd=tmp_path / "to", check=True)
    listed = {line[66:] for line in (tmp_path / "to/checksums.sha256").read_text().splitlines()}
    there = {name for name in files_of(tmp_path / "to") if not name.startswith(".export/")}
    assert listed == there - {"checksums.sha256"}


@pytest.mark.parametrize("format", ONE_QUICKLY)
def test_two_exports_of_the_same_rows_are_the_same_bytes(
    tmp_path: Path, output: str, format: str
) -> None:
    store(output, make_pairs(output, 6, 2))
    for name in ("a", "b"):
        export(output, tmp_path / name, "--shard-mb", "0.001", format=format)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_edits_of_one_source_are_on_one_side_and_stay_there_when_rows_are_added(
    tmp_path: Path, output: str
) -> None:
    store(output, make_pairs(output, 30, 2))
    export(output, tmp_path / "to", "--validation", "0.3", "--shard-mb", "0.01")

    def sides() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for commit in read_commits(Folder(str(tmp_path / "to"))):
            for pair in commit.pairs:
                found.setdefault(pair[1], set()).add(commit.split)
        return found

    before = sides()
    assert all(len(splits) == 1 for splits in before.values())
    assert {"train", "validation"} == set.union(*before.values())
    shards = files_of(tmp_path / "to")
    store(output, make_pairs(output, 10, 2, first=30), "run-2")
    more = export(output, tmp_path / "to", "--validation", "0.3", "--shard-mb", "0.01")
    assert "20 pairs written" in more.output
    assert "60 pairs, which stay as they are" in more.output
    after = sides()
    assert len(after) == 40
    assert {video: after[video] for video in before} == before
    now = files_of(tmp_path / "to")
    assert {n: d for n, d in now.items() if n.endswith(".tar") and n in shards} == {
        n: d for n, d in shards.items() if n.endswith(".tar")
    }
    assert len(exported(tmp_path / "to")) == len(set(exported(tmp_path / "to"))) == 80


def test_edits_that_the_rules_did_not_accept_are_left_out_unless_all_are_asked_for(
    tmp_path: Path, output: str
) -> None:
    rows = make_pairs(output, 1, 4)
    for row, accepted in zip(rows, (True, False, None, True), strict=True):
        row["accepted"] = accepted
    store(output, rows)
    some = export(output, tmp_path / "some")
    assert [edit for _, edit in exported(tmp_path / "some")] == ["e0", "e3"]
    assert "1 that the job's rules rejected (--all takes them)" in some.output
    assert "1 that have no scores for the job's rules yet" in some.output
    export(output, tmp_path / "all", "--all")
    assert len(exported(tmp_path / "all")) == 4


def test_a_job_with_rules_whose_edits_have_no_scores_yet_exports_none(
    tmp_path: Path, output: str
) -> None:
    store(output, make_pairs(output, 2))
    Folder(output).write("job.yaml", b"manifest: m.parquet\naccept: ['change > 0']\n")
    result = export(output, tmp_path / "to")
    assert "no pair to write" in result.output
    assert "2 that have no scores" in result.output


def test_an_edit_whose_best_candidate_is_not_chosen_yet_waits_for_the_choice(
    tmp_path: Path, output: str
) -> None:
    rows = make_pairs(output, 1, 3)
    for row, accepted in zip(rows[:2], (None, False), strict=True):
        row["output"] = f"candidates/clip.0/{row['edit_id']}/0.mp4"
        row["accepted"] = accepted  # False: a further round may make a better one
        Folder(output).write(row["output"], b"a" * row["size_bytes"])
    store(output, rows)
    result = export(output, tmp_path / "to", "--all")
    assert exported(tmp_path / "to") == [("clip.0", "e2")]
    assert "2 whose best candidate the job has not chosen yet" in result.output
    chosen = [row | {"output": f"edits/clip.0/{row['edit_id']}.mp4"} for row in rows[:2]]
    store(output, [row | {"candidate": 1} for row in chosen], "run-2")
    assert export(output, tmp_path / "to", "--all").exit_code == EXIT_DONE
    assert len(exported(tmp_path / "to")) == 3


def test_the_newest_row_of_an_edit_counts(tmp_path: Path, output: str) -> None:
    rows = make_pairs(output, 2, 2)
    store(output, rows)
    store(output, [rows[0] | {"scores": {"judge": {"follows": 4}}}], "run-2")
    lost = make_failed_row("edit_lost", "is gone", video_id="clip.1", edit_id="e1")
    store(output, [lost], "run-3")
    export(output, tmp_path / "to", "--where", "scores.judge.follows IS NOT NULL")
    assert len(exported(tmp_path / "to")) == 3
    data = Folder(str(tmp_path / "to")).read("train-000000.tar")
    assert data.count(b'"follows": 4') == 1


def test_a_pair_whose_file_is_gone_is_reported_and_comes_when_it_is_there_again(
    tmp_path: Path, output: str
) -> None:
    rows = make_pairs(output, 4)
    store(output, rows)
    kept = Folder(output).read(rows[1]["output"])
    os.remove(f"{output}/{rows[1]['output']}")
    Folder(output).write(rows[2]["output"], b"cut")
    os.remove(f"{output}/{rows[3]['source']}")
    result = export(output, tmp_path / "to")
    assert result.exit_code == EXIT_SOME_FAILED
    assert exported(tmp_path / "to") == [("clip.0", "e0")]
    assert "clip.1/e0: edits/clip.1/e0.mp4 is gone" in result.output
    assert "clip.2/e0: edits/clip.2/e0.mp4 has 3 bytes; the results say 200" in result.output
    assert "clip.3/e0: sources/clip.3.mp4 is gone" in result.output
    Folder(output).write(rows[1]["output"], kept)
    export(output, tmp_path / "to")
    assert sorted(exported(tmp_path / "to")) == [("clip.0", "e0"), ("clip.1", "e0")]


def test_a_file_that_goes_between_the_listing_and_the_reading_is_reported_as_well(
    tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_pairs(output, 3)
    store(output, rows)
    read = Folder.read

    def gone(self: Folder, name: str) -> bytes:
        if name == rows[0]["output"]:
            raise FileNotFoundError(name)
        return read(self, name)[:-1] if name == rows[1]["output"] else read(self, name)

    monkeypatch.setattr(Folder, "read", gone)
    result = export(output, tmp_path / "to", "--shard-mb", "0.0001")
    assert result.exit_code == EXIT_SOME_FAILED
    assert exported(tmp_path / "to") == [("clip.2", "e0")]
    assert "has 199 bytes now, and had 200 before: it is being made again" in result.output
    assert sorted(name for name in files_of(tmp_path / "to") if name.endswith(".tar")) == [
        "train-000000.tar"
    ], "a shard without pairs is none"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "another"}, "made again since they were exported"),
        ({"candidate": 2}, "made again since they were exported"),
        ({"accepted": False}, "exported before, and are not chosen any more"),
    ],
)
def test_an_edit_that_changed_after_it_was_exported_is_refused_with_the_way_out(
    tmp_path: Path, output: str, change: dict[str, Any], said: str
) -> None:
    rows = make_pairs(output, 2, candidate=0, accepted=True)
    store(output, rows)
    export(output, tmp_path / "to")
    before = files_of(tmp_path / "to")
    store(output, [rows[1] | change], "run-2")
    result = export(output, tmp_path / "to")
    assert result.exit_code == EXIT_CANNOT_RUN
    assert f"1 edit of it, such as clip.1/e0, were {said}" in result.output
    assert "export into a new folder" in result.output
    assert files_of(tmp_path / "to") == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--where", "seed = 7"], "--where '', now 'seed = 7' is asked for"),
        (["--validation", "0.5"], "--validation 0.05, now 0.5"),
        (["--all"], "--all False, now True"),
        (["--shard-mb", "5"], "--shard-mb 1000.0, now 5.0"),
        (["--format", "csv"], "--format 'webdataset', now 'csv'"),
    ],
)
def test_a_run_that_asks_for_something_else_is_refused(
    tmp_path: Path, output: str, options: list[str], said: str
) -> None:
    store(output, make_pairs(output, 1))
    export(output, tmp_path / "to")
    result = export(output, tmp_path / "to", *options)
    assert result.exit_code == EXIT_CANNOT_RUN
    assert said in result.output
    assert "expected the same as before, or a new folder" in result.output


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path, output: str) -> None:
    store(output, make_pairs(output, 1))
    (tmp_path / "to").mkdir()
    (tmp_path / "to/notes.txt").write_text("mine")
    result = export(output, tmp_path / "to")
    assert result.exit_code == EXIT_CANNOT_RUN
    assert "is not empty (notes.txt), and has no .export/export.json" in result.output
    assert list(files_of(tmp_path / "to")) == ["notes.txt"]


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("out", "is the output folder"),
        ("out/set", "is inside of the output folder"),
        ("link/set", "is inside of the output folder"),
        ("", "holds the output folder"),
    ],
)
def test_a_place_in_the_output_folder_is_refused(
    tmp_path: Path, output: str, to: str, said: str
) -> None:
    store(output, make_pairs(output, 1))
    (tmp_path / "link").symlink_to(output)
    before = files_of(output)
    result = export(output, tmp_path / to)
    assert result.exit_code == EXIT_CANNOT_RUN
    assert said in result.output
    assert files_of(output) == before


def test_a_shard_that_was_removed_by_hand_is_refused(tmp_path: Path, output: str) -> None:
    store(output, make_pairs(output, 2))
    export(output, tmp_path / "to")
    os.remove(tmp_path / "to/train-000000.tar")
    result = export(output, tmp_path / "to")
    assert result.exit_code == EXIT_CANNOT_RUN
    assert "1 file of its shards, such as train-000000.tar, are gone" in result.output


def test_a_table_that_was_removed_by_hand_is_written_again(tmp_path: Path, output: str) -> None:
    store(output, make_pairs(output, 2))
    export(output, tmp_path / "to", format="csv")
    before = files_of(tmp_path / "to")
    os.remove(tmp_path / "to/train.csv")
    export(output, tmp_path / "to", format="csv")
    assert files_of(tmp_path / "to") == before


def test_the_output_folder_is_only_read(tmp_path: Path, output: str) -> None:
    store(output, make_pairs(output, 2))
    before = files_of(output)
    with held(Folder(output), "run-2"):  # a job that runs
        assert export(output, tmp_path / "to").exit_code == EXIT_DONE
    assert {n: d for n, d in files_of(output).items() if not n.startswith("lease/")} == before


def test_two_exports_into_one_folder_are_refused(tmp_path: Path, output: str) -> None:
    store(output, make_pairs(output, 2))
    with held(Folder(f"{tmp_path}/to/.export"), "", command="retake export"):
        result = export(output, tmp_path / "to")
    assert result.exit_code == EXIT_CANNOT_RUN
    assert "`retake export`" in result.output
    assert "--wait" in result.output
    assert export(output, tmp_path / "to").exit_code == EXIT_DONE


def test_an_export_waits_for_another_one_when_it_is_told_to(tmp_path: Path, output: str) -> None:
    store(output, make_pairs(output, 2))
    done = threading.Event()
    codes = []

    def second() -> None:
        codes.append(export(output, tmp_path / "to", "--wait").exit_code)
        done.set()

    with held(Folder(f"{tmp_path}/to/.export"), "", command="retake export"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not done.wait(0.3)
    thread.join(30)
    assert codes == [EXIT_DONE]


@pytest.mark.parametrize("format", ONE_QUICKLY)
def test_a_full_disk_is_a_message_and_the_export_goes_on_from_there(
    tmp_path: Path, output: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(output, make_pairs(output, 4))
    options = ("--shard-mb", "0.0005")
    replace = os.replace

    def full(scratch: str, path: str) -> None:
        if path.endswith((".tar", ".parquet", ".mp4")) and len(exported(tmp_path / "to")) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        replace(scratch, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        result = export(output, tmp_path / "to", *options, format=format)
    assert result.exit_code == EXIT_CANNOT_RUN
    assert "no space is left" in result.output
    assert not [name for name in files_of(tmp_path / "to") if "/." in f"/{name}"[8:]]
    assert export(output, tmp_path / "to", *options, format=format).exit_code == EXIT_DONE
    export(output, tmp_path / "whole", *options, format=format)
    assert files_of(tmp_path / "to") == files_of(tmp_path / "whole")


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, output: str) -> None:
    store(output, make_pairs(output, 4))
    result = export(output, tmp_path / "to", "--dry-run")
    assert "4 pairs would be written in 1 shard" in result.output
    assert "4 train, 0 validation, of 4 videos" in result.output
    assert not (tmp_path / "to").exists()


def test_a_format_that_does_not_exist_is_wrong_usage(tmp_path: Path, output: str) -> None:
    store(output, make_pairs(output, 1))
    result = export(output, tmp_path / "to", format="webdatset")
    assert result.exit_code == EXIT_USAGE
    assert "did you mean 'webdataset'?" in result.output


def test_an_output_without_results_is_a_message(tmp_path: Path) -> None:
    result = export(tmp_path, tmp_path / "to")
    assert result.exit_code == EXIT_CANNOT_RUN
    assert "no rows in results/*.parquet" in result.output


def test_a_damaged_commit_is_a_message(tmp_path: Path, output: str) -> None:
    store(output, make_pairs(output, 1))
    export(output, tmp_path / "to")
    (tmp_path / "to/.export/shards/train-000000.json").write_text("{")
    result = export(output, tmp_path / "to")
    assert result.exit_code == EXIT_CANNOT_RUN
    assert ".export/shards/train-000000.json: is damaged" in result.output


def test_results_of_versions_before_with_fewer_columns_are_exported(
    tmp_path: Path, output: str
) -> None:
    import pyarrow as pa

    from cluster.results.schema import SCHEMA, to_parquet

    later = ("mask", "instruction", "scores", "accepted", "rejected_for", "candidates", "round")
    rows = make_pairs(output, 2)
    schema = pa.schema([field for field in SCHEMA if field.name not in later])
    older = pa.Table.from_pylist(rows, schema=schema)
    Folder(output).write("results/run-0-000000.parquet", to_parquet(older))
    store(output, make_pairs(output, 1, 2, first=2))
    export(output, tmp_path / "to")
    assert len(exported(tmp_path / "to")) == 4


def test_the_columns_of_manifests_that_differ_between_runs_are_exported(
    tmp_path: Path, output: str
) -> None:
    store(output, make_pairs(output, 1, Prompt="theirs", level=1, tags=[{"a": 1}]), "run-1")
    store(output, make_pairs(output, 1, first=1, Prompt=None, level="high", tags="x"), "run-2")
    store(output, make_pairs(output, 1, first=2), "run-3")
    export(output, tmp_path / "to", "--shard-mb", "0.0001")
    found = {}
    for name, data in files_of(tmp_path / "to").items():
        if name.endswith(".tar"):
            start = data.index(b'{"video_id"')
            row = json.loads(data[start : data.index(b"\0", start)])
            found[row["video_id"]] = (row["Prompt"], row["level"])
    assert found == {"clip.0": ("theirs", "1"), "clip.1": (None, "high"), "clip.2": (None, None)}
