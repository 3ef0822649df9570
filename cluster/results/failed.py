"""Which edits failed: by the newest row of each, those that have no edit to show for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from cluster.results.compaction import find_current, read_current
from cluster.results.damaged import Damaged, warn
from cluster.results.newest import EDIT
from cluster.results.schema import SCHEMA
from cluster.stages.blocks import QUARANTINED
from pipeline.errors import ErrorCode
from pipeline.storage import Folder

if TYPE_CHECKING:
    import duckdb

NAMES = ("video_id", "edit_id", "status", "error_code")
AMBIGUOUS = (ErrorCode.DUPLICATE_VIDEO_ID.value, ErrorCode.DUPLICATE_EDIT_ID.value)
"""Such a row has the ids of another edit, which may be done: by its ids it cannot be told apart."""


@dataclass(frozen=True)
class FailedOf:
    """Which failed edits are meant.

    Args:
        codes: those with one of these error codes; empty for any.
        quarantined: and those that are quarantined, whatever their code.
    """

    codes: frozenset[str] = frozenset()
    quarantined: bool = False

    @property
    def has_quarantined(self) -> bool:
        """Whether a quarantined edit may be among them."""
        return self.quarantined or not self.codes or not self.codes.isdisjoint(QUARANTINED)

    def of(self, rows: pa.Table) -> pa.Table:
        """Those of some rows of the results, of any status."""
        wanted = pc.not_equal(rows["status"], "ok")
        if self.codes:
            among = pc.is_in(rows["error_code"], value_set=pa.array(sorted(self.codes)))
            if self.quarantined:
                among = pc.or_(among, pc.equal(rows["status"], "quarantined"))
            wanted = pc.and_(wanted, among)
        return rows.filter(wanted)


def failed_rows(
    output: Folder,
    which: FailedOf | None = None,
    columns: Sequence[str] = NAMES,
    on_damaged: Callable[[Damaged], None] = warn,
    without: Collection[str] = (),
) -> Iterator[pa.Table]:
    """The newest row of each edit that failed or was quarantined, in tables of up to 4,096 rows.

    A row that was refused beside the newest is one of its own, as it is for `compact`.

    Args:
        which: of them; all by default.
        columns: of the results, with those of `NAMES`; one that a file lacks is null there.
        on_damaged, without: as of `read_parts`.

    Raises:
        PartGone, PartDamaged: as of `read_current`.
        Unreadable: storage does not give a file.
    """
    which = which or FailedOf()
    names = list(dict.fromkeys([*columns, *NAMES]))
    current = find_current(output, on_damaged, without)
    for table in read_current(output, current, lambda field: field.name in names):
        failed = which.of(table)
        if failed.num_rows:
            yield _with(failed, names)


def load_failed(
    database: duckdb.DuckDBPyConnection,
    output: Folder,
    which: FailedOf,
    on_damaged: Callable[[Damaged], None] = warn,
    without: Collection[str] = (),
) -> int:
    """Make a table `failed` with the `EDIT` of each failed edit that its ids name.

    Returns:
        How many it has.

    Raises:
        As `failed_rows` does.
    """
    database.execute("CREATE OR REPLACE TABLE failed (edit UHUGEINT)")
    for table in failed_rows(output, which, NAMES, on_damaged, without):
        known = pc.invert(pc.is_in(table["error_code"], value_set=pa.array(AMBIGUOUS)))
        database.register("part", table.filter(known))
        database.execute(
            f"INSERT INTO failed SELECT {EDIT} FROM part "
            "WHERE video_id IS NOT NULL AND edit_id IS NOT NULL"
        )
        database.unregister("part")
    return int(database.execute("SELECT count(*) FROM failed").fetchall()[0][0])


def _with(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """A table with just these columns, in this order and with their declared types."""
    for name in names:
        kind = SCHEMA.field(name).type
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
        elif table.schema.field(name).type != kind:  # older files have integers of 32 bits
            place = table.column_names.index(name)
            table = table.set_column(place, name, table[name].cast(kind))
    return table.select(list(names))
