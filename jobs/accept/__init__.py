"""`retake accept`: which edits are good enough, decided anew from the numbers that are there.

Each file of the results whose verdicts change is rewritten in its place, whole, with other values
in `accepted` and `rejected_for`. A command that is killed in between leaves some files as they were
and the others decided; the same command again decides the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.accept import Rules, Verdicts, WrongRule, numbers_beside
from cluster.output.lease import Lease, held
from cluster.results.again import whole_reading
from cluster.results.compaction import find_current, read_current
from cluster.results.damaged import Damaged, warn
from cluster.results.parts import open_part, part_names, read_parts
from cluster.results.schema import SCHEMA, join_tables, to_parquet
from jobs.accept.remembered import remember, rules_of_job
from jobs.errors import JobError, WrongOption
from jobs.jobfile.paths import absolute
from pipeline.redaction import say
from pipeline.storage import Folder

VERDICT = ("accepted", "rejected_for")


@dataclass
class Decided:
    """What the rules say of an output's edits. Of each edit the newest row counts.

    Args:
        edits: that were made, and so have a verdict; `not_made` are those that were not.
        accepted: of them.
        changed: verdicts that are other than those in the results.
        rejects, alone, without_score: edits that each rule rejects, that no other rule does, and
            that it does because their number is missing; [rules].
    """

    rules: Rules
    edits: int = 0
    not_made: int = 0
    accepted: int = 0
    changed: int = 0
    rejects: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    alone: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    without_score: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        count = len(self.rules.rules)
        self.rejects, self.alone, self.without_score = np.zeros((3, count), np.int64)

    def add(self, found: Verdicts, changed: int) -> None:
        self.edits += int(found.decided.sum())
        self.not_made += int((~found.decided).sum())
        self.accepted += int(found.accepted.sum())
        self.changed += changed
        rejects = found.rejects
        self.rejects += rejects.sum(axis=1)
        self.alone += (rejects & (rejects.sum(axis=0) == 1)).sum(axis=1)
        self.without_score += found.without_score.sum(axis=1)


def decide(
    location: str, texts: Sequence[str] = (), *, dry_run: bool = False, wait: bool = False
) -> Decided:
    """Decide which edits of an output folder are accepted, and write it into the results.

    Args:
        location: the output folder of a job, a path or URI.
        texts: the rules; by default those of the job that the folder holds.
        dry_run: write nothing; it may be asked while a run writes to the folder.
        wait: for a run that writes to the folder; else that is an error.

    Raises:
        WrongOption: a rule of `texts` cannot be read.
        JobError: there are no rules, no results, or the job's rules cannot be read.
        CannotRun: a run writes to the folder.
        Unreadable: storage does not give a file.
    """
    output = Folder(absolute(location))
    if not part_names(output):
        raise JobError(
            f"{output.uri}: no rows in results/*.parquet; give the folder that the job file calls "
            "`output`, once a run has written to it"
        )
    rules = _read_rules(output, texts)
    if dry_run:
        return whole_reading(lambda damaged: _look(output, rules, damaged))
    with held(output, "", wait=wait, on_wait=say, command="retake accept") as lease:
        found = _write(output, rules, lease)
        remember(output, [rule.text for rule in rules.rules] if texts else rules_of_job(output))
    return found


def _read_rules(output: Folder, texts: Sequence[str]) -> Rules:
    given = tuple(texts) or rules_of_job(output)
    if not given:
        raise JobError(
            f"{output.uri}: its job has no rules to accept edits by; give some, as in "
            '--rule "background_psnr_db >= 30"'
        )
    try:
        return Rules.parse(given)
    except WrongRule:
        pass  # a number that came with the manifest may be meant
    try:
        return Rules.parse(given, more=whole_reading(lambda damaged: numbers_of(output, damaged)))
    except WrongRule as error:
        if texts:
            raise WrongOption("\n".join(f"--{line}" for line in str(error).splitlines())) from None
        raise JobError(f"{output.uri}: its job.yaml: {error}") from None


def numbers_of(output: Folder, damaged: Collection[str]) -> list[str]:
    """The numbers that came with the manifest, of all files."""
    parts = (open_part(output, name) for name in part_names(output) if name not in damaged)
    return sorted({name for part in parts for name in numbers_beside(part.schema_arrow)})


def _look(output: Folder, rules: Rules, damaged: Collection[str]) -> Decided:
    found, wanted = Decided(rules), {*rules.columns(), *VERDICT, "status"}
    current = find_current(output, without=damaged)
    for table in read_current(output, current, lambda field: field.name in wanted):
        verdicts = rules.verdicts(table)
        found.add(verdicts, _changed(_before(table), verdicts.columns()))
    return found


def _write(output: Folder, rules: Rules, lease: Lease) -> Decided:
    """Decide file by file: one is in memory at a time, beside those that are read ahead."""
    left_out: list[str] = []

    def leave_out(damaged: Damaged) -> None:
        warn(damaged)
        left_out.append(damaged.name)

    found, current = Decided(rules), find_current(output, leave_out)
    for name, table in read_parts(output, None, leave_out, left_out):
        rows = _rows_of(current, name)
        before = _before(table)
        verdicts = rules.verdicts(table.take(rows))
        columns = verdicts.columns()
        changed = _changed([column.take(rows) for column in before], columns)
        found.add(verdicts, changed)
        if changed:
            lease.check()
            decided = _with(table, before, rows, columns)
            # With all columns of today: those of an older file would be taken for the manifest's.
            output.write(name, to_parquet(join_tables([decided, SCHEMA.empty_table()])))
    return found


def _rows_of(current: Mapping[str, np.ndarray], name: str) -> pa.Array:
    """The numbers of a file's rows that count; none of a file that came since."""
    return pa.array(current.get(name, ()), pa.int64())


def _before(table: pa.Table) -> list[pa.ChunkedArray]:
    """The verdicts that a table holds; older results have none."""
    kinds = [SCHEMA.field(name).type for name in VERDICT]
    return [
        table[name].cast(kind)
        if name in table.column_names
        else pa.chunked_array([pa.nulls(table.num_rows, kind)])
        for name, kind in zip(VERDICT, kinds, strict=True)
    ]


def _changed(before: Sequence[pa.ChunkedArray], now: Sequence[pa.Array]) -> int:
    """How many verdicts are other ones."""
    other = np.zeros(len(now[0]), bool)
    for was, is_now in zip(before, now, strict=True):
        if pa.types.is_list(is_now.type):  # not compared by Arrow: as text, and none is no reason
            was, is_now = (pc.fill_null(pc.binary_join(one, "\n"), "") for one in (was, is_now))
        same = pc.fill_null(pc.equal(was, is_now), False)
        neither = pc.and_(pc.is_null(was), pc.is_null(is_now))
        other |= ~pc.or_(same, neither).to_numpy(zero_copy_only=False)
    return int(other.sum())


def _with(
    table: pa.Table, before: Sequence[pa.ChunkedArray], rows: pa.Array, now: Sequence[pa.Array]
) -> pa.Table:
    """A table with other verdicts in the given rows."""
    places = np.arange(table.num_rows)
    places[rows.to_numpy()] = table.num_rows + np.arange(len(rows))
    for name, was, is_now in zip(VERDICT, before, now, strict=True):
        column = pa.chunked_array([*was.chunks, is_now], was.type).take(pa.array(places))
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    return table
