"""How a job went, as `summary.json` and as a few lines: made from the results when a run ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import Any

from cluster.estimate.record import JobPlan
from cluster.job import Job
from cluster.progress import Counts, Groups
from cluster.results.again import whole_reading
from jobs.display.words import duration
from jobs.errors import counted
from jobs.spec import JobSpec, parse_job, read_resolved
from jobs.summary.gather import sums_of
from jobs.summary.record import FILE, Against, Compared, ScoreWork, Stage, Summary, Totals
from pipeline import __version__
from pipeline.records import Timings, from_dict
from pipeline.settings import EditingSettings
from pipeline.storage import Folder, explain

STAGES = {
    "inversion": ("encode", "invert", "round_trip"),
    "reconstruction": ("reconstruct", "decode"),
    "editing": ("encode", "invert", "round_trip", "reconstruct", "decode"),
}
"""The parts of the work that a stage's groups do, and do nothing else meanwhile."""
RULES_SHOWN = 10


def summarise(
    output: Folder, settings: EditingSettings | None = None, damaged: Collection[str] = ()
) -> Summary:
    """The summary of an output, from its results; with what the last run wrote of itself.

    Args:
        settings: of the job; by default those of the last run.
        damaged: files of the results that are left out.

    Raises:
        PartGone, PartDamaged: as of `read_current`.
        Unreadable: storage does not give a file.
    """
    last, of_all = sums_of(output, settings or _settings_of(output), damaged)
    summary = Summary(__version__, last, of_all)
    before = _of_the_run(output, last)
    if before:
        summary = replace(summary, **before)
    return summary


def write_summary(
    job: Job,
    counts: Counts | None,
    seconds: float,
    note: Callable[[str], None],
    plan: JobPlan | None = None,
) -> Summary | None:
    """Write the summary of a run that comes to its end. That it cannot be written is a note.

    Args:
        counts: of the run; None where nothing was pending: then there is none to write.
        seconds: that it took, once it held the output folder.
        plan: of the run, made when it began.
    """
    if counts is None:
        return None
    output = Folder(job.editing.output)
    try:

        def read(damaged: Collection[str]) -> tuple[Totals, Totals]:
            return sums_of(output, job.editing, damaged, job.run)

        last, of_all = whole_reading(read)
        stages = tuple(_stages(job, counts.groups, last.timings, seconds, last.gpu_seconds))
        beside = against(plan, last, seconds) if plan else None
        scoring = _scoring(counts)
        summary = Summary(__version__, last, of_all, round(seconds, 1), stages, beside, scoring)
        output.write(FILE, as_json(summary).encode())
    except Exception as error:  # it only informs: whatever it is, the run is done
        note(f"{output.uri}/{FILE}: not written: {explain(error, output.uri, 'written').text}")
        return None
    return summary


def _scoring(counts: Counts) -> ScoreWork | None:
    """What a run did for scores; None where there was nothing to score."""
    if counts.scores is None or not counts.scores.edits:
        return None
    names = [field.name for field in fields(ScoreWork)]
    return ScoreWork(**{name: getattr(counts.scores, name) for name in names})


def against(plan: JobPlan, last: Totals, seconds: float) -> Against:
    """A plan beside what the run took.

    Args:
        seconds: that the run took.
    """
    kind = plan.kinds[0] if plan.kinds else None
    stored = plan.storage.trajectories + plan.storage.edits
    hours = last.gpu_seconds / 3600 if last.gpu_seconds else None
    return Against(
        gpu=kind.gpu.name if kind else None,
        basis=kind.gpu.basis if kind else None,
        edits=Compared.of(plan.edits, last.ok),
        forwards=Compared.of(plan.forwards_plain + plan.forwards_injected, last.forwards.computed),
        gpu_hours=Compared.of(kind.gpu_hours if kind else None, hours),
        wall_hours=Compared.of(kind.wall_hours if kind else None, seconds / 3600),
        storage_bytes=Compared.of(stored, last.trajectory_bytes + last.size_bytes),
        memory_bytes=Compared.of(kind.memory_bytes if kind else None, last.memory_bytes or None),
    )


def as_json(summary: Summary) -> str:
    """The summary as JSON; times are those of ISO 8601."""
    return json.dumps(plain(summary), indent=2, ensure_ascii=False) + "\n"


def plain(summary: Summary) -> dict[str, Any]:
    """The summary as plain values, numbers with three decimals."""
    return _plain(asdict(summary))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return round(value, 3) if isinstance(value, float) else value


def lines_of(summary: Summary | None) -> Iterator[str]:
    """What a run prints of its summary."""
    if summary is None:
        return
    last = summary.last
    forwards = [one.computed for one in (last.forwards, last.planned or last.forwards)]
    for stage in summary.stages:
        if stage.held_s:
            share = min(1.0, stage.busy_s / stage.held_s)
            yield f"{'busy':<15} {share:.0%}, {counted(stage.groups, f'{stage.stage} group')}"
    if last.planned and any(forwards):
        skipped = last.forwards.skipped
        more = f"; {skipped:.0f} skipped after the first block" if skipped else ""
        yield f"{'forwards':<15} {forwards[0]:.0f}, planned {forwards[1]:.0f}{more}"
    if last.reused:
        yield f"{'reused':<15} trajectories of {counted(last.reused, 'video')}"
    if last.gpu_seconds and last.ok:
        each = last.gpu_seconds / last.ok
        yield f"{'GPU time':<15} {last.gpu_seconds / 3600:.2f} h, {each:.1f} s an edit"
    yield from _of_the_plan(summary.plan)
    yield from _of_scores(summary)
    if last.retried:
        yield f"{'retried':<15} {counted(last.retried, 'edit')}"


def _of_scores(summary: Summary) -> Iterator[str]:
    """What scoring took, and what the rules say of all edits of the output."""
    if (work := summary.scoring) and work.scored:
        took = f"{duration(work.seconds)}, {work.seconds / work.scored:.1f} s an edit"
        yield f"{'scored':<15} {work.scored} of {counted(work.edits, 'edit')}, {took}"
    of_all = summary.all
    if judged := of_all.accepted + of_all.rejected:
        yield f"{'accepted':<15} {of_all.accepted} of {counted(judged, 'edit')}"
    for one in of_all.rejections[:RULES_SHOWN]:
        yield f"{'':<15} {one.edits} rejected by {one.rule}"


def _of_the_plan(plan: Against | None) -> Iterator[str]:
    """The hours of a run beside those of its plan, where these are known."""
    if plan and (hours := plan.wall_hours).ratio is not None:
        took, planned = (duration(3600 * (one or 0)) for one in (hours.actual, hours.planned))
        yield f"{'plan':<15} {took} of {planned} ({plan.basis} speed of {plan.gpu})"


def _stages(
    job: Job, groups: Sequence[Groups], timings: Timings, seconds: float, gpu_seconds: float
) -> Iterator[Stage]:
    for one in groups:
        parts = STAGES.get(one.stage)
        if parts is None:  # prompts are encoded beside the work
            continue
        settings = job.cluster.inversion if one.stage == "inversion" else job.cluster.reconstruction
        yield Stage(
            stage=one.stage,
            groups=one.total,
            gpus=settings.gpus if gpu_seconds else 0,
            busy_s=sum(getattr(timings, part) for part in parts),
            held_s=one.total * seconds,
        )


def _of_the_run(output: Folder, last: Totals) -> dict[str, Any]:
    """What only the last run could know, where its own summary is there."""
    try:
        before = json.loads(output.read(FILE))
        if tuple(before["last"]["runs"]) != last.runs:
            return {}
        stages = tuple(from_dict(Stage, stage) for stage in before["stages"])
        found = {"seconds": before["seconds"], "stages": stages}
        if plan := before.get("plan"):
            found["plan"] = from_dict(Against, plan)
        if scoring := before.get("scoring"):
            found["scoring"] = from_dict(ScoreWork, scoring)
        return found
    except Exception:  # none, of another version, or damaged: the rest is known without it
        return {}


def _settings_of(output: Folder) -> EditingSettings | None:
    try:
        job = read_resolved(output)
        known = {field.name for field in fields(JobSpec)}
        values = {name: value for name, value in job.items() if name in known}
        return parse_job(values, source=output.uri).editing() if values else None
    except Exception:  # a job of another version, say: what was planned is not known then
        return None
