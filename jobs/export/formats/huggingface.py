"""huggingface: a folder that `datasets.load_dataset` opens, and the Hub shows.

    data/train-000000.parquet  data/validation-000000.parquet  README.md

The videos are in the Parquet files, as `datasets.Video` has them: a struct of `bytes` and `path`
(`datasets/features/video.py`, 5.2). Names have no total (`-of-00012`): a later run of the command
adds files. `README.md` lists the files and the types for `load_dataset`; each file has the types in
its schema too, under the key `huggingface`, as `datasets` itself writes them. No package of theirs
is needed to write it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results.schema import SCHEMA
from jobs.export.card import write_card
from jobs.export.formats import MEDIA, SPLITS, Pair, Shard, Whole
from jobs.export.formats.tables import Layout, groups
from jobs.export.rows import exported_tables
from jobs.export.target import Target

GROUP_BYTES, GROUP_PAIRS = 32 << 20, 1000
"""Of a row group: what a reader reads at once."""
VIDEO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LEAVES = tuple(f"{kind}.bytes" for kind in MEDIA)
SHARD = re.compile(r"data/(train|validation)-\d{6,}\.parquet")


class HuggingFace:
    """Parquet files with the videos in them, and a card."""

    needs: ClassVar[tuple[str, ...]] = ()

    def write(self, shard: Shard, pairs: Iterator[Pair], target: Target) -> None:
        layout = _layout(shard.schema)
        about = {"huggingface": json.dumps({"info": {"features": features(layout.schema)}})}
        schema = layout.schema.with_metadata(about)
        known = [name for name in _leaves(schema) if name not in LEAVES]
        with (
            target.file(f"data/{shard.name}.parquet") as file,
            pq.ParquetWriter(
                file,
                schema,
                compression={
                    name: "none" if name in LEAVES else "zstd" for name in _leaves(schema)
                },
                use_dictionary=known,
                write_statistics=known,
            ) as writer,
        ):
            for some in groups(pairs, GROUP_BYTES, GROUP_PAIRS):
                writer.write_table(layout.table(some).replace_schema_metadata(about))

    def leftovers(self, name: str) -> bool:
        return SHARD.fullmatch(name) is not None

    def finish(self, whole: Whole, target: Target) -> None:
        table = next(exported_tables(whole.database, whole.columns, whole.others, None, 0))
        row = pa.schema(
            SCHEMA.field(name) if name in SCHEMA.names else table.schema.field(name)
            for name in whole.columns
        )
        files = [
            {"split": split, "path": f"data/{split}-*.parquet"}
            for split in SPLITS
            if any(name.startswith(f"{split}-") for name in whole.shards)
        ]
        about: dict[str, Any] = {}
        if files:
            about["configs"] = [{"config_name": "default", "data_files": files}]
            about["dataset_info"] = {"features": _as_yaml(features(_layout(row).schema))}
        write_card(whole, target, about)


def features(schema: pa.Schema) -> dict[str, Any]:
    """The types of a table as `datasets.Features.to_dict` has them."""
    return {
        field.name: {"_type": "Video"} if field.name in MEDIA else _feature(field.type)
        for field in schema
    }


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    names = {"double": "float64", "float": "float32", "halffloat": "float16"}
    names |= {"date32[day]": "date32", "date64[ms]": "date64"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}


def _as_yaml(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Types as the header of a card has them (`Features._to_yaml_list`)."""
    return [{"name": name, **_yaml_of(feature)} for name, feature in found.items()]


def _yaml_of(feature: dict[str, Any]) -> dict[str, Any]:
    kind = feature.get("_type")
    if kind == "Video":
        return {"dtype": "video"}
    if kind == "Value":
        return {"dtype": feature["dtype"]}
    if kind == "List":
        inner = _yaml_of(feature["feature"])
        short = inner.get("dtype") or inner.get("struct")
        return {"list": short or inner}
    return {"struct": _as_yaml(feature)}


def _layout(row: pa.Schema) -> Layout:
    return Layout.of(row, lambda name: pa.field(name, VIDEO), _video)


def _video(pair: Pair, kind: str) -> dict[str, Any]:
    return {"bytes": pair.files[kind], "path": f"{pair.key}.{kind}{pair.endings[kind]}"}


def _leaves(schema: pa.Schema) -> list[str]:
    """The columns of a Parquet file of a schema, as its writer's options name them."""
    return [path for field in schema for path in _paths(field.name, field.type)]


def _paths(name: str, kind: pa.DataType) -> Iterator[str]:
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _paths(f"{name}.{field.name}", field.type)
    elif pa.types.is_list(kind):
        yield from _paths(f"{name}.list.element", kind.value_type)
    else:
        yield name
