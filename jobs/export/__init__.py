"""`retake export`: the pairs of a job, as files that a trainer opens.

The newest rows of the results are loaded into DuckDB; those that are asked for, and were not
exported before, are planned as shards; each shard is written and then committed (`index.py`). A
command that was killed goes on at the first shard that has no commit, and one that is run again has
only the pairs to do that came since. The output folder is only read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from cluster.output.lease import held
from cluster.results.newest import database
from cluster.results.parts import part_names
from jobs.errors import JobError, counted
from jobs.export.choosing import Before, choose, compare
from jobs.export.formats import Format, Settings, format_named
from jobs.export.index import ABOUT, FOLDER, read_commits, read_settings
from jobs.export.rows import load_done, load_sizes, lock
from jobs.export.work import Exported, Work
from jobs.jobfile.paths import absolute
from jobs.spec import read_resolved
from pipeline.locations import normalised
from pipeline.storage import Folder

if TYPE_CHECKING:
    import duckdb


def export(
    output: str,
    to: str,
    settings: Settings,
    *,
    dry_run: bool = False,
    wait: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write the pairs of a job.

    Args:
        output: the job's output folder, a path or URI; a run may write to it meanwhile.
        to: the folder for the export, a path or URI: new, empty, or of an earlier export.
        dry_run: only count: `written` is what would be.
        wait: for another export into the same folder; else that is an error.
        on_progress: called with what is done.

    Raises:
        WrongOption: a format that does not exist or is not installed, or a wrong expression.
        JobError: no results, or a folder that cannot be used.
        CannotRun: another export writes to the folder.
        StorageFailed, Unreadable: storage does not give or take a file.
    """
    source, target = Folder(absolute(output)), Folder(absolute(to))
    writer = format_named(settings.format)
    if not part_names(source):
        raise JobError(
            f"{source.uri}: no rows in results/*.parquet; give the folder that the job file calls "
            "`output`, after a run"
        )
    _check_apart(source, target)
    settings = _check_before(target, settings)
    with ExitStack() as stack:
        lease = None
        if not dry_run:
            by = "retake export"
            held_by = held(target.child(FOLDER), "", wait=wait, on_wait=on_progress, command=by)
            lease = stack.enter_context(held_by)
            settings = _check_before(target, settings)
        rows = stack.enter_context(database())
        on_progress("reading the results")
        work = _prepared(rows, source, target, settings, writer, on_progress)
        if lease:
            work.write(lease)
        return work.exported()


def _check_apart(output: Folder, to: Folder) -> None:
    """The export must be no part of the output folder: a run lists and removes files there."""
    inner, outer = (
        f"{os.path.realpath(one.path()) if one.is_local else normalised(one.uri)}/"
        for one in (to, output)
    )
    if inner.startswith(outer) or outer.startswith(inner):
        where = "is" if inner == outer else "is inside of" if len(inner) > len(outer) else "holds"
        raise JobError(
            f"{to.uri}: {where} the output folder {output.uri}; expected a folder apart from it"
        )


def _check_before(to: Folder, settings: Settings) -> Settings:
    """Refuse a folder that has something else, or an export that was asked for otherwise.

    Returns:
        The settings, with the licence of before where none is given.
    """
    known = read_settings(to)
    if known is None:
        for name, _ in to.sizes():
            if not name.startswith(f"{FOLDER}/"):
                raise JobError(
                    f"{to.uri}: is not empty ({name}), and has no {ABOUT}; expected a new folder, "
                    "an empty one, or one of an earlier `retake export`"
                )
        return settings
    settings = replace(settings, license=settings.license or known.license)
    before, now = asdict(replace(known, license=settings.license)), asdict(settings)
    if wrong := [name for name in now if now[name] != before[name]]:
        name = wrong[0]
        option = f"--{name.replace('_', '-')}"
        raise JobError(
            f"{to.uri}: was exported with {option} {before[name]!r}, now {now[name]!r} is asked "
            "for; expected the same as before, or a new folder"
        )
    return settings


def _prepared(
    rows: duckdb.DuckDBPyConnection,
    output: Folder,
    to: Folder,
    settings: Settings,
    writer: Format,
    on_progress: Callable[[str], None],
) -> Work:
    """All that is known before the first shard is written.

    Raises:
        WrongOption, JobError, Unreadable, StorageFailed: as of `export`.
    """
    others = load_done(rows, output)
    has_rules = bool(read_resolved(output).get("accept"))
    on_progress("listing the files")
    load_sizes(rows, output)
    lock(rows)
    chosen = choose(rows, settings, has_rules)
    commits = read_commits(to)
    before = compare(rows, commits)
    _refuse_changes(to, before)
    return Work(output, to, settings, writer, rows, others, commits, chosen, before, on_progress)


def _refuse_changes(to: Folder, before: Before) -> None:
    """What was exported stays as it is: it may be in use, and other shards hold the rest."""
    for found, what in (
        (before.remade, "made again since they were exported"),
        (before.unchosen, "exported before, and are not chosen any more (their rows changed)"),
    ):
        if found:
            name, count = found
            raise JobError(
                f"{to.uri}: {counted(count, 'edit')} of it, such as {name}, were {what}; a shard "
                "is never changed: export into a new folder, and remove this one when nobody "
                "reads it"
            )
