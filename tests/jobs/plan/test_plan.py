"""`retake plan`: what a job is going to take, from configuration files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.deploy.gpus import GPUS
from cluster.estimate.rates import RATES
from jobs.cli import app
from jobs.manifest.writing import write_manifest
from jobs.plan import KINDS
from jobs.prepare import prepare
from jobs.run import resolved
from jobs.spec import load_job
from jobs.trial import pending_rows
from pipeline.media import apart
from pipeline.model.footprint import forward_flops
from tests.drawn_videos import draw, grays
from tests.jobs.plan.configurations import write_configuration
from tests.pending_rows import answer
from tests.published_models import CLIPS, published


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left() -> Iterator[None]:
    yield
    while apart._Decoder._idle:
        apart._Decoder._idle.pop().end()


def a_job(folder: Path, family: Any = "5b", videos: int = 12, **settings: Any) -> Path:
    """A job whose checkpoint has no weights, with four edits of each video."""
    prompts = ("a ring", "a star", "snow", "night")
    rows = [
        {"video": f"{n}.mp4", "video_id": f"v{n}", "edits": [{"prompt": p} for p in prompts]}
        for n in range(videos)
    ]
    write_manifest(rows, str(folder / "m.parquet"))
    values = {"manifest": "m.parquet", "output": "out"}
    if family:
        values["checkpoint"] = str(write_configuration(folder / family, family))
    (folder / "job.yaml").write_text(yaml.safe_dump(values | settings))
    return folder / "job.yaml"


def plan(job: Path, *options: str) -> tuple[int, str]:
    """The exit status, and what is printed as one line with single spaces."""
    result = CliRunner().invoke(app, ["plan", str(job), "--sample", "0", *options])
    return result.exit_code, " ".join(result.output.split())


def as_json(job: Path, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", str(job), "--sample", "0", "--json", *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.mark.parametrize("family", ["2b", "5b", "1.5-5b"])
def test_the_json_has_the_published_clip_and_its_flops(tmp_path: Path, family: Any) -> None:
    found = as_json(a_job(tmp_path, family), "--gpu", "H100")
    frames, height, width = CLIPS[family]
    assert found["clip"] == {"frames": frames, "height": height, "width": width}
    info = published(family)
    assert found["flops"]["plain_forward"] == forward_flops(info, *CLIPS[family])
    assert found["flops"]["injected_forward"] == forward_flops(info, *CLIPS[family], injected=True)
    assert isinstance(found["memory_bytes"], int)
    assert isinstance(found["groups"], int)
    for name in ("gpu_hours", "wall_hours", "storage_bytes"):
        assert found[name] > 0
    assert found["flops"]["total"] > 12 * 4 * found["flops"]["plain_forward"]


def test_the_first_kind_stands_at_the_top_and_all_of_them_beside_each_other(tmp_path: Path) -> None:
    found = as_json(a_job(tmp_path), "--gpu", "a100-80", "--gpu", "H100")
    assert [kind["gpu"]["name"] for kind in found["kinds"]] == ["A100-80GB", "H100"]
    for name in ("memory_bytes", "groups", "gpu_hours", "wall_hours"):
        assert found[name] == found["kinds"][0][name]
    assert found["basis"]["flops"] == "counted"
    assert found["basis"]["gpu_hours"].startswith("assumed: ")
    assert found["sample"]["videos"] == 10
    assert found["sample"]["flops"]["total"] < found["flops"]["total"]
    names = [kind["gpu"]["name"] for kind in as_json(tmp_path / "job.yaml")["kinds"]]
    assert names == list(KINDS)


def test_a_price_of_all_and_one_of_a_kind(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    kinds = as_json(job, "--price", "H100=4", "--price", "2", "--gpus", "4")["kinds"]
    for kind in kinds:
        price = 4 if kind["gpu"]["name"] == "H100" else 2
        assert kind["price"] == pytest.approx(4 * kind["wall_hours"] * price)
    status, text = plan(job, "--price", "B200=4")
    assert (status, "expected one of these, or --gpu B200" in text) == (2, True), text
    status, text = plan(job, "--price", "cheap")
    assert (status, "--price 'cheap': expected what a GPU costs an hour" in text) == (2, True)


def test_rates_of_a_file_take_the_place_of_assumed_ones(tmp_path: Path) -> None:
    job, rates = a_job(tmp_path), tmp_path / "rates.yaml"
    rates.write_text(
        "rates: [{name: H100, plain_mfu: 0.74, injected_mfu: 0.74, vae_mfu: 0.3, basis: measured, "
        "source: here}]"
    )
    before = as_json(job, "--gpu", "H100")
    found = as_json(job, "--gpu", "H100", "--rates", str(rates))
    assert found["gpu_hours"] == pytest.approx(before["gpu_hours"] / 2, rel=0.05)
    assert found["basis"]["gpu_hours"] == "measured: here"


def test_the_text_names_figures_and_where_each_is_from(tmp_path: Path) -> None:
    status, text = plan(a_job(tmp_path), "--gpu", "H100", "--gpu", "L4")
    assert status == 0, text
    assert "49 frames of 720x480, 17,776 tokens" in text
    assert "332 TFLOP; 495 TFLOP with reference attention (counted)" in text
    assert "first 10 videos all" in text
    assert "edits 40 48 counted" in text
    assert "H100: assumed, model card" in text
    assert "less with --set 'reconstruction.start=0.4'" in text
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_what_is_done_is_left_out_by_the_checkpoint_of_the_last_run(tmp_path: Path) -> None:
    job = a_job(tmp_path, family=None, videos=3)
    prepared = prepare(load_job(str(job)), write=False)
    rows = pending_rows(prepared)
    answer(rows, takes=lambda video, edit: video == "v0")
    assert as_json(job)["edits"] == 12, "no run has written what it ran with"
    (tmp_path / "out/job.yaml").write_text(resolved(prepared))
    found = as_json(job)
    assert (found["videos"], found["edits"], found["done"]) == (2, 8, 4)
    assert as_json(job, "--all")["edits"] == 12
    assert as_json(job, "--set", "reconstruction.guidance_scale=3")["edits"] == 12
    other = as_json(job, "--set", f"checkpoint={write_configuration(tmp_path / '5b', '5b')}")
    assert (other["edits"], other["done"]) == (12, 0)
    assert "are of the checkpoint embedded" in other["notes"][0]
    answer(rows)
    status, text = plan(job)
    assert (status, "nothing is pending" in text) == (0, True), text


def test_a_kind_without_room_for_the_jobs_groups_is_left_out(tmp_path: Path) -> None:
    job = a_job(tmp_path, cluster={"reconstruction": {"gpus": 4}})
    found = as_json(job, "--gpu", "L4", "--gpu", "H100")
    assert [kind["gpu"]["name"] for kind in found["kinds"]] == ["H100"]
    assert found["kinds"][0]["group_gpus"] == 4
    assert found["notes"][0].startswith("L4 is left out: a group of cluster.reconstruction takes 4")
    status, text = plan(job, "--gpu", "L4", "--gpu", "H100")
    assert (status, "note: L4 is left out: a group of cluster" in text) == (0, True), text
    status, text = plan(job, "--gpu", "L4")
    assert (status, text.startswith("error: a group of cluster.reconstruction")) == (1, True)


def test_only_takes_a_part_and_refuses_what_is_not_there(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    assert as_json(job, "--only", "v3")["edits"] == 4
    status, text = plan(job, "--only", "v33")
    assert (status, "the manifest has no 'v33'" in text) == (1, True)


def test_videos_are_opened_and_shorter_ones_make_the_job_cheaper(tmp_path: Path) -> None:
    job = a_job(tmp_path, videos=3)
    for n in range(2):
        (tmp_path / f"{n}.mp4").write_bytes(draw(grays(20)))
    bound, found = as_json(job), as_json(job, "--sample", "5")
    assert found["clips_seen"]["frames"] == [17, 17]
    assert (found["clips_seen"]["asked"], found["clips_seen"]["failed"]) == (3, 1)
    assert found["basis"]["clip"] == "measured: 2 videos opened, 17 frames"
    assert found["flops"]["total"] < 0.8 * bound["flops"]["total"]
    assert found["memory_bytes"] == bound["memory_bytes"], "the third may be as long as it may be"
    assert "1 of 3 videos not opened" in found["notes"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpu", "H10"), "GPU 'H10': expected one of H100"),
        (("--set", "manifest=none.parquet"), "none.parquet"),
        (("--set", "checkpoint=/nowhere"), "checkpoint '/nowhere': there is no such folder"),
        (("--rates", "/nowhere.yaml"), "rates file /nowhere.yaml: cannot be read"),
    ],
)
def test_what_is_wrong_is_one_message(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    status, text = plan(a_job(tmp_path), *options)
    assert (status, text.startswith("error: "), message in text) == (1, True, True), text


def test_wrong_manifest_and_checkpoint_are_told_at_once(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    _, text = plan(job, "--set", "manifest=none.parquet", "--set", "checkpoint=/nowhere")
    assert "none.parquet" in text
    assert "checkpoint '/nowhere'" in text


def test_the_text_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    options = ["plan", str(a_job(tmp_path)), "--sample", "0", "--price", "2.5"]
    lines = CliRunner().invoke(app, options).output.splitlines()
    figures = lines[1 : next(n for n, line in enumerate(lines) if line.startswith("Memory is"))]
    assert len(figures) > 15
    assert [line for line in figures if len(line.rstrip()) > 80] == []


def test_a_manifest_without_edits_takes_nothing(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    write_manifest([{"video": "0.mp4", "edits": []}], str(tmp_path / "m.parquet"))
    found = as_json(job)
    assert (found["prompts"], found["flops"]["total"], found["storage_bytes"]) == (0, 0, 0)
    assert (found["gpu_hours"], found["savings"]) == (0, [])
    assert "nothing is pending" in plan(job)[1]


def test_a_job_on_cpus_is_planned_on_them(tmp_path: Path) -> None:
    job = a_job(tmp_path, family=None, cluster={"device": "cpu"})
    assert [kind["gpu"]["name"] for kind in as_json(job)["kinds"]] == ["cpu"]
    assert "8 machines memory groups machine hours time" in plan(job)[1]


def test_deploying_and_planning_know_the_same_kinds() -> None:
    """Both say how much memory a GPU has: a plan that fits must fit what is deployed."""
    for kind, gpu in GPUS.items():
        assert RATES[kind].memory_bytes == gpu.memory_gb * 10**9


def test_a_plan_costs_neither_torch_nor_ray(tmp_path: Path) -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from jobs.cli import app; "
        "found = CliRunner().invoke(app, ['plan', sys.argv[1]]); "
        "print(found.exit_code, {*sys.modules} & {'torch', 'ray', 'diffusers', 'transformers'})"
    )
    job = a_job(tmp_path, videos=2)
    (tmp_path / "0.mp4").write_bytes(draw(grays(9)))
    command = [sys.executable, "-c", program, str(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 set()", done.stderr
