"""The method `script` held to what the public reference script computes with the same weights.

A case is a folder with `model/` (diffusers format), `case.json` and `expected.safetensors`. The
case that lies here was computed with zai-org/CogVideo `inference/ddim_inversion.py`; `--golden DIR`
takes another one, or a folder of them. (With some numbers of steps that do not divide 1000, such as
61, diffusers' own scheduler has a step too many, down from timestep -1; the method leaves it out.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.algorithm.branches import Velocity
from pipeline.algorithm.inversion import invert
from pipeline.algorithm.schedule import ScriptSchedule
from pipeline.model.checkpoint import load_text_encoder, load_transformer, open_checkpoint
from pipeline.model.scheduler import script_schedule
from pipeline.model.text_encoder import encode_prompt
from pipeline.settings import Reconstruction
from tests.named_prompts import Edit, NamedModel, edit_with

PROMPT_TOKENS = 226
"""The script leaves diffusers' default, whatever the checkpoint's own `max_text_seq_length` is. One
with absolute positions takes no other length than its own."""
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One video of a parity case: its parameters, what goes in and what must come out."""

    edit: Edit
    schedule: ScriptSchedule
    model: NamedModel
    expected: dict[str, Tensor]
    trajectory: Tensor

    def walk(self, reference: Any) -> Tensor:
        """The latents [T, F, C, H, W] after each step of the reconstruction."""
        steps: list[Tensor] = []
        edit_with(
            self.model,
            lambda level: self.trajectory[level],
            [self.edit],
            self.schedule,
            Reconstruction(start="noise", reference=reference, guidance_steps=(0, 1)),
            noise=self.expected["noise"],
            on_step=lambda _, x: steps.append(x[0]),
        )
        return torch.stack(steps)


@pytest.fixture(scope="module")
def cases(golden_case: Path) -> list[Case]:
    """The videos of a case; one, unless its tensors hold a batch."""
    case = json.loads((golden_case / "case.json").read_text())
    tensors = load_file(golden_case / "expected.safetensors")
    info = open_checkpoint(str(golden_case / "model"))
    transformer = load_transformer(info, torch.float32, "cpu")
    tokenizer, encoder = load_text_encoder(info, torch.float32, "cpu")
    schedule = script_schedule(info.scheduler, case["num_inference_steps"])
    levels = [level.timestep for level in schedule.levels[1:]]
    assert case.get("inverse_timesteps", levels) == levels
    assert case.get("timesteps", levels[::-1]) == levels[::-1]

    rotary = transformer.config.use_rotary_positional_embeddings
    tokens = case.get("max_sequence_length", PROMPT_TOKENS if rotary else info.text_tokens)
    batch = len(tensors["latents"])
    inversion_prompt = case.get("inversion_prompt", "")
    made = []
    for i in range(batch):
        prompt, negative = (_of(case.get(k, ""), i) for k in ("prompt", "negative_prompt"))
        model = NamedModel(
            transformer,
            {
                text: encode_prompt(tokenizer, encoder, text, tokens)
                for text in {"", prompt, negative, inversion_prompt}
            },
        )
        scale = _of(case["guidance_scale"], i)
        trajectory = invert(
            _inversion_velocity(model, inversion_prompt, scale),
            tensors["latents"][i],
            schedule,
            method="script",
        )
        expected = {
            name: value[:, i] if value.dim() == 6 else value[i] for name, value in tensors.items()
        }
        edit = Edit(prompt, negative, guidance_scale=scale)
        made.append(Case(edit, schedule, model, expected, trajectory))
    return made


def test_every_level_of_the_trajectory_is_the_scripts(cases: list[Case]) -> None:
    for case in cases:
        assert_close(case.trajectory[1:], case.expected["trajectory"])


@pytest.mark.parametrize("reference", ["script", "shared"])
def test_every_step_of_the_reconstruction_is_the_scripts(cases: list[Case], reference: str) -> None:
    for case in cases:
        assert_close(case.walk(reference), case.expected["reconstruction"])


def test_the_edit_without_reference_attention_is_the_scripts(cases: list[Case]) -> None:
    for case in cases:
        assert_close(case.walk("none")[-1], case.expected["without_injection"])


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < TOLERANCE, f"largest error is {error:.1e} of the largest value"


def _inversion_velocity(model: NamedModel, prompt: str, scale: float) -> Velocity:
    """The script guides its inversion as well, which with the empty prompt changes nothing."""
    positive = model.velocity(prompt)
    if not prompt or scale <= 1:
        return positive
    negative = model.velocity("")
    return lambda x, t: negative(x, t) + scale * (positive(x, t) - negative(x, t))


def _of(value: Any, i: int) -> Any:
    """A case's parameter of video i: one for all of them, or a list."""
    return value[i] if isinstance(value, list) else value
