"""`--format lance`: opened by lance, with no pair twice however often it was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.export.formats.lance import Lance
from jobs.export.target import Target
from pipeline.storage import Folder
from tests.docs.pages import ROOT, blocks
from tests.jobs.export.outputs import export, files_of, make_pairs, store

lance = pytest.importorskip("lance")


@pytest.fixture
def output(tmp_path: Path) -> str:
    folder = str(tmp_path / "out")
    store(folder, make_pairs(folder, 6, 2, bytes_each=3000))
    return folder


def test_lance_opens_the_folder_with_scores_splits_and_videos_as_blobs(
    output: str, tmp_path: Path
) -> None:
    to = tmp_path / "pairs"
    done = export(output, to, "--validation", "0.4", "--shard-mb", "0.02", format="lance")
    assert done.exit_code == 0, done.output
    pairs = lance.dataset(str(to))
    assert len(pairs.get_fragments()) > 2
    known = pairs.to_table(columns=["video_id", "edit_id", "split", "scores", "key"]).to_pylist()
    assert len({row["key"] for row in known}) == 12
    assert {row["split"] for row in known} == {"train", "validation"}
    folder = Folder(output)
    for kind, place in (("source", "sources/{v}"), ("edit", "edits/{v}/{e}")):
        for row, blob in zip(known, pairs.take_blobs(kind, indices=range(12)), strict=True):
            name = place.format(v=row["video_id"], e=row["edit_id"])
            assert blob.readall() == folder.read(f"{name}.mp4")
    one = pairs.to_table(columns=["edit_id"], filter="split = 'train' AND scores.judge.follows = 2")
    assert set(one["edit_id"].to_pylist()) == {"e1"}


def test_pairs_that_come_later_are_in_the_next_version(output: str, tmp_path: Path) -> None:
    to = tmp_path / "pairs"
    export(output, to, format="lance")
    before = files_of(to)
    export(output, to, format="lance")
    assert files_of(to) == before
    store(output, make_pairs(output, 3, first=6), "run-2")
    export(output, to, format="lance")
    assert lance.dataset(str(to)).count_rows() == 15
    assert lance.dataset(str(to), version=1).count_rows() == 12


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "at", [pytest.param(at, marks=[] if at in (2, 8) else pytest.mark.soak) for at in range(12)]
)
def test_an_export_that_is_killed_before_any_file_appears_goes_on_with_no_pair_twice(
    at: int, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to, options = tmp_path / "pairs", ("--shard-mb", "0.04")
    left = [at]

    def before(real):
        def counted(self, *arguments):
            if self.uri == str(to):  # not the lease, which is renewed in a thread
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return real(self, *arguments)

        return counted

    with monkeypatch.context() as patch:
        for name in ("write", "move_in"):
            patch.setattr(Folder, name, before(getattr(Folder, name)))
        with pytest.raises(Killed):
            export(output, to, *options, format="lance")
    assert export(output, to, *options, format="lance").exit_code == 0
    pairs = lance.dataset(str(to))
    keys = pairs.to_table(columns=["key"])["key"].to_pylist()
    assert len(keys) == len(set(keys)) == 12
    used = {file.path for one in pairs.get_fragments() for file in one.data_files()}
    assert {path.name for path in (to / "data").iterdir()} == used


def test_other_columns_than_before_are_refused_with_the_way_out(
    output: str, tmp_path: Path
) -> None:
    export(output, tmp_path / "pairs", format="lance")
    store(output, make_pairs(output, 1, first=6, caption="new"), "run-2")
    done = export(output, tmp_path / "pairs", format="lance")
    assert done.exit_code == 1
    assert "has other columns than the results have now" in done.output
    assert "caption" in done.output
    assert lance.dataset(str(tmp_path / "pairs")).count_rows() == 12


def test_a_dataset_that_something_else_changed_is_refused(output: str, tmp_path: Path) -> None:
    to = tmp_path / "pairs"
    export(output, to, "--shard-mb", "0.02", format="lance")
    lance.dataset(str(to)).optimize.compact_files()
    store(output, make_pairs(output, 1, first=6), "run-2")
    done = export(output, to, "--shard-mb", "0.02", format="lance")
    assert done.exit_code == 1
    assert "something else has changed the dataset" in done.output


def test_columns_with_dots_are_named_without(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    store(output, make_pairs(output, 1, **{"a.b": 1, "a_b": 2}))
    done = export(output, tmp_path / "pairs", format="lance")
    assert done.exit_code == 0, done.output
    row = lance.dataset(str(tmp_path / "pairs")).to_table(columns=["a_b", "manifest_a_b"])
    assert sorted(row.to_pylist()[0].values()) == [1, 2]


def test_versions_are_no_leftovers_and_files_without_a_commit_are(tmp_path: Path) -> None:
    left = Lance().leftovers
    assert left("data/0101.lance")
    assert left(".export/lance/train-000003.json")
    assert not left("_versions/1.manifest")
    assert not left("README.md")
    assert Target(Folder(str(tmp_path))).stored == []


def test_the_python_of_the_documentation_reads_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(str(tmp_path / "out"), make_pairs(str(tmp_path / "out"), 2))
    export(tmp_path / "out", tmp_path / "dataset", "--validation", "0", format="lance")
    monkeypatch.chdir(tmp_path)
    code = blocks(ROOT / "docs/export.md", "python")[2]
    names: dict = {}
    exec(compile(code, "docs/export.md", "exec"), names)
    assert len(names["pairs"].to_table(columns=["key"])) == 2
