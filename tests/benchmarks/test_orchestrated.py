"""The benchmarks of whole jobs: what they count, on jobs so small that seconds say nothing."""

import json
import shutil
import sys
from argparse import Namespace
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.transformer import VelocityModel
from pipeline.model.vae import Codec
from tests import in_process
from tests.benchmarks import busy_rank, orchestration, speed_of_light, start_up
from tests.benchmarks.figures import Figure
from tests.benchmarks.orchestration import Case
from tests.benchmarks.speed_of_light import Bare, Steady


def done(part: str, at: int) -> dict[str, Any]:
    time = f"2026-01-01T00:00:{at:02d}.000Z"
    return {"event": "video done", "part": part, "time": time, "seconds": 0.5}


def count_model_work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of the models in this process, from now on."""
    calls = Counter[str]()
    for kind, name in ((Codec, "encode"), (Codec, "decode"), (VelocityModel, "predict")):
        work = getattr(kind, name)

        def counted(*args: Any, _name: str = name, _work: Any = work, **options: Any) -> Any:
            calls[_name] += 1
            return _work(*args, **options)

        monkeypatch.setattr(kind, name, counted)
    return calls


def by_name(figures: list[Figure]) -> dict[str, float]:
    return {figure.name: figure.value for figure in figures}


def test_a_job_is_counted_from_its_first_finished_video_to_its_last() -> None:
    # A group has two videos at a time: both are inverted before the first is edited.
    log = [done("inversion", 1), done("inversion", 2), done("edits", 12), done("edits", 22)]
    log += [done("inversion", 23), done("edits", 33), {"event": "group ready"}]
    began = datetime.fromisoformat("2025-12-31T23:59:50Z").timestamp()
    found = speed_of_light.read(log, began, whole=50.0)
    assert found == Steady(seconds=21.0, inversions=1, edits=2, held=1.5, start=22.0, whole=50.0)
    bare = Bare(inverting=[1.0, 1.0, 9.0], editing=[10.0, 10.0, 90.0])
    assert found.over(bare) == 1.0  # 1 and 2 times 10 seconds in 21


def test_the_speed_of_light_has_a_target_for_long_videos_only() -> None:
    job = Steady(10.0, 1, 1, held=9.0, start=20.0, whole=30.0)
    for editing, target in ((9.0, 0.95), (8.5, None)):
        ratio, *_ = speed_of_light.figures([(job, Bare([1.0], [editing]))], threads=1)
        assert ratio.value == pytest.approx((1 + editing) / 10)
        assert ratio.at_least == target


def test_the_job_and_the_bare_functions_edit_the_same_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process.run_in_process(monkeypatch)
    speed_of_light.prepare(tmp_path, speed_of_light.SMALL, videos=2)
    path = tmp_path / "job.json"
    # A trajectory is stored in 16 bits by default, which the loop does not.
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trajectory": {"dtype": "fp32"}}))
    work = count_model_work(monkeypatch)
    bare = speed_of_light.bare(tmp_path)
    in_the_loop = work.copy()
    work.clear()
    assert len(bare.inverting) == len(bare.editing) == 2
    assert bare.a_video > 0

    def program(folder: Path, threads: int, _: str, output: str) -> None:
        with pytest.raises(SystemExit, match="^0$"):
            speed_of_light.as_job(folder, Path(output), threads)

    monkeypatch.setattr(speed_of_light, "program", program)
    job = speed_of_light.steady(tmp_path, 0, threads=1)
    assert (job.inversions, job.edits) == (1, 1)  # one after the other, without Ray
    assert 0 < job.seconds < job.start + job.seconds < job.whole
    # The loop makes its first video twice.
    assert {name: count / 2 for name, count in work.items()} == {
        name: count / 3 for name, count in in_the_loop.items()
    }
    edits = sorted((tmp_path / "output-0/edits").rglob("*.mp4"))
    assert len(edits) == 2 * speed_of_light.EDITS
    mine = sorted((tmp_path / "bare").glob("*.mp4"))
    assert [one.read_bytes() for one in edits] == [one.read_bytes() for one in mine]


def test_orchestration_is_measured_for_rows_of_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(busy_rank.SECONDS, "0")
    monkeypatch.setattr(in_process, "prepare", busy_rank.prepare)
    monkeypatch.setattr(orchestration, "apart", lambda way, rows: orchestration.WAYS[way](rows))
    with pytest.MonkeyPatch.context() as without_ray:
        in_process.run_in_process(without_ray)
        groups = orchestration.through_groups(4)
    assert (groups.rows, groups.counted <= 4, groups.seconds > 0) == (4, True, True)
    given = Namespace(quick=True, groups=[], refused=[50], pending=[200, 400])
    found = orchestration.measure(given)
    assert found.tables["orchestration"].count("\n| ") == 3
    figures = by_name(list(found.figures))
    assert figures["refused, 50 rows: rate"] > 0
    assert "10^6 through groups" not in figures


def test_what_is_calculated_of_orchestration_follows_from_the_largest_size() -> None:
    some = [
        Case("groups", 1_000, 900, 9.0, 4.5, memory=int(2e8), before=int(1e8), most=int(3e8)),
        Case("groups", 3_000, 2_700, 54.0, 13.5, memory=int(2e8), before=int(1e8), most=int(4e8)),
    ]
    found = by_name(orchestration.figures({"groups": some}))
    assert found["groups, 1,000 rows: rate"] == 100.0
    assert found["groups, 3,000 rows: driver, a row"] == 5.0
    assert found["groups: driver, a row more"] == 50.0  # kB: 100 MB in 2,000 rows
    assert found["10^6 through groups"] == pytest.approx(1e6 / 50 / 3600)


def test_a_demo_that_fails_is_said_to_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(SystemExit, match="the demo ended with 1"):
        start_up.watched()


def test_the_phases_of_a_start_up_add_up() -> None:
    ends = {name: 2.0 * (place + 1) for place, (name, _) in enumerate(start_up.PHASES)}
    run = start_up.Run(ends, first={"ranks": (2, 9.0)}, all={"ranks": (2, 13.0)})
    figures = start_up.figures(run)
    assert figures[0].value == 12.0
    assert figures[0].met is True
    phases = [figure.value for figure in figures if figure.name.startswith("phase: ")]
    assert phases == [2.0] * 7
    assert "| ranks | 2 | 9.0 | 13.0 |" in start_up.table(run)
