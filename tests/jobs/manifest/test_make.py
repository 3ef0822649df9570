"""`make_manifest`, as a Python program calls it."""

from pathlib import Path

import pyarrow.parquet as pq

from jobs.manifest.conversion.formats import Options
from jobs.manifest.make import make_manifest
from tests.drawn_videos import draw, grays


def test_a_text_as_prompts_is_one_prompt_and_not_one_for_each_letter(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").write_bytes(draw(grays(6)))
    to = str(tmp_path / "m.parquet")
    made = make_manifest(str(tmp_path / "clips"), to, Options(prompts="a fox"))
    assert (made.videos, made.edits) == (1, 1)
    (row,) = pq.read_table(to).to_pylist()
    assert [edit["prompt"] for edit in row["edits"]] == ["a fox"]
