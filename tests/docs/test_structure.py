"""The program that counts the shape of the code counts right."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.structure import counts

MODULE = """
from dataclasses import dataclass

FIELDS = ("edit_id", "prompt")
COLUMNS = [("prompt", str), ("guidance_scale", float)]
OTHER = ("prompt", "video")

@dataclass(frozen=True)
class Edit:
    prompt: str
    negative_prompt: str

def opened(uri):
    return fsspec.core.url_to_fs(uri)
"""


def test_a_checkout_is_counted(tmp_path: Path) -> None:
    for name in ("pipeline/a.py", "pipeline/model/b.py", "cluster/__init__.py", "jobs/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "pipeline/a.py").write_text(MODULE)
    (tmp_path / "jobs/c.py").write_text("def long():\n" + "    pass\n" * 40)
    assert counts(tmp_path) == {
        "modules by folder": "jobs 1, pipeline 1",
        "lines of a module, median": "27.5",
        "lines of a module, longest": "41 (jobs/c.py)",
        "declarations of an edit's fields": "3 (pipeline/a.py: Edit, pipeline/a.py: line 4, "
        "pipeline/a.py: line 5)",
        "dataclasses": "1",
        "functions above 40 lines": "1 (jobs/c.py: long)",
        "modules that call `url_to_fs`": "1 (pipeline/a.py)",
    }
