"""How many frames a clip may have: `FrameRule`, the counts that a CogVideoX checkpoint accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Compression(Protocol):
    """What a checkpoint says of frames (`pipeline.model.checkpoint.CheckpointInfo`)."""

    @property
    def temporal_compression(self) -> int: ...

    @property
    def latent_frames_multiple(self) -> int: ...


@dataclass(frozen=True)
class FrameRule:
    """Which frame counts a checkpoint accepts.

    The VAE makes one latent frame of the first pixel frame and one of each following
    `temporal_compression` frames, so a clip has 4k+1 frames. CogVideoX 1.5 also groups latent
    frames in twos (`patch_size_t`); its latents are padded to that by the model code, so the rule
    for pixel frames is the same for all checkpoints.

    Args:
        temporal_compression: pixel frames to one latent frame, as the VAE has it.
        latent_multiple: latent frames come in multiples of this, `patch_size_t`; 1 without.
        minimum: fewest pixel frames of a clip. Below two latent frames there is no motion to edit.
    """

    temporal_compression: int = 4
    latent_multiple: int = 1
    minimum: int = 5

    @classmethod
    def of(cls, info: Compression) -> FrameRule:
        """The rule of a checkpoint."""
        return cls(info.temporal_compression, info.latent_frames_multiple)

    def largest_at_most(self, available: int) -> int | None:
        """The largest accepted count of pixel frames that is at most `available`, if any."""
        count = (available - 1) // self.temporal_compression * self.temporal_compression + 1
        return count if count >= self.minimum else None

    def latent_frames(self, frames: int) -> int:
        """The latent frames that `frames` pixel frames become, with the padding of 1.5."""
        latent = (frames - 1) // self.temporal_compression + 1
        return -(-latent // self.latent_multiple) * self.latent_multiple


DEFAULT_RULE = FrameRule()
