"""Noise levels, and the one function that moves a latent between two of them.

A level is a point of the forward process x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps. Level 0
is the clean latent and level T the noise. Inversion climbs the levels and reconstruction descends
the same ones, so they agree whatever the number of steps. The alphas are the forward scheduler's
own, `snr_shift_scale` and zero terminal SNR included, so every CogVideoX checkpoint meets the
levels that it was trained on.

With cos(phi) = sqrt(alpha), moving along a velocity prediction is a rotation by the difference of
the angles (Salimans & Ho, "Progressive Distillation for Fast Sampling", 2022, appendix D). Nothing
here divides by sqrt(alpha), which is zero at the last level of these models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One noise level.

    Args:
        timestep: the training timestep; -1 at level 0, where the transformer is never asked.
        alpha: the cumulative product of the forward process, in [0, 1].
    """

    timestep: int
    alpha: float

    @property
    def angle(self) -> float:
        """phi in radians: cos(phi) = sqrt(alpha) is the signal, sin(phi) the noise."""
        return math.acos(math.sqrt(self.alpha))


@dataclass(frozen=True)
class Schedule:
    """The levels 0..T that inversion and reconstruction share."""

    levels: tuple[Level, ...]

    @property
    def steps(self) -> int:
        """T: the number of steps between level 0 and the highest level."""
        return len(self.levels) - 1

    def level_at(self, fraction: float, name: str = "start") -> int:
        """The index of the level at a fraction of the levels; at least 1 for a fraction above 0."""
        return level_at(fraction, self.steps, name)

    def descend(self, x: Tensor, v: Tensor, level: int) -> Tensor:
        """The DDIM step from `level` to the one below it. `x` and `v` have the same shape."""
        return move(x, v, self.levels[level].alpha, self.levels[level - 1].alpha)

    def clean(self, x: Tensor, v: Tensor, level: int) -> Tensor:
        """The clean latent that a velocity at `level` points to. `x`, `v` have the same shape."""
        alpha = self.levels[level].alpha
        return math.sqrt(alpha) * x - math.sqrt(1 - alpha) * v

    def along(self, x: Tensor, reached: Tensor, level: int) -> Tensor:
        """The velocity that leads `x` at `level` to `reached` at the level below, same shapes."""
        return velocity_between(x, reached, self.levels[level].alpha, self.levels[level - 1].alpha)


@dataclass(frozen=True)
class ScriptSchedule(Schedule):
    """The levels as the public script takes them, its slips included.

    zai-org/CogVideo `inference/ddim_inversion.py` inverts under diffusers' `DDIMInverseScheduler`,
    which knows nothing of `snr_shift_scale`, and both of its schedulers step by 1000 // T training
    timesteps, which is not the distance between the levels where T does not divide 1000.

    Args:
        climbs: for each step up, (the alpha that the velocity is read with, the alpha reached).
        landings: for each step down from level i + 1, the alpha that it aims at.
        clip: the range that the steps up clip the signal to, where the configuration asks for it.
    """

    climbs: tuple[tuple[float, float], ...] = ()
    landings: tuple[float, ...] = ()
    clip: float | None = None

    def descend(self, x: Tensor, v: Tensor, level: int) -> Tensor:
        return move(x, v, self.levels[level].alpha, self.landings[level - 1])

    def along(self, x: Tensor, reached: Tensor, level: int) -> Tensor:
        return velocity_between(x, reached, self.levels[level].alpha, self.landings[level - 1])


@dataclass(frozen=True)
class DenoisingStep:
    """One step, from `level` to the level below it, of edits that may start at different levels.

    Args:
        scales: the guidance scale of each edit; 1 and below turn guidance off, and the forward of
            the negative prompt with it. None for an edit that starts further down, and waits.
        injects: whether each edit attends to the reference.
    """

    level: int
    scales: tuple[float | None, ...]
    injects: tuple[bool, ...]

    @property
    def moving(self) -> list[int]:
        """The numbers of the edits that take the step."""
        return [number for number, scale in enumerate(self.scales) if scale is not None]

    @property
    def inject(self) -> bool:
        """Whether an edit attends to the reference."""
        return any(self.injects)


def level_at(fraction: float, steps: int, name: str = "start") -> int:
    """The index of the level at a fraction of the levels; at least 1 for a fraction above 0.

    Args:
        steps: T, the levels above the clean latent.
        name: of the fraction, for the message where it is none.

    Raises:
        ValueError: it is not from 0 to 1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"{name} is {fraction}; expected a fraction of the levels, from 0 to 1")
    return max(1, round(fraction * steps)) if fraction > 0 else 0


def move(
    x: Tensor, v: Tensor, source: float, target: float, *, clip: float | None = None
) -> Tensor:
    """One DDIM step: carry a latent from alpha `source` to alpha `target` along a velocity.

    The velocity splits the latent into the signal and the noise that it holds (Song et al.,
    "Denoising Diffusion Implicit Models", 2021, eq. 12, in the v parametrisation), which are then
    mixed again in the target's proportion. Finite for every alpha in [0, 1].

    Args:
        x: latents, any shape, float32.
        v: the velocity at `x`, the same shape.
        clip: clip the signal to [-clip, clip] and leave the noise, as diffusers' schedulers do.
    """
    signal = math.sqrt(source) * x - math.sqrt(1 - source) * v
    noise = math.sqrt(1 - source) * x + math.sqrt(source) * v
    if clip is not None:
        signal = signal.clamp(-clip, clip)
    return math.sqrt(target) * signal + math.sqrt(1 - target) * noise


def velocity_between(x: Tensor, reached: Tensor, source: float, target: float) -> Tensor:
    """The velocity with which `move` carries `x` at alpha `source` to `reached` at alpha `target`.

    What is wrong with the two latents is divided by the angle between the levels, which is small
    where there are many.
    """
    still = math.sqrt(target * source) + math.sqrt((1 - target) * (1 - source))
    turn = math.sqrt((1 - target) * source) - math.sqrt(target * (1 - source))
    return (reached - still * x) / turn
