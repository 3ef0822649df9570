"""The VAE: frames to latents and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Posterior = Literal["mode", "sample"]
TILE_ABOVE_PIXELS = 480 * 720
"""Larger frames are encoded and decoded in tiles: one frame's activations no longer fit beside the
weights on a 24 GB GPU. CogVideoX-2b and 5b at their native size stay whole."""


@dataclass
class Codec:
    """A CogVideoX VAE with the conventions of its pipeline.

    Args:
        vae: an `AutoencoderKLCogVideoX`.
        frames_multiple: latent frames are padded in front to a multiple of this (1.5 checkpoints
            patch two latent frames together).
        tiling: force tiling on or off; None tiles frames above `TILE_ABOVE_PIXELS`.
    """

    vae: Any
    frames_multiple: int = 1
    tiling: bool | None = None

    @torch.no_grad()
    def encode(self, frames: Tensor, posterior: Posterior = "mode", seed: int = 0) -> Tensor:
        """Frames, uint8 [F, H, W, 3], to latents, float32 [F', C, H / 8, W / 8].

        Args:
            posterior: its mode, or a draw from it that `seed` determines.
        """
        self._set_tiling(frames.shape[1] * frames.shape[2])
        weight = next(self.vae.parameters())
        video = frames.permute(3, 0, 1, 2)[None].to(weight.device).float() / 127.5 - 1.0
        distribution = self.vae.encode(video.to(weight.dtype)).latent_dist
        x = distribution.mode()
        if posterior == "sample":
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
            x = x + distribution.std * noise.to(x.device, x.dtype)
        x = x[0].transpose(0, 1).float() * self.vae.config.scaling_factor
        return pad_frames(x, self.frames_multiple)

    @torch.no_grad()
    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """Latents [F', C, h, w] to frames, float32 [F, H, W, 3]; 0 is black and 1 is white.

        Values outside of [0, 1] are kept for the caller to count and clip.

        Args:
            frames: how many frames the clip has; what `encode` padded in front is dropped.
        """
        ratio = self.vae.config.temporal_compression_ratio
        latents = latents[-((frames - 1) // ratio + 1) :]
        weight = next(self.vae.parameters())
        x = (latents / self.vae.config.scaling_factor).to(weight.device, weight.dtype)
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._set_tiling(latents.shape[2] * latents.shape[3] * scale * scale)
        video = self.vae.decode(x.transpose(0, 1)[None]).sample[0]
        # An even count of latents decodes to 4n frames instead of 4n - 3, the first one fourfold.
        return video[:, -frames:].float().permute(1, 2, 3, 0).cpu() / 2 + 0.5

    def _set_tiling(self, pixels: int) -> None:
        wanted = pixels > TILE_ABOVE_PIXELS if self.tiling is None else self.tiling
        if wanted:
            self.vae.enable_tiling()
        else:
            self.vae.disable_tiling()


def pad_frames(latents: Tensor, multiple: int) -> Tensor:
    """Repeat the first latent frame in front until the count [F, ...] is a multiple.

    Source: diffusers `CogVideoXImageToVideoPipeline.prepare_latents`, which pads 1.5 so.
    """
    missing = -latents.shape[0] % multiple
    return torch.cat([latents[:1]] * missing + [latents]) if missing else latents


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in [0, 1] to uint8, clipped; any shape."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8)
