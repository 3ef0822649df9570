"""The formats of an export: what each writes of a shard, and the one place that lists them.

A format is a module here with a class that has the methods of `Format`. The engine
(`jobs/export/__init__.py`) chooses the pairs, plans the shards, reads the files, and commits each
shard after its files are stored; a format only says which files a shard is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from jobs.errors import WrongOption, nearest
from pipeline.storage import Folder

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from jobs.export.target import Target

MEDIA = ("source", "edit", "mask")
"""The files of a pair, by what they are; a pair may have no mask."""
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Pair:
    """An edit and its source, with their files.

    Args:
        key: names the pair, and no other of any job: ASCII letters, digits, `-` and `_`, at most 78
            characters; never a dot.
        split: `train` or `validation`.
        row: what is known of it, by the columns of `Shard.schema`; plain values (Arrow's
            `to_pylist`).
        files: the bytes of its videos, by their names in `MEDIA`; `mask` is left out without one.
        endings: of those videos, as `.mp4`.
        source_sha: of the source's bytes, the first 12 digits of their SHA-256: the same for edits
            of one source.
    """

    key: str
    split: str
    row: Mapping[str, Any]
    files: Mapping[str, bytes]
    endings: Mapping[str, str]
    source_sha: str


@dataclass(frozen=True)
class Shard:
    """Some pairs of one split, which are committed together.

    Args:
        number: counts the shards of the split, from 0, over all runs of the command.
        schema: of `Pair.row`. The same for all shards of one run of the command; a later one, which
            adds shards for pairs that came since, may have more columns of the manifest.
        pairs: how many were planned; fewer come where files are gone.
        bytes: of the files of those.
    """

    split: str
    number: int
    schema: pa.Schema
    pairs: int
    bytes: int

    @property
    def name(self) -> str:
        """Without an ending: `train-000000`."""
        return f"{self.split}-{self.number:06d}"


@dataclass(frozen=True)
class Settings:
    """What an export was asked for; a run that goes on with it must ask for the same.

    Args:
        format: its name.
        where: the expression that chooses rows; "" for none.
        all: whether edits count that the job's rules did not accept.
        validation: the part of the sources whose pairs are for validation, 0 to 1.
        shard_mb: at most so many MB of files make a shard, but for a single larger pair.
        license: of the dataset, for its card; the only one that a later run may change. "" for
            what it was before.
    """

    format: str
    where: str = ""
    all: bool = False
    validation: float = 0.0
    shard_mb: float = 1000.0
    license: str = ""


@dataclass(frozen=True)
class Whole:
    """All that was exported, by this run of the command and those before it.

    Args:
        output: the job's output folder, which is only read.
        to: where the export is.
        settings: what was asked for.
        database: has a table `exported`, a row for each exported pair: the newest row of the
            results with all columns (`EditResult` and those of the manifest), and `_key`, `_split`,
            `_place` (the order) and `_source_sha` (of `Pair`); `exported_tables` of
            `jobs/export/rows.py` reads it. And a table `done`: the columns of the results of all
            edits that are done, whether or not they were chosen. It can read no files.
        columns: those of the results that a pair's `row` has; the columns of the manifest last.
        others: the columns of the manifest, the name in the results by that in the database: they
            differ where DuckDB takes two names for one.
        shards: the names of all shards, in order.
    """

    output: Folder
    to: Folder
    settings: Settings
    database: duckdb.DuckDBPyConnection
    columns: Sequence[str]
    others: Mapping[str, str]
    shards: Sequence[str]


class Format(Protocol):
    """How an export is written. An object lives for one run of the command.

    All writing goes through `target`, which makes each file appear whole, notes its SHA-256 and
    size for the commit, and turns failures of the storage into messages.
    """

    needs: ClassVar[tuple[str, ...]]
    """The packages that must be there, beyond those of the product."""

    def write(self, shard: Shard, pairs: Iterator[Pair], target: Target) -> None:
        """Write the files of a shard. The engine commits it afterwards.

        A process may be killed before the commit: then the same number is written again, perhaps
        with other pairs, and what is there already under its name must not count twice. The engine
        removes the files of `leftovers` before that.

        Args:
            pairs: in order; to be gone through once, to the end. At most some are in memory.
        """

    def leftovers(self, name: str) -> bool:
        """Whether a file of the target, which no commit names, is of a shard that was not
        committed, so that the engine may remove it before it writes."""

    def finish(self, whole: Whole, target: Target) -> None:
        """Write what is of all shards (a table, a card), once all are committed.

        It is called at the end of every run, and gives the same bytes where nothing changed:
        `target.put` writes only what differs.
        """


_FORMATS = {
    "webdataset": "jobs.export.formats.webdataset:WebDataset",
    "huggingface": "jobs.export.formats.huggingface:HuggingFace",
    "lance": "jobs.export.formats.lance:Lance",
    "csv": "jobs.export.formats.csv:Csv",
}
"""The formats by name: the module and the class of each. The package of a format is imported when
it is asked for."""


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        WrongOption: there is none, or what it needs is not installed.
    """
    if name not in _FORMATS:
        near = nearest(name, _FORMATS, cutoff=0.5)
        hint = f"; did you mean {near!r}?" if near else ""
        raise WrongOption(f"--format {name!r}: expected one of {', '.join(_FORMATS)}{hint}")
    module, kind = _FORMATS[name].split(":")
    made = cast(Callable[[], Format], getattr(import_module(module), kind))()
    if missing := [package for package in made.needs if find_spec(package) is None]:
        raise WrongOption(
            f"--format {name}: needs the package {missing[0]}, which is not installed; expected "
            f"`pip install 'retake[{name}]'`"
        )
    return made
