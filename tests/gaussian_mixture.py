"""A diffusion model whose velocity is known exactly: data drawn from a mixture of Gaussians.

With it an inversion can be judged without a trained network: what is left of the round trip is the
error of the method alone. For data x_0 ~ sum_k N(mu_k, std^2) / n, the noisy latent's posterior is
a mixture as well, so E[x_0 | x_t], and with it the velocity, has a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch


class GaussianMixture:
    """The velocity model, for latents [points, 1, 1, WIDTH]: every point is a latent of its own.

    Args:
        config: of a CogVideoX scheduler; the noise levels are read from it.
        std: of each component; the means are standard normal.
    """

    WIDTH = 64
    COMPONENTS = 3

    def __init__(self, config: Mapping[str, Any], *, std: float, seed: int = 0) -> None:
        from diffusers import CogVideoXDDIMScheduler

        self.alphas = CogVideoXDDIMScheduler.from_config(dict(config)).alphas_cumprod.double()
        self.std = std
        self.draw = torch.Generator().manual_seed(seed)
        shape = (self.COMPONENTS, self.WIDTH)
        self.means = torch.randn(shape, generator=self.draw, dtype=torch.float64)
        self.evaluations = 0

    def points(self, count: int) -> Tensor:
        """Data, [count, 1, 1, WIDTH], float32."""
        which = torch.randint(0, self.COMPONENTS, (count,), generator=self.draw)
        noise = torch.randn(count, self.WIDTH, generator=self.draw, dtype=torch.float64)
        return (self.means[which] + self.std * noise).float()[:, None, None]

    def velocity(self, x: Tensor, timestep: int) -> Tensor:
        """The exact velocity at a training timestep; counts its calls."""
        self.evaluations += 1
        alpha = self.alphas[timestep].item()
        points = x.double().flatten(1)
        variance = alpha * self.std**2 + 1 - alpha
        away = points[:, None] - math.sqrt(alpha) * self.means
        weights = (-away.square().sum(-1) / (2 * variance)).softmax(-1)
        clean = self.means + math.sqrt(alpha) * self.std**2 / variance * away
        clean = (weights[..., None] * clean).sum(1)
        noise = (points - math.sqrt(alpha) * clean) / math.sqrt(1 - alpha)
        v = math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean
        return v.reshape(x.shape).to(x.dtype)


class MixtureModel:
    """A mixture in the place of a transformer; prompts and references change nothing."""

    device = torch.device("cpu")

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture

    def predict(
        self,
        branches: Sequence[Branch],
        timestep: int,
        reference: Tensor | None = None,
        *,
        blocks: tuple[int, int] | None = None,
        share: bool = True,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        velocities = [self.mixture.velocity(b.latents, timestep) for b in branches]
        if reference is None:
            return velocities, {}
        return velocities, {"": self.mixture.velocity(reference, timestep)}
