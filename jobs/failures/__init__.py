"""The failed edits of a job: which they are, as a table, and as a manifest that a run takes."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from cluster.results.again import whole_reading
from cluster.results.failed import FailedOf, failed_rows
from cluster.results.parts import part_names
from jobs.errors import JobError, WrongOption, counted, nearest
from jobs.failures.files import written
from jobs.failures.manifest import write_failures_manifest
from jobs.jobfile.paths import absolute
from jobs.spec import RESOLVED
from pipeline.errors import ErrorCode
from pipeline.redaction import say
from pipeline.storage import Folder

COLUMNS = (
    "video_id", "edit_id", "status", "error_code", "error", "attempts", "video", "prompt", "run",
    "finished_at",
)  # fmt: skip
"""The columns of a table of failures, those of the results by the same names."""
MESSAGE_LENGTH = 160
NO_CODE = "no code"


@dataclass
class Failures:
    """What is held of the failed edits of an output.

    Args:
        counts: how many there are of each code; of all codes.
        chosen: how many are of the codes that were asked for.
        first: the first rows of those, as values of `COLUMNS`.
    """

    counts: Counter[str] = field(default_factory=Counter)
    chosen: int = 0
    first: list[dict[str, object]] = field(default_factory=list)


def failed_of(wanted: bool, codes: Sequence[str], quarantined: bool) -> FailedOf | None:
    """What `--retry-failed`, `--code` and `--retry-quarantined` ask for; None for no failed ones.

    Raises:
        WrongOption: codes without `--retry-failed`, or one that does not exist.
    """
    if codes and not wanted:
        raise WrongOption(
            f"--code {codes[0]}: expected --retry-failed beside it, which takes failed edits only"
        )
    check_codes(codes)
    return FailedOf(frozenset(codes), quarantined) if wanted else None


def check_codes(codes: Sequence[str], there: Counter[str] | None = None) -> None:
    """Refuse a code that does not exist.

    Args:
        there: how often each code occurs; one of another version of Retake is known by that.
    """
    known = [code.value for code in ErrorCode]
    for code in codes:
        if code in known or (there and code in there):
            continue
        near = nearest(code, known, cutoff=0.6)
        hint = f"; did you mean {near!r}?" if near else ""
        found = f" This output has {_listed(there)}." if there else ""
        raise WrongOption(
            f"--code {code!r}: there is no such error code{hint}{found} Known are "
            f"{', '.join(known)}"
        )


def show_failures(
    location: str, codes: Sequence[str], limit: int, to: str | None, manifest: str | None
) -> None:
    """Print the failed edits of an output, and write them where they are asked for.

    Args:
        location: the output folder of a job, a path or URI.
        codes: only those with one of these error codes; all by default.
        limit: print at most so many of them.
        to: a file for all of them, as a table.
        manifest: a Parquet file for all of them, as a manifest.

    Raises:
        WrongOption: an unknown code, or a file whose ending says nothing.
        JobError: no results, or a file that cannot be written.
        Unreadable: storage does not give the results.
    """
    output, which = Folder(absolute(location)), FailedOf(frozenset(codes))
    if not part_names(output):
        raise JobError(
            f"{output.uri}: no rows in results/*.parquet; give the folder that the job file calls "
            "`output`, once a run has written to it"
        )
    with written(to, COLUMNS) as table:

        def read(damaged: Collection[str]) -> Failures:
            found = Failures()
            table.restart()
            for rows in _chosen(output, which, found, limit, damaged):
                table.add(rows)
            return found

        found = whole_reading(read)
        check_codes(codes, found.counts)
    _show(found, which, to)
    if manifest:
        _write_manifest(output, which, found, manifest)


def _chosen(
    output: Folder, which: FailedOf, found: Failures, limit: int, damaged: Collection[str]
) -> Iterator[pa.Table]:
    """The rows that are asked for, counted as they come."""
    for rows in failed_rows(output, None, COLUMNS, without=damaged):
        found.counts.update(code or NO_CODE for code in rows["error_code"].to_pylist())
        chosen = which.of(rows)
        found.chosen += chosen.num_rows
        found.first += chosen.slice(0, limit - len(found.first)).to_pylist()
        yield chosen


def _show(found: Failures, which: FailedOf, to: str | None) -> None:
    if not found.counts:
        say("no edit failed")
        return
    say(f"{counted(found.counts.total(), 'failed edit')}")
    for code, count in found.counts.most_common():
        say(f"  {code:<20} {count}")
    if which.codes:
        say(f"{counted(found.chosen, 'failed edit')} with {', '.join(sorted(which.codes))}")
    names = [_name(row) for row in found.first]
    wide = max(map(len, names), default=0)
    longest = max((len(str(row["error_code"] or NO_CODE)) for row in found.first), default=0)
    for name, row in zip(names, found.first, strict=True):
        tried = counted(row["attempts"] or 0, "try", "tries")  # type: ignore[arg-type]
        code = str(row["error_code"] or NO_CODE)
        say(f"{name:<{wide}}  {code:<{longest}}  {tried:>7}  {_first_line(row)}")
    if more := found.chosen - len(found.first):
        say(f"... and {more} more: --limit shows more, --to FILE writes all")
    if to:
        say(f"{to}: {counted(found.chosen, 'row')}")


def _write_manifest(output: Folder, which: FailedOf, found: Failures, target: str) -> None:
    made = write_failures_manifest(output, which, target)
    if made.edits:
        say(f"{target}: {counted(made.videos, 'video')}, {counted(made.edits, 'edit')}")
    else:
        say(f"{target}: not written, since there is no edit for it")
    if left := found.chosen - made.edits:
        say(
            f"{counted(left, 'failed edit')} left out: a row without edits, an id that was "
            "refused or stands twice, or one that the job's manifest does not have any more"
        )
    if made.edits:
        job, change = output.full_uri(RESOLVED), f"manifest={target}"
        say(f"run them with: retake run {shlex.quote(job)} --set {shlex.quote(change)}")


def _name(row: dict[str, object]) -> str:
    return "/".join(str(row[name]) for name in ("video_id", "edit_id") if row[name]) or "no id"


def _first_line(row: dict[str, object]) -> str:
    line = next(iter(str(row["error"] or "").splitlines()), "")
    return line if len(line) <= MESSAGE_LENGTH else f"{line[:MESSAGE_LENGTH]}…"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{code} ({count})" for code, count in counts.most_common())
