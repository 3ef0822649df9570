"""The published models at their real sizes, whole, on the `meta` device: all but the numbers.

So wrong shapes, wrong defaults and tensors on the wrong device show without a GPU. Bytes and FLOPs
are counted there, and `pipeline.model.footprint` must say the same without torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from pipeline.algorithm.branches import Branch, Prompt
from pipeline.editor import Editor
from pipeline.model import footprint
from pipeline.model.checkpoint import Family
from pipeline.model.sizes import clip_size
from pipeline.model.transformer import VelocityModel
from pipeline.model.transformer.step_cache import StepCache
from pipeline.model.transformer.tokens import rotary_embedding
from pipeline.model.vae import Codec
from pipeline.records import EditSpec
from pipeline.settings import Inversion, Reconstruction, VideoSettings
from pipeline.trajectories.trajectory import Trajectory
from tests.meta_device import MetaDevice
from tests.published_models import (
    CLIPS,
    LATENTS,
    PARAMETERS,
    T5,
    TRANSFORMERS,
    VAES,
    VIDEO_TOKENS,
    published,
)
from tests.script_reference import rotary_of_pipeline
from tests.small_models import FAMILIES

LAYERS = 3
"""Blocks of most passes here: all blocks of a model are alike. One pass has all of them."""


@dataclass(frozen=True)
class MetaPrompts:
    """Embeddings on the device, in the model's dtype."""

    dtype: torch.dtype

    def embedding(self, prompt: str) -> Tensor:
        return torch.empty(226, 4096, dtype=self.dtype, device="meta")


def make_transformer(family: Family, dtype: torch.dtype, layers: int | None = LAYERS) -> Any:
    config = TRANSFORMERS[family]
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(
            **{**config, "num_layers": layers or config["num_layers"]}
        )
    return model.to(dtype).eval().requires_grad_(False)


def make_vae(family: Family, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX(**VAES[family])
    return vae.to(dtype).eval().requires_grad_(False)


def make_editor(
    family: Family, *, layers: int | None = LAYERS, tiling: bool | None = None
) -> Editor:
    info = published(family, **({"num_layers": layers} if layers else {}))
    dtype = info.dtype("auto", "cuda")
    return Editor(
        info=info,
        model=VelocityModel(make_transformer(family, dtype, layers)),
        codec=Codec(make_vae(family, dtype), info.latent_frames_multiple, tiling),
        text=MetaPrompts(dtype),
        progress_bar={"disable": True},
    )


def vae_peak(editor: Editor, *, decode: bool) -> int:
    """What the footprint says of the VAE at the real size, as its tiles are set."""
    vae, clip = editor.codec.vae, CLIPS[editor.info.family]
    tile = (vae.tile_sample_min_height, vae.tile_sample_min_width) if vae.use_tiling else None
    return footprint.vae_bytes(editor.info, *clip, 2, decode=decode, tile=tile)


# A whole pass


@pytest.mark.parametrize(
    ("family", "layers", "edits_at_once", "tiling"),
    [
        ("2b", LAYERS, 4, False),
        ("5b", None, 1, False),
        ("1.5-5b", LAYERS, 4, False),
        pytest.param("5b", LAYERS, 4, True, marks=pytest.mark.soak),
    ],
)
def test_a_clip_is_inverted_edited_and_decoded_at_its_real_size(
    family: Family, layers: int | None, edits_at_once: int, tiling: bool
) -> None:
    editor = make_editor(family, layers=layers, tiling=tiling)
    info, (count, height, width) = editor.info, CLIPS[family]
    inversion, settings = Inversion(steps=2), Reconstruction(start=0.5)
    edits = [settings.filled(EditSpec(prompt=f"a {i}"), i) for i in range(edits_at_once)]
    video = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, height, width, 3)
    with MetaDevice(editor.model.transformer, editor.codec.vae) as device:
        clean = editor.encode(video, inversion)
        assert device.peak == pytest.approx(vae_peak(editor, decode=False), rel=0.06)
        assert (clean.shape, clean.dtype) == (LATENTS[family], torch.float32)
        assert clean.device.type == "meta"

        schedule = editor.schedule(2, inversion.method)
        before = device.flops
        entries = editor.extend(clean[None], 0, schedule, inversion, 2)
        inverted = editor.model.forwards.plain
        assert (entries.shape, entries.dtype) == ((3, *LATENTS[family]), torch.float32)
        one = footprint.forward_flops(info, count, height, width)
        assert device.flops - before == pytest.approx(inverted * one, rel=0.001)

        trajectory = Trajectory(entries, schedule, count, 8.0, inversion.method, "")
        before, reads, writes = device.flops, len(device.reads), len(device.writes)
        device.start()
        edited = editor.denoise(trajectory, edits, settings).latents
        # The start before the loop, the largest residual after it: in the loop nothing waits.
        assert device.writes[writes:] == [(edits_at_once, *LATENTS[family])]
        assert device.reads[reads:] == ["a value"]
        assert (edited.shape, edited.dtype) == ((edits_at_once, *LATENTS[family]), torch.float32)
        assert edited.device.type == "meta"
        forwards = replace(editor.model.forwards, plain=editor.model.forwards.plain - inverted)
        assert (forwards.plain, forwards.injected) == (1, 2 * edits_at_once)
        injected = footprint.forward_flops(info, count, height, width, injected=True)
        expected = forwards.plain * one + forwards.injected * injected
        assert device.flops - before == pytest.approx(expected, rel=0.001)
        tokens = info.text_tokens + info.video_tokens(count, height, width)
        peak = footprint.transformer_bytes(
            info, tokens, 1, 2, batch=2 * edits_at_once + 1, references=1
        )
        assert device.peak == pytest.approx(peak, rel=0.05)

        device.start()
        frames = editor.decode(edited[0], count)
        assert device.peak == pytest.approx(vae_peak(editor, decode=True), rel=0.06)
        assert (frames.shape, frames.dtype) == ((count, height, width, 3), torch.float32)
        assert frames.device.type == "cpu"


# Defaults and positions


@pytest.mark.parametrize("family", FAMILIES)
def test_a_job_that_names_no_size_gets_the_models_own(family: Family) -> None:
    size = clip_size(VideoSettings(), published(family))
    assert (size.frames, size.height, size.width) == CLIPS[family]


def test_the_rotary_embedding_of_1_5_is_the_pipelines_own_at_its_real_size() -> None:
    """Its table is cut from a grid of 150x150 patches, of which 48x85 are used."""
    transformer = make_transformer("1.5-5b", torch.bfloat16, 1)
    theirs = rotary_of_pipeline(transformer, torch.empty(LATENTS["1.5-5b"], device="meta"))
    ours = rotary_embedding(transformer.config, (22, 96, 170), "cpu")
    assert ours is not None
    assert ours[0].shape == (VIDEO_TOKENS["1.5-5b"], 64)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_rotary_embedding_of_1_5_does_not_depend_on_its_bound() -> None:
    """A grid of 96x170 latents, which some copies of the file have, gives the same positions."""
    config = make_transformer("1.5-5b", torch.bfloat16, 1).config
    tables = (
        rotary_embedding(SimpleNamespace(**{**config, **bound}), (22, 96, 170), "cpu")
        for bound in ({}, {"sample_height": 96, "sample_width": 170})
    )
    (cosines, sines), (others, other_sines) = (table for table in tables if table is not None)
    assert torch.equal(cosines, others)
    assert torch.equal(sines, other_sines)


# What it costs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_counted_to_the_byte(family: Family, tmp_path: Path) -> None:
    info = replace(published(family), path=tmp_path)
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps(T5))
    with torch.device("meta"):
        encoder = T5EncoderModel(T5Config(**T5))
    transformer = make_transformer(family, torch.bfloat16, None)
    for part, model in (
        ("transformer", transformer),
        ("vae", make_vae(family, torch.bfloat16)),
        ("text_encoder", encoder.to(torch.bfloat16)),
    ):
        tensors = (*model.parameters(), *model.buffers())
        assert footprint.weight_bytes(info, part, 2) == sum(x.nbytes for x in tensors)  # type: ignore[arg-type]
    values = sum(x.numel() for x in transformer.parameters())
    assert values == pytest.approx(PARAMETERS[family], rel=0.01)


@pytest.mark.parametrize(
    ("family", "plain", "injected"),
    [("2b", 120, 193), ("5b", 332, 495), ("1.5-5b", 1479, 2529)],
)
def test_a_forward_at_the_real_size_is_so_many_teraflops(
    family: Family, plain: int, injected: int
) -> None:
    info, clip = published(family), CLIPS[family]
    layers = int(info.transformer["num_layers"])
    assert footprint.forward_flops(info, *clip) / 1e12 == pytest.approx(plain, rel=0.005)
    whole = footprint.forward_flops(info, *clip, injected=True)
    assert whole / 1e12 == pytest.approx(injected, rel=0.005)
    half = footprint.forward_flops(info, *clip, injected=True, blocks=(layers // 2, layers + 9))
    assert half / 1e12 == pytest.approx((plain + injected) / 2, rel=0.005)
    none = footprint.forward_flops(info, *clip, injected=True, blocks=(0, 0))
    assert none == footprint.forward_flops(info, *clip)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("edits", "at_once", "references", "dtype"),
    [
        (0, 1, 0, torch.bfloat16),
        (1, 1, 1, torch.bfloat16),
        (4, 1, 1, torch.bfloat16),
        (4, 2, 1, torch.bfloat16),
        (4, 1, 2, torch.bfloat16),
        (1, 1, 1, torch.float32),
    ],
)
def test_the_transformers_activations_are_those_counted(
    family: Family,
    edits: int,
    at_once: int,
    references: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(footprint.TOKENS_AT_ONCE, "gpu", 1 << 20)
    info = published(family)
    model = VelocityModel(make_transformer(family, dtype), max_branches=at_once)
    x, prompts = torch.empty(LATENTS[family], device="meta"), MetaPrompts(dtype)
    texts = ["a", ""] * edits
    described = [Prompt(t, prompts.embedding(t)) for t in ("", "a")]
    branches = [
        Branch(x, Prompt(t, prompts.embedding(t)), described[i % references])
        for i, t in enumerate(texts)
    ]
    with MetaDevice(model.transformer) as device:
        model.predict(branches or [Branch(x, described[0])], 500, x if edits else None)
    batch = 2 * edits + max(references, 1)
    tokens = info.text_tokens + VIDEO_TOKENS[family]
    peak = footprint.transformer_bytes(
        info, tokens, at_once, dtype.itemsize, batch=batch, references=references
    )
    assert peak == pytest.approx(device.peak, rel=0.04)


@pytest.mark.parametrize(("edits", "at_once"), [(1, 1), (4, 1), (4, 2)])
def test_a_step_cache_takes_the_memory_that_is_counted_and_one_wait_a_step(
    edits: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(footprint.TOKENS_AT_ONCE, "gpu", 1 << 20)
    info, prompts = published("5b"), MetaPrompts(torch.bfloat16)
    model = VelocityModel(make_transformer("5b", torch.bfloat16), max_branches=at_once)
    x = torch.empty(LATENTS["5b"], device="meta")
    empty = Prompt("", prompts.embedding(""))
    branches = [Branch(x, empty, empty, i // 2, i % 2 == 0) for i in range(2 * edits)]
    cache = StepCache(0.1, frozenset({500, 400}))
    with MetaDevice(model.transformer) as device:
        model.predict(branches, 600, x, cache=cache)
        assert device.reads == []
        device.start()
        model.predict(branches, 500, x, cache=cache)
        assert len(device.reads) == 1
    peak = footprint.transformer_bytes(
        info,
        info.text_tokens + VIDEO_TOKENS["5b"],
        at_once,
        2,
        batch=2 * edits + 1,
        references=1,
        cached=2 * edits,
    )
    assert peak == pytest.approx(device.peak, rel=0.05)


WHOLE = None


@pytest.mark.parametrize(
    ("frames", "height", "width", "tile", "decode", "gigabytes"),
    [
        (49, 480, 720, WHOLE, True, 15.8),
        (49, 480, 720, WHOLE, False, 6.7),
        (81, 768, 1360, WHOLE, True, 47.8),
        (81, 768, 1360, WHOLE, False, 24.4),
        (49, 480, 720, (336, 480), True, 7.4),
        (81, 768, 1360, (480, 800), False, 7.8),
        (1, 480, 720, WHOLE, True, 3.6),
        (9, 480, 720, WHOLE, True, 11.9),
        (9, 480, 720, WHOLE, False, 5.3),
        (13, 480, 720, WHOLE, False, 7.0),
        (49, 720, 1280, WHOLE, False, 21.4),
    ],
)
def test_the_vaes_activations_are_those_counted(
    frames: int,
    height: int,
    width: int,
    tile: tuple[int, int] | None,
    decode: bool,
    gigabytes: float,
) -> None:
    vae = make_vae("5b", torch.bfloat16)
    if tile:
        vae.enable_tiling(*tile)
    latents = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    shape = latents if decode else (1, 3, frames, height, width)
    with MetaDevice(vae) as device, torch.no_grad():
        x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        out = vae.decode(x).sample if decode else vae.encode(x).latent_dist.mode()
    assert tuple(out.shape) == ((1, 3, frames, height, width) if decode else latents)
    peak = footprint.vae_bytes(published("5b"), frames, height, width, 2, decode=decode, tile=tile)
    assert peak == pytest.approx(device.peak, rel=0.06)
    assert device.peak / 1e9 == pytest.approx(gigabytes, abs=0.06)


@pytest.mark.parametrize("decode", [True, False])
def test_above_a_certain_area_the_vae_takes_no_frame_whole(decode: bool) -> None:
    """diffusers splits such convolutions in time, into parts shorter than the kernel."""
    vae = make_vae("5b", torch.bfloat16)
    most = footprint.largest_whole_area(published("5b"), decode=decode)

    def fits(area: int) -> bool:
        height = 1024 if decode else 2048
        width = area // height // 8 * 8
        shape = (1, 16, 1, height // 8, width // 8) if decode else (1, 3, 1, height, width)
        x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        try:
            vae.decode(x) if decode else vae.encode(x)
        except RuntimeError as error:
            assert "Kernel size can't be greater" in str(error)
            return False
        return True

    with torch.no_grad():
        assert fits(most)
        assert not fits(int(most * 1.02))


def test_tiling_at_1_5s_size_costs_1_4_times_the_work() -> None:
    pixels = footprint.tiled_pixels(768, 1360, footprint.TILE)
    assert pixels / (768 * 1360) == pytest.approx(1.4, abs=0.1)
    assert footprint.tiled_pixels(480, 720, (480, 720)) == 480 * 720


def test_a_driver_counts_without_torch() -> None:
    code = "import sys, pipeline.model.footprint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
