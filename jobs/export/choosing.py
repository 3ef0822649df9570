"""Which edits are exported: those that are done, accepted and asked for, and are there still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from cluster.candidates.made import FOLDER
from jobs.export.formats import Settings
from jobs.export.index import IDENTITY, Commit
from jobs.export.plan import key_of, split_of
from jobs.export.reading import Gone
from jobs.export.where import check_where, counted_where

if TYPE_CHECKING:
    import duckdb

PAIRS_AT_ONCE = 10_000
ORDER = "_split, _at, coalesce(video, video_id), video_id, edit_id"
"""The order of an export, in SQL."""


@dataclass(frozen=True)
class Chosen:
    """How many edits there are, and why some are left out.

    Args:
        done: edits that are done.
        rules: whether the job has rules that accept edits, and they count here.
        rejected: that the rules did not accept.
        undecided: that the rules have not seen yet, since scores are missing.
        unsettled: whose best candidate is not chosen yet; none where rules count, which such an
            edit has not passed.
        outside: that `--where` leaves out, of the others.
        pairs: that are left.
    """

    done: int
    rules: bool
    rejected: int
    undecided: int
    unsettled: int
    outside: int
    pairs: int


@dataclass(frozen=True)
class Before:
    """What earlier runs of the command exported, beside what is chosen now.

    Args:
        pairs: how many there are.
        unchosen: the ids of one that is not chosen any more, and how many such there are.
        remade: the same of those whose edit was made again.
        gone: of the pairs that were not exported yet, those whose files are not what the results
            say.
    """

    pairs: int
    unchosen: tuple[str, int] | None
    remade: tuple[str, int] | None
    gone: tuple[Gone, ...]


def choose(database: duckdb.DuckDBPyConnection, settings: Settings, has_rules: bool) -> Chosen:
    """Make a table `pairs` of the chosen edits: the columns of `done`, and `_split`, `_key`, and
    the sizes `_source`, `_edit` and `_mask` of their files.

    Args:
        has_rules: whether the job file has some; rows that a rule has judged say so too.

    Raises:
        WrongOption: as of `check_where`.
    """
    where = check_where(database, settings.where) if settings.where else "true"
    judged = "count(*) FILTER (WHERE accepted), count(*) FILTER (WHERE NOT accepted)"
    done, accepted, rejected = _one(database, f"SELECT count(*), {judged} FROM done")
    rules = not settings.all and (has_rules or accepted + rejected > 0)
    _name_places(database, settings.validation)
    kept = "coalesce(accepted, false)" if rules else _SETTLED
    query = f"""
        CREATE TABLE _chosen AS SELECT *, {where} AS _asked FROM done
        JOIN _named USING (video_id, edit_id) WHERE {kept}"""
    counted_where(database, query, settings.where)
    (settled,) = _one(database, f"SELECT count(*) FILTER (WHERE {_SETTLED}) FROM done")
    total, asked = _one(database, "SELECT count(*), count(*) FILTER (WHERE _asked) FROM _chosen")
    database.execute(_SIZED)
    database.execute("DROP TABLE _chosen")
    return Chosen(
        done=done,
        rules=rules,
        rejected=rejected if rules else 0,
        undecided=done - accepted - rejected if rules else 0,
        unsettled=0 if rules else done - settled,
        outside=total - asked,
        pairs=asked,
    )


def _name_places(database: duckdb.DuckDBPyConnection, validation: float) -> None:
    """Make a table `_named` with the key and the split of each edit."""
    database.execute(
        "CREATE TABLE _named (video_id VARCHAR, edit_id VARCHAR, _key VARCHAR, _split VARCHAR)"
    )
    ids = database.cursor()
    ids.execute("SELECT video_id, edit_id, _at FROM done")
    while some := ids.fetchmany(PAIRS_AT_ONCE):
        videos, edits, places = zip(*some, strict=True)
        named = pa.table(
            {
                "video_id": pa.array(videos, pa.string()),
                "edit_id": pa.array(edits, pa.string()),
                "key": [key_of(v or "", e or "") for v, e in zip(videos, edits, strict=True)],
                "split": [split_of(place, validation) for place in places],
            }
        )
        database.register("_given", named)
        database.execute("INSERT INTO _named SELECT * FROM _given")
        database.unregister("_given")


_SETTLED = f"(coalesce(accepted, false) OR NOT starts_with(output, '{FOLDER}/'))"
"""A candidate's file is not yet the edit's: when all have their scores, or in a further round,
another candidate may take its place."""
_SIZED = """
CREATE TABLE pairs AS
SELECT _chosen.* EXCLUDE (_asked), s.size AS _source, e.size AS _edit, m.size AS _mask,
    CASE
        WHEN e.size IS NULL THEN output || ' is gone'
        WHEN e.size != coalesce(size_bytes, e.size) OR e.size = 0
            THEN output || ' has ' || e.size || ' bytes; the results say '
                || coalesce(size_bytes::VARCHAR, 'more')
        WHEN source IS NULL THEN 'its source is not named in the results'
        WHEN coalesce(s.size, 0) = 0 THEN source || ' is gone'
        WHEN mask IS NOT NULL AND coalesce(m.size, 0) = 0 THEN mask || ' is gone'
    END AS _why
FROM _chosen LEFT JOIN listed e ON output = e.name LEFT JOIN listed s ON source = s.name
LEFT JOIN listed m ON mask = m.name WHERE _asked
"""


def compare(database: duckdb.DuckDBPyConnection, commits: list[Commit]) -> Before:
    """Make the tables `committed`, of what was exported before, and `planned`, of the pairs that
    were not: the columns of `pairs` and `_place`, which counts them in the order of the export.

    Pairs of one source follow each other: it is read once. Sources are in the order of a hash, so
    that each shard has some of everything.
    """
    kinds = "video_id VARCHAR, edit_id VARCHAR, fingerprint VARCHAR, size_bytes BIGINT"
    database.execute(
        f"CREATE TABLE committed (_key VARCHAR, {kinds}, candidate BIGINT, round BIGINT, "
        "_source_sha VARCHAR, _split VARCHAR)"
    )
    for commit in commits:
        add_committed(database, commit)
    same = " AND ".join(f"d.{name} IS NOT DISTINCT FROM c.{name}" for name in IDENTITY)
    found = "SELECT min(video_id || '/' || edit_id), count(*) FROM committed c"
    unchosen = _one(database, f"{found} ANTI JOIN pairs USING (video_id, edit_id)")
    remade = _one(database, f"{found} JOIN done d USING (video_id, edit_id) WHERE NOT ({same})")
    database.execute(
        "CREATE TABLE _new AS SELECT * FROM pairs ANTI JOIN committed USING (video_id, edit_id)"
    )
    rows = database.execute(
        "SELECT video_id, edit_id, _why FROM _new WHERE _why IS NOT NULL ORDER BY ALL"
    ).fetchall()
    database.execute(
        "CREATE TABLE planned AS SELECT * EXCLUDE (_why), "
        f"row_number() OVER (ORDER BY {ORDER}) - 1 AS _place FROM _new WHERE _why IS NULL"
    )
    database.execute("DROP TABLE _new")
    (count,) = _one(database, "SELECT count(*) FROM committed")
    return Before(
        pairs=count,
        unchosen=unchosen if unchosen[1] else None,
        remade=remade if remade[1] else None,
        gone=tuple(Gone(video, edit, *why.split(" ", 1)) for video, edit, why in rows),
    )


def add_committed(database: duckdb.DuckDBPyConnection, commit: Commit) -> None:
    """Note the pairs of a shard that is whole."""
    names = ["_key", "video_id", "edit_id", *IDENTITY, "_source_sha"]
    columns = zip(names, zip(*commit.pairs, strict=True), strict=True)
    numbers = ("size_bytes", "candidate", "round")
    table = pa.table(
        {n: pa.array(values, pa.int64() if n in numbers else pa.string()) for n, values in columns}
    )
    split = pa.array([commit.split] * table.num_rows, pa.string())
    database.register("_given", table.append_column("_split", split))
    database.execute("INSERT INTO committed SELECT * FROM _given")
    database.unregister("_given")


def _one(database: duckdb.DuckDBPyConnection, query: str) -> tuple:
    rows = database.execute(query).fetchall()
    return tuple(rows[0])
