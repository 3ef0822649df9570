"""The VAE: frames to latents and back, whole or in tiles, as the free memory allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from pipeline.errors import ErrorCode, RowError
from pipeline.model.footprint import vae_bytes
from pipeline.model.group import OneRank, TokenGroup
from pipeline.model.memory import (
    DeviceMemory,
    Memory,
    OutOfMemory,
    attempt,
    gigabytes,
    usable,
)
from pipeline.model.tiles import Tiles, allowed_tiles

T = TypeVar("T")
Posterior = Literal["mode", "sample"]


@dataclass
class Codec:
    """A CogVideoX VAE with the conventions of its pipeline.

    A frame goes through whole where that fits the free memory, else in the largest tiles that do.
    Tiles leave seams and cost up to 1.4 times the work. Where memory runs out all the same, smaller
    ones are tried, down to those of the VAE's own size.

    Args:
        vae: an `AutoencoderKLCogVideoX`.
        frames_multiple: latent frames are padded in front to a multiple of this (1.5 checkpoints
            patch two latent frames together).
        tiling: force the smallest tiles, or none; None decides by the free memory.
        memory: of the VAE's device, by default.
        group: the ranks that encode the same clips: they must hold the same latents, so they cut
            the frames alike.
    """

    vae: Any
    frames_multiple: int = 1
    tiling: bool | None = None
    memory: Memory | None = None
    group: TokenGroup = field(default_factory=OneRank)

    def __post_init__(self) -> None:
        vae = self.vae
        # Whoever makes tiles larger changes the VAE.
        self._own = (vae.tile_latent_min_height, vae.tile_latent_min_width)
        factors = vae.tile_overlap_factor_height, vae.tile_overlap_factor_width
        overlaps = (max(1, round(n * f)) for n, f in zip(self._own, factors, strict=True))
        self._overlap = next(overlaps), next(overlaps)
        self._too_large: dict[tuple[Any, ...], int] = {}

    @torch.no_grad()
    def encode(self, frames: Tensor, posterior: Posterior = "mode", seed: int = 0) -> Tensor:
        """Frames, uint8 [F, H, W, 3], to latents, float32 [F', C, H / 8, W / 8].

        All ranks of a group encode a clip together, each all of it.

        Args:
            posterior: its mode, or a draw from it that `seed` determines.

        Raises:
            RowError: the memory is too small for the smallest tiles; on all ranks of a group.
        """
        count, height, width = frames.shape[:3]

        def work() -> Tensor:
            weight = next(self.vae.parameters())
            video = frames.permute(3, 0, 1, 2)[None].to(weight.device).float()
            video = video.div_(127.5).sub_(1.0).to(weight.dtype)
            distribution = self.vae.encode(video).latent_dist
            x = distribution.mode()
            if posterior == "sample":
                noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
                x = x + distribution.std * noise.to(x.device, x.dtype)
            return x[0].transpose(0, 1).float() * self.vae.config.scaling_factor

        latents = self._as_it_fits(work, count, height, width, decode=False)
        return pad_frames(latents, self.frames_multiple)

    @torch.no_grad()
    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """Latents [F', C, h, w] to frames, float32 [F, H, W, 3]; 0 is black and 1 is white.

        Values outside of [0, 1] are kept for the caller to count and clip. The frames lie in host
        memory. One rank of a group may decode alone.

        Args:
            frames: how many frames the clip has; what `encode` padded in front is dropped.

        Raises:
            RowError: the memory is too small for the smallest tiles.
        """
        ratio = self.vae.config.temporal_compression_ratio
        latents = latents[-((frames - 1) // ratio + 1) :]

        def work() -> Tensor:
            weight = next(self.vae.parameters())
            x = (latents / self.vae.config.scaling_factor).to(weight.device, weight.dtype)
            video: Tensor = self.vae.decode(x.transpose(0, 1)[None]).sample[0]
            # An even count of latents decodes to 4n frames instead of 4n - 3, the first fourfold.
            return video[:, -frames:].cpu()

        height, width = (n * self._scale for n in latents.shape[2:])
        video = self._as_it_fits(work, frames, height, width, decode=True)
        return video.float().permute(1, 2, 3, 0).div_(2).add_(0.5)

    @property
    def _scale(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def _as_it_fits(
        self, work: Callable[[], T], frames: int, height: int, width: int, *, decode: bool
    ) -> T:
        """Do the work with the first of the possible tiles that fits.

        To encode, the ranks of a group agree before and after each try: where memory runs out on
        one of them all take the next tiles.
        """
        group = OneRank() if decode else self.group
        device = next(self.vae.parameters()).device
        memory = self.memory or DeviceMemory(device)
        plan = self._plan(height, width, decode)
        needed = [self._bytes(tiles, frames, height, width, decode) for tiles in plan]
        clip = (decode, frames, height, width)
        allowed = usable(memory, device)
        fits = next((i for i, size in enumerate(needed) if size <= allowed), len(plan) - 1)
        step = max(group.gather_objects(max(fits, self._too_large.get(clip, 0))))
        while True:
            set_tiles(self.vae, plan[step])
            made = attempt(work)
            if isinstance(made, OutOfMemory):
                memory.release()
            agreed = max(group.gather_objects(step + isinstance(made, OutOfMemory)))
            if agreed == step and not isinstance(made, OutOfMemory):
                return made
            if agreed == len(plan):
                what = f"{'decode' if decode else 'encode'} {frames} frames of {height}x{width}"
                raise _too_small(what, needed[-1], memory, made)
            self._too_large[clip] = step = agreed

    def _plan(self, height: int, width: int, decode: bool) -> list[Tiles | None]:
        """The ways to cut frames of so many pixels, each smaller than the one before."""
        frame = height // self._scale, width // self._scale
        own, overlap, config = self._own, self._overlap, self.vae.config
        return allowed_tiles(config, frame, own, overlap, decode=decode, tiling=self.tiling)

    def _bytes(
        self, tiles: Tiles | None, frames: int, height: int, width: int, decode: bool
    ) -> int:
        item = next(self.vae.parameters()).element_size()
        tile = None if tiles is None else tiles.pixels(self._scale)
        return vae_bytes(self.vae.config, frames, height, width, item, decode=decode, tile=tile)


def set_tiles(vae: Any, tiles: Tiles | None) -> None:
    """Have a VAE take frames whole (None) or in tiles."""
    if tiles is None:
        vae.disable_tiling()
        return
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    # The VAE multiplies tiles with these and truncates, in latents and in pixels: exact fractions
    # make the overlap whole latents in both, where floats of some tiles miss one.
    vae.enable_tiling(
        tiles.height * scale,
        tiles.width * scale,
        Fraction(tiles.overlap[0], tiles.height),
        Fraction(tiles.overlap[1], tiles.width),
    )


def _too_small(what: str, needed: int, memory: Memory, made: Any) -> RowError:
    found = f" ({made.message})" if isinstance(made, OutOfMemory) else " on another rank"
    return RowError(
        ErrorCode.OUT_OF_MEMORY,
        f"the VAE ran out of memory to {what}{found}: in its smallest tiles that takes about "
        f"{gigabytes(needed)}, and {gigabytes(memory.free())} are free. Make the clip smaller "
        "(video.height, video.width, video.frames), or take a device with more memory",
    )


def pad_frames(latents: Tensor, multiple: int) -> Tensor:
    """Repeat the first latent frame in front until the count [F, ...] is a multiple.

    Source: diffusers `CogVideoXImageToVideoPipeline.prepare_latents`, which pads 1.5 so.
    """
    missing = -latents.shape[0] % multiple
    return torch.cat([latents[:1]] * missing + [latents]) if missing else latents


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in [0, 1] to uint8, clipped; any shape."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8)
