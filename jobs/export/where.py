"""`--where`: an expression of SQL over the columns of the results, checked before it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jobs.errors import WrongOption, nearest
from jobs.export.rows import quoted

if TYPE_CHECKING:
    import duckdb

LISTED = 12
"""So many columns are named where none is near."""
CLOCKS = (
    "now", "today", "transaction_timestamp", "get_current_timestamp", "get_current_time",
    "current_date", "current_time", "current_timestamp", "current_localtime",
    "current_localtimestamp", "localtime", "localtimestamp", "txid_current",
)  # fmt: skip
"""Functions that DuckDB holds for the same within a query, and that are others in the next one."""


def check_where(database: duckdb.DuckDBPyConnection, where: str) -> str:
    """The expression as a query has it, once it is known to be one that says yes or no.

    DuckDB parses it as a single expression, so it can end no statement and begin another one.

    Raises:
        WrongOption: it is none, names a column that is not there, or says neither yes nor no.
    """
    import duckdb

    try:
        asked = duckdb.SQLExpression(where)
        database.table("done").filter(asked)  # which takes no aggregates
        (kind,) = database.table("done").select(asked).types
    except (duckdb.Error, ValueError) as error:
        raise WrongOption(_message(database, where, error)) from error
    if changing := _changing(database, where):
        raise WrongOption(
            f"--where {where!r}: {changing} gives another answer each time, so the same command "
            "could not go on with the export; expected a condition that stays the same, such as "
            "`md5(video_id) < '2'` for an eighth of the videos"
        )
    if str(kind) != "BOOLEAN":
        raise WrongOption(
            f"--where {where!r}: is a value of {kind}; expected a condition, such as `{where} > 0`"
            if _is_number(kind)
            else f"--where {where!r}: is a value of {kind}; "
            "expected a condition, which is true or false"
        )
    return f"coalesce((\n{where}\n), false)"


def counted_where(database: duckdb.DuckDBPyConnection, query: str, where: str) -> Any:
    """The rows of a query with the expression in it.

    Raises:
        WrongOption: it fails on some row, as where it takes text for a number.
    """
    import duckdb

    try:
        return database.execute(query)
    except duckdb.Error as error:
        if not where or isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException):
            raise
        raise WrongOption(_message(database, where, error)) from error


def _changing(database: duckdb.DuckDBPyConnection, where: str) -> str | None:
    """The first function of an expression that does not always give the same, such as `random`."""
    query = "SELECT json_serialize_sql(?)"
    ((text,),) = database.execute(query, [f"SELECT (\n{where}\n)"]).fetchall()
    found = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE'"
    volatile = {name for (name,) in database.execute(found).fetchall()} | {*CLOCKS}
    bare = {name for name in CLOCKS if "current" in name or "local" in name}
    bare -= {name.lower() for name in database.table("done").columns}
    for kind, name in _named(json.loads(text)):
        if name in (volatile if kind == "function_name" else bare):
            return name
    return None


def _named(node: Any) -> Iterator[tuple[str, str]]:
    """The functions in a parsed statement, and the columns, as which `current_date` is parsed."""
    if isinstance(node, dict):
        yield "function_name", str(node.get("function_name", "")).lower()
        yield from (("column_names", str(name).lower()) for name in node.get("column_names", ()))
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for one in inner:
        yield from _named(one)


def _is_number(kind: object) -> bool:
    return bool(re.match("U?(BIG|SMALL|TINY|HUGE)?INT|FLOAT|DOUBLE|DECIMAL", str(kind)))


def _message(database: duckdb.DuckDBPyConnection, where: str, error: Exception) -> str:
    """What is wrong with an expression: names the column, and the nearest known one."""
    text = str(error).split("\n")[0]
    names = list(_columns(database))
    if unknown := _unknown(text, where):
        near = _nearest(unknown, names)
        known = f"did you mean {near}?" if near else f"columns are {_some(names)}"
        return f"--where {where!r}: there is no column {unknown!r}; {known}"
    if "disabled by configuration" in text:
        return (
            f"--where {where!r}: reads a file or the network; expected columns of the results only"
        )
    text = re.sub(r"^[A-Z]\w+ Error: ", "", text)
    return (
        f"--where {where!r}: {text}; expected a condition in SQL, such as "
        "`scores.judge.follows >= 3 AND frames = 49`"
    )


def _unknown(text: str, where: str) -> str | None:
    """The column that DuckDB did not find, with the dots that the expression has around it."""
    for pattern in (
        r'Referenced column "([^"]+)" not found',
        r'Referenced table "([^"]+)" not found',
        r'Could not find key "([^"]+)" in struct',
    ):
        if found := re.search(pattern, text):
            whole = rf"[\w.\"]*(?<!\w){re.escape(found[1])}(?!\w)[\w.\"]*"
            dotted = re.search(whole, where, re.IGNORECASE)
            return dotted[0] if dotted else found[1]
    return None


def _nearest(unknown: str, names: list[str]) -> str | None:
    """The known column that was most likely meant; a unique end of one is known as well."""
    plain = unknown.replace('"', "")
    ends = [name for name in names if name.endswith(f".{plain}")]
    if len(ends) == 1:
        return ends[0]
    last = [name for name in names if name.rpartition(".")[2] == plain.rpartition(".")[2]]
    return nearest(plain, names, cutoff=0.6) or (last[0] if len(last) == 1 else None)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _columns(database: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """All columns of the rows, with those inside of structs."""
    table = database.table("done")
    for name, kind in zip(table.columns, table.types, strict=True):
        if not name.startswith("_"):
            yield from _below(name if re.fullmatch(r"\w+", name) else quoted(name), kind)


def _below(name: str, kind: Any) -> Iterator[str]:
    if kind.id != "struct":
        yield name
        return
    for inner, its in kind.children:
        yield from _below(f"{name}.{inner}", its)
