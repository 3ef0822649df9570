"""The certificate of an inversion: numbers that say how faithful a trajectory is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cluster.ranks.editing import EditingProcess
from pipeline.media.decoding import Clip
from pipeline.quality import metrics
from pipeline.settings import Inversion
from pipeline.timing import Timer

ROUND_TRIP, VAE_PSNR = "round_trip_db", "vae_psnr_db"


def missing(inversion: Inversion, known: Mapping[str, float]) -> tuple[str, ...]:
    """The metrics that the settings ask for and that are not known yet."""
    asked = {VAE_PSNR: inversion.vae_psnr, ROUND_TRIP: inversion.round_trip}
    return tuple(name for name, wanted in asked.items() if wanted and name not in known)


def certify(
    process: EditingProcess,
    clip: Clip,
    clean: Tensor,
    top: Tensor,
    level: int,
    known: Mapping[str, float],
    timer: Timer,
) -> dict[str, float]:
    """The metrics of a trajectory, by name.

    Args:
        clean, top: its lowest and its highest entry, [F, C, H, W].
        level: of the highest entry; `noise_level` has it as a fraction of the levels, since only at
            1 is the noise meant to be standard normal.
        known: what holds of it still.
    """
    noise = metrics.noise_statistics(top)
    found = {
        **known,
        "noise_level": level / process.schedule.steps,
        "noise_mean": noise.mean,
        "noise_std": noise.std,
        "noise_kurtosis": noise.kurtosis,
    }
    wanted = missing(process.settings.inversion, known)
    if VAE_PSNR in wanted:
        with timer("decode"):
            decoded = process.codec.decode(clean, len(clip.frames)).clamp(0, 1)
        found[VAE_PSNR] = metrics.psnr_db(clip.frames / 255, decoded)
    if ROUND_TRIP in wanted:
        with timer("round_trip"):
            found[ROUND_TRIP] = _round_trip_db(process, clean, top, level)
    return found


def _round_trip_db(process: EditingProcess, clean: Tensor, x: Tensor, level: int) -> float:
    """Signal to error, in dB, of the clean latent that walking down from `x` comes back to."""
    process.know([""])
    velocity = process.model.velocity("")
    x = x.to(process.device)
    for at in range(level, 0, -1):
        timestep = process.schedule.levels[at].timestep
        x = process.schedule.descend(x, velocity(x, timestep), at)
    return metrics.signal_to_error_db(clean.to(x.device), x)
