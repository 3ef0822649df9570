"""The certificate of an inversion: numbers that say how faithful a trajectory is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields

from torch import Tensor

from pipeline.algorithm.branches import Velocity
from pipeline.algorithm.schedule import Schedule
from pipeline.quality import metrics
from pipeline.records import Metrics
from pipeline.settings import Inversion

ROUND_TRIP, VAE_PSNR = "round_trip_db", "vae_psnr_db"


def missing(inversion: Inversion, known: Mapping[str, float]) -> tuple[str, ...]:
    """The metrics that the settings ask for and that are not known yet."""
    asked = {VAE_PSNR: inversion.vae_psnr, ROUND_TRIP: inversion.round_trip}
    return tuple(name for name, wanted in asked.items() if wanted and name not in known)


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
    for at in range(level, 0, -1):
        x = schedule.descend(x, velocity(x, schedule.levels[at].timestep), at)
    return metrics.signal_to_error_db(clean.to(x.device), x)


def edit_metrics(frames: Tensor, source: Tensor) -> dict[str, float]:
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


def as_metrics(known: Mapping[str, float]) -> Metrics:
    """Numbers by name as a record; a name that this version does not know is left out."""
    names = {field.name for field in fields(Metrics)}
    return Metrics(**{name: value for name, value in known.items() if name in names})
