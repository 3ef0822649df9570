"""The memory of a rank is what the `meta` pass counts, in the tiles that a rank would take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.estimate.dataset import Dataset, VideoGroup
from cluster.estimate.memory import degrees_for, legal_sizes, rank_memory
from cluster.estimate.plan import estimate
from cluster.estimate.rates import rate_of
from cluster.settings import GroupSettings
from pipeline.model import footprint
from pipeline.model.checkpoint import Family
from pipeline.model.memory import HEADROOM
from pipeline.model.parallel.degrees import Degrees
from pipeline.model.sizes import ClipSize
from pipeline.model.tiles import tiles_of
from pipeline.model.vae import Codec
from pipeline.records import EditSpec
from pipeline.settings import EditingSettings, Inversion, Reconstruction, Speed
from pipeline.trajectories.trajectory import Trajectory
from tests.cluster.estimate.checkpoints import job_of, real
from tests.meta_device import MetaDevice
from tests.pipeline.test_real_sizes import make_editor, make_vae
from tests.published_models import CLIPS, LATENTS
from tests.small_models import FAMILIES

ALONE = Degrees()


def clip_of(family: Family) -> ClipSize:
    frames, height, width = CLIPS[family]
    return ClipSize(height, width, frames)


@dataclass(frozen=True)
class Card:
    """A GPU with so many bytes left."""

    left: float

    def free(self) -> int:
        return int(self.left)

    def total(self) -> int:
        return int(self.left)

    def release(self) -> None: ...


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("2b", {}),
        ("5b", {}),
        ("1.5-5b", {}),
        ("5b", {"reference": "shared", "edits_at_once": 3, "guidance_steps": (0.0, 1.0)}),
        ("5b", {"reference": "none", "edits_at_once": 1, "guidance_scale": 1.0}),
    ],
)
def test_the_activations_of_a_rank_are_those_that_the_meta_pass_counts(
    family: Family, how: dict[str, Any], tmp_path: Path
) -> None:
    editor = make_editor(family, layers=1)
    reconstruction = Reconstruction(**{"start": 1.0, **how})
    settings = EditingSettings(
        output="o", inversion=Inversion(steps=1), reconstruction=reconstruction
    )
    count = reconstruction.edits_at_once
    edits = [reconstruction.filled(EditSpec(prompt=f"a {i}"), i) for i in range(count)]
    schedule = editor.schedule(1, "pec")
    entries = torch.zeros(1, 1, 1, 1, 1).expand(2, *LATENTS[family])
    trajectory = Trajectory(entries, schedule, CLIPS[family][0], 8.0, "pec", "")
    with MetaDevice(editor.model.transformer) as device:
        editor.denoise(trajectory, edits, reconstruction)
    found = rank_memory(
        real(family, tmp_path), settings, clip_of(family), 8, rate_of("H100"), ALONE
    )
    assert found.parts.forward == pytest.approx(device.peak, rel=0.1)
    assert found.fits


@pytest.mark.parametrize(
    ("family", "kind", "whole"),
    [("5b", "H100", True), ("5b", "L4", False)],
)
def test_the_tiles_of_a_plan_are_those_that_a_rank_takes(
    family: Family, kind: str, whole: bool, tmp_path: Path
) -> None:
    info, rate, settings = real(family, tmp_path), rate_of(kind), EditingSettings(output="o")
    found = rank_memory(info, settings, clip_of(family), 4, rate, ALONE)
    left = rate.memory_bytes - 500_000_000 - found.parts.transformer - found.parts.vae
    frames, height, width = CLIPS[family]
    codec = Codec(make_vae(family, torch.bfloat16), info.latent_frames_multiple, memory=Card(left))
    with MetaDevice(codec.vae) as device:
        codec.decode(torch.empty(LATENTS[family], device="meta"), frames)
        assert codec.vae.use_tiling is not whole
        assert found.parts.decode == pytest.approx(device.peak, rel=0.1)
    assert (found.decode_work == 1) is whole
    plain = footprint.vae_flops(info, frames, height, width, decode=True)
    assert device.flops == pytest.approx(found.decode_work * plain, rel=0.02)
    assert found.parts.decode <= HEADROOM["gpu"] * left


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decode", [True, False])
def test_the_ways_to_cut_a_frame_are_those_of_the_codec(
    family: Family, decode: bool, tmp_path: Path
) -> None:
    info, (_, height, width) = real(family, tmp_path), CLIPS[family]
    codec = Codec(make_vae(family, torch.bfloat16))
    ways = tiles_of(info.vae, height, width, decode=decode)
    assert len(ways) > 2
    assert ways == codec._plan(height, width, decode)


@pytest.mark.parametrize(("family", "weights"), [("2b", 3.4), ("5b", 11.1), ("1.5-5b", 11.1)])
def test_the_weights_are_those_of_the_published_models(
    family: Family, weights: float, tmp_path: Path
) -> None:
    settings = EditingSettings(output="o")
    found = rank_memory(
        real(family, tmp_path), settings, clip_of(family), 4, rate_of("H100"), ALONE
    )
    parts = found.parts
    assert parts.transformer / 1e9 == pytest.approx(weights, abs=0.1)
    assert parts.vae / 1e9 == pytest.approx(0.43, abs=0.01)
    assert parts.text_encoder / 1e9 == pytest.approx(9.5, abs=0.1)
    largest = max(parts.forward, parts.decode, parts.encode)
    assert found.peak == parts.transformer + parts.vae + largest


def test_fp8_weights_take_less_and_a_step_cache_more(tmp_path: Path) -> None:
    """As `Editor` loads them, and as `VelocityModel` counts a batch."""
    info, clip, rate = real("5b", tmp_path), clip_of("5b"), rate_of("H100")
    native = EditingSettings(output="o")
    fast = replace(native, speed=Speed(weights="fp8", step_cache=0.1))
    before, after = (rank_memory(info, one, clip, 4, rate, ALONE).parts for one in (native, fast))
    assert after.transformer == footprint.weight_bytes(info, "transformer", 2, "fp8")
    assert after.transformer < 0.6 * before.transformer
    # Four edits, guided: eight branches, each of which keeps what the blocks added.
    unit = 17_776 * 48 * 64 * 2
    assert after.forward - before.forward == pytest.approx(8 * footprint.CACHED * unit, rel=0.01)


def test_larger_groups_split_the_tokens_and_not_the_weights(tmp_path: Path) -> None:
    info, settings = real("5b", tmp_path), EditingSettings(output="o")
    one, four, cfg = (
        rank_memory(info, settings, clip_of("5b"), 4, rate_of("H100"), degrees).parts
        for degrees in (ALONE, Degrees(ulysses=4), Degrees(cfg=2))
    )
    assert one.transformer == four.transformer == cfg.transformer
    # A quarter of the tokens, of which more branches fill the GPU at once.
    assert four.forward < one.forward
    assert cfg.forward < one.forward
    assert four.decode == one.decode


def test_what_fits_no_single_gpu_is_planned_for_the_smallest_group_that_does(
    tmp_path: Path,
) -> None:
    info = real("1.5-5b", tmp_path)
    need = rank_memory(
        info, EditingSettings(output="o"), clip_of("1.5-5b"), 4, rate_of("L4"), ALONE
    ).parts
    weights = need.transformer + need.vae
    small = replace(rate_of("L4"), memory_bytes=weights + 500_000_000 + int(need.forward / 0.86))
    dataset = Dataset((VideoGroup(100, 4),), 401)
    (plan,) = estimate(job_of(), info, dataset, [small]).kinds
    assert not plan.fits
    assert plan.legal_gpus == (1, 2, 3, 4, 5, 6, 7, 8)
    assert plan.recommended_gpus == plan.group_gpus == 2
    assert [(s.stage, s.groups, s.gpus) for s in plan.stages[1:]] == [("editing", 4, 2)]
    assert any("set cluster.reconstruction.gpus to 2" in note for note in plan.notes)


def test_groups_that_only_invert_must_fit_too(tmp_path: Path) -> None:
    info, dataset = real("5b", tmp_path), Dataset((VideoGroup(8, 4),), 33)
    settings = EditingSettings(output="o")
    settings = replace(settings, video=replace(settings.video, height=6144, width=6144))
    large = {"reconstruction": GroupSettings(gpus=8)}
    job = job_of(settings, layout="split", **large)
    (kind,) = estimate(job, info, dataset, [rate_of("H100")], gpus=16).kinds
    assert (kind.fits, kind.group_gpus, kind.recommended_gpus) == (False, 8, 8)
    assert [stage.gpus for stage in kind.stages[1:]] == [8, 8]
    assert "set cluster.inversion.gpus to 8" in " ".join(kind.notes)
    job = job_of(settings, **large, inversion=GroupSettings(gpus=8, groups=1))
    assert estimate(job, info, dataset, [rate_of("H100")], gpus=16).kinds[0].fits


def test_where_not_even_the_weights_fit_no_hours_are_made_up(tmp_path: Path) -> None:
    tiny = replace(rate_of("L4"), memory_bytes=8_000_000_000)
    info, dataset = real("5b", tmp_path), Dataset((VideoGroup(1, 1),), 2)
    (plan,) = estimate(job_of(), info, dataset, [tiny], price=2.0).kinds
    assert (plan.fits, plan.recommended_gpus, plan.stages) == (False, None, ())
    assert (plan.gpu_hours, plan.wall_hours, plan.price) == (None, None, None)
    assert "L4 has 8.0 GB: no group fits" in plan.notes[0]


def test_the_degrees_of_the_jobs_own_size_are_the_jobs(tmp_path: Path) -> None:
    info, clip = real("2b", tmp_path), clip_of("2b")
    assert legal_sizes(info, clip, 4) == (1, 2, 3, 4)
    shape = GroupSettings(gpus=4, ulysses=2, ring=2)
    assert degrees_for(info, shape, 4, clip) == Degrees(ulysses=2, ring=2)
    assert degrees_for(info, shape, 8, clip) == Degrees(ulysses=2, ring=4)
    assert degrees_for(info, shape, 3, clip) == Degrees(ulysses=3)
    with pytest.raises(ValueError, match="does not divide 30 heads"):
        degrees_for(info, GroupSettings(gpus=4, ulysses=4), 4, clip)
