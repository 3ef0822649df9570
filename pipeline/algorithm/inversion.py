"""Inversion: from a clean latent up the noise levels, keeping every latent on the way.

Each method is one short generator of the latents above the first. The model is a function
`v(x, timestep)` with the empty prompt; there is no guidance, since with the empty prompt on both
sides it would double the work and change nothing. State is float32 whatever the model's dtype:
16-bit state between the steps costs 10 dB once the method is good.

What tells the methods apart is how they solve the implicit equation of an exact DDIM step. Going
down from level t to level s turns the latent by d = angle(t) - angle(s):

    x_s = cos(d) x_t - sin(d) v(x_t, t)

so going up has to solve `x_t = x_s / cos(d) + tan(d) v(x_t, t)`, where v stands at the unknown x_t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.algorithm.branches import Velocity
from pipeline.algorithm.schedule import Level, Schedule, ScriptSchedule, move

SINGULAR_COSINE = 1e-3
"""Below this cos(d) the implicit equation no longer determines x_t (one step up to alpha 0)."""


def invert(
    velocity: Velocity,
    latents: Tensor,
    schedule: Schedule,
    *,
    method: str = "pec",
    iterations: int = 3,
    highest: int | None = None,
) -> Tensor:
    """Invert a clean latent.

    Args:
        latents: the clean latent [F, C, H, W].
        highest: the level to stop at; T by default. The other arguments are as for `climb`.

    Returns:
        The trajectory [highest + 1, F, C, H, W], float32: entry 0 is the clean latent.
    """
    top = latents.float()[None]
    above = climb(velocity, top, 0, schedule, method=method, iterations=iterations, highest=highest)
    return torch.stack([top[0], *above])


def climb(
    velocity: Velocity,
    top: Tensor,
    level: int,
    schedule: Schedule,
    *,
    method: str = "pec",
    iterations: int = 3,
    highest: int | None = None,
) -> Iterator[Tensor]:
    """The latents [F, C, H, W] above the highest one that is known, one after the other.

    Args:
        velocity: the model with the empty prompt, `(x [F, C, H, W], timestep) -> v [F, C, H, W]`.
        top: the highest entries that are known, [1 or 2, F, C, H, W], float32. From two of them
            `pec` starts with the velocities there, asked again since 16-bit latents do not hold
            them.
        level: the level of the last entry of `top`; 0 for a clean latent.
        schedule: the levels 0..T; a `ScriptSchedule` for the method `script`.
        method: `pec`, `ddim`, `fixed_point` or `script`.
        iterations: of `fixed_point`.
        highest: the level to stop at; T by default.

    Raises:
        ValueError: `highest` lies below `level` or above T.
    """
    highest = schedule.steps if highest is None else highest
    if not level <= highest <= schedule.steps:
        raise ValueError(f"the highest level must lie in {level}..{schedule.steps}, got {highest}")
    x = top[-1]
    levels = schedule.levels[level : highest + 1]
    if method == "pec":
        return pec(velocity, x, levels, _velocities(velocity, top, schedule, level, highest))
    if method == "fixed_point":
        return fixed_point(velocity, x, levels, iterations)
    if method == "ddim":
        return ddim(velocity, x, levels)
    if method != "script":
        raise ValueError(f"method is {method!r}; known are pec, ddim, fixed_point and script")
    if not isinstance(schedule, ScriptSchedule):
        raise TypeError("the method 'script' takes a ScriptSchedule: make it with script_schedule")
    return script(velocity, x, levels, schedule.climbs[level:highest], schedule.clip)


def pec(
    velocity: Velocity, x: Tensor, levels: Sequence[Level], known: Sequence[tuple[float, Tensor]]
) -> Iterator[Tensor]:
    """Predict, evaluate, correct: one evaluation a step, and one more to start.

    The velocity is extrapolated to the destination, linearly in the angle; there the network is
    asked once; its answer closes the implicit equation. This is the PEC mode of a linear multistep
    method (Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I", III.1).

    Args:
        known: (angle, velocity) at the levels up to `levels[0]`, oldest first; where there are none
            the first step is predicted with a `ddim` step.
    """
    past = list(known)
    for s, t in pairwise(levels):
        if past:
            predicted = _implicit(x, _extrapolate(past[-2:], t.angle), s, t)
        else:
            predicted = _same_noise(x, velocity(x, t.timestep), s, t)
        v = velocity(predicted, t.timestep)
        x = _implicit(x, v, s, t)
        past.append((t.angle, v))
        del past[:-2]
        yield x


def fixed_point(
    velocity: Velocity, x: Tensor, levels: Sequence[Level], iterations: int
) -> Iterator[Tensor]:
    """A `ddim` step, then iterations of the implicit equation (Pan et al., "AIDI", 2023)."""
    for s, t in pairwise(levels):
        guess = _same_noise(x, velocity(x, t.timestep), s, t)
        for _ in range(iterations):
            guess = _implicit(x, velocity(guess, t.timestep), s, t)
        x = guess
        yield x


def ddim(velocity: Velocity, x: Tensor, levels: Sequence[Level]) -> Iterator[Tensor]:
    """DDIM inversion (Song et al. 2021, section 4.3): the noise is the same at both levels.

    One evaluation a step, at (x_s, t). Its velocity is turned to noise with the alpha of t, the
    level that the network is asked at.
    """
    for s, t in pairwise(levels):
        x = _same_noise(x, velocity(x, t.timestep), s, t)
        yield x


def script(
    velocity: Velocity,
    x: Tensor,
    levels: Sequence[Level],
    climbs: Sequence[tuple[float, float]],
    clip: float | None = None,
) -> Iterator[Tensor]:
    """The public script: the velocity asked at t is read with the alpha of the level below.

    Source: zai-org/CogVideo `inference/ddim_inversion.py` under diffusers' `DDIMInverseScheduler`.
    """
    for (_, t), (source, target) in zip(pairwise(levels), climbs, strict=True):
        x = move(x, velocity(x, t.timestep), source, target, clip=clip)
        yield x


def _velocities(
    velocity: Velocity, top: Tensor, schedule: Schedule, level: int, highest: int
) -> list[tuple[float, Tensor]]:
    """(angle, velocity) at the known entries above level 0, oldest first."""
    if highest == level:
        return []
    first = level - len(top) + 1
    above = [(schedule.levels[first + i], x) for i, x in enumerate(top) if first + i > 0]
    return [(at.angle, velocity(x, at.timestep)) for at, x in above]


def _same_noise(x: Tensor, v: Tensor, s: Level, t: Level) -> Tensor:
    noise = math.sqrt(1 - t.alpha) * x + math.sqrt(t.alpha) * v
    signal = x - math.sqrt(1 - s.alpha) * noise
    return math.sqrt(t.alpha / s.alpha) * signal + math.sqrt(1 - t.alpha) * noise


def _implicit(x: Tensor, v: Tensor, s: Level, t: Level) -> Tensor:
    d = t.angle - s.angle
    if math.cos(d) < SINGULAR_COSINE:
        return _same_noise(x, v, s, t)
    return x / math.cos(d) + math.tan(d) * v


def _extrapolate(past: Sequence[tuple[float, Tensor]], angle: float) -> Tensor:
    (newest, v) = past[-1]
    if len(past) == 1:
        return v
    (older, v_older) = past[0]
    return v + (angle - newest) / (newest - older) * (v - v_older)
