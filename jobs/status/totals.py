"""What the results of an output folder add up to, whatever its runs wrote beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.results.parts import part_names
from pipeline.storage import Folder

if TYPE_CHECKING:
    from cluster.results.damaged import Damaged


@dataclass(frozen=True)
class Totals:
    """Edits by the newest row of each.

    Args:
        made: with the status `ok`.
        failed: with another one; `failed_by_code` counts them by error code.
        damaged: files of results that cannot be read, and are not counted.
    """

    made: int = 0
    failed: int = 0
    failed_by_code: Mapping[str, int] = field(default_factory=dict)
    damaged: int = 0


def totals_of(output: Folder) -> Totals | None:
    """The totals; None where there are no results.

    Raises:
        Unreadable: storage does not give a file.
    """
    if not part_names(output):
        return None
    from cluster.results.newest import database, newest_rows

    damaged: list[Damaged] = []
    with database() as connection:
        columns = {"status": "status", "code": "coalesce(error_code, '')"}
        newest_rows(connection, output, columns, damaged.append, more=["error_code"])
        query = "SELECT status = 'ok', code, count(*) FROM newest GROUP BY ALL ORDER BY ALL"
        rows = connection.execute(query).fetchall()
    made = sum(number for ok, _, number in rows if ok)
    codes = {code: number for ok, code, number in rows if not ok}
    return Totals(made, sum(codes.values()), codes, len(damaged))
