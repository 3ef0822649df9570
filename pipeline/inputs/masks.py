"""Masks that a caller gives, and how they become those that the algorithm works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.algorithm.masks import AutoMask, GivenMask, Mask, in_pixels, pooled, softened
from pipeline.inputs import as_frames, is_location, read_video
from pipeline.media.decoding import Clip
from pipeline.media.masks import check, reading_a_mask, white
from pipeline.model.checkpoint import CheckpointInfo
from pipeline.plan import EditPlan, auto_mask_levels
from pipeline.records import EditSpec
from pipeline.settings import Limits, Reconstruction, VideoSettings
from pipeline.trajectories.trajectory import Trajectory

EditMask = Tensor | Literal["auto"] | None
"""Of one edit: bool [F, H, W], True where it may change its source; or found on the way; or none.
"""

OneMask = str | Path | Tensor | np.ndarray | None
MaskGiven = OneMask | Sequence[OneMask]
"""What `Editor.reconstruct` takes: one for all edits, or one for each."""


def masks_of(
    given: MaskGiven,
    edits: Sequence[EditSpec],
    settings: Reconstruction,
    info: CheckpointInfo,
    trajectory: Trajectory,
) -> list[EditMask]:
    """The mask of each edit: the given one, else its own, else that of the settings.

    Raises:
        ValueError: it has another size than the clip, or there is not one for each edit.
        RowError: BAD_MASK.
    """
    several = list(given) if isinstance(given, list | tuple) else [given] * len(edits)
    if len(several) != len(edits):
        raise ValueError(
            f"there are {len(several)} masks for {len(edits)} prompts; give one for each (None for "
            "an edit without), or one that is no list for all"
        )
    chosen = [
        own if own is not None else edit.mask or settings.mask
        for own, edit in zip(several, edits, strict=True)
    ]
    known: dict[str, EditMask] = {}  # a file is read once
    masks: list[EditMask] = []
    for one in chosen:
        if not is_location(one):
            masks.append(_as_mask(one, info, trajectory))
            continue
        if str(one) not in known:
            known[str(one)] = _named_mask(str(one), settings, info, trajectory)
        masks.append(known[str(one)])
    return masks


def _mask_of_plan(one: EditPlan, given: EditMask) -> EditMask:
    if one.mask is not None:
        return "auto" if one.mask == "auto" else None
    # Of one that starts from noise none can be found.
    blind = one.settings.start == "noise"
    return None if isinstance(given, str) and one.number and blind else given


def _named_mask(
    name: str, settings: Reconstruction, info: CheckpointInfo, trajectory: Trajectory
) -> EditMask:
    """The mask of a name: `none`, `auto`, or a location."""
    if name == "none":
        return None
    if name == "auto":
        settings.check_auto_mask()
        return "auto"
    frames, height, width = _size(info, trajectory)
    how = VideoSettings(height=height, width=width, frames=frames)
    clip = Clip(torch.empty(frames, 0), trajectory.fps, trajectory.fps, None, height, width)
    return read_mask(name, clip, how, info)


def _as_mask(given: Any, info: CheckpointInfo, trajectory: Trajectory) -> Tensor:
    """A mask from an array or a tensor, [F, H, W] or [H, W]: its upper values are white."""
    size = _size(info, trajectory)
    mask = torch.as_tensor(np.array(given) if isinstance(given, np.ndarray) else given)
    if mask.shape not in (size, size[1:]):
        raise ValueError(
            f"the mask is {list(mask.shape)}; expected the clip's {list(size)}, or "
            f"{list(size[1:])} for all of its frames"
        )
    # A mask of 0 and 1 may come as bytes, too.
    middle = 127.5 if mask.dtype == torch.uint8 and mask.max() > 1 else 0.5
    found = (mask.cpu() > middle).expand(size)
    return check(found, size[0], f"of {str(mask.dtype).removeprefix('torch.')}")


def _size(info: CheckpointInfo, trajectory: Trajectory) -> tuple[int, int, int]:
    """Frames, height and width of a trajectory's clip."""
    height, width = (n * info.spatial_compression for n in trajectory.latents.shape[-2:])
    return trajectory.frames, height, width


def read_mask(
    location: str,
    clip: Clip,
    settings: VideoSettings,
    info: CheckpointInfo,
    *,
    start_frame: int = 0,
    fps: float | None = None,
    limits: Limits | None = None,
    on_read: Callable[[], None] = lambda: None,
) -> Tensor:
    """A mask from a video or an image, bool [F, H, W], True where it is white.

    Args:
        location: a path or any fsspec URI.
        clip: that it belongs to; read with the same `settings`, `start_frame` and `fps`.
        limits, on_read: as of `read_video`.

    Raises:
        RowError: BAD_MASK, or what is wrong with the storage.
    """
    with reading_a_mask():
        mask = read_video(
            location,
            settings,
            info,
            start_frame=start_frame,
            num_frames=len(clip.frames),
            fps=fps,
            limits=limits,
            stills=True,
            on_read=on_read,
        )
    return white(mask, clip, location)


@dataclass(frozen=True)
class Masks:
    """The masks of edits that are made together.

    Args:
        given: K of them.
        settings: that each edit is made with.
        info: says how the VAE makes latents of pixels.
        frames: of the clip.
    """

    given: Sequence[EditMask]
    settings: Sequence[Reconstruction]
    info: CheckpointInfo
    frames: int
    _known: dict[tuple[int, int, int], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        plans: Sequence[EditPlan],
        given: Sequence[EditMask],
        info: CheckpointInfo,
        frames: int,
    ) -> Masks:
        """The masks of what is made of edits: that of the edit, or of a candidate its own.

        Args:
            given: one for each edit, or none at all.
        """
        each = [_mask_of_plan(one, given[one.source] if given else None) for one in plans]
        return cls(each, [one.settings for one in plans], info, frames)

    def latent(self, steps: int, device: torch.device) -> list[Mask | None]:
        """As `reconstruct` takes them.

        Args:
            steps: T, the steps of the whole schedule.
        """
        return [
            self._latent(one, how, steps, device)
            for one, how in zip(self.given, self.settings, strict=True)
        ]

    def _latent(
        self, given: EditMask, settings: Reconstruction, steps: int, device: torch.device
    ) -> Mask | None:
        if given is None:
            return None
        if isinstance(given, str):
            settings.check_auto_mask()
            return AutoMask(auto_mask_levels(settings, steps))
        info = self.info
        kept = pooled(
            self._soft(given, settings),
            space=info.spatial_compression,
            time=info.temporal_compression,
            multiple=info.latent_frames_multiple,
        )
        return GivenMask(kept.to(device))

    def used(self, masks: Sequence[Mask | None]) -> tuple[Tensor | None, ...]:
        """The masks in pixels, [F, H, W] float32 on the CPU, after the edits were made."""
        return tuple(map(self._used, self.given, self.settings, masks))

    def _used(self, given: EditMask, settings: Reconstruction, mask: Mask | None) -> Tensor | None:
        if isinstance(given, Tensor):
            return self._soft(given, settings)
        found = mask.weights() if mask else None
        if found is None:
            return None
        info = self.info
        space, time = info.spatial_compression, info.temporal_compression
        return in_pixels(found.cpu(), self.frames, space=space, time=time)

    def _soft(self, mask: Tensor, settings: Reconstruction) -> Tensor:
        """A given mask with its edge: once for all edits that have it, since it takes seconds of a
        large clip, and as much memory as the clip."""
        how = settings.mask_grow, settings.mask_feather
        key = id(mask), *how
        if key not in self._known:
            self._known[key] = softened(mask.cpu(), grow=how[0], feather=how[1])
        return self._known[key]


def source_frames(
    source: Clip | Tensor | np.ndarray | None,
    settings: Reconstruction,
    info: CheckpointInfo,
    trajectory: Trajectory,
    output_type: str,
) -> Tensor | None:
    """The source's frames, uint8 [F, H, W, 3], where edits are composed with them.

    Raises:
        ValueError: they are needed and not given, or not those of the trajectory.
    """
    if not settings.composite:
        return None
    if output_type == "latent":
        raise ValueError("composite puts pixels together, and output_type is latent; take uint8")
    if source is None:
        raise ValueError("composite needs the source's frames; give source=clip, as `read` gave it")
    frames = as_frames(source)
    size = (*_size(info, trajectory), 3)
    if frames.dtype != torch.uint8 or frames.shape != size:
        raise ValueError(
            f"the source's frames are {str(frames.dtype).removeprefix('torch.')} "
            f"{list(frames.shape)}; expected those that were inverted, uint8 {list(size)}"
        )
    return frames
