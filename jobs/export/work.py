"""The shards of one run of `retake export`: planned, written, committed, and ended."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cluster.results.schema import SCHEMA, plain_rows
from jobs.errors import JobError, counted
from jobs.export.choosing import ORDER, Before, Chosen, add_committed
from jobs.export.formats import MEDIA, SPLITS, Format, Pair, Settings, Shard, Whole
from jobs.export.index import (
    CHECKSUMS,
    FOLDER,
    IDENTITY,
    Commit,
    commit_of,
    read_end,
    read_settings,
    write_commit,
    write_end,
    write_settings,
)
from jobs.export.plan import Planned, plan_shards
from jobs.export.reading import Gone, Wanted, read_files
from jobs.export.rows import quoted
from jobs.export.target import Stored, Target
from jobs.export.values import ending_of
from pipeline.storage import Folder

if TYPE_CHECKING:
    import duckdb

    from cluster.output.lease import Lease

COLUMNS = (
    "video_id", "edit_id", "video", "source_prompt", "prompt", "instruction", "frames", "height",
    "width", "fps", "guidance_scale", "seed", "metrics", "scores", "accepted", "rejected_for",
    "candidate", "round", "size_bytes", "fingerprint", "run",
)  # fmt: skip
"""Of the results, what is exported of a pair; the manifest's own columns follow."""
ROWS_AT_ONCE = 256
SCRATCH = re.compile(r"\..+\.[0-9a-f]{8}")
"""How a file is called that is not whole yet."""


@dataclass(frozen=True)
class Exported:
    """What a run of the command came to.

    Args:
        chosen, before: of all edits, and of what was there.
        pairs, shards, bytes: that this run wrote; or would, of a dry one.
        splits: pairs by split, in all.
        sources: videos, in all.
        gone: pairs that are left out since their files are gone.
    """

    chosen: Chosen
    before: Before
    pairs: int
    shards: int
    bytes: int
    splits: dict[str, int]
    sources: int
    gone: tuple[Gone, ...]


class Work:
    """One run of the command, from the plan on. The tables are those of `choosing.py`.

    Args:
        others: the manifest's own columns: the name in the results by that in the database.
        commits: of the shards that are whole.
        on_progress: called with what is done.
    """

    def __init__(
        self,
        output: Folder,
        to: Folder,
        settings: Settings,
        writer: Format,
        rows: duckdb.DuckDBPyConnection,
        others: dict[str, str],
        commits: list[Commit],
        chosen: Chosen,
        before: Before,
        on_progress: Callable[[str], None],
    ) -> None:
        self.output, self.to, self.settings, self.writer = output, to, settings, writer
        self.rows, self.others, self.commits = rows, others, commits
        self.chosen, self.before, self.on_progress = chosen, before, on_progress
        found = rows.execute(
            "SELECT _split, _source + _edit + coalesce(_mask, 0) AS size "
            "FROM planned ORDER BY _place"
        ).fetchnumpy()
        self.plan = plan_shards(found["size"], found["_split"], settings.shard_mb * 1e6)
        self.gone = list(before.gone)
        self.wrote = False
        self.pairs = len(found["size"])
        self.shards = len(self.plan)
        self.bytes = sum(one.bytes for one in self.plan)
        self.schema = self._batch(0, 0).schema

    def exported(self) -> Exported:
        every = "SELECT video_id, _split FROM committed"
        if not self.wrote:  # of a dry run
            every += " UNION ALL SELECT video_id, _split FROM planned"
        splits = self.rows.execute(f"SELECT _split, count(*) FROM ({every}) GROUP BY ALL")
        counts = dict.fromkeys(SPLITS, 0) | dict(splits.fetchall())
        sources = self.rows.execute(f"SELECT count(DISTINCT video_id) FROM ({every})").fetchall()
        return Exported(
            self.chosen,
            self.before,
            self.pairs,
            self.shards,
            self.bytes,
            counts,
            int(sources[0][0]),
            tuple(self.gone),
        )

    def write(self, lease: Lease) -> None:
        """Write the planned shards, and what is of all shards.

        Raises:
            StorageFailed: storage does not give or take a file.
            LeaseLost: another process has taken the folder over.
        """
        if read_settings(self.to) != self.settings:
            write_settings(self.to, self.settings)
        ended = self._look(lease)
        numbers = Counter[str]()
        for commit in self.commits:
            numbers[commit.split] = max(numbers[commit.split], commit.number + 1)
        planned_pairs, self.wrote = self.pairs, True
        self.pairs = self.shards = self.bytes = 0
        for planned in self.plan:
            self.on_progress(f"{self.pairs} of {counted(planned_pairs, 'pair')} written")
            if written := self._write_shard(planned, numbers[planned.split], lease):
                numbers[planned.split] += 1
                self.commits.append(written)
                self.pairs += len(written.pairs)
                self.shards += 1
                self.bytes += sum(one.size for one in written.files)
        self.on_progress("writing what is of all shards")
        self._finish(ended, lease)

    def _look(self, lease: Lease) -> dict[str, Stored]:
        """Look whether all shards are there, and remove what a killed process left.

        Returns:
            The files that are of all shards and are there.

        Raises:
            JobError: a file of a shard is gone or another one.
        """
        missing = {one.name: one for commit in self.commits for one in commit.files}
        ended = read_end(self.to)
        there: dict[str, Stored] = {}
        left: list[str] = []
        for name, size in self.to.sizes():
            if name in missing and missing[name].size == size:
                del missing[name]
            elif name in ended:
                there |= {name: ended[name]} if ended[name].size == size else {}
            elif name not in missing and self._is_left(name):
                left.append(name)
        if missing:
            raise JobError(
                f"{self.to.uri}: {counted(len(missing), 'file')} of its shards, such as "
                f"{min(missing)}, are gone or have another size; restore them, or remove the "
                "folder and export again"
            )
        for name in left:
            lease.check(sure=True)
            self.to.remove(name)
        return there

    def _is_left(self, name: str) -> bool:
        """Whether a file that nothing names is what a killed process left."""
        if name.startswith(f"{FOLDER}/lease/"):
            return False
        return bool(SCRATCH.fullmatch(name.rpartition("/")[2])) or self.writer.leftovers(name)

    def _write_shard(self, planned: Planned, number: int, lease: Lease) -> Commit | None:
        """Write and commit a shard; None where all its pairs are gone."""
        pairs = self._pairs(planned)
        if (first := next(pairs, None)) is None:
            return None
        count = planned.stop - planned.start
        shard = Shard(planned.split, number, self.schema, count, planned.bytes)
        ids: list[tuple[Any, ...]] = []

        def noted() -> Iterator[Pair]:
            pair: Pair | None = first
            while pair is not None:
                row = (pair.row[name] for name in ("video_id", "edit_id", *IDENTITY))
                ids.append((pair.key, *row, pair.source_sha))
                yield pair
                pair = next(pairs, None)

        target = Target(self.to, lease.check)
        self.writer.write(shard, noted(), target)
        lease.check()
        commit = commit_of(shard, target.stored, ids)
        write_commit(self.to, commit)
        add_committed(self.rows, commit)
        return commit

    def _pairs(self, planned: Planned) -> Iterator[Pair]:
        """The pairs of a shard with their files; those whose files are gone are noted."""
        for wanted, files in read_files(self.output, self._wanted(planned)):
            if isinstance(files, Gone):
                self.gone.append(files)
                continue
            endings = {kind: ending_of(name) for kind, name in wanted.files.items()}
            sha = hashlib.sha256(files["source"]).hexdigest()[:12]
            yield Pair(wanted.key, planned.split, wanted.row, files, endings, sha)

    def _wanted(self, planned: Planned) -> Iterator[Wanted]:
        for start in range(planned.start, planned.stop, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, planned.stop)
            files = self.rows.execute(
                "SELECT _key, source, output, mask, _source, _edit, _mask FROM planned "
                "WHERE _place >= ? AND _place < ? ORDER BY _place",
                [start, stop],
            ).fetchall()
            rows = plain_rows(self._batch(start, stop))
            for row, (key, *found) in zip(rows, files, strict=True):
                named = zip(MEDIA, found[:3], found[3:], strict=True)
                there = [(kind, name, size) for kind, name, size in named if name]
                names = {kind: name for kind, name, _ in there}
                yield Wanted(key, names, {kind: size for kind, _, size in there}, row)

    def _batch(self, start: int, stop: int) -> pa.Table:
        """Rows of the plan as they are exported, by the names in the results."""
        names = [*COLUMNS, *map(quoted, self.others)]
        found = self.rows.sql(
            f"SELECT {', '.join(names)} FROM planned "
            f"WHERE _place >= {start} AND _place < {stop} ORDER BY _place"
        ).to_arrow_table()
        kept = [*COLUMNS, *self.others.values()]
        table = found.rename_columns(kept)
        fields = [SCHEMA.field(n) if n in COLUMNS else table.schema.field(n) for n in kept]
        return table.cast(pa.schema(fields))

    def _finish(self, ended: dict[str, Stored], lease: Lease) -> None:
        """Write what is of all shards, and the checksums of all files."""
        self.rows.execute(
            "CREATE TABLE exported AS SELECT done.*, _key, _split, _source_sha, "
            f"row_number() OVER (ORDER BY {ORDER}) - 1 AS _place "
            "FROM committed JOIN done USING (video_id, edit_id)"
        )
        target = Target(self.to, lease.check, ended)
        shards = [commit.name for commit in self.commits]
        columns = [*COLUMNS, *self.others.values()]
        whole = Whole(
            self.output, self.to, self.settings, self.rows, columns, dict(self.others), shards
        )
        self.writer.finish(whole, target)
        files = {one.name: one for commit in self.commits for one in commit.files}
        files |= {one.name: one for one in target.stored}
        with target.file(CHECKSUMS) as file:
            for name in sorted(files):
                file.write(f"{files[name].sha256}  {name}\n".encode())
        if set(target.stored) != set(read_end(self.to).values()):
            lease.check()
            write_end(self.to, target.stored)
