"""`--format huggingface`: opened by `datasets`, whose types are ours."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.export.formats import huggingface
from jobs.export.formats.huggingface import _as_yaml, features
from jobs.export.formats.tables import stored_type
from pipeline.storage import Folder
from tests.docs.pages import ROOT, blocks
from tests.jobs.export.outputs import export, make_pairs, store

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def load(to: Path, cache: str = "cache") -> datasets.DatasetDict:
    return datasets.load_dataset(str(to), cache_dir=str(to.parent / cache))


def undecoded(part: datasets.Dataset) -> datasets.Dataset:
    for name in ("source", "edit", "mask"):
        part = part.cast_column(name, datasets.Video(decode=False))
    return part


def test_datasets_opens_the_folder_with_videos_scores_and_splits(tmp_path: Path) -> None:
    rows = make_pairs(str(tmp_path / "out"), 12, 2, caption="a star", bytes_each=3000)
    store(str(tmp_path / "out"), rows)
    to = tmp_path / "pairs"
    assert export(tmp_path / "out", to, "--validation", "0.4", format="huggingface").exit_code == 0
    found = load(to)
    assert set(found) == {"train", "validation"}
    videos = [set(part["video_id"]) for part in found.values()]
    assert not videos[0] & videos[1]
    for name in ("source", "edit", "mask"):
        assert isinstance(found["train"].features[name], datasets.Video)
    output = Folder(str(tmp_path / "out"))
    expected = {(row["video_id"], row["edit_id"]): row for row in rows}
    read = [row for part in found.values() for row in undecoded(part)]
    assert len(read) == len(rows)
    for row in read:
        made = expected.pop((row["video_id"], row["edit_id"]))
        for kind, name in (("source", "source"), ("edit", "output"), ("mask", "mask")):
            if made[name] is None:
                assert row[kind] is None
            else:
                assert row[kind]["bytes"] == output.read(made[name])
                assert row[kind]["path"] == f"{row['key']}.{kind}.mp4"
        assert row["scores"]["judge"]["follows"] == made["scores"]["judge"]["follows"]
        assert row["prompt"] == made["prompt"]
        assert row["caption"] == "a star"


def test_it_streams_without_its_card(tmp_path: Path) -> None:
    store(str(tmp_path / "out"), make_pairs(str(tmp_path / "out"), 3))
    export(tmp_path / "out", tmp_path / "pairs", "--validation", "0", format="huggingface")
    files = str(tmp_path / "pairs" / "data" / "*.parquet")
    part = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert isinstance(part.features["edit"], datasets.Video)  # from the schema of the file
    assert len([row["key"] for row in undecoded(part)]) == 3


def test_pairs_that_come_later_are_further_files_also_with_more_columns(tmp_path: Path) -> None:
    output, to = str(tmp_path / "out"), tmp_path / "pairs"
    store(output, make_pairs(output, 5))
    export(output, to, "--validation", "0", format="huggingface")
    store(output, make_pairs(output, 3, first=5, caption="late", stars=3), "run-2")
    assert export(output, to, "--validation", "0", format="huggingface").exit_code == 0
    names = sorted(path.name for path in (to / "data").iterdir())
    assert names == ["train-000000.parquet", "train-000001.parquet"]
    part = load(to)["train"]
    assert sorted(part["video_id"]) == [f"clip.{number}" for number in range(8)]
    assert part["caption"] == [None] * 5 + ["late"] * 3
    assert part["stars"] == [None] * 5 + [3] * 3


def test_columns_of_a_manifest_keep_their_types_or_become_json(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    more = {
        "edit": "a name that the videos have",
        "manifest_edit": "taken as well",
        "a.b": 1.5,
        "": "no name",
        "tags": ["x", "y"],
        "nested": {"deep": [{"n": 1}]},
        "price": Decimal("1.50"),
    }
    store(output, make_pairs(output, 2, **more))
    export(output, tmp_path / "pairs", "--validation", "0", format="huggingface")
    (row, _) = undecoded(load(tmp_path / "pairs")["train"])
    assert row["manifest_edit"] == more["edit"]
    assert row["manifest_manifest_edit"] == more["manifest_edit"]
    assert row["a.b"] == 1.5
    assert row["_"] == "no name"
    assert row["tags"] == ["x", "y"]
    assert row["nested"] == more["nested"]
    assert row["price"] == more["price"]


def test_videos_are_stored_as_they_are_in_small_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "GROUP_BYTES", 32 << 10)
    output = str(tmp_path / "out")
    store(output, make_pairs(output, 9, bytes_each=5 << 10))
    export(output, tmp_path / "pairs", "--validation", "0", format="huggingface")
    file = pq.ParquetFile(tmp_path / "pairs" / "data" / "train-000000.parquet")
    assert file.num_row_groups == 3  # of 32 KiB or a little more
    columns = {file.schema.column(at).path: at for at in range(len(file.schema))}
    group = file.metadata.row_group(0)
    video, key = (group.column(columns[name]) for name in ("edit.bytes", "key"))
    assert (video.compression, key.compression) == ("UNCOMPRESSED", "ZSTD")
    assert video.statistics is None
    assert video.total_uncompressed_size < 23 << 10  # nothing twice, as in a dictionary


KINDS = [
    pa.string(),
    pa.large_string(),
    pa.float64(),
    pa.float32(),
    pa.float16(),
    pa.bool_(),
    pa.int8(),
    pa.uint64(),
    pa.date32(),
    pa.timestamp("us"),
    pa.timestamp("us", "UTC"),
    pa.decimal128(5, 2),
    pa.binary(),
    pa.list_(pa.int8()),
    pa.list_(pa.list_(pa.string())),
    pa.list_(pa.struct([("x", pa.bool_())])),
    pa.struct([("a", pa.float64()), ("b", pa.struct([("c", pa.list_(pa.string()))]))]),
]


def test_the_types_are_those_that_datasets_writes_itself() -> None:
    schema = pa.schema([(f"c{at}", kind) for at, kind in enumerate(KINDS)])
    assert [stored_type(kind) for kind in KINDS] == KINDS
    ours = features(schema)
    theirs = datasets.Features.from_arrow_schema(schema)
    assert ours == theirs.to_dict()
    assert _as_yaml(ours) == theirs._to_yaml_list()
    assert datasets.Features._from_yaml_list(_as_yaml(ours)) == theirs


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        (pa.null(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string()),
        (pa.list_(pa.int8(), 3), pa.list_(pa.int8())),
        (pa.map_(pa.string(), pa.int32()), None),
        (pa.struct([]), None),
        (pa.struct([("a", pa.map_(pa.string(), pa.int32()))]), None),
        (pa.month_day_nano_interval(), None),
        (pa.list_(pa.duration("s")), None),
    ],
)
def test_a_type_that_readers_do_not_have_is_stored_as_another(
    kind: pa.DataType, stored: pa.DataType | None
) -> None:
    assert stored_type(kind) == stored


def test_an_export_without_pairs_is_a_card_alone(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    store(output, make_pairs(output, 1))
    done = export(output, tmp_path / "pairs", "--where", "false", format="huggingface")
    assert done.exit_code == 0
    header = yaml.safe_load((tmp_path / "pairs" / "README.md").read_text().split("---")[1])
    assert "configs" not in header
    assert json.dumps(header)


def test_the_python_of_the_documentation_reads_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(str(tmp_path / "out"), make_pairs(str(tmp_path / "out"), 2))
    export(tmp_path / "out", tmp_path / "dataset", "--validation", "0", format="huggingface")
    monkeypatch.chdir(tmp_path)
    code = blocks(ROOT / "docs/export.md", "python")[1]
    names: dict = {}
    exec(compile(code, "docs/export.md", "exec"), names)
    assert len(names["pairs"]) == 2
