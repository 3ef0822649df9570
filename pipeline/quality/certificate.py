"""The certificate of an inversion: numbers that say how faithful a trajectory is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from pipeline.algorithm.branches import Velocity
from pipeline.algorithm.schedule import Schedule
from pipeline.quality import metrics
from pipeline.records import Metrics
from pipeline.settings import Inversion

NOISE, ROUND_TRIP, VAE_PSNR = "noise_level", "round_trip_db", "vae_psnr_db"

REASONS = "reasons"
"""Beside the metrics of a certificate: by metric, why it is not there."""
TRIES = "tries"
"""Beside the metrics of a certificate: by metric that is not there, how often it was tried."""
MOST_TRIES = 3
"""A metric that failed so often for a trajectory is not tried again: it costs each run its time,
and perhaps its rank."""

Certificate = dict[str, Any]
"""Numbers by metric, and `REASONS` and `TRIES` where some could not be had."""


def missing(inversion: Inversion, known: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics that the settings ask for, that are not known yet, and that are worth a try."""
    asked = {NOISE: True, VAE_PSNR: inversion.vae_psnr, ROUND_TRIP: inversion.round_trip}
    tries = known.get(TRIES, {})
    return tuple(
        name
        for name, wanted in asked.items()
        if wanted and name not in known and tries.get(name, 0) < MOST_TRIES
    )


def still_true(known: Mapping[str, Any]) -> Certificate:
    """What holds of a trajectory that now goes higher: its clean latent's metrics."""
    return {VAE_PSNR: known[VAE_PSNR]} if VAE_PSNR in known else {}


def begun(known: Mapping[str, Any], names: Sequence[str]) -> Certificate:
    """The certificate before some metrics are measured, as it stays where that ends the process."""
    tries, reasons = dict(known.get(TRIES, {})), dict(known.get(REASONS, {}))
    for name in names:
        tries[name] = tries.get(name, 0) + 1
        reasons[name] = "the process ended while it was measured"
    return _with(known, tries, reasons)


def measured(
    known: Mapping[str, Any], name: str, outcome: Mapping[str, float] | str
) -> Certificate:
    """The certificate with a metric's numbers, or the reason why there are none."""
    tries, reasons = dict(known.get(TRIES, {})), dict(known.get(REASONS, {}))
    if isinstance(outcome, str):
        return _with(known, tries, {**reasons, name: outcome})
    tries.pop(name, None)
    reasons.pop(name, None)
    return _with({**known, **outcome}, tries, reasons)


def _with(
    known: Mapping[str, Any], tries: Mapping[str, int], reasons: Mapping[str, str]
) -> Certificate:
    numbers = {name: value for name, value in known.items() if name not in (TRIES, REASONS)}
    beside = {TRIES: dict(tries), REASONS: dict(reasons)}
    return numbers | {name: value for name, value in beside.items() if value}


def noise_metrics(top: Tensor, noise_level: float) -> dict[str, float]:
    """The metrics of a trajectory's highest entry [F, C, H, W].

    Args:
        noise_level: its level as a fraction of the levels, since only at 1 is the noise meant to
            be standard normal.
    """
    noise = metrics.noise_statistics(top)
    return {
        "noise_level": noise_level,
        "noise_mean": noise.mean,
        "noise_std": noise.std,
        "noise_kurtosis": noise.kurtosis,
    }


def vae_psnr_db(frames: Tensor, clean: Tensor, decode: Callable[[Tensor], Tensor]) -> float:
    """What the VAE alone keeps of a clip, PSNR in dB.

    Args:
        frames: uint8 [F, H, W, 3].
        clean: the clip's latent [F', C, h, w].
        decode: latents to frames [F, H, W, 3], 0 to 1.
    """
    return metrics.psnr_db(frames / 255, decode(clean).clamp(0, 1))


def round_trip_db(
    velocity: Velocity, schedule: Schedule, clean: Tensor, x: Tensor, level: int
) -> float:
    """Signal to error, in dB, of the clean latent that the way down from `x` comes back to.

    Args:
        velocity: the model with the empty prompt.
        clean, x: the trajectory's entries at level 0 and at `level`, [F, C, H, W].
    """
    return signal_to_error_db(clean, way_down(velocity, schedule, x, level))


def way_down(velocity: Velocity, schedule: Schedule, x: Tensor, level: int) -> Tensor:
    """The clean latent that denoising `x` [F, C, H, W] from `level` gives."""
    for at in range(level, 0, -1):
        x = schedule.descend(x, velocity(x, schedule.levels[at].timestep), at)
    return x


def signal_to_error_db(clean: Tensor, x: Tensor) -> float:
    """How well a latent [F, C, H, W] comes back, in dB."""
    return metrics.signal_to_error_db(clean.to(x.device), x)


def edit_metrics(frames: Tensor, source: Tensor) -> dict[str, Any]:
    """The metrics of an edit beside its source.

    Args:
        frames: of the edit as decoded, [F, H, W, 3]; values may lie outside of [0, 1].
        source: of its clip, [F, H, W, 3], 0 to 1.
    """
    clipped = metrics.clipped_fraction(frames)
    frames = frames.clamp(0, 1)
    return {
        "clipped_fraction": clipped,
        "flicker": metrics.flicker(frames),
        "flicker_source": metrics.flicker(source),
        "motion_agreement": metrics.motion_agreement(frames, source),
    }


def as_metrics(known: Mapping[str, Any]) -> Metrics:
    """A certificate as a record; a name that this version does not know is left out."""
    names = {field.name for field in fields(Metrics)}
    reasons = [f"{name}: {reason}" for name, reason in known.get(REASONS, {}).items()]
    numbers = {name: value for name, value in known.items() if name in names}
    return Metrics(**numbers, unmeasured="; ".join(reasons) or None)
