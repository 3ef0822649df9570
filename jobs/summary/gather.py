"""The sums of a summary, from the results: by columns, in a database, so in bounded memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.accept import NO_SCORE, NOT_MEASURED
from cluster.layout.work import inversion_forwards, reconstruction_forwards
from cluster.output.naming import FORM, NAME
from cluster.results.compaction import find_current, read_current
from cluster.results.damaged import Damaged, PartDamaged
from cluster.results.newest import database
from jobs.summary.record import CodeCount, RuleCount, SlowEdit, Throughput, Totals
from pipeline.records import COMPUTED, Forwards, Timings
from pipeline.scores import Scores
from pipeline.settings import EditingSettings
from pipeline.storage import Folder

if TYPE_CHECKING:
    import duckdb

MOST_BUCKETS = 200
MOST_RUNS = 100
SLOWEST = 10
PARTS = tuple(field.name for field in fields(Timings))
KINDS = tuple(field.name for field in fields(Forwards))
TEXTS = ("video_id", "edit_id", "status", "error_code", "run")
COUNTS = (
    "edits", "ok", "failed", "quarantined", "scored", "accepted", "rejected", "retried",
    "more_tries",
    "size_bytes", "trajectory_bytes", "memory_bytes",
)  # fmt: skip
WASTED = ("wasted_seconds", "wasted_gpu_seconds", "wasted_forwards")
NUMBERS = ("attempts", "size_bytes", "gpu_seconds", "trajectory_bytes", "memory_bytes")
SCORES = ("scores", "accepted", "rejected_for")
COLUMNS = frozenset((*TEXTS, *NUMBERS, *SCORES, "timings", "forwards", "finished_at"))
WORK_S = " + ".join(PARTS)
FORWARDS = " + ".join(COMPUTED)
NOT_OK = "FILTER (WHERE status != 'ok')"


def sums_of(
    output: Folder,
    settings: EditingSettings | None,
    damaged: Collection[str] = (),
    run: str | None = None,
) -> tuple[Totals, Totals]:
    """The sums over the rows of the last run, and over all rows.

    Args:
        settings: of the job, which say what was planned; None where they are not known.
        run: the last run, where it is known: it may have no rows. By default the last that has.
        damaged: files of the results that are left out.

    Raises:
        PartGone, PartDamaged: as of `read_current`.
        Unreadable: storage does not give a file.
    """
    with database() as found:
        made = False
        for part in _parts(output, damaged):
            found.register("part", part)
            how = "INSERT INTO rows" if made else "CREATE TABLE rows AS"
            found.execute(f"{how} SELECT * FROM part")
            found.unregister("part")
            made = True
        if not made:
            return Totals(), Totals()
        found.execute("CREATE VIEW chosen AS SELECT * FROM rows")
        of_all = _Sums(found).totals(settings)
        last = run or found.execute("SELECT max(run) FROM rows").fetchall()[0][0]
        literal = last.replace("'", "''")
        found.execute(
            f"CREATE OR REPLACE VIEW chosen AS SELECT * FROM rows WHERE run = '{literal}'"
        )
        return _Sums(found).totals(settings), of_all


def _parts(output: Folder, damaged: Collection[str]) -> Iterator[pa.Table]:
    """The current rows with the columns that are summed up, flat and without null."""
    current = find_current(output, without=damaged, on_damaged=_refuse)
    for table in read_current(output, current, lambda field: field.name in COLUMNS):
        columns: dict[str, Any] = {
            name: pc.fill_null(_column(table, name, pa.string()), "") for name in TEXTS
        }
        columns |= {name: _number(_column(table, name, pa.float64())) for name in NUMBERS}
        for struct, names in (("timings", PARTS), ("forwards", KINDS)):
            columns |= {name: _number(_child(table, struct, name)) for name in names}
        columns |= _of_scores(table)
        finished = _column(table, "finished_at", pa.timestamp("us", "UTC"))
        times = finished.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64())
        yield pa.table(columns | {"finished": times})


def _of_scores(table: pa.Table) -> dict[str, Any]:
    """Whether there are scores of some kind, and what the rules say; as older files lack them."""
    scored = np.zeros(table.num_rows, bool)
    for kind in (field.name for field in fields(Scores)):
        found = _child(table, "scores", kind)
        scored |= found.is_valid().to_numpy(zero_copy_only=False)
    accepted = _column(table, "accepted", pa.bool_()).cast(pa.bool_())
    rejected_for = _column(table, "rejected_for", pa.list_(pa.string()))
    return {"scored": scored, "accepted": accepted, "rejected_for": rejected_for}


def _refuse(damaged: Damaged) -> None:
    """Leave a damaged file to the caller, who tells of it once and reads again without it."""
    raise PartDamaged(damaged)


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    if name in table.column_names:
        return table[name]
    return pa.chunked_array([pa.nulls(table.num_rows, kind)])


def _child(table: pa.Table, struct: str, name: str) -> pa.ChunkedArray:
    """A field of a struct; older versions of Retake have written fewer of them."""
    kind = table.schema.field(struct).type if struct in table.column_names else pa.null()
    if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.float64())])
    return pc.struct_field(table[struct], name)


def _number(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """As floats, 0 where there is none."""
    values = pc.fill_null(column.cast(pa.float64(), safe=False), 0.0)
    return pc.if_else(pc.is_finite(values), values, 0.0)


class _Sums:
    """Asks the view `chosen` of a database."""

    def __init__(self, found: duckdb.DuckDBPyConnection) -> None:
        self.found = found

    def totals(self, settings: EditingSettings | None) -> Totals:
        if not self._all("SELECT count(*) FROM chosen")[0][0]:
            return Totals()
        status = "count(*) FILTER (WHERE status = '{}')".format
        one = self._one(
            {
                "edits": "count(*)",
                **{name: status(name) for name in ("ok", "failed", "quarantined")},
                "scored": "count(*) FILTER (WHERE scored)",
                "accepted": "count(*) FILTER (WHERE accepted)",
                "rejected": "count(*) FILTER (WHERE NOT accepted)",
                "retried": "count(*) FILTER (WHERE attempts > 1)",
                "more_tries": "sum(greatest(attempts - 1, 0))",
                "size_bytes": "sum(size_bytes) FILTER (WHERE status = 'ok')",
                "trajectory_bytes": "sum(trajectory_bytes)",
                "memory_bytes": "max(memory_bytes)",
                "gpu_seconds": "sum(gpu_seconds)",
                "wasted_seconds": f"sum({WORK_S}) {NOT_OK}",
                "wasted_gpu_seconds": f"sum(gpu_seconds) {NOT_OK}",
                "wasted_forwards": f"sum({FORWARDS}) {NOT_OK}",
            }
        )
        whole = {name: int(one[name] or 0) for name in COUNTS}
        real = {name: float(one[name] or 0.0) for name in ("gpu_seconds", *WASTED)}
        videos, inverted, reused, planned = self._videos(settings)
        started, ended = self._span()
        return Totals(
            **cast(Any, whole | real),
            videos=videos,
            runs=tuple(run for (run,) in self._all(_RUNS)[-MOST_RUNS:] if run),
            started_at=started,
            ended_at=ended,
            failures=tuple(CodeCount(code or "no code", n) for code, n in self._all(_FAILURES)),
            rejections=tuple(RuleCount(rule, n) for rule, n in self._all(_REJECTIONS)),
            timings=Timings(**self._summed(PARTS)),
            forwards=Forwards(**self._summed(KINDS)),
            planned=planned,
            inverted=inverted,
            reused=reused,
            throughput=self._throughput(started, ended),
            slowest=tuple(map(_slow, self._all(_SLOWEST))),
        )

    def _all(self, query: str) -> list[Any]:
        return self.found.execute(query).fetchall()

    def _one(self, columns: dict[str, str]) -> dict[str, Any]:
        asked = ", ".join(f"{what} AS {name}" for name, what in columns.items())
        (row,) = self._all(f"SELECT {asked} FROM chosen")
        return dict(zip(columns, row, strict=True))

    def _summed(self, names: tuple[str, ...]) -> dict[str, float]:
        return {n: float(v or 0.0) for n, v in self._one({n: f"sum({n})" for n in names}).items()}

    def _videos(self, settings: EditingSettings | None) -> tuple[int, int, int, Forwards | None]:
        """How many videos there are, inverted, and not; and what was planned for them."""
        videos = inverted = reused = 0
        plain = injected = 0.0
        for made, is_inverted, count in self._all(_VIDEOS):
            videos += count
            inverted += count * is_inverted
            reused += count * (not is_inverted and made > 0)
            if settings and made:
                edits = _planned(settings, made)
                plain += count * edits.plain
                injected += count * edits.injected
        if settings is None:
            return videos, inverted, reused, None
        return (
            videos,
            inverted,
            reused,
            Forwards(float(inverted * inversion_forwards(settings)), plain, injected),
        )

    def _span(self) -> tuple[datetime | None, datetime | None]:
        """When the first run began, and when the last row was finished."""
        ((run, first, last),) = self._all(_SPAN)
        ended = _moment(last)
        if not NAME.fullmatch(run):
            return _moment(first), ended
        began = datetime.strptime(run, FORM).replace(tzinfo=UTC)
        return min(filter(None, (began, _moment(first)))), ended

    def _throughput(self, started: datetime | None, ended: datetime | None) -> Throughput | None:
        if not started or not ended:
            return None
        bucket_s = bucket_of((ended - started).total_seconds())
        query = _BUCKETS.format(start=_micros(started), width=int(bucket_s * 1e6))
        rows = self.found.execute(query).fetchnumpy()
        count = int((ended - started).total_seconds() // bucket_s) + 1
        made, failed = np.zeros(count, int), np.zeros(count, int)
        places = np.clip(rows["place"].astype(int), 0, count - 1)
        np.add.at(made, places, rows["ok"].astype(int))
        np.add.at(failed, places, rows["failed"].astype(int))
        return Throughput(started, bucket_s, tuple(made.tolist()), tuple(failed.tolist()))


def bucket_of(seconds: float) -> float:
    """The width of a bucket, a round number of seconds, of which at most `MOST_BUCKETS` fit."""
    least = seconds / (MOST_BUCKETS - 1)
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
    return float(next((step for step in steps if step >= least), -(-least // 86400) * 86400))


def _planned(settings: EditingSettings, edits: int) -> Forwards:
    """The forwards of a video's edits, K at a time."""
    at_once = settings.reconstruction.edits_a_unit
    whole, rest = divmod(edits, at_once)
    sizes = [(at_once, whole)] * bool(whole) + [(rest, 1)] * bool(rest)
    costs = [(reconstruction_forwards(settings, size), times) for size, times in sizes]
    return Forwards(
        plain=sum(cost.plain * times for cost, times in costs),
        injected=sum(cost.injected * times for cost, times in costs),
    )


def _slow(row: Any) -> SlowEdit:
    video, edit, seconds, *parts = row
    rounded = {name: round(value, 3) for name, value in zip(PARTS, parts, strict=True)}
    return SlowEdit(video, edit, round(seconds, 3), Timings(**rounded))


def _moment(micros: int | None) -> datetime | None:
    """A time; None where a row has one that no calendar has."""
    try:
        return None if micros is None else _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        return None


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SPAN = "SELECT min(run), min(finished), max(finished) FROM chosen"
_RUNS = "SELECT DISTINCT run FROM chosen ORDER BY run"
_FAILURES = """
SELECT error_code, count(*) AS edits FROM chosen WHERE status != 'ok' GROUP BY error_code
ORDER BY edits DESC, error_code
"""
_REJECTIONS = f"""
SELECT regexp_replace(reason, '({NOT_MEASURED}|{NO_SCORE})$', '') AS rule, count(*) AS edits
FROM (SELECT unnest(rejected_for) AS reason FROM chosen) GROUP BY rule ORDER BY edits DESC, rule
"""
_SLOWEST = f"""
SELECT video_id, edit_id, {WORK_S} AS seconds, {", ".join(PARTS)} FROM chosen
WHERE status = 'ok' AND {WORK_S} > 0 ORDER BY seconds DESC, video_id, edit_id LIMIT {SLOWEST}
"""
_VIDEOS = """
SELECT made, inverted, count(*) FROM (
    SELECT count(*) FILTER (WHERE status = 'ok') AS made, sum(inversion) > 0 AS inverted
    FROM chosen GROUP BY video_id
) GROUP BY made, inverted
"""
_BUCKETS = """
SELECT (finished - {start}) // {width} AS place, count(*) FILTER (WHERE status = 'ok') AS ok,
    count(*) FILTER (WHERE status != 'ok') AS failed
FROM chosen WHERE finished IS NOT NULL GROUP BY place
"""
