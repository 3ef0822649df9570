"""What the row check makes of one row, for tests of what comes after it."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cluster.stages.blocks import VideoWork
from cluster.stages.check import CheckRows


def work_of_row(check: CheckRows, row: Mapping[str, Any]) -> VideoWork | None:
    """What is to be done for a manifest row."""
    ((_, _, work),) = check.look(pa.Table.from_pylist([dict(row)]))
    return work
