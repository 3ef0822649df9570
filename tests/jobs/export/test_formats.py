"""Each format is opened by what reads it: webdataset, and the trainers' ways with tables."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.storage import Folder
from tests.docs.pages import ROOT, blocks
from tests.jobs.export.outputs import export, files_of, make_pairs, store

webdataset = pytest.importorskip("webdataset")


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def samples(to: Path, pattern: str) -> list[dict]:
    urls = sorted(str(path) for path in to.glob(pattern))
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


def test_webdataset_opens_the_shards_and_finds_each_pair_whole(tmp_path: Path, output: str) -> None:
    rows = make_pairs(output, 8, 2, instruction="make it red", level=3)
    store(output, rows)
    export(output, tmp_path / "to", "--shard-mb", "0.002", "--validation", "0.3")
    train = samples(tmp_path / "to", "train-*.tar")
    validation = samples(tmp_path / "to", "validation-*.tar")
    assert len(train) + len(validation) == 16
    assert min(len(train), len(validation)) > 0
    by_ids = {}
    for sample in train + validation:
        about = json.loads(sample["json"])
        by_ids[about["video_id"], about["edit_id"]] = sample, about
    assert len(by_ids) == 16
    folder = Folder(output)
    for row in rows:
        sample, about = by_ids[row["video_id"], row["edit_id"]]
        assert sample["edit.mp4"] == folder.read(row["output"])
        assert sample["source.mp4"] == folder.read(row["source"])
        assert ("mask.mp4" in sample) == bool(row["mask"])
        if row["mask"]:
            assert sample["mask.mp4"] == folder.read(row["mask"])
        assert about["instruction"] == "make it red"
        assert about["scores"]["judge"]["follows"] == row["scores"]["judge"]["follows"]
        assert (about["level"], about["metrics"]["flicker"]) == (3, 0.5)
        assert "timings" not in about


def test_the_python_of_the_documentation_reads_an_export(
    tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(output, make_pairs(output, 2))
    export(output, tmp_path / "dataset", "--shard-mb", "0.0001", "--validation", "0")
    monkeypatch.chdir(tmp_path)
    code, *_ = blocks(ROOT / "docs/export.md", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "docs/export.md", "exec"), names)
    assert json.loads(names["pair"]["json"])["video_id"] in ("clip.0", "clip.1")


def test_json_has_no_number_that_is_none(tmp_path: Path, output: str) -> None:
    store(output, make_pairs(output, 1, metrics={"flicker": float("nan")}, level=float("inf")))
    export(output, tmp_path / "to")
    (sample,) = samples(tmp_path / "to", "train-*.tar")
    about = json.loads(sample["json"], parse_constant=pytest.fail)
    assert (about["metrics"]["flicker"], about["level"]) == (None, None)


def test_pandas_reads_the_table_and_finds_the_files_as_diffsynth_does(
    tmp_path: Path, output: str
) -> None:
    rows = make_pairs(output, 2, 2, instruction='make it, \n "red"', prompt="a ring\nof fire")
    store(output, rows)
    to = tmp_path / "to"
    export(output, to, "--validation", "0", format="csv")
    table = pd.read_csv(to / "train.csv")
    assert list(table.columns[:4]) == ["video", "prompt", "vace_video", "vace_video_mask"]
    assert len(table) == 4
    folder = Folder(output)
    for row in rows:
        data = table[(table.video_id == row["video_id"]) & (table.edit_id == row["edit_id"])]
        (found,) = (data.iloc[n].to_dict() for n in range(len(data)))
        assert (to / found["video"]).read_bytes() == folder.read(row["output"])
        assert (to / found["vace_video"]).read_bytes() == folder.read(row["source"])
        assert isinstance(found["vace_video_mask"], str) == bool(row["mask"])
        assert (found["prompt"], found["instruction"]) == (row["prompt"], row["instruction"])
        assert found["scores.judge.follows"] == row["scores"]["judge"]["follows"]
        assert found["source_uri"] == row["video"]
    assert table.vace_video.nunique() == 2, "edits of one source share its file"
    assert (to / "validation.csv").read_text().count("\n") == 1


def test_the_two_lists_have_a_prompt_and_a_video_on_each_line(tmp_path: Path, output: str) -> None:
    rows = make_pairs(output, 3, prompt="a ring\nof fire")
    rows[1]["prompt"] = ""
    store(output, rows)
    to = tmp_path / "to"
    export(output, to, "--validation", "0", format="csv")
    # As VideoDataset of diffusers' train_cogvideox_lora.py reads them.
    prompts, videos = (
        [line.strip() for line in (to / name).read_text().splitlines() if line.strip()]
        for name in ("prompts.txt", "videos.txt")
    )
    assert prompts == ["a ring of fire"] * 2
    assert len(videos) == 2
    assert all((to / name).is_file() for name in videos)


def test_scores_that_came_after_the_export_are_in_its_table_and_shards_stay(
    tmp_path: Path, output: str
) -> None:
    rows = make_pairs(output, 1, scores={})
    store(output, rows)
    export(output, tmp_path / "to", format="csv")
    assert "scores.judge.follows" not in (tmp_path / "to/train.csv").read_text()
    before = files_of(tmp_path / "to")
    store(output, [rows[0] | {"scores": {"judge": {"follows": 2}}}], "run-2")
    export(output, tmp_path / "to", format="csv")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "to/train.csv").read_text()))
    assert row["scores.judge.follows"] == "2"
    after = files_of(tmp_path / "to")
    changed = {name for name in after if after[name] != before.get(name)}
    tables = {"train.csv", "validation.csv", "README.md"}
    assert changed == tables | {"checksums.sha256", ".export/end.json"}


def test_a_manifests_column_with_a_name_of_ours_is_kept_beside_it(
    tmp_path: Path, output: str
) -> None:
    store(output, make_pairs(output, 1, vace_video="theirs", Prompt="theirs too", _key=1))
    export(output, tmp_path / "to", "--validation", "0", format="csv")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "to/train.csv").read_text()))
    assert row["vace_video"].startswith("sources/")
    assert (row["manifest_vace_video"], row["Prompt"]) == ("theirs", "theirs too")
    assert row["manifest__key"] == "1"
