"""Noise levels, and the one function that moves a latent between two of them.

A level is a point of the forward process x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps. Level 0
is the clean latent and level T the noise. Inversion climbs the levels and reconstruction descends
the same ones, so they agree whatever the number of steps. The alphas are the forward scheduler's
own, `snr_shift_scale` and zero terminal SNR included, so every CogVideoX checkpoint walks the
levels that it was trained on.

With cos(phi) = sqrt(alpha), moving along a velocity prediction is a rotation by the difference of
the angles (Salimans & Ho, "Progressive Distillation for Fast Sampling", 2022, appendix D). Nothing
here divides by sqrt(alpha), which is zero at the last level of these models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.errors import UnsupportedCheckpoint

Velocity = Callable[[Tensor, int], Tensor]
"""A model as inversion sees it: (latents [F, C, H, W], timestep) -> velocity [F, C, H, W]."""


@dataclass(frozen=True)
class Level:
    """One noise level.

    Args:
        timestep: what the transformer is told; -1 at level 0, where it is never asked.
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

    def level_at(self, fraction: float) -> int:
        """The index of the level at a fraction of the levels; at least 1 for a fraction above 0."""
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"a level's fraction must lie between 0 and 1, got {fraction}")
        return max(1, round(fraction * self.steps)) if fraction > 0 else 0

    def descend(self, x: Tensor, v: Tensor, level: int) -> Tensor:
        """The DDIM step from `level` to the one below it. `x` and `v` have the same shape."""
        return move(x, v, self.levels[level].alpha, self.levels[level - 1].alpha)


@dataclass(frozen=True)
class ScriptSchedule(Schedule):
    """The levels as the public script walks them, its slips included.

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


def schedule_from_config(config: Mapping[str, Any], steps: int) -> Schedule:
    """The levels of a checkpoint's scheduler for a number of steps.

    Args:
        config: a `scheduler_config.json`, of the DDIM or of the DPM scheduler: both hold the same
            alphas, and DDIM is what inverts.
        steps: T, at least 1 and at most the number of training timesteps.

    Raises:
        UnsupportedCheckpoint: if the model does not predict velocities.
        ValueError: if `steps` is out of range.
    """
    scheduler = _forward_scheduler(config, steps)
    alphas = scheduler.alphas_cumprod.double()
    levels = [Level(-1, _unit(scheduler.final_alpha_cumprod))]
    for timestep in _upwards(scheduler):
        levels.append(Level(timestep, _unit(alphas[timestep])))
    return Schedule(tuple(levels))


def script_schedule(config: Mapping[str, Any], steps: int) -> ScriptSchedule:
    """The levels as the public script walks them; arguments and errors as above."""
    from diffusers import DDIMInverseScheduler

    forward = _forward_scheduler(config, steps)
    inverse = DDIMInverseScheduler(**forward.config)
    stride = forward.config["num_train_timesteps"] // steps
    climbs = []
    for timestep in _upwards(forward):
        below = timestep - stride
        source = inverse.alphas_cumprod[below] if below >= 0 else inverse.initial_alpha_cumprod
        climbs.append((_unit(source), _unit(inverse.alphas_cumprod[timestep])))
    landings = []
    for timestep in _upwards(forward):
        below = timestep - stride
        aim = forward.alphas_cumprod[below] if below >= 0 else forward.final_alpha_cumprod
        landings.append(_unit(aim))
    levels = schedule_from_config(config, steps).levels
    clip = float(inverse.config["clip_sample_range"]) if inverse.config["clip_sample"] else None
    return ScriptSchedule(levels, climbs=tuple(climbs), landings=tuple(landings), clip=clip)


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


def _forward_scheduler(config: Mapping[str, Any], steps: int) -> Any:
    from diffusers import CogVideoXDDIMScheduler

    kind = config.get("prediction_type", "epsilon")
    if kind != "v_prediction":
        raise UnsupportedCheckpoint(
            f"the checkpoint's scheduler has prediction_type {kind!r}; CogVideoX models predict "
            "'v_prediction'. Check scheduler/scheduler_config.json."
        )
    scheduler = CogVideoXDDIMScheduler.from_config(
        {key: value for key, value in config.items() if not key.startswith("_")}
    )
    trained = int(scheduler.config["num_train_timesteps"])
    if not 1 <= steps <= trained:
        raise ValueError(f"steps must lie between 1 and {trained}, got {steps}")
    scheduler.set_timesteps(steps)
    return scheduler


def _upwards(scheduler: Any) -> list[int]:
    """The scheduler's timesteps from the cleanest up.

    Rounding gives the spacing `trailing` one timestep too many, -1, for 62 numbers of steps (61,
    103, 121, ...): diffusers would then read the noisiest alpha for the cleanest level.
    """
    return [timestep for timestep in scheduler.timesteps.flip(0).tolist() if timestep >= 0]


def _unit(alpha: Any) -> float:
    return min(1.0, max(0.0, float(alpha)))
