"""A job with scores: measured beside the groups, stored with the rows, and none of it twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster.driver import scoring, wave
from cluster.driver.placing import FREED_S
from cluster.events.record import Event, Happened
from cluster.events.stored import read_segments
from cluster.results.compaction import current_rows
from cluster.stages import group
from cluster.stages.score import ScoreEdits
from jobs.cli import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_SOME_FAILED
from jobs.errors import JobError
from jobs.spec import load_job, parse_job
from jobs.submission.travel import RunOptions, travelling
from pipeline.storage import Folder
from tests.in_process import run_in_process
from tests.jobs.test_run import SMALL, a_row, a_video, results, run
from tests.jobs.test_stopping import processes_with
from tests.judge_server import GOOD, Answer, JudgeServer, judge_server, says
from tests.small_similarity_models import save_clip, save_dino

RULE = "background_psnr_db >= 0"
STRICT = "background_psnr_db > 200"


@pytest.fixture(autouse=True)
def where_jobs_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, but for tests that start their own."""
    if not request.node.get_closest_marker("ray"):
        run_in_process(monkeypatch)
        monkeypatch.setattr(scoring, "PAUSE_S", 0.0)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [
        a_row(a_video(folder / "a.mp4"), "red", "blue", video_id="a", source_prompt="grey"),
        a_row(a_video(folder / "b.mp4", shade=60), "red", video_id="b"),
    ]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out/summary.json").read_text())


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What groups have loaded."""
    seen: list[str] = []
    ready = group.RankGroup.ready

    def noted(self: Any) -> None:
        seen.append(self.start_message.work)
        ready(self)

    monkeypatch.setattr(group.RankGroup, "ready", noted)
    return seen


def test_edits_have_their_scores_once_and_a_new_score_is_measured_alone(
    tmp_path: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(tmp_path)
    wanted: dict[str, Any] = {"frames": True}
    assert run(tmp_path, rows, score=wanted, accept=[RULE, STRICT]) == EXIT_DONE
    first = results(tmp_path)
    assert set(first) == {("a", "red"), ("a", "blue"), ("b", "red")}
    for row in first.values():
        assert row["scores"]["frames"]["background_psnr_db"] > 0
        assert row["scores"]["frames"]["fingerprint"]
        assert row["scores"]["clip"] is None
        assert (row["accepted"], row["rejected_for"]) == (False, [STRICT])
    found = summary(tmp_path)
    assert (found["last"]["ok"], found["last"]["scored"], found["last"]["edits"]) == (3, 3, 3)
    assert (found["last"]["accepted"], found["last"]["rejected"]) == (0, 3)
    assert found["last"]["rejections"] == [{"rule": STRICT, "edits": 3}]
    assert sum(found["last"]["throughput"]["ok"]) == 3, "no edit counts twice"
    work = found["scoring"]
    assert (work["edits"], work["scored"], work["missing"]) == (3, 3, 0)
    assert work["seconds"] > 0
    shown = capsys.readouterr().out
    assert "3 of 3 edits" in shown and f"3 rejected by {STRICT}" in shown

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/edits").rglob("*.mp4")}
    assert run(tmp_path, rows, score=wanted, accept=[RULE, STRICT]) == EXIT_DONE
    assert "nothing is pending" in capsys.readouterr().out
    assert results(tmp_path) == first

    loads.clear()
    wanted["clip"] = save_clip(tmp_path / "clip")
    assert run(tmp_path, rows, score=wanted, accept=[RULE]) == EXIT_DONE
    assert "nothing is pending" not in capsys.readouterr().out
    second = results(tmp_path)
    assert not loads, "no group loads a checkpoint for scores alone"
    for key, row in second.items():
        assert row["scores"]["frames"] == first[key]["scores"]["frames"]
        assert -1 <= row["scores"]["clip"]["text"] <= 1
        assert (row["scores"]["clip"]["direction"] is None) == (key[0] == "b")
        assert (row["accepted"], row["rejected_for"]) == (True, [])
        assert row["run"] == first[key]["run"], "the row is of the run that made the edit"
        assert row["finished_at"] > first[key]["finished_at"]
    found = summary(tmp_path)
    assert (found["last"]["edits"], found["all"]["ok"], found["all"]["accepted"]) == (0, 3, 3)
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/edits").rglob("*.mp4")}
    assert now == written


def test_a_job_without_scores_takes_its_rules_along_and_starts_no_scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "scoring_graph", None)  # nobody calls it
    assert (
        run(tmp_path, rows_of(tmp_path), accept=["metrics.flicker >= 0", "frames > 5"]) == EXIT_DONE
    )
    rows = results(tmp_path)
    assert {(row["accepted"], *row["rejected_for"]) for row in rows.values()} == {
        (False, "frames > 5")
    }
    assert summary(tmp_path)["all"]["rejected"] == 3
    assert summary(tmp_path)["scoring"] is None


def test_what_is_wrong_with_one_edit_is_in_its_row_and_is_tried_by_the_next_run(
    tmp_path: Path,
) -> None:
    rows = rows_of(tmp_path)
    assert run(tmp_path, rows) == EXIT_DONE
    broken = tmp_path / "out" / results(tmp_path)["a", "red"]["output"]
    whole, size = broken.read_bytes(), broken.stat().st_size
    broken.write_bytes(b"\0" * size)
    assert run(tmp_path, rows, score={"frames": True}) == EXIT_DONE
    scores = {key: row["scores"]["frames"] for key, row in results(tmp_path).items()}
    assert "RowError" in scores["a", "red"]["error"] and not scores["a", "red"]["fingerprint"]
    assert scores["a", "blue"]["error"] is None
    assert summary(tmp_path)["scoring"]["with_errors"] == 1
    broken.write_bytes(whole)
    assert run(tmp_path, rows, score={"frames": True}) == EXIT_DONE
    assert summary(tmp_path)["scoring"]["edits"] == 1
    assert results(tmp_path)["a", "red"]["scores"]["frames"]["error"] is None


def test_models_that_cannot_be_loaded_cost_no_edit_and_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.quality.scoring import Scorer

    def load(*_: Any) -> Scorer:
        raise MemoryError("no room for CLIP")

    monkeypatch.setattr("cluster.stages.score.HOLD_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(Scorer, "load", load)
        status = run(tmp_path, rows_of(tmp_path), score={"frames": True})
    assert status == EXIT_SOME_FAILED
    shown = " ".join(capsys.readouterr().out.split())
    assert "without scores: 3 edits: the scores' models cannot be loaded: MemoryError" in shown
    assert {row["status"] for row in results(tmp_path).values()} == {"ok"}
    status = json.loads((tmp_path / "out/status.json").read_text())
    assert (status["ending"], status["exit_status"]) == ("scores missing", 3)
    assert (status["to_score"], status["scored"]) == (3, 0)
    assert run(tmp_path, rows_of(tmp_path), score={"frames": True}) == EXIT_DONE
    assert summary(tmp_path)["scoring"]["scored"] == 3


def test_a_part_scores_what_it_names_and_a_limited_run_what_it_makes(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    assert run(tmp_path, rows) == EXIT_DONE
    scored = {"frames": True}

    def having() -> set[tuple[str, str]]:
        return {key for key, row in results(tmp_path).items() if row["scores"]["frames"]}

    assert run(tmp_path, rows, options=("--limit", "1"), score=scored) == EXIT_DONE
    assert not having()
    assert run(tmp_path, rows, options=("--only", "a/red"), score=scored) == EXIT_DONE
    assert having() == {("a", "red")}
    rows[1]["edits"][0]["prompt"] = "green"  # its stored edit is another one now
    only = ("--only", "a")
    assert run(tmp_path, rows, options=only, score=scored) == EXIT_DONE
    assert having() == {("a", "red"), ("a", "blue")}


def test_the_best_candidate_of_an_edit_becomes_the_edit(tmp_path: Path) -> None:
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red", "blue", video_id="a")]
    tries = {"candidates": [{"guidance_scale": 8.0}, {"start": 0.34}], "keep_candidates": True}
    score = {"frames": True, "rank_by": "-frames.change"}
    assert run(tmp_path, rows, score=score, reconstruction=tries) == EXIT_DONE
    found = results(tmp_path)
    assert len(found) == 2
    for row in found.values():
        changes = {one["number"]: one["scores"]["frames"]["change"] for one in row["candidates"]}
        assert len(changes) == 3
        assert row["scores"]["frames"]["change"] == min(changes.values())
        assert changes[row["candidate"]] == min(changes.values())
        assert row["output"] == f"edits/a/{row['edit_id']}.mp4"
        best = row["candidates"][row["candidate"]]["output"]
        out = tmp_path / "out"
        assert (out / row["output"]).read_bytes() == (out / best).read_bytes()
    assert run(tmp_path, rows, score=score, reconstruction=tries) == EXIT_DONE
    assert results(tmp_path) == found, "what is chosen stays chosen"


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], **sections: Any) -> str:
    """Why a job with these sections cannot run; nothing has been started."""
    assert run(folder, rows_of(folder), **sections) == EXIT_CANNOT_RUN
    assert not (folder / "out/results").exists()
    return capsys.readouterr().err


def test_what_cannot_be_scored_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dino = save_dino(tmp_path / "dino")
    wrong = {"clip": dino, "dino": str(tmp_path / "none"), "judge_model": "qwen"}
    shown = refusal(tmp_path, capsys, score=wrong)
    assert f"score.clip: {dino}: a model of type dinov2; expected clip" in shown
    assert f"score.dino: {tmp_path}/none: there is no such folder" in shown
    assert "score.judge_model: is the name of a model at a server, and score.judge is not" in shown
    shown = refusal(tmp_path, capsys, accept=["judge.follows >= 3"])
    assert "is not measured: turn on score.judge" in shown
    shown = refusal(tmp_path, capsys, reconstruction={"candidates": [{"start": 0.5}]})
    assert "score.rank_by names none" in shown


def test_models_of_a_job_file_are_found_from_its_folder_and_those_of_a_change_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("clip", "here/dino"):
        (tmp_path / name).mkdir(parents=True)
    score = {"clip": "clip", "dino": "./other", "judge": "http://host:8000/v1"}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"manifest": "m", "output": "out", "score": score}))
    monkeypatch.chdir(tmp_path / "here")
    found = load_job(str(path), ["score.dino=dino"]).score
    assert (found.clip, found.dino) == (f"{tmp_path}/clip", f"{tmp_path}/here/dino")
    assert found.judge == score["judge"]
    hub = parse_job({"manifest": "m", "output": "o", "score": {"clip": "openai/c"}}, source="x")
    assert hub.score.clip == "openai/c", "a name on the Hub stays one"


def test_a_model_of_this_machine_does_not_travel(tmp_path: Path) -> None:
    values = {"manifest": "s3://b/m.parquet", "output": "s3://b/out"}
    local = parse_job(values | {"score": {"clip": str(tmp_path)}}, source="x")
    with pytest.raises(JobError, match=f"score.clip {tmp_path}: is on this machine"):
        travelling(local, RunOptions(), sees_files=False)
    travelling(local, RunOptions(), sees_files=True)
    named = parse_job(values | {"score": {"clip": "a/b", "judge": "http://h/v1"}}, source="x")
    assert "a/b" in travelling(named, RunOptions(), sees_files=False).job


@pytest.fixture
def at_the_judge() -> threading.Event:
    """Set by a judge that has a question which it does not answer."""
    return threading.Event()


def slow_judge(at: threading.Event, answers: int) -> Callable[[dict], Answer]:
    """Answers some questions, and then waits until the test ends."""
    asked = iter(range(1 << 30))

    def answer(_: dict) -> Answer:
        if next(asked) < answers:
            return says(GOOD)
        at.set()
        return Answer(body="{}", until=threading.Event())

    return answer


@contextmanager
def started(folder: Path, server: JudgeServer, edits: int) -> Iterator[subprocess.Popen[str]]:
    """`retake run` in a process of its own, with a judge. After the block nothing of it is left."""
    names = [f"{chr(97 + n)}red" for n in range(edits)]
    values = SMALL | {"score": {"judge": server.url, "judge_model": "tiny"}}
    values |= {"manifest": f"{folder}/m.parquet", "output": f"{folder}/out"}
    from jobs.manifest.writing import write_manifest

    write_manifest([a_row(a_video(folder / "a.mp4"), *names, video_id="a")], values["manifest"])
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "run", str(folder / "job.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        | {"RETAKE_TEST": str(folder)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        wait_for(lambda: not processes_with(f"RETAKE_TEST={folder}"), 120)


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def scored_in(folder: Path) -> int:
    rows = current_rows(Folder(f"{folder}/out"))
    return sum(row["scores"]["judge"] is not None for row in rows)


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_ended_while_it_scores_goes_on_with_the_scores_that_are_missing(
    tmp_path: Path, at_the_judge: threading.Event, number: int
) -> None:
    edits = 6
    with (
        judge_server(slow_judge(at_the_judge, answers=4)) as server,
        started(tmp_path, server, edits) as process,
    ):
        assert at_the_judge.wait(120)
        wait_for(lambda: scored_in(tmp_path) == 4)
        began = time.monotonic()
        process.send_signal(number)
        shown = process.communicate(timeout=60)[0]
        assert time.monotonic() - began < 30, "nobody waits for the judge"
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM, shown
        status = json.loads((tmp_path / "out/status.json").read_text())
        assert (status["scored"], status["to_score"], status["made"]) == (4, edits, edits)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/edits").rglob("*.mp4")}
    with judge_server(says(GOOD)) as server, started(tmp_path, server, edits) as process:
        shown = process.communicate(timeout=120)[0]
        assert process.returncode == EXIT_DONE, shown
        assert len(server.requests) == edits - 4, "what is scored stays scored"
    assert "2 stored edits to score" in shown
    assert "loading" not in shown, "no group starts for scores alone"
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out/edits").rglob("*.mp4")} == made
    rows = results(tmp_path)
    assert len(rows) == edits
    assert {row["scores"]["judge"]["follows"] for row in rows.values()} == {4}


def events_of_the_driver(folder: Path) -> list[Event]:
    output = Folder(f"{folder}/out")
    names = [name for name in output.list("logs") if "/driver-" in name]
    return sorted(read_segments(output, names), key=lambda one: one.time)


@pytest.mark.ray
@pytest.mark.soak
def test_scores_are_measured_while_groups_go_on_with_wave_after_wave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ROWS", "ROWS_A_GROUP"):
        monkeypatch.setattr(wave, name, 1)
    monkeypatch.setattr(scoring, "ENOUGH", 1)
    rows = [a_row(a_video(tmp_path / f"{n}.mp4"), "red", "blue", video_id=n) for n in "abcd"]
    assert run(tmp_path, rows, score={"frames": True}) == EXIT_DONE
    assert all(row["scores"]["frames"]["fingerprint"] for row in results(tmp_path).values())
    log = events_of_the_driver(tmp_path)
    names = [one.event for one in log]
    assert names.count(Happened.WAVE_BEGAN) == 4
    assert names.index(Happened.SCORES_MADE) < len(names) - names[::-1].index(Happened.WAVE_BEGAN)
    began, ended = (
        [datetime.fromisoformat(one.time) for one in log if one.event == event]
        for event in (Happened.WAVE_BEGAN, Happened.WAVE_ENDED)
    )
    pauses = [(next_ - last).total_seconds() for last, next_ in zip(ended, began[1:], strict=False)]
    assert max(pauses) < FREED_S / 2, "what scoring holds is not waited for"


@pytest.mark.ray
@pytest.mark.soak
def test_an_edit_whose_scoring_ends_its_process_is_tried_again_and_the_run_goes_on(
    tmp_path: Path, at_the_judge: threading.Event
) -> None:
    edits = 6
    with (
        judge_server(slow_judge(at_the_judge, answers=4)) as server,
        started(tmp_path, server, edits) as process,
    ):
        assert at_the_judge.wait(120)
        server.answers = [says(GOOD)]
        killed = [
            one
            for one in psutil.process_iter()
            if ScoreEdits.__name__ in "".join(one.cmdline())
            and one.environ().get("RETAKE_TEST") == str(tmp_path)
        ]
        assert killed
        for one in killed:
            one.kill()
        shown = process.communicate(timeout=200)[0]
    assert process.returncode == EXIT_DONE, shown
    assert all(row["scores"]["judge"]["follows"] == 4 for row in results(tmp_path).values())
