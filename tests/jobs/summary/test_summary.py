"""The summary of a job: sums over the newest rows, of the last run and of all runs."""

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster.estimate.dataset import Dataset, VideoGroup
from cluster.estimate.plan import estimate
from cluster.estimate.rates import kinds as rates_of
from cluster.estimate.record import JobPlan
from cluster.layout.work import inversion_forwards, reconstruction_forwards
from cluster.progress import Counts, Groups
from jobs.spec import load_job
from jobs.summary import as_json, lines_of, summarise, write_summary
from jobs.summary.gather import MOST_BUCKETS, bucket_of
from jobs.summary.record import FILE, CodeCount, Compared, Totals
from pipeline.model.checkpoint import open_checkpoint
from pipeline.records import Forwards
from pipeline.settings import EditingSettings
from pipeline.storage import Folder
from tests.report_results import TIMINGS, make_failed_row, make_row, write_rows
from tests.small_jobs import a_job

FIRST, SECOND = "20260101T120000.000000", "20260102T120000.000000"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SETTINGS = EditingSettings(output="out")


def row(video: str, edit: str, minute: float = 1, run: str = FIRST, **columns: Any) -> dict:
    day = 24 * 60 * (run == SECOND)
    when = NOON + timedelta(minutes=minute + day)
    return make_row(video, edit, run=run, finished_at=when, size_bytes=100, **columns)


def failed_row(video: str, edit: str, code: str, minute: float = 1, **columns: Any) -> dict:
    same = {name: row(video, edit, minute)[name] for name in ("run", "finished_at", "size_bytes")}
    return make_failed_row(code, "why", video_id=video, edit_id=edit, **same, **columns)


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    """Of the first run two videos with three edits and two that failed, of the second one more."""
    first = [
        row("a", "x", attempts=3),
        row("a", "y", 2),
        row("b", "x", 3, timings=dict.fromkeys(TIMINGS, 2.0)),
        failed_row("b", "y", "out_of_memory", 4, gpu_seconds=7.0),
        failed_row("b", "z", "out_of_memory", 5),
        failed_row("c", "x", "not_finite", 6),
    ]
    reused = {"inversion": 0.0, "plain": 10.0, "injected": 5.0}
    second = [row("c", "x", 1, SECOND), row("a", "z", 11, SECOND, forwards=reused)]
    write_rows(str(tmp_path), first, f"{FIRST}-000000")
    write_rows(str(tmp_path), second, f"{SECOND}-000000")
    return Folder(str(tmp_path))


def test_all_rows_are_summed_up_and_those_of_the_last_run(output: Folder) -> None:
    summary = summarise(output, SETTINGS)
    of_all, last = summary.all, summary.last
    assert of_all.runs == (FIRST, SECOND)
    assert (of_all.videos, of_all.edits) == (3, 7)
    assert (of_all.ok, of_all.failed, of_all.quarantined) == (5, 2, 0)
    assert of_all.failures == (CodeCount("out_of_memory", 2),), "c/x was made since"
    assert (of_all.retried, of_all.more_tries, of_all.size_bytes) == (1, 2, 500)
    assert of_all.started_at == NOON
    assert of_all.ended_at == NOON + timedelta(days=1, minutes=11)
    assert of_all.gpu_seconds == 5 * 2.0 + 7.0
    assert of_all.wasted_gpu_seconds == 7.0
    assert of_all.wasted_forwards == 2 * 106.0
    assert of_all.wasted_seconds == 2 * 0.5 * len(TIMINGS)
    assert last.runs == (SECOND,)
    assert (last.videos, last.edits, last.ok, last.failed) == (2, 2, 2, 0)
    assert (last.inverted, last.reused) == (1, 1)
    assert last.forwards == Forwards(16.0, 40.0, 65.0)
    assert last.seconds == 11 * 60


def test_the_plan_is_that_of_the_edits_that_were_made(output: Folder) -> None:
    settings = replace(SETTINGS, reconstruction=replace(SETTINGS.reconstruction, edits_at_once=2))
    one, two = (reconstruction_forwards(settings, edits) for edits in (1, 2))
    planned = summarise(output, settings).all.planned
    assert planned == Forwards(
        3.0 * inversion_forwards(settings),
        two.plain + 3 * one.plain,  # three edits of a in two units, one of b, one of c
        two.injected + 3 * one.injected,
    )
    assert summarise(output).all.planned is None, "there is no job.yaml"


def test_throughput_counts_edits_by_when_they_were_finished(output: Folder) -> None:
    over_time = summarise(output, SETTINGS).last.throughput
    assert over_time is not None
    assert over_time.bucket_s == 5.0
    assert len(over_time.ok) == 133
    assert {at for at, count in enumerate(over_time.ok) if count} == {12, 132}
    of_all = summarise(output, SETTINGS).all.throughput
    assert of_all is not None
    assert (sum(of_all.ok), sum(of_all.failed)) == (5, 2)
    assert len(of_all.ok) <= MOST_BUCKETS


@pytest.mark.parametrize("seconds", [0, 0.3, 1, 199, 200, 3600, 86400 * 30, 86400 * 4000])
def test_buckets_are_never_too_many(seconds: float) -> None:
    assert int(seconds // bucket_of(seconds)) + 1 <= MOST_BUCKETS


def test_the_slowest_edits_come_with_their_parts(output: Folder) -> None:
    slowest = summarise(output, SETTINGS).all.slowest
    assert [(s.video_id, s.edit_id) for s in slowest[:2]] == [("b", "x"), ("a", "x")]
    assert slowest[0].seconds == 2.0 * len(TIMINGS)
    assert slowest[0].parts.invert == 2.0
    assert len(slowest) == 5, "edits that failed are not among them"


def test_skipped_forwards_are_told_beside_those_that_were_computed(tmp_path: Path) -> None:
    spent = {"inversion": 16.0, "plain": 10.0, "injected": 5.0, "skipped": 30.0}
    failed = failed_row("b", "x", "not_finite", forwards=spent)
    rows = [row("a", "x", forwards=spent), row("a", "y", forwards=spent), failed]
    write_rows(str(tmp_path), rows, f"{FIRST}-000000")
    summary = summarise(Folder(str(tmp_path)), SETTINGS)
    assert summary.last.forwards == Forwards(48.0, 30.0, 15.0, 90.0)
    assert summary.last.wasted_forwards == 31.0
    lines = "\n".join(lines_of(summary))
    assert "forwards        93, planned" in lines
    assert "; 90 skipped after the first block" in lines


def test_results_of_older_versions_are_summed_up(tmp_path: Path) -> None:
    import pyarrow as pa

    from cluster.results.schema import to_parquet

    names = ("video_id", "edit_id", "status", "fingerprint", "run", "finished_at")
    rows = [{name: row("a", "x")[name] for name in names}]
    table = pa.Table.from_pylist(rows).append_column("timings", pa.array([{"invert": 3.0}]))
    Folder(str(tmp_path)).write(f"results/{FIRST}-000000.parquet", to_parquet(table))
    totals = summarise(Folder(str(tmp_path)), SETTINGS).all
    assert (totals.ok, totals.timings.invert, totals.gpu_seconds) == (1, 3.0, 0.0)


def test_no_results_are_no_error(tmp_path: Path) -> None:
    assert summarise(Folder(str(tmp_path)), SETTINGS).all.edits == 0


def test_a_run_says_how_busy_its_groups_were(output: Folder) -> None:
    job = replace(a_job(), run=SECOND, editing=replace(SETTINGS, output=output.uri))
    counts = Counts(groups=(Groups("inversion", 1, 1), Groups("reconstruction", 3, 3)))
    summary = write_summary(job, counts, 10.0, pytest.fail)
    assert summary is not None
    inversion, reconstruction = summary.stages
    assert (inversion.stage, inversion.busy_s, inversion.held_s) == ("inversion", 3.0, 10.0)
    assert (reconstruction.busy_s, reconstruction.held_s) == (2.0, 30.0)
    assert [line.split() for line in lines_of(summary)][:2] == [
        ["busy", "30%,", "1", "inversion", "group"],
        ["busy", "7%,", "3", "reconstruction", "groups"],
    ]
    assert output.read(FILE).decode() == as_json(summary)
    assert summarise(output, job.editing) == summary, "what a run knew of itself is read back"
    write_rows(output.uri, [row("d", "x", 30, "20260103T120000.000000")], "later-000000")
    assert summarise(output, job.editing).seconds is None, "another run has written since"


def test_a_run_without_results_has_none_of_the_run_before(output: Folder) -> None:
    job = replace(a_job(), run="20260103T120000.000000")
    job = replace(job, editing=replace(SETTINGS, output=output.uri))
    summary = write_summary(job, Counts(groups=(Groups("editing", 1, 1),)), 10.0, pytest.fail)
    assert summary is not None
    assert (summary.last, summary.all.edits) == (Totals(), 7)
    assert [line.split() for line in lines_of(summary)] == [
        ["busy", "0%,", "1", "editing", "group"]
    ]


def test_the_plan_of_a_run_stands_beside_what_it_took(output: Folder) -> None:
    run = "20260103T120000.000000"
    on_gpus = {"run": run, "gpu_seconds": 1800.0, "memory_bytes": 20 * 10**9}
    rows = [row("d", "x"), row("d", "y"), row("e", "x")]
    rows = [one | on_gpus | {"trajectory_bytes": 500} for one in rows]
    write_rows(output.uri, rows, f"{run}-000000")
    job = replace(a_job(), run=run, editing=replace(SETTINGS, output=output.uri))
    counts = Counts(groups=(Groups("editing", 1, 1),))
    summary = write_summary(job, counts, 3600.0, pytest.fail, a_plan("H100"))
    assert summary is not None
    assert summary.plan is not None
    assert (summary.plan.gpu, summary.plan.basis) == ("H100", "assumed")
    assert summary.plan.edits == Compared(4, 3, 0.75)
    assert summary.plan.gpu_hours.actual == 1.5
    assert summary.plan.wall_hours.actual == 1.0
    assert summary.plan.storage_bytes.actual == 3 * (500 + 100)
    assert summary.plan.memory_bytes.actual == 20e9
    for one in (summary.plan.forwards, summary.plan.gpu_hours, summary.plan.storage_bytes):
        assert one.planned
        assert one.actual
        assert one.ratio == one.actual / one.planned
    (line,) = [line for line in lines_of(summary) if line.startswith("plan")]
    assert line.startswith("plan            1 h 0 min of ")
    assert summarise(output, job.editing).plan is not None, "it is read back"


def test_skipped_forwards_are_none_that_a_plan_is_compared_with(output: Folder) -> None:
    run = "20260103T120000.000000"
    forwards = {"inversion": 10.0, "plain": 20.0, "injected": 30.0, "skipped": 40.0}
    write_rows(output.uri, [row("d", "x") | {"run": run, "forwards": forwards}], f"{run}-000000")
    job = replace(a_job(), run=run, editing=replace(SETTINGS, output=output.uri))
    summary = write_summary(job, Counts(), 10.0, pytest.fail, a_plan())
    assert summary is not None
    assert summary.plan is not None
    assert summary.plan.forwards.actual == 60


def test_a_plan_without_a_known_gpu_has_no_hours(output: Folder) -> None:
    job = replace(a_job(), run=SECOND, editing=replace(SETTINGS, output=output.uri))
    summary = write_summary(job, Counts(), 10.0, pytest.fail, a_plan())
    assert summary is not None
    assert summary.plan is not None
    assert summary.plan.gpu is None
    assert summary.plan.wall_hours == Compared(None, 10 / 3600, None)
    assert summary.plan.forwards.ratio is not None
    assert not [line for line in lines_of(summary) if line.startswith("plan")]


def a_plan(*kinds: str) -> JobPlan:
    """A plan of two videos with two edits each."""
    dataset = Dataset((VideoGroup(2, 2),), 3)
    return estimate(a_job(), open_checkpoint("embedded"), dataset, rates_of(kinds))


def test_a_summary_that_cannot_be_written_is_a_note(output: Folder) -> None:
    output.write(f"{FILE}/in-its-place", b"")
    job = replace(a_job(), editing=replace(SETTINGS, output=output.uri))
    notes: list[str] = []
    assert write_summary(job, Counts(), 1.0, notes.append) is None
    (note,) = notes
    assert note.startswith(f"{output.uri}/summary.json: not written: ")


def test_a_run_writes_its_summary_and_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.manifest.writing import write_manifest
    from tests.in_process import run_in_process
    from tests.jobs.test_cli import retake
    from tests.jobs.test_run import SMALL, a_row, a_video

    run_in_process(monkeypatch)
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red", "blue"), a_row("none.mp4", "red")]
    write_manifest(rows, f"{tmp_path}/m.parquet")
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**SMALL, "manifest": "m.parquet", "output": "out"}))
    status, text = retake("run", str(job))
    assert status == 3, text
    found = json.loads((tmp_path / "out/summary.json").read_text())
    last = found["last"]
    assert (last["ok"], last["failed"]) == (2, 1)
    assert last["failures"] == [{"code": "video_not_found", "edits": 1}]
    assert last["forwards"] == last["planned"], "what was computed is what was planned"
    assert found["seconds"] > 0
    computed = sum(Counter(last["forwards"]).values())
    assert f"forwards        {computed:.0f}, planned {computed:.0f}" in text
    plan = found["plan"]
    assert plan["edits"] == {"planned": 3, "actual": 2, "ratio": 0.667}
    assert plan["forwards"]["planned"] > plan["forwards"]["actual"] == computed
    stored = [*tmp_path.glob("out/trajectories/*/shard-*"), *tmp_path.glob("out/edits/*/*.mp4")]
    assert plan["storage_bytes"]["actual"] == sum(file.stat().st_size for file in stored)
    assert (plan["gpu"], plan["memory_bytes"]["actual"]) == (None, None), "there is no GPU"
    assert plan["wall_hours"]["actual"] == round(found["seconds"] / 3600, 3)

    status, text = retake("run", str(job), "--retry-failed", "--code", "not_finite")
    assert (status, "nothing that this run takes is pending" in text) == (0, True), text
    a_video(tmp_path / "none.mp4")
    status, text = retake("run", str(job), "--retry-failed")
    assert (status, "this run takes 1 video with 1 pending edit" in text) == (0, True), text
    found = json.loads((tmp_path / "out/summary.json").read_text())
    assert (found["last"]["ok"], found["all"]["ok"], found["all"]["failed"]) == (1, 3, 0)
    assert found["plan"]["edits"] == {"planned": 1, "actual": 1, "ratio": 1.0}
    forwards = found["plan"]["forwards"]
    spared = inversion_forwards(load_job(str(job)).editing())
    assert forwards["planned"] - forwards["actual"] == spared, "it is the clip of a.mp4, inverted"


def test_groups_are_not_idle_while_the_run_waits_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.output.lease import held
    from jobs.manifest.writing import write_manifest
    from tests.jobs.test_cli import retake
    from tests.jobs.test_run import SMALL, a_row, a_video

    waited = [0.0]

    def late(*of: Any, **how: Any) -> Any:
        waited[0] += 5000
        return held(*of, **how)

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + waited[0])
    for module in ("jobs.run", "jobs.status.state"):
        monkeypatch.setattr(f"{module}.time", clock)
    monkeypatch.setattr("jobs.run.held", late)
    counts = Counts(groups=(Groups("editing", 1, 1),))
    monkeypatch.setattr("cluster.dataflow.run", lambda *_, **__: counts)
    write_manifest([a_row(a_video(tmp_path / "a.mp4"), "red")], f"{tmp_path}/m.parquet")
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**SMALL, "manifest": "m.parquet", "output": "out"}))
    status, text = retake("run", str(job))
    assert status == 0, text
    found = json.loads((tmp_path / "out/summary.json").read_text())
    assert found["stages"][0]["held_s"] < 1000


def test_a_summary_costs_neither_torch_nor_ray() -> None:
    program = "import sys, jobs.summary, jobs.failures; print({*sys.modules} & {*sys.argv[1:]})"
    command = [sys.executable, "-c", program, "torch", "ray"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()", done.stderr
