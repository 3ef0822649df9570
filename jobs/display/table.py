"""How a run is doing, as a table: while it goes on, and for whoever reads its `status.json`."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.progress import Failure
from jobs.display.words import MESSAGE_LENGTH, duration, per_time
from jobs.errors import counted
from jobs.status.record import Status
from pipeline.redaction import redacted

NOTES_SHOWN = 3


def table_of(status: Status, *, notes: bool = False) -> RenderableType:
    """The stages, the edits, the rate and the last errors.

    Args:
        notes: show the last ones too; while a run goes on they stand above.
    """
    parts: list[RenderableType] = []
    if status.stages:
        stages = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("stage", "groups ready", "last step"):
            stages.add_column(name, no_wrap=True, overflow="ellipsis")
        for stage in status.stages:
            stages.add_row(stage.name, f"{stage.ready} of {stage.total}", _cell(stage.doing))
        parts.append(stages)
    rows = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True, min_width=len("last errors"))  # also beside a long message
    rows.add_column(overflow="ellipsis", no_wrap=True)
    for name, text in _rows(status):
        rows.add_row(Text(name, "bold"), _cell(text))
    for place, failure in enumerate(reversed(status.last_errors)):
        name = "" if place else "last errors"
        rows.add_row(Text(name, "bold"), _cell(_in_words(failure), "red"))
    if notes:
        for place, text in enumerate(status.notes[-NOTES_SHOWN:]):
            rows.add_row(Text("" if place else "notes", "bold"), _cell(text))
    return Group(*parts, rows)


def _rows(status: Status) -> Iterator[tuple[str, str]]:
    if status.edits is None:
        return
    left = status.pending or 0
    yield "edits", f"{status.made} made, {status.failed} failed, {left} left of {status.edits}"
    if status.inverted or status.prompts:
        prompts, videos = counted(status.prompts, "prompt"), counted(status.inverted, "video")
        yield "so far", f"{prompts} encoded, {videos} inverted"
    if status.edits_per_s and left:
        time = f"about {duration(status.left_s)} left" if status.left_s is not None else ""
        yield "rate", ", ".join(filter(None, (per_time(status.edits_per_s), time)))
    if status.to_score:
        yield "scores", f"{status.scored} of {status.to_score} edits scored"
    if status.accepted or status.rejected:
        yield "accepted", f"{status.accepted} of {status.accepted + status.rejected}"
    if status.failed_by_code:
        most_first = sorted(status.failed_by_code.items(), key=lambda one: (-one[1], one[0]))
        yield "failed", ", ".join(f"{count} {code}" for code, count in most_first)


def _in_words(failure: Failure) -> str:
    names = "/".join(name for name in (failure.video_id, failure.edit_id) if name)
    return f"{names}  {failure.code}  {failure.message[:MESSAGE_LENGTH]}"


def _cell(text: str, style: str = "") -> Text:
    return Text(redacted(text), style)
