"""How far a run has come, counted from its results and from what the stages report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc

from cluster.layout.placement import Placement
from cluster.progress import Counts, Failure, Groups

FAILURES_OF_A_CODE = 5
"""So many of each are passed on to be shown; all are in the results."""
LATEST = 3
"""So many of the last that failed are passed on as well."""


def with_events(
    counts: Counts,
    placement: Placement,
    happened: Mapping[str, int],
    doing: Mapping[str, str] = MappingProxyType({}),
) -> Counts:
    """The counts with what the stages reported so far.

    Args:
        doing: what a group of each stage is at.
    """
    groups = tuple(
        Groups(
            pool.stage,
            min(pool.groups, happened.get(f"{pool.stage} ready", 0)),
            pool.groups,
            doing.get(pool.stage, ""),
        )
        for pool in placement.pools
    )
    return replace(
        counts,
        groups=groups,
        prompts=happened.get("prompt encoded", 0),
        inverted=happened.get("video inverted", 0),
    )


def with_refused(counts: Counts, table: pa.Table) -> Counts:
    """The counts with these results, which are in them, named as what the check refused."""
    return replace(counts, refused=counts.refused + table.num_rows)


def with_results(counts: Counts, table: pa.Table) -> Counts:
    """The counts with the result rows of a table."""
    errors, failures = dict(counts.errors), list(counts.failures)
    names = ["status", "video_id", "edit_id", "error_code", "error"]
    failed = table.select(names).filter(pc.not_equal(table["status"], "ok"))
    for code, number in _counted(failed["error_code"]):
        before = errors.get(code, 0)
        errors[code] = before + number
        if before < FAILURES_OF_A_CODE:
            rows = failed.filter(pc.equal(failed["error_code"], code))
            failures += map(_failure, rows.slice(0, FAILURES_OF_A_CODE - before).to_pylist())
    last = failed.slice(max(0, failed.num_rows - LATEST)).to_pylist()
    return replace(
        counts,
        edited=counts.edited + table.num_rows - failed.num_rows,
        failed=counts.failed + failed.num_rows,
        errors=errors,
        failures=tuple(failures),
        latest=(*counts.latest, *map(_failure, last))[-LATEST:],
    )


def _counted(codes: pa.ChunkedArray) -> list[tuple[str, int]]:
    return [(one["values"], one["counts"]) for one in pc.value_counts(codes).to_pylist()]


def _failure(row: Mapping[str, str]) -> Failure:
    message = next(iter((row["error"] or "").splitlines()), "")
    return Failure(row["video_id"], row["edit_id"], row["error_code"], message)
