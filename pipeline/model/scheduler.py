"""The noise levels of a checkpoint: diffusers' scheduler configuration to a `Schedule`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.algorithm.schedule import Level, Schedule, ScriptSchedule
from pipeline.errors import UnsupportedCheckpoint


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
    """The levels as the public script takes them; arguments and errors as above."""
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
