"""The training recipe, whole and tiny: it writes a checkpoint, and a stopped run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from torch import Tensor

from jobs.demo import world
from jobs.demo.training import reference
from jobs.demo.training.__main__ import claim, train
from jobs.demo.training.attention import TrainingAttention
from jobs.demo.training.common import Stage, step_draws
from jobs.demo.training.plan import Plan, TransformerPlan, VaePlan
from jobs.demo.training.pool import Pool, object_places, scene_looks
from jobs.demo.training.reference import carried_noise, change, curriculum, draw_pairs, draw_starts
from jobs.demo.training.text import make_tokenizer, tokenize
from jobs.demo.training.trajectories import STRIDE, entries, make_trajectories, on_grid
from jobs.demo.training.transformer import Denoiser, make_scheduler
from jobs.demo.training.vae import make_vae, share_spatial_norms

TINY = Plan(
    vae=VaePlan(channels=(8, 8, 8), groups=4, steps=2, crop_batch=2, batch=2, decoder_steps=2),
    transformer=TransformerPlan(
        layers=1, heads=2, pool_scenes=6, pool_looks=2, steps=2, batch=4,
        inverted_scenes=3, reference_steps=2, reference_batch=2,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the whole recipe writes at a tiny size."""
    root = tmp_path_factory.mktemp("training")
    train(root / "checkpoint", root / "work", TINY, seed=5)
    return root / "checkpoint"


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    model = Denoiser(TINY.transformer, latent_channels=8, latent_px=16)
    # The layers that start at zero would hide what attention does.
    for weight in model.transformer.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def sample(folder: Path) -> np.ndarray:
    """A clip [1, F, H, W, 3] that diffusers' own pipeline samples from a folder, in two steps."""
    pipeline = CogVideoXPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    frames: np.ndarray = pipeline(
        "a red ring moving right on a white background",
        num_frames=world.FRAMES,
        height=world.SIZE,
        width=world.SIZE,
        num_inference_steps=2,
        max_sequence_length=pipeline.tokenizer.model_max_length,
        output_type="np",
    ).frames
    return frames


def test_the_recipe_writes_a_folder_that_loads_and_samples(trained: Path) -> None:
    frames = sample(trained)
    assert frames.shape == (1, world.FRAMES, world.SIZE, world.SIZE, 3)
    assert np.isfinite(frames).all()


def test_the_folder_names_no_local_path_and_tells_how_it_was_trained(trained: Path) -> None:
    for path in trained.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in text, path
        assert str(trained.parent) not in text, path
    index = json.loads((trained / "model_index.json").read_text(encoding="utf-8"))
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]
    tokenizer = json.loads((trained / "tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer["padding"] is tokenizer["truncation"] is None
    card = (trained / "README.md").read_text(encoding="utf-8")
    for said in ("reference attention", "--seed 5", "license: apache-2.0", "dB"):
        assert said in card


@pytest.mark.soak
def test_a_finished_run_is_resumed_without_a_step(trained: Path, tmp_path: Path) -> None:
    train(tmp_path / "again", trained.parent / "work", TINY, seed=5)
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()


def test_a_work_folder_is_kept_for_its_own_run_and_refused_to_another(tmp_path: Path) -> None:
    other = replace(TINY, vae=replace(TINY.vae, steps=3))
    compiled = replace(TINY, transformer=replace(TINY.transformer, compile=True))
    assert claim(tmp_path, TINY, seed=5) is None
    assert claim(tmp_path, TINY, seed=5) is None
    assert claim(tmp_path, compiled, seed=5) is None
    assert "holds a run of seed 5: give another --work" in str(claim(tmp_path, TINY, seed=6))
    assert "holds a run of another plan" in str(claim(tmp_path, other, seed=5))


@pytest.mark.soak
def test_the_command_refuses_another_runs_work_folder_and_leaves_it(tmp_path: Path) -> None:
    note = tmp_path / "c.work" / "run.json"
    note.parent.mkdir()
    note.write_text('{"seed": 3}')
    refused = subprocess.run(
        [sys.executable, "-m", "jobs.demo.training", "--output", str(tmp_path / "c"), "--seed=4"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert refused.returncode == 1
    assert "holds a run of seed 3" in refused.stderr
    assert note.read_text() == '{"seed": 3}'


@pytest.mark.parametrize("muon_rate", [0.0, 0.02])
def test_a_stopped_stage_goes_on_to_the_same_weights(tmp_path: Path, muon_rate: float) -> None:
    def run(path: Path, stops: list[int]) -> torch.Tensor:
        for stop in stops:
            torch.manual_seed(0)
            layer = torch.nn.Linear(3, 2)
            model = torch.nn.ModuleDict({"transformer_blocks": torch.nn.ModuleList([layer])})

            def loss_of(step: int, layer: torch.nn.Linear = layer, stop: int = stop) -> Tensor:
                if step == stop:
                    raise KeyboardInterrupt
                rng, generator = step_draws(1, "line", step)
                return (
                    (layer(torch.randn(4, 3, generator=generator)) - rng.random()).square().mean()
                )

            stage = Stage("line", model, path, 20, 0.01, muon_rate, report=lambda line: None)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("jobs.demo.training.common.SAVE_EVERY_S", -1.0)
                if stop < 20:
                    with pytest.raises(KeyboardInterrupt):
                        stage.run(loss_of)
                else:
                    stage.run(loss_of)
        return layer.weight

    whole = run(tmp_path / "whole.pt", [20])
    stopped = run(tmp_path / "stopped.pt", [7, 20])
    assert torch.equal(whole, stopped)


def test_scaling_a_plan_scales_every_stage() -> None:
    plan = Plan()
    half = plan.scaled(plan.minutes / 2)
    assert half.vae.steps == pytest.approx(plan.vae.steps / 2, abs=1)
    assert half.transformer.steps == pytest.approx(plan.transformer.steps / 2, abs=1)
    assert half.transformer.reference_steps == pytest.approx(
        plan.transformer.reference_steps / 2, abs=1
    )
    assert half.transformer.layers == plan.transformer.layers


def test_every_prompt_of_the_world_fits_and_has_no_unknown_word() -> None:
    tokenizer = make_tokenizer(TransformerPlan())
    rng = np.random.default_rng(0)
    prompts = [world.random_prompt(world.random_scene(rng), rng) for _ in range(300)]
    ids = tokenize(tokenizer, prompts)
    assert ids.shape == (300, TransformerPlan().text_tokens)
    assert not (ids == tokenizer.unk_token_id).any()
    assert (ids == tokenizer.eos_token_id).any(dim=1).all(), "a prompt was cut"


def test_looks_of_a_pool_share_their_geometry() -> None:
    first, *others = scene_looks(seed=1, index=4, looks=4)
    for other in others:
        assert other != first
        assert [one.path for one in other.objects] == [one.path for one in first.objects]


def test_pairs_keep_their_geometry_and_about_half_change_a_shape_and_a_third_nothing() -> None:
    looks = tuple(scene_looks(seed=2, index=index, looks=3) for index in range(60))
    pool = Pool(torch.zeros(60, 3, 1, 1, 1, 1), looks)
    inverted = np.arange(400) < 200
    scenes, sources, edits = draw_pairs(np.random.default_rng(0), pool, inverted, trajectories=20)
    pairs = [
        (looks[scene][source], looks[scene][edit])
        for scene, source, edit in zip(scenes, sources, edits, strict=True)
    ]
    assert all(
        [one.path for one in source.objects] == [one.path for one in edit.objects]
        for source, edit in pairs
    )
    reshaped = [
        [one.shape for one in source.objects] != [one.shape for one in edit.objects]
        for source, edit in pairs
    ]
    assert 0.35 < np.mean(reshaped) < 0.65
    assert 0.2 < np.mean(sources == edits) < 0.45
    # Only the first look of the first scenes was inverted.
    assert (scenes[inverted] < 20).all()
    assert (sources[inverted] == 0).all()
    assert (scenes[~inverted] >= 20).any()
    assert (sources[~inverted] > 0).any()


def test_pairs_of_shapes_alone_differ_in_shapes_or_not_at_all() -> None:
    looks = tuple(scene_looks(seed=2, index=index, looks=3) for index in range(60))
    pool = Pool(torch.zeros(60, 3, 1, 1, 1, 1), looks)
    inverted = np.arange(100) < 50
    found = draw_pairs(np.random.default_rng(0), pool, inverted, trajectories=40, shapes_alone=1.0)
    assert 0.1 < np.mean(found[1] == found[2]) < 0.4
    for place, (scene, source, edit) in enumerate(zip(*found, strict=True)):
        one, other = looks[scene][source], looks[scene][edit]
        assert one.background == other.background
        assert [each.colour for each in one.objects] == [each.colour for each in other.objects]
        same = [each.shape for each in one.objects] == [each.shape for each in other.objects]
        assert same == (source == edit)
        assert not inverted[place] or (source == 0 and scene < 40)


def test_a_pool_without_pairs_of_shapes_alone_gives_others() -> None:
    first = scene_looks(seed=2, index=0, looks=1)[0]
    colour = "red" if first.objects[0].colour != "red" else "blue"
    pool = Pool(torch.zeros(1, 2, 1, 1, 1, 1), ((first, world.with_colour(first, colour)),))
    assert len(pool.shape_pairs) == 0
    scenes, _, _ = draw_pairs(np.random.default_rng(0), pool, np.ones(4, bool), 1, shapes_alone=1.0)
    assert (scenes == 0).all()


def test_shapes_are_taught_alone_after_colours_and_before_all_together() -> None:
    assert curriculum(0.1)[0] == 0.0
    assert curriculum(0.4)[0] > curriculum(0.9)[0] > 0.0
    assert curriculum(0.4)[1] > curriculum(0.9)[1] == curriculum(0.1)[1]


def test_an_edit_with_the_empty_prompt_is_taught_to_be_its_source(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(TINY.transformer, inverted_share=0.0, reference_batch=8)
    looks = tuple(scene_looks(seed=2, index=index, looks=2) for index in range(8))
    pool = Pool(torch.randn(8, 2, 3, 8, 16, 16), looks)
    denoiser.transformer.set_attn_processor(TrainingAttention(reference=True))
    drawn: list[np.ndarray] = []
    take = Pool.clean

    def clean(pool: Pool, scenes: np.ndarray, looks: np.ndarray) -> torch.Tensor:
        drawn.append(looks)
        return take(pool, scenes, looks)

    monkeypatch.setattr(Pool, "clean", clean)
    for prompt, alike in (("", True), ("a red thing", False)):
        monkeypatch.setattr(reference, "training_prompt", lambda *_, said=prompt: said)
        reference.reference_loss(denoiser, plan, pool, torch.zeros(1, 26, 3, 8, 16, 16), 1, 0)
        source, edit = drawn[-2:]
        assert np.array_equal(source, edit) == alike


def test_object_places_hold_every_shape_and_little_else() -> None:
    scene = world.random_scene(np.random.default_rng(4))
    places = object_places(scene, 16)
    assert places.shape == (3, 1, 16, 16)
    assert places.mean() < 0.35
    for shape in world.SHAPES:
        cover = world.draw_masks(world.with_shape(scene, shape))[0, 0] > 0.5
        cells = cover.reshape(16, 4, 16, 4).mean(axis=(1, 3)) > 0.5
        assert (places[0, 0][cells] > 0.1).all()


def test_moving_the_norms_convolutions_changes_no_number() -> None:
    torch.manual_seed(0)
    vae = make_vae(TINY.vae).eval()
    latent = torch.randn(2, TINY.vae.latent_channels, 3, 8, 8)
    with torch.no_grad():
        plain = vae.decode(latent).sample
        share_spatial_norms(vae)
        assert torch.allclose(vae.decode(latent).sample, plain, atol=1e-5)


def test_the_reference_half_is_a_plain_forward_and_the_edit_half_sees_it(
    denoiser: Denoiser,
) -> None:
    latents = torch.randn(4, 3, 8, 16, 16)
    levels, prompts = torch.tensor([600] * 4), ["a red ring"] * 2 + ["a blue cross"] * 2

    def velocity(processor: object, latents: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        denoiser.transformer.set_attn_processor(processor)
        with torch.no_grad():
            return denoiser.velocity(latents, levels, prompts)

    plain = velocity(CogVideoXAttnProcessor2_0(), latents, prompts)
    rewritten = velocity(TrainingAttention(), latents, prompts)
    attached = velocity(TrainingAttention(reference=True), latents, prompts)
    itself = velocity(
        TrainingAttention(reference=True), torch.cat([latents[2:]] * 2), prompts[2:] * 2
    )
    assert _distance(rewritten, plain) < 0.01
    assert _distance(attached[2:], plain[2:]) < 0.01
    assert _distance(attached[:2], plain[:2]) > 0.03
    # Keys and values that are there twice change nothing.
    assert _distance(itself[:2], plain[2:]) < 0.01


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().mean() / other.abs().mean())


def test_an_edit_that_has_just_left_its_source_has_the_sources_latent(denoiser: Denoiser) -> None:
    edit, left_at = torch.randn(2, 3, 3, 8, 16, 16)
    starts = torch.tensor([359, 580, 999])
    carried = carried_noise(denoiser, left_at, edit, starts)
    assert torch.allclose(denoiser.mix(edit, carried, starts)[0], left_at, atol=1e-4)


def test_edits_leave_at_or_above_their_level_and_some_at_it_and_some_at_the_top() -> None:
    levels = np.arange(1000)
    starts = draw_starts(levels, np.random.default_rng(0))
    assert (starts >= np.maximum(levels, 350)).all()
    assert starts.max() == 999
    assert np.mean(starts == np.maximum(levels, 350)) > 0.3
    assert np.mean(starts == 999) > 0.1


def test_what_counts_most_is_where_an_edit_differs_from_its_source() -> None:
    source = torch.zeros(2, 3, 8, 4, 4)
    edit = source.clone()
    edit[0, 1, :, 2, 3] = 2.0
    edit[0, 1, :, 0, 0] = 1.0
    changed = change(source, edit)
    assert changed.shape == (2, 3, 1, 4, 4)
    assert (changed[0, 1, 0, 2, 3], changed[0, 1, 0, 0, 0], changed.sum()) == (1.0, 0.5, 1.5)


def test_trajectories_begin_with_the_clean_latents_and_are_read_by_level(
    denoiser: Denoiser, tmp_path: Path
) -> None:
    looks = tuple(scene_looks(seed=2, index=index, looks=2) for index in range(5))
    pool = Pool(torch.randn(5, 2, 3, 8, 16, 16), looks)
    made = make_trajectories(denoiser, TINY.transformer, pool, tmp_path, lambda line: None)
    assert made.shape == (3, 26, 3, 8, 16, 16)
    assert torch.allclose(made[:, 0].float(), pool.latents[:3, 0], atol=2e-3)
    again = make_trajectories(denoiser, TINY.transformer, pool, tmp_path, pytest.fail)
    assert torch.equal(made, again)
    levels = on_grid(np.asarray([0, STRIDE, 999]))
    assert levels.tolist() == [39, 79, 999]
    read = entries(made, np.asarray([2, 0, 1]), levels)
    assert torch.equal(read[0], made[2, 1].float())
    assert torch.equal(read[2], made[1, 25].float())


def test_the_schedule_is_that_of_cogvideox_5b() -> None:
    scheduler = make_scheduler()
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0.0, abs=1e-7)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.timestep_spacing == "trailing"
    assert scheduler.config.snr_shift_scale == 1.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_recipe_trains_on_a_gpu(tmp_path: Path) -> None:
    train(tmp_path / "checkpoint", tmp_path / "work", TINY, seed=5, device="cuda")
    CogVideoXPipeline.from_pretrained(tmp_path / "checkpoint")
