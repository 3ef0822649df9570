"""Hours are counted work over rates, in the groups that a run would have."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.estimate.dataset import Dataset, VideoGroup
from cluster.estimate.hours import CFG_EFFICIENCY, token_efficiency
from cluster.estimate.plan import estimate
from cluster.estimate.rates import VAE_MFU, kinds, rate_of
from cluster.job import CannotRun
from cluster.settings import GroupSettings
from pipeline.settings import EditingSettings, Speed, TrajectorySettings
from tests.cluster.estimate.checkpoints import job_of, real

H100 = rate_of("H100")


def test_an_edit_on_an_h100_takes_the_published_rates_seconds(tmp_path: Path) -> None:
    """71 s for an edit of 5b at 37%, K=4, 50 steps and the defaults, without the VAE."""
    info = real("5b", tmp_path)
    plan = estimate(job_of(), info, Dataset((VideoGroup(800, 4),), 3201), [H100], price=2.5)
    (kind,) = plan.kinds
    assert kind.gpu_hours is not None
    assert kind.wall_hours is not None
    seconds = kind.gpu_hours * 3600 / 3200
    vae = plan.flops.vae / 3200 / (H100.peak_flops * VAE_MFU)
    assert seconds - vae == pytest.approx(71, rel=0.02)
    assert (kind.layout, kind.groups) == ("shared", 8)
    # 800 videos on 8 GPUs: 100 turns, all of them full.
    assert kind.wall_hours == pytest.approx(kind.gpu_hours / 8)
    assert kind.stages[1].busy == pytest.approx(1)
    assert kind.price == pytest.approx(8 * kind.wall_hours * 2.5)


def test_the_last_turn_keeps_some_groups_idle(tmp_path: Path) -> None:
    info = real("5b", tmp_path)
    job = job_of(layout="shared")
    full, rest = (
        estimate(job, info, Dataset((VideoGroup(n, 4),), 5), [H100]).kinds[0] for n in (16, 17)
    )
    assert rest.wall_hours == pytest.approx((full.wall_hours or 0) * 3 / 2)
    assert rest.stages[1].busy == pytest.approx(17 / 24)


def test_few_videos_with_many_edits_are_split_over_the_gpus(tmp_path: Path) -> None:
    info = real("5b", tmp_path)
    dataset = Dataset((VideoGroup(2, 64),), 129)
    (kind,) = estimate(job_of(), info, dataset, [H100], gpus=32).kinds
    assert kind.layout == "split"
    assert [stage.stage for stage in kind.stages] == ["prompts", "inversion", "reconstruction"]
    together = estimate(job_of(layout="shared"), info, dataset, [H100], gpus=32).kinds[0]
    assert (kind.wall_hours or 0) < (together.wall_hours or 0) / 4
    for stage in kind.stages:
        assert 0 < stage.busy <= 1


def test_larger_groups_are_less_efficient_by_the_published_numbers() -> None:
    assert CFG_EFFICIENCY == 0.96
    assert CFG_EFFICIENCY * token_efficiency(2) == pytest.approx(0.71, abs=0.015)
    assert CFG_EFFICIENCY * token_efficiency(3) == pytest.approx(0.54, abs=0.015)
    assert token_efficiency(1) == 1


def test_a_group_of_four_takes_less_wall_time_a_video_and_more_gpu_hours(tmp_path: Path) -> None:
    info, dataset = real("5b", tmp_path), Dataset((VideoGroup(64, 4),), 257)
    one = estimate(job_of(), info, dataset, [H100]).kinds[0]
    four = estimate(job_of(reconstruction=GroupSettings(gpus=4)), info, dataset, [H100]).kinds[0]
    assert (four.group_gpus, four.groups, four.stages[1].gpus) == (4, 2, 4)
    ratio = (one.gpu_hours or 0) / (four.gpu_hours or math.inf)
    # The encoding is not split, and the decoding of four edits is spread without loss.
    assert ratio == pytest.approx(token_efficiency(4), rel=0.02)


def test_a_job_that_asks_for_more_groups_than_there_are_gpus_is_refused(tmp_path: Path) -> None:
    info, dataset = real("5b", tmp_path), Dataset((VideoGroup(64, 4),), 257)
    with pytest.raises(CannotRun, match="need 12 GPUs"):
        estimate(job_of(reconstruction=GroupSettings(groups=12)), info, dataset, [H100])
    with pytest.raises(CannotRun, match="gpus is 0; expected 1 or more"):
        estimate(job_of(), info, dataset, [H100], gpus=0)


def test_clips_that_the_checkpoint_cannot_take_are_refused(tmp_path: Path) -> None:
    settings = EditingSettings(output="o")
    settings = replace(settings, video=replace(settings.video, height=481))
    with pytest.raises(CannotRun, match=r"video\.height is 481"):
        estimate(job_of(settings), real("5b", tmp_path), Dataset((), 0), [H100])


def test_slow_text_encoders_are_the_slowest_pool_and_a_note(tmp_path: Path) -> None:
    info, dataset = real("2b", tmp_path), Dataset((VideoGroup(10, 1),), 1_000_000)
    (kind,) = estimate(job_of(), info, dataset, [H100]).kinds
    assert kind.stages[0].busy == 1
    assert any("the groups wait for prompts" in note for note in kind.notes)


def test_kinds_stand_side_by_side_with_prices_of_their_own(tmp_path: Path) -> None:
    info, dataset = real("5b", tmp_path), Dataset((VideoGroup(64, 4),), 257)
    rates = kinds(["L4", "H100", "cpu"])
    plan = estimate(job_of(), info, dataset, rates, price={"H100": 3.0})
    assert [kind.gpu.name for kind in plan.kinds] == ["L4", "H100", "cpu"]
    assert [kind.price is None for kind in plan.kinds] == [True, False, True]
    assert all(kind.fits for kind in plan.kinds)
    slow, fast, cpu = (kind.wall_hours or 0 for kind in plan.kinds)
    assert fast < slow < cpu
    assert [stage.gpus for stage in plan.kinds[2].stages] == [0, 0]
    assert "tiles" in " ".join(plan.kinds[0].notes)


@pytest.mark.parametrize(
    ("cluster", "machines"),
    [({"reconstruction": GroupSettings(groups=4)}, 1), ({"layout": "split"}, 1), ({}, 2)],
)
def test_groups_on_one_machine_share_its_cores(
    cluster: dict[str, Any], machines: int, tmp_path: Path
) -> None:
    """No job takes fewer hours of machines than one group alone on one machine."""
    info, dataset = real("2b", tmp_path), Dataset((VideoGroup(12, 4),), 49)
    (alone,) = estimate(job_of(), info, dataset, kinds(["cpu"]), gpus=1).kinds
    (kind,) = estimate(job_of(**cluster), info, dataset, kinds(["cpu"]), gpus=machines).kinds
    assert kind.gpu_hours == pytest.approx(alone.gpu_hours)
    assert kind.gpu_hours <= machines * kind.wall_hours * 1.0001


def test_an_empty_dataset_takes_nothing(tmp_path: Path) -> None:
    plan = estimate(job_of(), real("5b", tmp_path), Dataset((), 0), [H100])
    assert (plan.flops.total, plan.videos, plan.storage_bytes) == (0, 0, 0)
    (kind,) = plan.kinds
    assert (kind.gpu_hours, kind.wall_hours, kind.notes) == (0, 0, ())


def test_a_million_videos_are_planned_within_a_second(tmp_path: Path) -> None:
    info = real("5b", tmp_path)
    pairs = {(5 + n, 1 + n % 40): 1_000_000 // 800 for n in range(800)}
    begun = time.process_time()
    rates = kinds(["H100", "A100-80", "L40S", "B200"])
    plan = estimate(job_of(), info, Dataset.counted(pairs, 4_000_000), rates, gpus=1024)
    assert time.process_time() - begun < 1
    assert plan.videos == 1_000_000
    assert len(plan.kinds) == 4


def test_trajectories_that_are_not_kept_take_no_storage(tmp_path: Path) -> None:
    info, dataset = real("5b", tmp_path), Dataset((VideoGroup(10, 4, 49),), 41)
    settings = EditingSettings(output="o", trajectory=TrajectorySettings(keep="never"))
    plan = estimate(job_of(settings), info, dataset, [])
    assert plan.storage.trajectories == 0
    assert any("trajectory.keep is never" in note for note in plan.notes)


def test_options_that_save_what_is_counted_are_noted(tmp_path: Path) -> None:
    settings = EditingSettings(output="o", speed=Speed(step_cache=0.1, weights="fp8"))
    notes = estimate(job_of(settings), real("5b", tmp_path), Dataset((), 0), []).notes
    assert [note.split()[0] for note in notes[:2]] == ["speed.step_cache", "speed.weights"]
    assert all("an upper bound" in note for note in notes[:2])


def test_a_plan_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, cluster.estimate.plan, cluster.estimate.rates; "
        "sys.exit(bool({'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
