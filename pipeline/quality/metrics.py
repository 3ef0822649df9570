"""Numbers for each edit that need no other model: the certificate that goes into its result row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseStatistics:
    """How near the trajectory's top is to standard normal noise (0, 1 and 0 for the real thing)."""

    mean: float
    std: float
    kurtosis: float


def noise_statistics(latents: Tensor) -> NoiseStatistics:
    """Mean, standard deviation and excess kurtosis of a latent of any shape."""
    x = latents.double().flatten()
    centred = x - x.mean()
    variance = centred.square().mean()
    kurtosis = centred.pow(4).mean() / variance.square().clamp_min(1e-30) - 3
    return NoiseStatistics(x.mean().item(), variance.sqrt().item(), kurtosis.item())


def signal_to_error_db(signal: Tensor, estimate: Tensor) -> float:
    """10 log10 of the signal's power over the error's, in dB; infinite where there is no error."""
    error = (signal.double() - estimate.double()).square().sum().item()
    power = signal.double().square().sum().item()
    return math.inf if error == 0 else 10 * math.log10(max(power, 1e-300) / error)


def psnr_db(frames: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio of frames in [0, 1] of the same shape, in dB."""
    error = (frames.double() - other.double()).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def clipped_fraction(frames: Tensor, margin: float = 0.02) -> float:
    """The fraction of values that a decoder put outside of [0, 1] by more than a margin."""
    return ((frames < -margin) | (frames > 1 + margin)).double().mean().item()


def flicker(frames: Tensor) -> float:
    """Mean absolute second difference in time of the luma, in [0, 1]: 0 for steady motion.

    Args:
        frames: [F, H, W, 3] in [0, 1]; 0.0 for fewer than three frames.
    """
    y = luma(frames)
    return (y[2:] - 2 * y[1:-1] + y[:-2]).abs().mean().item() if len(y) > 2 else 0.0


def motion_agreement(frames: Tensor, source: Tensor) -> float:
    """Whether an edit moves where its source moves: 1 for the same places, 0 for unrelated ones.

    The correlation of the two absolute differences between neighbouring frames, after a blur that
    forgives a pixel of drift. 1.0 where neither moves (a single frame never does), 0.0 where only
    one does.

    Args:
        frames, source: [F, H, W, 3] in [0, 1], the same shape.
    """
    if len(frames) < 2:
        return 1.0
    a, b = (blur(luma(x).diff(dim=0).abs()).flatten().double() for x in (frames, source))
    a, b = a - a.mean(), b - b.mean()
    scale = (a.square().mean() * b.square().mean()).sqrt().item()
    if scale < 1e-12:
        return 1.0 if max(a.abs().max().item(), b.abs().max().item()) < 1e-6 else 0.0
    return (a * b).mean().item() / scale


def luma(frames: Tensor) -> Tensor:
    """Rec. 709 luma [F, H, W] of frames [F, H, W, 3]."""
    return frames.float() @ torch.tensor([0.2126, 0.7152, 0.0722])


def blur(x: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(x[:, None], 5, stride=1, padding=2)[:, 0]
