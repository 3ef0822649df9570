"""Prompts by name: a model that holds embeddings, and edits as a settings object asks for them.

The algorithms take prompts with their embeddings. Tests have a handful and name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch, Prompt, Velocity
from pipeline.algorithm.masks import Mask
from pipeline.algorithm.reconstruction import Edited, EditPrompts, reconstruct, seeded_noise
from pipeline.algorithm.schedule import Schedule
from pipeline.model.group import OneRank, TokenGroup
from pipeline.model.transformer import VelocityModel
from pipeline.model.transformer.step_cache import with_step_cache
from pipeline.plan import denoising_steps, skippable, start_level
from pipeline.settings import Reconstruction


class NamedModel(VelocityModel):
    """A `VelocityModel` whose prompts may be names of the embeddings [L, D] that it holds."""

    def __init__(
        self,
        transformer: Any,
        prompts: Mapping[str, Tensor],
        group: TokenGroup | None = None,
        max_branches: int | None = None,
    ) -> None:
        super().__init__(transformer, group or OneRank(), max_branches)
        self.prompts = dict(prompts)

    def named(self, prompt: str | Prompt | None) -> Any:
        return Prompt(prompt, self.prompts[prompt]) if isinstance(prompt, str) else prompt

    def velocity(self, prompt: str | Prompt = "") -> Velocity:
        return super().velocity(self.named(prompt))

    def predict(
        self, branches: Sequence[Branch], *arguments: Any, **options: Any
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        named = [
            replace(b, prompt=self.named(b.prompt), reference=self.named(b.reference))
            for b in branches
        ]
        return super().predict(named, *arguments, **options)


@dataclass(frozen=True)
class Edit:
    """An edit with the names of its prompts."""

    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = 2.0
    seed: int = 0
    source_prompt: str = ""
    embedding: Tensor = field(default_factory=lambda: torch.empty(0), compare=False, repr=False)

    def prompts(self, reference: str) -> EditPrompts:
        """Its prompts, and those of its references in a mode of `Reconstruction.reference`."""
        own = self.prompt, self.negative_prompt
        seen = {"empty": ("", ""), "none": ("", ""), "source": (self.source_prompt,) * 2}
        names = *own, *seen.get(reference, own)
        return EditPrompts(*(Prompt(name, self.embedding) for name in names))


def edit_with(
    model: Any,
    trajectory: Callable[[int], Tensor],
    edits: Sequence[Edit],
    schedule: Schedule,
    settings: Reconstruction | Sequence[Reconstruction] = Reconstruction(),
    *,
    shape: Sequence[int] | None = None,
    noise: Tensor | None = None,
    masks: Sequence[Mask | None] = (),
    on_step: Callable[[int, Tensor], Tensor | None] | None = None,
) -> Edited:
    """What settings ask of the algorithm, for prompts by name.

    Args:
        settings: of all edits, or of each.
        shape: [F, C, H, W], for the start `noise`; by default that of entry 0.
        noise: what the start `noise` begins with, instead of each edit's own draw.
    """
    named = getattr(model, "named", lambda prompt: Prompt(prompt, torch.empty(0)))
    each = [settings] * len(edits) if isinstance(settings, Reconstruction) else list(settings)
    settings = each[0]

    def start(edit: Edit, how: Reconstruction) -> Tensor:
        if how.start != "noise":
            return trajectory(start_level(how, schedule.steps)).float()
        return seeded_noise(shape or trajectory(0).shape, edit.seed) if noise is None else noise

    x = torch.stack([start(edit, how) for edit, how in zip(edits, each, strict=True)])
    prompts = [edit.prompts(settings.reference) for edit in edits]
    scales = [edit.guidance_scale for edit in edits]
    steps = denoising_steps(each, schedule.steps, scales)
    if isinstance(model, VelocityModel):
        levels = [skippable(how, model.speed, schedule.steps) for how in each]
        model = with_step_cache(model, schedule, levels)
    return reconstruct(
        model,
        x,
        lambda level: trajectory(level).float(),
        [
            EditPrompts(
                named(p.positive.text),
                named(p.negative.text),
                named(p.reference_positive.text),
                named(p.reference_negative.text),
            )
            for p in prompts
        ],
        steps,
        schedule,
        empty=named(""),
        residual=settings.residual,
        blocks=settings.inject_blocks,
        share=settings.reference != "script",
        masks=masks,
        on_step=on_step,
    )
