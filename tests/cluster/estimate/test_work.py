"""Counted FLOPs are those that torch counts, of every part and of whole passes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from cluster.estimate.dataset import Dataset, VideoGroup
from cluster.estimate.plan import estimate
from cluster.estimate.work import dataset_work
from cluster.layout.work import injected_cost
from pipeline.editor import Editor
from pipeline.model import footprint
from pipeline.model.checkpoint import CheckpointInfo, Family, open_checkpoint
from pipeline.model.sizes import clip_size
from pipeline.model.transformer import VelocityModel
from pipeline.model.vae import Codec
from pipeline.plan import highest_stored
from pipeline.quality.certificate import way_down
from pipeline.records import EditSpec
from pipeline.settings import EditingSettings, Inversion, Reconstruction, VideoSettings
from pipeline.trajectories.trajectory import Trajectory
from tests.cluster.estimate.checkpoints import job_of, real, with_text_encoder
from tests.meta_device import MetaDevice
from tests.pipeline.test_real_sizes import make_vae as make_real_vae
from tests.published_models import CLIPS, published
from tests.small_models import make_transformer, make_vae, scheduler

SIZE = VideoSettings(height=64, width=96, frames=9)
T5 = {"d_ff": 64, "d_kv": 8, "d_model": 32, "num_heads": 4, "num_layers": 1, "vocab_size": 384}


@dataclass(frozen=True)
class MetaPrompts:
    """Embeddings [tokens, width] on the device."""

    tokens: int
    width: int

    def embedding(self, prompt: str) -> Tensor:
        return torch.empty(self.tokens, self.width, device="meta")


def small_editor(family: str, folder: Path) -> Editor:
    """A small model of a family, or the embedded one, on the `meta` device."""
    if family == "embedded":
        info = open_checkpoint("embedded")
        with torch.device("meta"):
            transformer: Any = CogVideoXTransformer3DModel.from_config(dict(info.transformer))
            vae: Any = AutoencoderKLCogVideoX.from_config(dict(info.vae))
    else:
        transformer, vae = make_transformer(family).to("meta"), make_vae().to("meta")
        configs = dict(transformer.config), dict(vae.config), scheduler(family)
        info = CheckpointInfo(folder, family, *configs, "")  # type: ignore[arg-type]
        info = with_text_encoder(info, folder, T5)
    vae = vae.to(torch.bfloat16)  # frames in float32 are a copy then, which can be written
    return Editor(
        info=info,
        model=VelocityModel(transformer, max_branches=None if family == "embedded" else 2),
        codec=Codec(vae, info.latent_frames_multiple, tiling=False),
        text=MetaPrompts(info.text_tokens, info.transformer["text_embed_dim"]),
        progress_bar={"disable": True},
    )


WAYS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "windows": {
        "start": "inverted",
        "inject_blocks": (1, 2),
        "inject_steps": (0.0, 0.5),
        "guidance_steps": (0.3, 1.0),
        "residual": True,
    },
    "a shared reference": {"reference": "shared", "start": 0.5, "guidance_steps": (0.0, 1.0)},
    "the script's": {"reference": "script", "start": "noise", "guidance_steps": (0.0, 1.0)},
    "no reference": {"reference": "none", "residual": True, "guidance_scale": 1.0},
    "by the source": {"reference": "source", "residual": True, "edits_at_once": 1},
}


PASSES = [("5b", way) for way in WAYS]
PASSES += [(family, way) for family in ("2b", "1.5-5b") for way in ("the defaults", "windows")]
PASSES += [("embedded", "the defaults")]


@pytest.mark.parametrize(("family", "way"), PASSES)
def test_a_whole_pass_computes_the_flops_that_are_counted(
    family: str, way: str, tmp_path: Path
) -> None:
    editor = small_editor(family, tmp_path)
    settings = EditingSettings(
        output="o",
        video=VideoSettings() if family == "embedded" else SIZE,
        inversion=Inversion(steps=4, round_trip=way == "the defaults"),
        reconstruction=Reconstruction(**{"edits_at_once": 2, **WAYS[way]}),
    )
    edits, prompts = 3, 5
    dataset = Dataset((VideoGroup(videos=1, edits=edits, frames=11),), prompts)
    plan = estimate(job_of(settings), editor.info, dataset, [])
    counted = whole_pass(editor, settings, edits)
    # The text encoder is a process of its own.
    config = json.loads((editor.info.path / "text_encoder" / "config.json").read_text())
    encoder = T5EncoderModel(T5Config(**config)).to("meta")
    with MetaDevice(encoder) as device, torch.no_grad():
        encoder(torch.zeros(1, editor.info.text_tokens, dtype=torch.long, device="meta"))
    assert plan.flops.text_encoder == prompts * device.flops
    assert plan.forwards_plain == editor.model.forwards.plain
    assert plan.forwards_injected == editor.model.forwards.injected
    assert plan.flops.total == pytest.approx(counted + prompts * device.flops, rel=0.02)


def whole_pass(editor: Editor, settings: EditingSettings, edits: int) -> int:
    """FLOPs of a video from its frames to the frames of its edits, as torch counts them."""
    inversion, how = settings.inversion, settings.reconstruction
    size = clip_size(settings.video, editor.info)
    assert size.frames == 9
    video = torch.zeros(9, size.height, size.width, 3, dtype=torch.uint8)
    schedule = editor.schedule(inversion.steps, inversion.method)
    top = highest_stored(how, inversion.steps)
    specs = [how.filled(EditSpec(prompt=f"edit {i}"), i) for i in range(edits)]
    with MetaDevice(editor.model.transformer, editor.codec.vae) as device, torch.no_grad():
        clean = editor.encode(video, inversion)
        entries = editor.extend(clean[None], 0, schedule, inversion, top)
        editor.decode(clean, 9)  # what the VAE alone loses
        if inversion.round_trip:
            velocity = editor.model.velocity(editor.prompt(""))
            way_down(velocity, schedule, torch.empty_like(clean, device="meta"), top)
        filled = torch.zeros(inversion.steps + 1, *entries.shape[1:])  # from noise all are read
        trajectory = Trajectory(filled, schedule, 9, 8.0, inversion.method, "")
        for first in range(0, edits, how.edits_at_once):
            some = specs[first : first + how.edits_at_once]
            for latent in editor.denoise(trajectory, some, how, "a source").latents:
                editor.decode(latent, 9)
    return device.flops


# The published sizes


@pytest.mark.parametrize(
    ("family", "plain", "injected"),
    [("2b", 120, 193), ("5b", 332, 495), ("1.5-5b", 1479, 2529)],
)
def test_a_plan_has_the_published_models_forwards_in_teraflops(
    family: Family, plain: int, injected: int, tmp_path: Path
) -> None:
    info = real(family, tmp_path)
    plan = estimate(job_of(), info, Dataset((VideoGroup(1, 4),), 5), [])
    assert plan.flops.plain_forward / 1e12 == pytest.approx(plain, rel=0.005)
    assert plan.flops.injected_forward / 1e12 == pytest.approx(injected, rel=0.005)
    assert (plan.clip.frames, plan.clip.height, plan.clip.width) == CLIPS[family]
    assert plan.tokens == {"2b": 17_776, "5b": 17_776, "1.5-5b": 45_106}[family]
    if family == "5b":
        attention = plan.flops.injected_forward - plan.flops.plain_forward
        assert attention / 1e12 == pytest.approx(163, rel=0.005)
        # 50 steps, from 60%: 31 forwards to invert, 30 plain and 168 injected of 4 edits.
        assert (plan.forwards_plain, plan.forwards_injected) == (61, 168)
        forwards = 61 * plan.flops.plain_forward + 168 * plan.flops.injected_forward
        assert plan.flops.total == forwards + plan.flops.vae + plan.flops.text_encoder
        assert plan.flops.text_encoder < plan.flops.total / 1000


def test_what_an_injected_forward_costs_follows_from_the_checkpoint_and_the_clip() -> None:
    settings = EditingSettings(output="o")
    assert injected_cost(settings, published("5b"), 49, 480, 720) == pytest.approx(1.49, abs=0.005)
    assert injected_cost(settings, published("2b"), 49, 480, 720) == pytest.approx(1.61, abs=0.005)
    wide = injected_cost(settings, published("1.5-5b"), 81, 768, 1360)
    assert wide == pytest.approx(1.71, abs=0.005)
    half = replace(settings, reconstruction=Reconstruction(inject_blocks=(0, 21)))
    assert injected_cost(half, published("5b"), 49, 480, 720) == pytest.approx(1.246, abs=0.005)


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("frames", [1, 5, 9, 21, 49])
def test_the_vaes_flops_are_those_that_torch_counts(frames: int, decode: bool) -> None:
    vae = make_vae().to("meta")
    shape = (1, 16, (frames - 1) // 4 + 1, 8, 12) if decode else (1, 3, frames, 64, 96)
    assert footprint.vae_flops(dict(vae.config), frames, 64, 96, decode=decode) == counted_flops(
        vae, torch.empty(shape, device="meta"), decode
    )


@pytest.mark.parametrize("decode", [True, False])
def test_the_published_vaes_flops_are_those_that_torch_counts(decode: bool) -> None:
    vae = make_real_vae("5b", torch.bfloat16)
    shape = (1, 16, 13, 60, 90) if decode else (1, 3, 49, 480, 720)
    counted = footprint.vae_flops(published("5b"), 49, 480, 720, decode=decode)
    x = torch.empty(shape, device="meta", dtype=torch.bfloat16)
    assert counted == counted_flops(vae, x, decode)


def counted_flops(vae: Any, x: Tensor, decode: bool) -> int:
    with MetaDevice(vae) as device, torch.no_grad():
        vae.decode(x) if decode else vae.encode(x)
    return device.flops


# Datasets


def test_videos_are_cut_to_what_the_checkpoint_takes_and_short_ones_cost_nothing(
    tmp_path: Path,
) -> None:
    info = real("5b", tmp_path)
    rows = {(45, 2): 2, (None, 1): 2, (100, 1): 3, (48, 1): 4, (4, 1): 5}
    work = dataset_work(EditingSettings(output="o"), info, Dataset.counted(rows, 2))
    assert [(one.videos, one.clip.frames) for one in work.videos] == [(2, 45), (5, 49), (4, 45)]
    assert (work.too_short, work.count, work.edits) == (5, 11, 13)
    plan = estimate(job_of(), info, Dataset.counted(rows, 2), [])
    assert (plan.videos, plan.edits) == (16, 18)
    assert "videos with too few frames for a clip: 5;" in plan.notes[0]
    assert "videos whose frames are not known: 2; 49 frames are assumed" in plan.notes[1]


def test_a_stored_trajectory_and_no_guidance_cost_less(tmp_path: Path) -> None:
    info, settings = real("5b", tmp_path), EditingSettings(output="o")
    groups = (VideoGroup(1, 4), VideoGroup(1, 4, inverted=True), VideoGroup(1, 4, None, 1.0))
    new, stored, unguided = dataset_work(settings, info, Dataset(groups, 5)).videos
    assert (new.inversion, stored.inversion) == (31, 0)
    assert (new.encodes, new.decodes, stored.encodes, stored.decodes) == (1, 1, 0, 0)
    assert (new.injected, unguided.injected) == (12 * 8 + 18 * 4, 30 * 4)


def test_a_group_without_edits_is_refused() -> None:
    with pytest.raises(ValueError, match="1 videos with 0 edits"):
        VideoGroup(1, 0)
