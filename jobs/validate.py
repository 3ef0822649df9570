"""`retake validate`: what a run would find out later is found now, and nothing is written.

Each row goes through the row check of the run itself. The videos and masks of the edits that are
pending are looked for; with `deep` each video is read as a run reads it. Neither torch nor Ray is
imported, but by `deep`, which decodes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.table import Table

from cluster.layout.placement import check_machine
from cluster.layout.work import Amount
from cluster.pending.missing import without_mask
from cluster.rows import NO_FILES
from cluster.stages.blocks import EditWork, VideoWork
from jobs.display import SafeConsole, Ticker, show_plan
from jobs.errors import counted
from jobs.prepare import Prepared, prepare
from jobs.spec import JobSpec
from jobs.trial import pending_rows
from pipeline.errors import RowError
from pipeline.storage import check_file

LOOK_FOR_UP_TO = 10_000
"""Videos that are looked for without `deep`: object storage answers some hundreds a second."""
LOOK_AT_ONCE = 32
EXAMPLES = 3


@dataclass(frozen=True)
class RowProblem:
    """What would fail.

    Args:
        where: the `video_id`, or `video_id/edit_id` where only that edit would fail.
        edits: how many edits would fail by it.
    """

    where: str
    code: str
    message: str
    edits: int


@dataclass
class Findings:
    """What was found of a manifest's rows.

    Args:
        videos: with edits that are pending.
        edits: that are pending, those that would be refused counted.
        videos_looked_for: of the pending videos.
        frames: with `deep`: how many clips have so many frames.
        failing: how many edits would fail, by error code.
        problems: the first `EXAMPLES` of each code, in the order of the manifest.
        without_source_prompt: pending videos that have none.
    """

    videos: int = 0
    edits: int = 0
    videos_looked_for: int = 0
    frames: Counter[int] = field(default_factory=Counter)
    failing: Counter[str] = field(default_factory=Counter)
    problems: list[RowProblem] = field(default_factory=list)
    without_source_prompt: int = 0

    def add(self, problem: RowProblem) -> None:
        self.failing[problem.code] += problem.edits
        if sum(known.code == problem.code for known in self.problems) < EXAMPLES:
            self.problems.append(problem)


def validate_job(spec: JobSpec, *, deep: bool = False) -> int:
    """Check a job and its manifest, and show what was found.

    Returns:
        How many edits would fail.

    Raises:
        JobError: the job cannot run as it is written.
        CannotRun: this machine has no room for its groups.
    """
    console = SafeConsole()
    prepared = prepare(spec, write=False)
    show_plan(prepared, console)
    placement = check_machine(prepared.job, Amount(prepared.scan.videos, prepared.scan.edits))
    for note in placement.notes if placement else ():
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    with Ticker(console) as ticker:
        found = look_at_rows(
            prepared,
            deep=deep,
            on_progress=lambda videos: ticker(f"{counted(videos, 'video')} looked at"),
        )
    show_findings(found, prepared, deep=deep, console=console)
    return sum(found.failing.values())


def look_at_rows(
    prepared: Prepared, *, deep: bool = False, on_progress: Callable[[int], None] | None = None
) -> Findings:
    """Check every row of a prepared job.

    Args:
        deep: read each video as a run does, and count the frames of its clip.
        on_progress: gets how many videos were looked at.
    """
    found = Findings()
    rows = pending_rows(prepared)
    look = _reader(prepared) if deep else _look_for
    with ThreadPoolExecutor(os.cpu_count() if deep else LOOK_AT_ONCE) as pool:
        for _, looks in rows.looks():
            works = [one.work for one in looks if one.work]
            pending = [work for work in works if work.pending]
            if not deep:
                pending = pending[: LOOK_FOR_UP_TO - found.videos_looked_for]
            answers = dict(zip(map(id, pending), pool.map(look, pending), strict=True))
            masks = _MasksLookedFor(pool, pending)
            for work in works:
                _count(found, masks.of(work), answers.get(id(work)))
            found.videos_looked_for += len(pending)
            if on_progress:
                on_progress(found.videos_looked_for)
    return found


def _count(found: Findings, work: VideoWork, answer: RowError | int | None) -> None:
    """Add one row to the findings.

    Args:
        answer: what looking for its video gave: what is wrong with it, or the frames of its clip.
    """
    edits = max(1, len(work.edits))
    found.videos += work.pending
    found.edits += edits
    found.without_source_prompt += work.pending and not work.source_prompt
    if work.error_code:
        where = str(work.video_id or "a row without a video_id")
        problem = RowProblem(where, work.error_code, str(work.error), edits)
        found.add(problem)
        return
    for edit in work.edits:
        if edit.error_code:
            where = f"{work.video_id}/{edit.edit_id}"
            found.add(RowProblem(where, edit.error_code, str(edit.error), 1))
    if isinstance(answer, RowError):
        pending = sum(edit.pending for edit in work.edits)
        found.add(RowProblem(str(work.video_id), answer.code, answer.message, pending))
    elif answer:
        found.frames[answer] += 1


class _MasksLookedFor:
    """The masks of some videos' edits, each looked for once."""

    def __init__(self, pool: ThreadPoolExecutor, works: Iterable[VideoWork]) -> None:
        edits = (edit for work in works for edit in work.edits if edit.pending)
        uris = list(
            dict.fromkeys(edit.mask for edit in edits if edit.mask not in (None, *NO_FILES))
        )
        self._errors = dict(zip(uris, pool.map(_error_of, map(str, uris)), strict=True))

    def of(self, work: VideoWork) -> VideoWork:
        """The work, in which edits whose mask is not there are refused."""
        return replace(work, edits=tuple(map(self._of, work.edits)))

    def _of(self, edit: EditWork) -> EditWork:
        error = self._errors.get(str(edit.mask)) if edit.pending else None
        return without_mask(edit, error) if error else edit


def _look_for(work: VideoWork) -> RowError | int | None:
    return _error_of(str(work.video))


def _error_of(uri: str) -> RowError | None:
    try:
        check_file(uri)
    except RowError as error:
        return error
    return None


def _reader(prepared: Prepared) -> Callable[[VideoWork], RowError | int | None]:
    """A function that reads a video as a rank does, and gives the number of its clip's frames."""
    from pipeline.inputs import read_video

    editing, info = prepared.job.editing, prepared.checkpoint

    def read(work: VideoWork) -> RowError | int | None:
        try:
            clip = read_video(
                str(work.video),
                editing.video,
                info,
                start_frame=work.start_frame or 0,
                num_frames=work.num_frames,
                fps=work.fps,
                limits=editing.limits,
            )
        except RowError as error:
            return error
        return len(clip.frames)

    return read


def show_findings(found: Findings, prepared: Prepared, *, deep: bool, console: Console) -> None:
    """What `validate` found, below the plan of the job."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    scan = prepared.scan
    table.add_row("pending", f"{found.edits} of {counted(scan.edits, 'edit')}")
    looked_for = f"{found.videos_looked_for} of {counted(found.videos, 'video')} "
    table.add_row("videos", looked_for + ("read" if deep else "looked for; --deep reads them"))
    for count, clips in sorted(found.frames.items()):
        table.add_row("", f"{counted(clips, 'clip')} of {count} frames")
    console.print(table)
    if found.without_source_prompt and prepared.spec.reconstruction.reference == "source":
        console.print(
            f"warning: reconstruction.reference is source, and "
            f"{counted(found.without_source_prompt, 'video')} of {found.videos} have no "
            "`source_prompt`: the empty prompt describes their reference. Give them one, or leave "
            "out reconstruction.reference",
            style="yellow",
            markup=False,
        )
    if not found.failing:
        console.print("nothing that would fail was found")
        return
    failing = sum(found.failing.values())
    console.print(f"{failing} of {counted(found.edits, 'edit')} would fail:", style="red")
    for code, edits in found.failing.most_common():
        console.print(f"  {code}: {counted(edits, 'edit')}", highlight=False)
        shown = [problem for problem in found.problems if problem.code == code]
        for problem in shown:
            console.print(
                f"    {problem.where}: {problem.message}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if (more := edits - sum(problem.edits for problem in shown)) > 0:
            console.print(f"    and {more} more", highlight=False)
