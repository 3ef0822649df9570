"""The stages that a rank group works for: prompts, inversion and reconstruction.

Each is an actor of Ray Data that reserves all the GPUs of its group and owns the group's processes.
Every stage turns what goes wrong with a row into values of that row, so a row never vanishes: a
failed one passes the later stages to the results.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

import pyarrow as pa

from cluster.job import Job
from cluster.ranks.owner import (
    DeadlinePassed,
    GroupCannotStart,
    RankGroup,
    RankGroupFailed,
    rank_command,
)
from cluster.results.schema import SCHEMA
from cluster.settings import GroupSettings
from cluster.stages.blocks import WORK, Row, rebuilt
from pipeline.errors import ErrorCode
from pipeline.records import Metrics, Timings
from pipeline.storage import Folder

START_TRIES = 3
"""A group that had worked and could not be started so often in a row ends the job."""
START_PAUSE_S = 10.0
"""Before a start after one that failed; after two it is twice as long. What the group could not
read may be back by then."""


class Report(Protocol):
    """What the stages tell the driver beside their rows."""

    def inverted(self, videos: int) -> None:
        """So many videos were inverted, or found inverted."""

    def broken(self, reason: str) -> None:
        """The stage's ranks cannot work at all: the job is going to fail for this reason."""


class GroupStage:
    """A stage whose work is done by a rank group that this actor owns.

    Args:
        work: `edits` or `prompts`: what the ranks load.
        report: tells the driver.
        settings: of the group.
        device: `cpu` or `gpu`.
        deadline_s: for one request.
        threads: of each rank on CPU.
    """

    def __init__(
        self,
        work: str,
        job: Job,
        report: Report,
        settings: GroupSettings,
        device: str,
        deadline_s: float,
        threads: int,
    ) -> None:
        self.job, self.settings, self.deadline_s = job, settings, deadline_s
        self.device = device
        self.report = report
        degrees = {"ulysses": settings.ulysses, "ring": settings.ring, "cfg": settings.cfg}
        self.group = RankGroup(
            rank_command(),
            settings.gpus,
            {
                "work": work,
                "settings": asdict(job.editing),
                "device": device,
                "degrees": degrees,
            },
            start_deadline_s=job.cluster.start_deadline_s,
            environment=rank_environment(device, threads),
        )
        # An exception here would reach the driver as text, after tries of Ray's own: it waits for
        # the first row.
        self.broken: Exception | None = None
        try:
            self.group.start()
        except (GroupCannotStart, RankGroupFailed) as error:
            self.broken = error

    def ask(self, message: Row) -> tuple[Row, int]:
        """The group's answer to a request, and how often it was tried.

        A group that dies or hangs is rebuilt and asked again, `retries` times; then the answer is
        an error that quarantines the row. A rebuild that fails is a try like any other.

        Raises:
            GroupCannotStart, RankGroupFailed: the group could not be started at all, or not again,
                for several tries; the driver was told.
        """
        if self.broken:
            self._give_up(self.broken)
        tries = 0
        while True:
            tries += 1
            time.sleep(START_PAUSE_S * self.group.failed_starts)
            try:
                answers = self.group.request(message, self.deadline_s)
                return next((a for a in answers if "error_code" in a), answers[0]), tries
            except (RankGroupFailed, GroupCannotStart) as error:
                refused = self.group.failed_starts
                if refused >= START_TRIES:
                    self._give_up(error)
                if tries > self.job.cluster.retries:
                    late = isinstance(error, DeadlinePassed)
                    code = ErrorCode.DEADLINE if late else ErrorCode.RANK_DIED
                    said = f"the group could not start again: {error}" if refused else str(error)
                    return {"error_code": code, "error": f"{said} (tried {tries} times)"}, tries

    def _give_up(self, error: Exception) -> NoReturn:
        self.broken = error
        self.report.broken(str(error))
        raise error

    def failed(self, row: Row, answer: Row) -> Row:
        return {**row, "error_code": answer["error_code"], "error": answer["error"]}


class EncodePrompts(GroupStage):
    """Has every distinct prompt of a block encoded, where storage does not hold it yet."""

    def __init__(self, *args: Any) -> None:
        super().__init__("prompts", *args)
        self.encoded: set[str] = set()

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        wanted = {""}
        for row in rows:
            for edit in row["edits"] or ():
                wanted.update(p for p in (edit["prompt"], edit["negative_prompt"]) if p)
            wanted.update(p for p in (row["source_prompt"],) if p)
        wanted.add(self.job.editing.reconstruction.negative_prompt)
        prompts = sorted(wanted - self.encoded)
        answer, _ = self.ask({"prompts": prompts}) if prompts else ({}, 0)
        if "error_code" in answer:
            rows = [row if row["error_code"] else self.failed(row, answer) for row in rows]
        else:
            self.encoded.update(prompts)
        return rebuilt(table, rows, range(len(rows)), WORK)


class InvertVideos(GroupStage):
    """Inverts each row's video once, or finds its trajectory stored."""

    def __init__(self, *args: Any) -> None:
        super().__init__("edits", *args)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [self._invert(row) for row in table.to_pylist()]
        return rebuilt(table, rows, range(len(rows)), WORK)

    def _invert(self, row: Row) -> Row:
        if row["error_code"] or not any(is_owed(edit) for edit in row["edits"]):
            return row
        answer, tries = self.ask({"op": "invert", "video": video_request(row)})
        row = {**row, "attempts": tries}
        if "error_code" in answer:
            return self.failed(row, answer)
        self.report.inverted(1)
        return {**row, "inverted": json.dumps(answer["result"])}


class FanOut:
    """One row for each unit of work: a video with at most K of its edits.

    A failed row, and the edits that were refused one by one, go on as units of their own. Where
    trajectories are not kept, a video stays one unit: whoever made its last edit deletes it. Every
    unit knows how many edits its video is owed, of which each bears its share of the inversion.
    """

    def __init__(self, job: Job) -> None:
        self.whole = job.editing.trajectory.keep == "never"
        self.edits_at_once = job.editing.reconstruction.edits_at_once

    def __call__(self, table: pa.Table) -> pa.Table:
        units, origins = [], []
        for origin, row in enumerate(table.to_pylist()):
            edits = row["edits"] or []
            owed = [edit for edit in edits if is_owed(edit)]
            parts = [[edit for edit in edits if not is_owed(edit)]]
            if row["error_code"]:
                parts = [edits]
            else:
                step = max(1, len(owed)) if self.whole else self.edits_at_once
                parts += [owed[i : i + step] for i in range(0, len(owed), step)]
            for part in parts:
                if part or row["error_code"]:
                    units.append({**row, "edits": part, "owed_edits": len(owed)})
                    origins.append(origin)
        return rebuilt(table, units, origins, WORK)


class ReconstructEdits(GroupStage):
    """Makes the edits of a unit, and turns every row into its results."""

    def __init__(self, *args: Any) -> None:
        super().__init__("edits", *args)

    def __call__(self, table: pa.Table) -> pa.Table:
        results, origins = [], []
        for origin, row in enumerate(table.to_pylist()):
            made = self._results(row)
            results.extend(made)
            origins.extend([origin] * len(made))
        return rebuilt(table, results, origins, SCHEMA)

    def _results(self, row: Row) -> list[Row]:
        edits = row["edits"] or [{}]
        if row["error_code"] or not any(is_owed(edit) for edit in edits):
            return [self._result(row, edit, {**row, **_error_of(edit, row)}) for edit in edits]
        step = self.job.editing.reconstruction.edits_at_once
        made = [
            result
            for first in range(0, len(edits), step)
            for result in self._lockstep({**row, "edits": edits[first : first + step]})
        ]
        if self.job.editing.trajectory.keep == "never" and all(r["status"] == "ok" for r in made):
            key = json.loads(row["inverted"])["key"]
            Folder(self.job.editing.output).remove_folder(f"trajectories/{key}")
        return made

    def _lockstep(self, row: Row) -> list[Row]:
        """The results of at most K edits of a video."""
        edits = row["edits"]
        answer, tries = self.ask(
            {
                "op": "reconstruct",
                "video": video_request(row),
                "inverted": json.loads(row["inverted"]),
                "edits": [
                    {name: edit[name] for name in _EDIT_REQUEST if edit[name] is not None}
                    for edit in edits
                ],
                "source_prompt": row["source_prompt"],
            }
        )
        row = {**row, "attempts": max(tries, row["attempts"])}
        if "error_code" in answer:
            return [self._result(row, edit, answer) for edit in edits]
        return [
            self._result(row, edit, made)
            for edit, made in zip(edits, answer["result"], strict=True)
        ]

    def _result(self, row: Row, edit: Row, made: Row) -> Row:
        """A result row of one edit from what was made of it, or from what went wrong."""
        inverted = json.loads(row["inverted"]) if row["inverted"] else {}
        code = made.get("error_code")
        quarantined = code in (ErrorCode.RANK_DIED, ErrorCode.DEADLINE)
        share = 1 / row["owed_edits"] if inverted and is_owed(edit) else 0.0
        timings = asdict(Timings())
        for part, seconds in inverted.get("timings", {}).items():
            timings[part] = timings.get(part, 0.0) + seconds * share
        inversion_s = sum(timings.values()) * self.job.cluster.inversion.gpus
        for part, seconds in made.get("timings", {}).items():
            timings[part] = timings.get(part, 0.0) + seconds
        spent = sum(made.get("timings", {}).values()) * self.settings.gpus
        return {
            **{name: row[name] for name in ("video_id", "video", "source_prompt", "attempts")},
            **{name: edit.get(name) for name in ("edit_id", "prompt", "fingerprint")},
            **{name: inverted.get(name) for name in ("source", "frames", "height", "width", "fps")},
            **{name: made.get(name) for name in ("output", "guidance_scale", "seed")},
            "status": ("quarantined" if quarantined else "failed") if code else "ok",
            "error_code": code,
            "error": made.get("error"),
            "trajectory": inverted.get("key"),
            "trajectory_damage": made.get("damaged") or inverted.get("damaged"),
            "forwards": {
                "inversion": inverted.get("forwards", 0) * share,
                **{kind: made.get("forwards", {}).get(kind, 0) for kind in ("plain", "injected")},
            },
            "gpu_seconds": inversion_s + spent if self.device == "gpu" else 0.0,
            "timings": timings,
            "metrics": {name: made.get("metrics", {}).get(name) for name in asdict(Metrics())},
            "run": self.job.run,
            "finished_at": datetime.now(UTC),
        }


_EDIT_REQUEST = ("edit_id", "prompt", "negative_prompt", "guidance_scale", "seed")
_VIDEO_REQUEST = ("video_id", "video", "start_frame", "num_frames", "fps", "seed")


def video_request(row: Row) -> Row:
    """The fields of a `pipeline.requests.VideoRequest`."""
    return {name: row[name] for name in _VIDEO_REQUEST}


def is_owed(edit: Row) -> bool:
    """Whether an edit is to be made, rather than refused by the row check."""
    return not edit["error_code"]


def rank_environment(device: str, threads: int) -> dict[str, str]:
    """Environment variables of ranks.

    Waiting OpenMP threads spin by default: beside a second busy process that slows both 40-fold.
    """
    passive = {"OMP_WAIT_POLICY": "PASSIVE"}
    return passive | ({"OMP_NUM_THREADS": str(threads)} if device == "cpu" else {})


def _error_of(edit: Row, row: Row) -> Row:
    own = edit if edit.get("error_code") else row
    return {"error_code": own["error_code"], "error": own["error"]}
