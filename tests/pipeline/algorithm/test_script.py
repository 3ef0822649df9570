"""The method `script` held to the public script's algorithm where no recorded case exists."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pipeline.algorithm.inversion import invert
from pipeline.model.scheduler import script_schedule
from pipeline.settings import Reconstruction
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.script_reference import script_reconstruction, script_trajectory
from tests.small_models import make_transformer, scheduler

CASES: dict[str, tuple[str, int, float, dict[str, Any]]] = {
    "as published": ("5b", 4, 6.0, {}),
    "steps that do not divide 1000": ("5b", 12, 2.0, {}),
    "a stride that ends above level 0": ("5b", 7, 6.0, {}),
    "no guidance": ("5b", 4, 1.0, {}),
    "guidance below 1": ("5b", 4, 0.5, {}),
    "high guidance": ("5b", 4, 12.5, {}),
    "shifted signal-to-noise": ("5b", 4, 6.0, {"snr_shift_scale": 3.0}),
    "clipped signal": ("5b", 4, 6.0, {"clip_sample": True}),
    "leading timesteps": ("5b", 4, 6.0, {"timestep_spacing": "leading", "steps_offset": 1}),
    "no zero terminal SNR": ("5b", 4, 6.0, {"rescale_betas_zero_snr": False}),
    "level 0 not clean": ("5b", 4, 6.0, {"set_alpha_to_one": False}),
    "other betas": ("5b", 4, 6.0, {"beta_schedule": "linear", "beta_end": 0.02}),
    "fewer training timesteps": ("5b", 4, 6.0, {"num_train_timesteps": 500}),
    "1.5": ("1.5-5b", 4, 6.0, {}),
    "1.5, steps that do not divide 1000": ("1.5-5b", 7, 4.0, {}),
    "2b, which the script refuses": ("2b", 4, 6.0, {"snr_shift_scale": 3.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_latent_of_both_ways_is_the_scripts(name: str) -> None:
    family, steps, scale, changes = CASES[name]
    config = scheduler(family, **changes)
    transformer = make_transformer(family)
    draw = torch.Generator().manual_seed(1)
    tokens = transformer.config.max_text_seq_length
    empty, prompt = torch.randn(2, tokens, 32, generator=draw) * 3
    frames = 4 if family == "1.5-5b" else 3
    latents, noise = torch.randn(2, frames, 16, 8, 12, generator=draw)

    upstream = copy.deepcopy(transformer)
    climbed = script_trajectory(upstream, config, latents, empty, steps=steps, guidance_scale=scale)
    descended = script_reconstruction(
        upstream, config, noise, climbed, empty, prompt, steps=steps, guidance_scale=scale
    )

    model = NamedModel(transformer, {"": empty, "edit": prompt})
    schedule = script_schedule(config, steps)
    ours = invert(model.velocity(), latents, schedule, method="script")
    reached: list[torch.Tensor] = []
    edit_with(
        model,
        lambda level: ours[level],
        [Edit("edit", guidance_scale=scale)],
        schedule,
        Reconstruction(start="noise", reference="script", guidance_steps=(0, 1)),
        noise=noise,
        on_step=lambda _, x: reached.append(x[0]),
    )
    assert len(reached) == len(descended) == steps
    for mine, theirs in ((ours[1:], climbed), (torch.stack(reached), descended)):
        assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_the_reference_tells_edits_apart() -> None:
    """Without this the comparison above could hold for steps that ignore its reference."""
    transformer = make_transformer("5b")
    draw = torch.Generator().manual_seed(1)
    empty, prompt = torch.randn(2, 20, 32, generator=draw)
    noise, one, other = torch.randn(3, 3, 16, 8, 12, generator=draw)
    found = [
        script_reconstruction(
            transformer,
            scheduler(),
            noise,
            reference[None].repeat(4, 1, 1, 1, 1),
            empty,
            prompt,
            steps=4,
            guidance_scale=6.0,
        )
        for reference in (one, other)
    ]
    assert (found[0] - found[1]).abs().max() > 1e-2 * found[0].abs().max()
