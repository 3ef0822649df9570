"""The job files in `jobs/examples` are jobs, and the laptop's runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from jobs.spec import load_job
from tests.docs.pages import ROOT

EXAMPLES = sorted((ROOT / "jobs/examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_job(path: Path) -> None:
    load_job(str(path))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_how_to_run_it(path: Path) -> None:
    assert re.search(rf"retake run \S*{path.name}", path.read_text())


@pytest.mark.ray
@pytest.mark.soak
def test_the_laptops_example_runs_on_the_demos_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster import quiet  # noqa: F401
    import ray  # isort: skip

    from jobs.demo.job import write_demo
    from jobs.run import run_job

    monkeypatch.chdir(tmp_path)
    write_demo(tmp_path / "demo")
    small = ("inversion.steps=2", "video.height=32", "video.width=32", "video.frames=5")
    job = shutil.copy(ROOT / "jobs/examples/laptop.yaml", tmp_path / "demo")
    ours = not ray.is_initialized()
    try:
        assert run_job(load_job(str(job), small)) == 0
    finally:
        if ours:
            ray.shutdown()
    assert len(list((tmp_path / "demo/laptop-out/edits").rglob("*.mp4"))) == 6
