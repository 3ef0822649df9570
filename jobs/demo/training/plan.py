"""Sizes, numbers of steps and learning rates: all that the recipe chooses, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class VaePlan:
    """The video VAE: 4x smaller in space and in time, `latent_channels` channels.

    The first `crop_share` of the steps sees crops around objects, where there is something to
    learn, and the rest sees whole frames, whose statistics group normalisation depends on.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    groups: int = 8
    latent_channels: int = 16
    steps: int = 1500
    crop_share: float = 0.5
    crop_px: int = 32
    crop_batch: int = 14
    batch: int = 4
    learning_rate: float = 2e-3
    decoder_steps: int = 800
    decoder_learning_rate: float = 1e-3
    noise: float = 0.3


@dataclass(frozen=True)
class TransformerPlan:
    """The transformer with its T5 encoder, and the two stages that train them."""

    layers: int = 6
    heads: int = 4
    head_width: int = 32
    time_width: int = 128
    text_width: int = 64
    text_layers: int = 2
    text_tokens: int = 20
    pool_scenes: int = 3600
    pool_looks: int = 3
    steps: int = 2000
    batch: int = 32
    learning_rate: float = 1.5e-3
    muon_rate: float = 5e-3
    compile: bool = False
    inverted_scenes: int = 1200
    inverted_share: float = 0.6
    reference_steps: int = 6000
    reference_batch: int = 12
    reference_learning_rate: float = 1e-3
    reference_muon_rate: float = 4e-3
    latent_noise: float = 0.25


@dataclass(frozen=True)
class Plan:
    """The whole recipe. `minutes` is what it takes on two free CPU cores with bfloat16, as added up
    from the time of a step of each stage."""

    vae: VaePlan = field(default_factory=VaePlan)
    transformer: TransformerPlan = field(default_factory=TransformerPlan)
    minutes: float = 91.0

    def scaled(self, minutes: float) -> Plan:
        """The same recipe with every number of steps scaled to take about `minutes`."""
        share = minutes / self.minutes

        def steps(count: int) -> int:
            return max(2, math.ceil(count * share))

        return Plan(
            vae=replace(
                self.vae,
                steps=steps(self.vae.steps),
                decoder_steps=steps(self.vae.decoder_steps),
            ),
            transformer=replace(
                self.transformer,
                pool_scenes=max(8, steps(self.transformer.pool_scenes)),
                inverted_scenes=max(4, steps(self.transformer.inverted_scenes)),
                steps=steps(self.transformer.steps),
                reference_steps=steps(self.transformer.reference_steps),
            ),
            minutes=minutes,
        )
