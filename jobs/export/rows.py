"""The results in a database: of each edit that is done its newest row, with all columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from cluster.output.lost import list_files
from cluster.results.again import whole_reading
from cluster.results.compaction import find_current, read_current
from cluster.results.schema import SCHEMA, join_tables, plain_values
from jobs.export.plan import place_of
from pipeline.storage import Folder

if TYPE_CHECKING:
    import duckdb

OURS = (
    "_at", "_key", "_split", "_asked", "_source", "_edit", "_mask", "_why", "_place", "_source_sha",
)  # fmt: skip
"""Columns of the tables that are none of the results; `_at` is where the source stands in the
order, the others are those of `choosing.py`."""


@dataclass
class Loading:
    """What is known of the tables that hold the rows while they come.

    DuckDB takes `Prompt` and `prompt` for one name, so such columns have another name in it.

    Args:
        names: of the passthrough columns: that in the database for that in the results.
        parts: the tables, by the passthrough columns and the types that they have.
    """

    names: dict[str, str] = field(default_factory=dict)
    parts: dict[tuple[tuple[str, str], ...], str] = field(default_factory=dict)

    def name(self, column: str) -> str:
        """The name of a passthrough column in the database."""
        if column not in self.names:
            taken = {name.lower() for name in (*SCHEMA.names, *OURS, *self.names.values())}
            name, number = column or "_", 2
            while name.lower() in taken:
                name, number = f"{column}_{number}", number + 1
            self.names[column] = name
        return self.names[column]


def load_done(database: duckdb.DuckDBPyConnection, output: Folder) -> dict[str, str]:
    """Make a table `done` of the edits that are done, with all columns of the results, and `_at`:
    where their source stands (`place_of`).

    Returns:
        The passthrough columns: the name in the results, by that in the table. One that is called
        as a column of ours has `manifest_` before its name.

    Raises:
        Unreadable: storage does not give a file.
    """

    def read(damaged: Collection[str]) -> Loading:
        loading = Loading()
        for (old,) in database.execute("SELECT table_name FROM duckdb_tables()").fetchall():
            database.execute(f"DROP TABLE {old}")
        _add(database, loading, SCHEMA.empty_table())
        current = find_current(output, without=damaged)
        for table in read_current(output, current):
            ok = pc.and_(pc.equal(table["status"], "ok"), pc.is_valid(table["output"]))
            _add(database, loading, table.filter(ok))
        return loading

    loading = whole_reading(read)
    _join(database, loading)
    return {
        duck: f"manifest_{name}" if name in OURS else name for name, duck in loading.names.items()
    }


def _add(database: duckdb.DuckDBPyConnection, loading: Loading, table: pa.Table) -> None:
    """Add rows to the table of those with the same columns."""
    import duckdb

    table = join_tables([SCHEMA.empty_table(), table])
    others = [name for name in table.column_names if name not in SCHEMA.names]
    sources = zip(table["video"].to_pylist(), table["video_id"].to_pylist(), strict=True)
    places = [place_of(video or video_id or "") for video, video_id in sources]
    table = table.rename_columns(
        [loading.name(n) if n in others else n for n in table.column_names]
    ).append_column("_at", pa.array(places, pa.float64()))
    try:
        _insert(database, loading, table)
    except (duckdb.Error, pa.ArrowException):
        # A type that DuckDB does not have, or text that is none.
        for name in map(loading.name, others):
            texts = [v if v is None else str(v) for v in plain_values(table[name])]
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(texts, pa.string()))
        _insert(database, loading, table)


def _insert(database: duckdb.DuckDBPyConnection, loading: Loading, table: pa.Table) -> None:
    kind = tuple(sorted((f.name, str(f.type)) for f in table.schema if f.name not in SCHEMA.names))
    part = loading.parts.get(kind, f"_part{len(loading.parts)}")
    what = f"INSERT INTO {part} BY NAME" if kind in loading.parts else f"CREATE TABLE {part} AS"
    database.register("_given", table)
    try:
        database.execute(f"{what} SELECT * FROM _given")
    finally:
        database.unregister("_given")
    loading.parts[kind] = part


def _join(database: duckdb.DuckDBPyConnection, loading: Loading) -> None:
    """One table of all parts; a column whose types do not go together is text."""
    import duckdb

    parts = list(loading.parts.values())
    try:
        selects = [f"SELECT * FROM {part}" for part in parts]
        database.execute(f"CREATE TABLE done AS {' UNION ALL BY NAME '.join(selects)}")
    except duckdb.Error:
        having = [{name for name, _ in kind} - {*OURS} for kind in loading.parts]
        selects = [_as_texts(p, sorted(names)) for p, names in zip(parts, having, strict=True)]
        database.execute(f"CREATE TABLE done AS {' UNION ALL BY NAME '.join(selects)}")
    for part in parts:
        database.execute(f"DROP TABLE {part}")


def _as_texts(part: str, names: Sequence[str]) -> str:
    casts = ", ".join(f"CAST({quoted(name)} AS VARCHAR) AS {quoted(name)}" for name in names)
    return f"SELECT * REPLACE ({casts}) FROM {part}" if names else f"SELECT * FROM {part}"


def load_sizes(database: duckdb.DuckDBPyConnection, output: Folder) -> None:
    """Make a table `listed` of the files that are there of those that `done` names, with sizes.

    Raises:
        StorageFailed: a folder cannot be looked into.
    """
    database.execute("CREATE TABLE listed (name VARCHAR, size BIGINT)")
    folders = " UNION ".join(
        f"SELECT split_part({name}, '/', 1) FROM done WHERE {name} IS NOT NULL"
        for name in ("output", "source", "mask")
    )
    for (folder,) in database.execute(folders).fetchall():
        list_files(database, output, folder)


def lock(database: duckdb.DuckDBPyConnection) -> None:
    """Let nothing that the database is asked from now on read files, or the network."""
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")


def exported_tables(
    database: duckdb.DuckDBPyConnection,
    columns: Sequence[str],
    others: Mapping[str, str],
    split: str | None = None,
    at_once: int = 1024,
) -> Iterator[pa.Table]:
    """The rows of the table `exported`, in order, in tables of some rows.

    They have the columns of `Whole.columns` by their names in the results, and `_key`, `_split`,
    `_source_sha`, `output`, `source` and `mask`.

    Args:
        columns, others: those of `Whole`.
        split: only its pairs.
        at_once: rows of a table; 0 for one table without rows.
    """
    within = "" if split is None else f"WHERE _split = '{split}'"
    query = f"SELECT coalesce(min(_place), 0), coalesce(max(_place), -1) FROM exported {within}"
    ((start, last),) = database.execute(query).fetchall()
    names = [name for name in columns if name not in others.values()]
    more = ["_key", "_split", "_source_sha", "output", "source", "mask"]
    asked = ", ".join([*names, *map(quoted, others), *more])
    for place in range(start, last + 1, at_once) if at_once else [0]:
        table = database.sql(
            f"SELECT {asked} FROM exported WHERE _place >= {place} AND _place <= {last} "
            f"AND _place < {place + at_once} ORDER BY _place"
        ).to_arrow_table()
        yield table.rename_columns([*names, *others.values(), *more])


def quoted(name: str) -> str:
    """A name of a column as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'
