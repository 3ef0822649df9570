"""The stages with real rank processes that hold no model: every row comes out, whatever happens."""

import errno
import itertools
import json
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from cluster.job import Job
from cluster.ranks.messages import Answer, InvertVideo
from cluster.ranks.owner import RankGroup
from cluster.results.schema import SCHEMA
from cluster.settings import ClusterSettings, GroupSettings
from cluster.stages import group as stages
from cluster.stages.alone import alone_on_the_node
from cluster.stages.edit import EditVideos, ReconstructEdits
from cluster.stages.invert import FanOut, InvertVideos
from cluster.stages.prompts import EncodePrompts, store_of
from pipeline.errors import ErrorCode
from pipeline.settings import Reconstruction, TrajectorySettings
from pipeline.storage import Folder
from tests.cluster.ranks.test_owner import COMMAND
from tests.pending_rows import work_table
from tests.small_jobs import a_job

GROUP = GroupSettings()


def edits_at_once(count: int) -> Job:
    job = a_job()
    settings = replace(job.editing, reconstruction=Reconstruction(edits_at_once=count))
    return replace(job, editing=settings)


def a_row(name: str, *prompts: str, **values: Any) -> dict[str, Any]:
    edits = [{"prompt": p, "edit_id": p} for p in prompts or ("red",)]
    return {"video": name, "video_id": name.strip("/").replace("/", "-"), "edits": edits, **values}


def checked(rows: list[dict[str, Any]], job: Job | None = None) -> pa.Table:
    return work_table(job or a_job(), rows)


class Reports:
    """A report that a test reads."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.reasons: list[str] = []
        self.repairs = 0
        self.open = True

    def attend(self, stage: str, doing: Any = str) -> None: ...

    def happened(self, event: str, times: int = 1) -> None:
        self.events[event] += times

    def broken(self, reason: str) -> None:
        self.reasons.append(reason)
        self.open = False

    def repaired(self) -> None:
        self.repairs += 1

    def may_start(self) -> bool:
        return self.open


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes a stage whose ranks are the fake ones."""
    monkeypatch.setattr(stages, "rank_command", lambda: COMMAND)
    made = []

    def make(kind: type, job: Job, *more: Any, device: str = "cpu") -> Any:
        one = kind(job, Reports(), GROUP, device, 1, *more)
        made.append(one)
        return one

    yield make
    for one in made:
        one.group.close()


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[Any]]:
    """Gives what the ranks were sent so far, and forgets it."""
    sent = tmp_path / "messages"
    monkeypatch.setenv("SENT_MESSAGES", str(sent))

    def read() -> list[Any]:
        lines = sent.read_text().splitlines() if sent.exists() else []
        sent.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    return read


def through(table: pa.Table, *work: Any) -> list[dict[str, Any]]:
    for one in work:
        table = one(table)
    return table.to_pylist()


def test_a_row_goes_through_all_stages_and_keeps_the_manifests_other_columns(stage: Any) -> None:
    job = a_job()
    rows = [a_row("a", "red", "blue", split="train", weight=2.5)]
    made = through(
        checked(rows, job),
        stage(InvertVideos, job),
        FanOut(edits_at_once(1)),
        stage(ReconstructEdits, job),
    )
    assert [row["edit_id"] for row in made] == ["red", "blue"]
    for row in made:
        assert (row["status"], row["split"], row["weight"]) == ("ok", "train", 2.5)
        assert row["metrics"]["flicker"] == 0.5
        assert list(row)[: len(SCHEMA.names)] == SCHEMA.names
        assert row["timings"]["reconstruct"] == 3.0


VOLATILE = ("finished_at", "gpu_seconds")


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in VOLATILE} for row in rows]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("keep", ["always", "never"])
@pytest.mark.parametrize("retries", [0, 1])
def test_both_layouts_give_the_same_results(
    stage: Any, tmp_path: Path, retries: int, keep: Any, device: str
) -> None:
    job = edits_at_once(2)
    editing = replace(job.editing, output=str(tmp_path), trajectory=TrajectorySettings(keep=keep))
    job = replace(job, editing=editing, cluster=ClusterSettings(retries=retries))
    names = ["a", f"{tmp_path}/kills", "unreadable", "damaged"]
    rows = [a_row(name, *"abcde", weight=i) for i, name in enumerate(names)]
    table = checked(rows, job)
    apart = through(
        table,
        stage(InvertVideos, job, device=device),
        FanOut(job),
        stage(ReconstructEdits, job, device=device),
    )
    together = through(table, stage(EditVideos, job, device=device))
    assert len(together) == 4 * 5
    assert without_times(together) == without_times(apart)


def test_a_group_of_the_shared_layout_inverts_a_video_and_makes_its_edits_k_at_a_time(
    stage: Any, messages: Callable[[], list[Any]]
) -> None:
    job = edits_at_once(2)
    work = stage(EditVideos, job)
    (start,) = messages()
    assert start["work"] == "edits"
    made = through(checked([a_row("a", "red", "blue", "green"), a_row("b")], job), work)
    assert [row["status"] for row in made] == ["ok"] * 4
    asked = [[e["edit_id"] for e in sent["video"]["edits"]] for sent in messages()]
    assert asked == [[], ["red", "blue"], ["green"], [], ["red"]]
    assert work.report.events == {"editing ready": 1, "video inverted": 2}


def held(work: Any, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have each request hold a stage's ranks for so long; an inversion for one second."""
    real = work.group.request

    def request(message: Any, **how: Any) -> list[Answer]:
        spent = 1.0 if isinstance(message, InvertVideo) else seconds
        return [replace(answer, seconds=spent) for answer in real(message, **how)]

    monkeypatch.setattr(work.group, "request", request)


def test_the_gpu_seconds_of_a_shared_inversion_are_those_of_the_group_that_made_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "rank_command", lambda: COMMAND)
    job = a_job(reconstruction=GroupSettings(gpus=2))
    work = EditVideos(job, Reports(), job.cluster.reconstruction, "gpu", 1)
    held(work, monkeypatch, 3.0)
    (row,) = through(checked([a_row("a")], job), work)
    work.group.close()
    assert row["gpu_seconds"] == 2 * (1.0 + 3.0)


def test_what_happens_is_reported_as_it_happens(stage: Any) -> None:
    job = a_job()
    prompts, invert = stage(EncodePrompts, job), stage(InvertVideos, job)
    reconstruct = stage(ReconstructEdits, job)
    work = prompts(checked([a_row("a", "red", "blue"), a_row("b", "red")], job))
    assert prompts.report.events == {"prompts ready": 1, "prompt encoded": 3}  # and the empty one
    through(work, invert, FanOut(job), reconstruct)
    assert invert.report.events == {"inversion ready": 1, "video inverted": 2}
    assert reconstruct.report.events == {"reconstruction ready": 1}


def test_a_group_is_asked_for_all_that_a_row_says_and_for_nothing_else(
    stage: Any, messages: Callable[[], list[Any]]
) -> None:
    job = a_job()
    red = {
        "edit_id": "red",
        "prompt": "a red cube",
        "negative_prompt": "blur",
        "guidance_scale": 4.0,
        "seed": 2,
        "mask": "m.png",
        "instruction": "make it red",
    }
    frames = {"start_frame": 5, "num_frames": 9, "fps": 8.0, "seed": 1}
    blue = {"edit_id": "blue", "prompt": "a blue cube"}
    rows = [{"video": "a", "video_id": "v", "source_prompt": "a cube", **frames}]
    rows[0]["edits"] = [red, blue]
    work = (stage(InvertVideos, job), FanOut(job), stage(ReconstructEdits, job))
    starts = messages()
    made = through(checked(rows, job), *work)
    invert, reconstruct = messages()
    assert [start["work"] for start in starts] == ["edits", "edits"]
    video = {"video": "/clips/a", "video_id": "v", "source_prompt": "a cube", **frames}
    assert invert == {"video": {**video, "edits": [], "mask": "/clips/m.png"}}
    video["mask"] = None
    red |= {"mask": "/clips/m.png", "instruction": "make it red"}
    blank = {"negative_prompt": "", "guidance_scale": None, "seed": None}
    blank |= {"mask": None, "instruction": None}
    assert reconstruct["video"] == {**video, "edits": [red, {**blue, **blank}]}
    assert reconstruct["inversion"]["trajectory"] == "k"
    assert [row["guidance_scale"] for row in made] == [4.0, 6.0]
    assert [row["prompt"] for row in made] == ["a red cube", "a blue cube"]
    assert {row["source_prompt"] for row in made} == {"a cube"}
    assert [row["instruction"] for row in made] == ["make it red", None]
    assert {row["run"] for row in made} == {"r"}


def test_a_group_is_started_with_the_jobs_settings_and_its_own_degrees(
    monkeypatch: pytest.MonkeyPatch, messages: Callable[[], list[Any]]
) -> None:
    monkeypatch.setattr(stages, "rank_command", lambda: COMMAND)
    job = a_job()
    job = replace(job, editing=replace(job.editing, seed=7, precision="bf16"))
    group = GroupSettings(gpus=1, ulysses=4, ring=3, cfg=2)
    made = InvertVideos(job, Reports(), group, "cpu", 1)
    made.group.close()
    (start,) = messages()
    assert {name: start[name] for name in ("ulysses", "ring", "cfg")} == {
        "ulysses": 4,
        "ring": 3,
        "cfg": 2,
    }
    assert start["settings"] == json.loads(json.dumps(asdict(job.editing)))
    assert start["device"] == "cpu"


def test_every_prompt_that_an_edit_can_need_is_encoded_and_none_twice(
    stage: Any, messages: Callable[[], list[Any]]
) -> None:
    job = a_job()
    settings = Reconstruction(negative_prompt="of the job")
    job = replace(job, editing=replace(job.editing, reconstruction=settings))
    encode = stage(EncodePrompts, job)
    first = a_row("a", "red", "blue", source_prompt="of the video")
    first["edits"][0]["negative_prompt"] = "of the edit"
    assert messages() == []
    rows = [*through(checked([first, a_row("b", "red")], job), encode)]
    start, request = messages()
    assert start["work"] == "prompts"
    assert request == {"prompts": ["", "of the job", "of the video", "red", "of the edit", "blue"]}
    assert [row["error_code"] for row in rows] == [None, None]
    through(checked([a_row("c", "red", "green")], job), encode)
    assert messages() == [{"prompts": ["green"]}]
    through(checked([a_row("d", "green")], job), encode)
    assert messages() == []


def test_no_text_encoder_starts_where_storage_holds_every_prompt(
    stage: Any, messages: Callable[[], list[Any]], tmp_path: Path
) -> None:
    job = a_job()
    job = replace(job, editing=replace(job.editing, output=str(tmp_path)))
    for prompt in ("", "red", "blue"):
        store_of(job).write(prompt, torch.zeros(2, 3))
    encode = stage(EncodePrompts, job)
    through(checked([a_row("a", "red")], job), encode)
    through(checked([a_row("b", "red", "blue")], job), encode)
    through(checked([{**a_row("c", "green"), "video_id": "../x"}, a_row("d", " ")], job), encode)
    assert messages() == []
    assert encode.report.events == {"prompts ready": 1, "prompt encoded": 3}
    cut = next((tmp_path / "prompts" / "f").iterdir())
    cut.write_bytes(cut.read_bytes()[:-1])
    through(checked([a_row("a", "red", "blue")], job), stage(EncodePrompts, job))
    (start, request) = messages()
    assert start["work"] == "prompts"
    assert len(request["prompts"]) == 1, "a damaged embedding is made anew"


def test_a_text_encoder_that_is_known_to_be_needed_starts_without_a_row(
    stage: Any, messages: Callable[[], list[Any]]
) -> None:
    encode = stage(EncodePrompts, a_job(), True)
    (start,) = messages()
    assert start["work"] == "prompts"
    through(checked([a_row("a", "red")], a_job()), encode)
    assert messages() == [{"prompts": ["", "red"]}]
    assert encode.report.events == {"prompts ready": 1, "prompt encoded": 2}


def test_prompts_go_to_the_ranks_a_few_at_a_time(
    stage: Any, messages: Callable[[], list[Any]]
) -> None:
    job = a_job()
    prompts = [f"p{i}" for i in range(40)]
    encode = stage(EncodePrompts, job)
    through(checked([a_row("a", *prompts)], job), encode)
    _, *requests = messages()
    assert [len(request["prompts"]) for request in requests] == [16, 16, 9]
    assert [prompt for one in requests for prompt in one["prompts"]] == ["", *prompts]
    assert encode.report.events["prompt encoded"] == 41


def test_prompts_that_cannot_be_encoded_fail_the_videos_that_need_them_and_no_others(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = stage(EncodePrompts, a_job())
    full = Answer(error_code=ErrorCode.STORAGE, error="disk full")

    def ask(request: Any) -> tuple[Answer, int]:
        return (full if "p20" in request.prompts else Answer(result=0)), 1

    monkeypatch.setattr(encode, "ask", ask)
    rows = [a_row("a", *(f"p{i}" for i in range(15))), a_row("b", "p20"), a_row("c", "p3")]
    made = through(checked(rows), encode)
    assert [row["error_code"] for row in made] == [None, "storage", None]
    assert made[1]["error"] == "disk full"
    assert encode.encoded == {"", *(f"p{i}" for i in range(15))}


def test_the_rows_of_a_text_encoder_that_cannot_load_are_given_back(
    stage: Any, closed: Path
) -> None:
    encode = stage(EncodePrompts, a_job())
    store_of(encode.job).write("", torch.zeros(2, 3))
    store_of(encode.job).write("held", torch.zeros(2, 3))
    closed.touch()
    rows = checked([a_row("a"), a_row("b", "held"), a_row("c", "held", "red")], encode.job)
    assert [row["video_id"] for row in through(rows, encode)] == ["b"]
    assert encode.report.reasons == ["ValueError: no such checkpoint now"]


def test_a_video_that_kills_its_group_every_time_is_quarantined_and_the_next_is_done(
    stage: Any, tmp_path: Path
) -> None:
    job = a_job(retries=1)
    invert = stage(InvertVideos, job)
    rows = [a_row(f"{tmp_path}/kills", "red", "blue"), a_row(f"{tmp_path}/fine")]
    made = through(checked(rows, job), invert, FanOut(job), stage(ReconstructEdits, job))
    assert [(row["edit_id"], row["status"], row["error_code"]) for row in made] == [
        ("red", "quarantined", "rank_died"),
        ("blue", "quarantined", "rank_died"),
        ("red", "ok", None),
    ]
    assert made[0]["attempts"] == 2
    assert "signal 9" in made[0]["error"]
    assert "tried 2 times" in made[0]["error"]
    assert invert.group.starts == 3


def test_a_video_that_killed_its_group_once_is_done_at_the_second_try(
    stage: Any, tmp_path: Path
) -> None:
    job = a_job(retries=1)
    rows = checked([a_row(f"{tmp_path}/kills-once")], job)
    made = through(rows, stage(InvertVideos, job), FanOut(job), stage(ReconstructEdits, job))
    assert [(row["status"], row["attempts"]) for row in made] == [("ok", 2)]


def test_a_video_that_hangs_its_group_is_quarantined_with_the_deadline(stage: Any) -> None:
    job = a_job(retries=0, stall_deadline_s=0.5)
    invert = stage(InvertVideos, job)
    row = through(checked([a_row("hangs")], job), invert)[0]
    assert row["error_code"] == "deadline"
    assert "no progress for 0.5 s; the last was the start of the request" in row["error"]


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file beside which no rank starts."""
    monkeypatch.setenv("REFUSE_BESIDE", str(tmp_path / "closed"))
    monkeypatch.setattr(stages, "START_PAUSE_S", 0.0)
    return tmp_path / "closed"


@pytest.mark.parametrize("first", [True, False])
def test_a_group_that_cannot_start_for_a_moment_costs_its_row_nothing(
    stage: Any, closed: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    start, failed = RankGroup.start, []

    def opened_at_the_third(group: RankGroup) -> None:
        if len(failed) == 2:
            closed.unlink()
        failed.append(None)
        start(group)

    if first:
        monkeypatch.setattr(RankGroup, "start", opened_at_the_third)
    else:
        invert = stage(InvertVideos, a_job(retries=0))
        invert.group.close()  # as after a request that killed it
    closed.touch()
    if first:
        invert = stage(InvertVideos, a_job(retries=0))
    else:
        monkeypatch.setattr(RankGroup, "start", opened_at_the_third)
    row = through(checked([a_row("a")]), invert)[0]
    assert (row["error_code"], row["attempts"], len(failed)) == (None, 1, 3)
    assert (invert.report.reasons, invert.report.repairs) == ([], 0)
    assert invert.report.events["inversion ready"] == 1


@pytest.mark.parametrize("first", [True, False])
def test_a_group_that_cannot_start_says_so_once_and_works_on_when_it_can(
    stage: Any, closed: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """It holds its row, or the start of its process, until then."""

    def broken(report: Reports, reason: str) -> None:
        report.reasons.append(reason)
        closed.unlink()

    monkeypatch.setattr(Reports, "broken", broken)
    closed.touch() if first else None
    invert = stage(InvertVideos, a_job())
    if not first:
        closed.touch()
        invert.group.close()
    assert through(checked([a_row("a")]), invert)[0]["error_code"] is None
    assert invert.report.reasons == ["ValueError: no such checkpoint now"]
    assert invert.report.repairs == 1
    assert invert.group.starts == stages.START_TRIES + (1 if first else 2)


@pytest.mark.parametrize("first", [True, False])
def test_the_rows_of_a_group_that_cannot_start_are_given_back_when_the_driver_says_so(
    stage: Any, closed: Path, first: bool
) -> None:
    closed.touch() if first else None
    invert = stage(InvertVideos, a_job())
    if not first:
        closed.touch()
        invert.group.close()
    assert through(checked([a_row("a"), a_row("b")]), invert) == []
    assert invert.report.reasons == ["ValueError: no such checkpoint now"]
    assert invert.group.starts == stages.START_TRIES + (0 if first else 1)
    assert Folder(invert.job.editing.output).list("attempts") == []


@pytest.mark.parametrize("left", [0, 1, 2])
def test_edits_that_may_not_begin_have_no_result_and_those_before_them_have(
    stage: Any, left: int
) -> None:
    job = edits_at_once(1)
    editing = replace(job.editing, trajectory=TrajectorySettings(keep="never"))
    edit = stage(EditVideos, replace(job, editing=editing))
    asked = itertools.count()
    edit.report.may_start = lambda: next(asked) < left
    made = through(checked([a_row("a", "red", "blue")], job), edit)
    assert [row["edit_id"] for row in made] == ["red", "blue"][: max(0, left - 1)]


def test_a_row_error_is_not_tried_again(stage: Any) -> None:
    job = a_job(retries=5)
    invert = stage(InvertVideos, job)
    row = through(checked([a_row("unreadable")], job), invert)[0]
    assert (row["error_code"], row["attempts"]) == ("video_unreadable", 1)
    assert invert.group.starts == 1


def test_the_fan_out_makes_units_of_at_most_k_edits_and_loses_none() -> None:
    units = through(checked([a_row("a", *"abcde"), a_row("b", "x")]), FanOut(edits_at_once(2)))
    assert [[edit["edit_id"] for edit in unit["edits"]] for unit in units] == [
        ["a", "b"],
        ["c", "d"],
        ["e"],
        ["x"],
    ]
    assert [unit["pending_edits"] for unit in units] == [5, 5, 5, 1]


@pytest.mark.parametrize("keep", ["always", "never"])
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_the_edits_of_a_video_share_its_inversion_and_together_report_it_once(
    stage: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at_once: int, keep: Any
) -> None:
    job = edits_at_once(at_once)
    editing = replace(job.editing, output=str(tmp_path), trajectory=TrajectorySettings(keep=keep))
    job = replace(job, editing=editing, cluster=ClusterSettings(inversion=GroupSettings(gpus=2)))
    rows = checked([a_row("a", *"abcdefgh")], job)
    invert, edit = stage(InvertVideos, job), stage(ReconstructEdits, job, device="gpu")
    held(invert, monkeypatch, 1.0)
    held(edit, monkeypatch, 3.0)
    made = through(rows, invert, FanOut(job), edit)
    assert [row["status"] for row in made] == ["ok"] * 8
    assert sum(row["forwards"]["inversion"] for row in made) == 6
    assert sum(row["timings"]["read"] for row in made) == 1.0
    units = math.ceil(8 / at_once)
    assert sum(row["gpu_seconds"] for row in made) == pytest.approx(2 * 1.0 + units * 3.0)


@pytest.mark.parametrize("layout", ["shared", "split"])
def test_what_failed_has_held_its_group_too(
    stage: Any, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    job = a_job()
    rows = checked([a_row("unreadable", "red", "blue")], job)
    kinds = [InvertVideos, ReconstructEdits] if layout == "split" else [EditVideos]
    first, *others = [stage(kind, job, device="gpu") for kind in kinds]
    held(first, monkeypatch, 3.0)
    made = through(rows, first, *(one for other in others for one in (FanOut(job), other)))
    assert [(row["status"], row["gpu_seconds"]) for row in made] == [("failed", 0.5)] * 2


def test_a_trajectory_that_cannot_be_deleted_costs_no_edit(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("may not be deleted")

    monkeypatch.setattr(Folder, "remove_folder", refuse)
    job = a_job()
    editing = replace(job.editing, trajectory=TrajectorySettings(keep="never"))
    job = replace(job, editing=editing)
    (row,) = through(checked([a_row("a")], job), stage(EditVideos, job))
    assert row["status"] == "ok"


def test_a_cpu_reports_no_gpu_time(stage: Any) -> None:
    job = a_job()
    edit = stage(ReconstructEdits, job)
    made = through(checked([a_row("a")], job), stage(InvertVideos, job), FanOut(job), edit)
    assert made[0]["gpu_seconds"] == 0.0
    assert sum(made[0]["timings"].values()) > 0.0


@pytest.mark.parametrize(
    ("video", "damage"), [("fine", None), ("damaged", "cut short"), ("altered", "altered")]
)
def test_what_was_wrong_with_a_trajectory_stands_in_the_results_of_its_edits(
    stage: Any, video: str, damage: str | None
) -> None:
    job = a_job()
    rows = checked([a_row(video, "red", "blue")], job)
    made = through(rows, stage(InvertVideos, job), FanOut(job), stage(ReconstructEdits, job))
    assert [row["trajectory_damage"] for row in made] == [damage, damage]


def test_a_changed_setting_makes_an_edit_stale_and_a_measuring_one_does_not() -> None:
    job = a_job()
    stale = replace(job.editing, reconstruction=Reconstruction(guidance_scale=3))
    assert replace(job, editing=stale).fingerprint() != job.fingerprint()
    for same in (
        replace(job.editing, output="elsewhere"),
        replace(job.editing, reconstruction=Reconstruction(edits_at_once=1)),
        replace(job.editing, inversion=replace(job.editing.inversion, round_trip=True)),
        replace(job.editing, trajectory=replace(job.editing.trajectory, keep="never")),
    ):
        assert replace(job, editing=same).fingerprint() == job.fingerprint()


def test_what_an_inversion_found_reaches_the_reconstruction_as_a_small_record(stage: Any) -> None:
    job = a_job()
    row = through(checked([a_row("a")], job), stage(InvertVideos, job))[0]
    assert row["inversion_result"]["trajectory"] == "k"
    assert len(json.dumps(row["inversion_result"])) < 2000


@pytest.mark.parametrize("layout", ["shared", "split"])
def test_a_trajectory_that_is_not_kept_goes_with_the_videos_last_edit(
    stage: Any, tmp_path: Path, layout: str
) -> None:
    job = a_job()
    editing = replace(
        job.editing,
        output=str(tmp_path),
        trajectory=TrajectorySettings(keep="never"),
        reconstruction=Reconstruction(edits_at_once=1),
    )
    job = replace(job, editing=editing)
    index = tmp_path / "trajectories/k/index.json"
    index.parent.mkdir(parents=True)
    index.write_text("{}")
    rows = checked([a_row("a", "red", "blue", "green")], job)
    if layout == "shared":
        made = through(rows, stage(EditVideos, job))
    else:
        made = through(rows, stage(InvertVideos, job), FanOut(job), stage(ReconstructEdits, job))
    assert [row["status"] for row in made] == ["ok"] * 3
    assert not index.parent.exists()


class Death(BaseException):
    """The owner's own, in the midst of a request."""


def dies(work: Any, monkeypatch: pytest.MonkeyPatch, *, of: str = "") -> None:
    """Have a stage's process end as soon as its group is asked for a video with such a name."""
    real = work.group.request

    def request(message: Any, *, begin: Callable[[], None], **how: Any) -> list[Answer]:
        if of not in message.video.video:
            return real(message, begin=begin, **how)
        begin()
        raise Death

    monkeypatch.setattr(work.group, "request", request)


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("layout", ["shared", "split"])
def test_a_row_that_ends_its_owner_every_time_is_quarantined_in_this_run_and_the_next(
    stage: Any, monkeypatch: pytest.MonkeyPatch, layout: str, retries: int
) -> None:
    job = a_job(retries=retries)
    kind = EditVideos if layout == "shared" else InvertVideos
    last = () if layout == "shared" else (FanOut(job), stage(ReconstructEdits, job))
    rows = checked([a_row("a", "red", "blue")], job)
    for _ in range(1 + retries + 1):  # the first may have been another's doing
        owner = stage(kind, job)
        dies(owner, monkeypatch)
        with pytest.raises(Death):
            owner(rows)
    for run in (job, replace(job, run="next")):
        made = through(rows, stage(kind, run), *last)
        assert [(row["status"], row["error_code"]) for row in made] == [
            ("quarantined", "rank_died")
        ] * 2
        assert {row["attempts"] for row in made} == {retries + 1}
        assert "or its node, ended while it was worked on" in made[0]["error"]
    stale = replace(job.editing.reconstruction, guidance_scale=3.0)
    changed = replace(job, editing=replace(job.editing, reconstruction=stale))
    made = through(rows, stage(kind, changed), *last)
    assert [row["status"] for row in made] == ["ok"] * 2, "other settings are another chance"


def test_a_row_whose_owner_died_once_is_done_by_the_next_and_leaves_no_record(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = a_job(retries=0)
    owner = stage(EditVideos, job)
    dies(owner, monkeypatch)
    rows = checked([a_row("a")], job)
    with pytest.raises(Death):
        owner(rows)
    assert len(Folder(job.editing.output).list("attempts")) == 1
    (row,) = through(rows, stage(EditVideos, job))
    assert (row["status"], row["attempts"]) == ("ok", 1)
    assert Folder(job.editing.output).list("attempts") == []


def test_prompts_that_end_their_owner_are_quarantined(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = a_job(retries=0)
    rows = checked([a_row("a"), a_row("b", "blue")], job)
    for _ in range(2):
        owner = stage(EncodePrompts, job)
        monkeypatch.setattr(owner.group, "request", died_at_once)
        with pytest.raises(Death):
            owner(rows)
    made = through(rows, stage(EncodePrompts, job), stage(EditVideos, job))
    assert [row["status"] for row in made] == ["quarantined"] * 2


def died_at_once(*_: Any, begin: Callable[[], None], **__: Any) -> Any:
    begin()
    raise Death


def test_a_system_without_abstract_sockets_holds_no_request_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refuses(socket.socket):
        def bind(self, _: Any) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("socket.socket", Refuses)
    with alone_on_the_node("job", pytest.fail):
        pass


def test_a_row_that_ended_its_owner_waits_for_the_only_such_one_of_its_node(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = a_job()
    rows = checked([a_row("a")], job)
    owner, again = stage(InvertVideos, job), stage(InvertVideos, job)
    dies(owner, monkeypatch)
    with pytest.raises(Death):
        owner(rows)
    again.report.waits = threading.Event()
    again.report.may_start = lambda: again.report.waits.set() or again.report.open
    with ThreadPoolExecutor(1) as threads:
        with alone_on_the_node(job.editing.output, time.sleep):
            made = threads.submit(through, rows, again)
            again.report.waits.wait(20)
            others = through(checked([a_row("b")], job), again)
            assert not made.done()
        assert made.result(20)[0]["error_code"] is None
    assert others[0]["error_code"] is None, "others are not held up"
