"""What the videos of a dataset compute: forwards and FLOPs, counted without torch.

The forwards are those of `cluster/layout/work.py`, the FLOPs of `pipeline/model/footprint.py`.
Reading, writing and measuring take no FLOPs that are counted: they go on beside the model, on CPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from cluster.estimate.dataset import Dataset, VideoGroup
from cluster.layout.work import inversion_forwards, reconstruction_forwards
from pipeline.media.counts import FrameRule
from pipeline.model.checkpoint import CheckpointInfo
from pipeline.model.footprint import forward_flops, vae_flops
from pipeline.model.sizes import ClipSize, clip_size
from pipeline.records import Forwards
from pipeline.settings import EditingSettings


@dataclass(frozen=True)
class ClipFlops:
    """FLOPs of one clip: of a branch's forward, and of the VAE with the frame whole."""

    plain: int
    injected: int
    encode: int
    decode: int

    @classmethod
    def of(cls, info: CheckpointInfo, size: ClipSize, blocks: tuple[int, int] | None) -> ClipFlops:
        """The FLOPs of a clip.

        Args:
            blocks: first <= i < last, with reference attention; None for all.
        """
        clip = size.frames, size.height, size.width
        return cls(
            plain=forward_flops(info, *clip),
            injected=forward_flops(info, *clip, injected=True, blocks=blocks),
            encode=vae_flops(info, *clip, decode=False),
            decode=vae_flops(info, *clip, decode=True),
        )


@dataclass(frozen=True)
class Unit:
    """Edits of one video that are made in lockstep, and all their forwards."""

    edits: int
    forwards: Forwards


@dataclass(frozen=True)
class VideoWork:
    """What each of some equal videos takes.

    Args:
        videos: how many.
        clip: of each, as the model sees it.
        flops: of its clip.
        inversion: plain forwards of its inversion; 0 where its trajectory is there.
        encodes, decodes: passes of the VAE beside those of the edits.
        units: its edits, K at a time.
        tries: how often each edit is made and decoded.
    """

    videos: int
    clip: ClipSize
    flops: ClipFlops
    inversion: int
    encodes: int
    decodes: int
    units: tuple[Unit, ...]
    tries: int = 1

    @property
    def edits(self) -> int:
        """Of one video."""
        return sum(unit.edits for unit in self.units)

    @property
    def plain(self) -> float:
        """Plain forwards of one video."""
        return self.inversion + sum(unit.forwards.plain for unit in self.units)

    @property
    def injected(self) -> float:
        """Forwards with reference attention of one video."""
        return sum(unit.forwards.injected for unit in self.units)

    @property
    def vae(self) -> int:
        """FLOPs of the VAE for one video."""
        decodes = self.decodes + self.tries * self.edits
        return self.encodes * self.flops.encode + decodes * self.flops.decode

    @property
    def total(self) -> int:
        """FLOPs of one video."""
        forwards = self.plain * self.flops.plain + self.injected * self.flops.injected
        return int(forwards) + self.vae


@dataclass(frozen=True)
class DatasetWork:
    """What a dataset takes.

    Args:
        videos: those that can be edited, by equal ones.
        clip: the largest clip.
        too_short: videos with too few frames: their edits fail, and cost nothing.
    """

    videos: tuple[VideoWork, ...]
    clip: ClipSize
    too_short: int

    def summed(self, of: Callable[[VideoWork], float]) -> float:
        """A number of each video, over all videos."""
        return sum(one.videos * of(one) for one in self.videos)

    @property
    def count(self) -> int:
        """Videos that can be edited."""
        return sum(one.videos for one in self.videos)

    @property
    def edits(self) -> int:
        """Edits that can be made."""
        return sum(one.videos * one.edits for one in self.videos)


def dataset_work(settings: EditingSettings, info: CheckpointInfo, dataset: Dataset) -> DatasetWork:
    """The work of a dataset.

    Raises:
        ValueError: the checkpoint cannot take clips of the size that the settings ask for.
    """
    size = clip_size(settings.video, info)
    rule = FrameRule.of(info)
    blocks = settings.reconstruction.inject_blocks

    @cache
    def flops(frames: int) -> ClipFlops:
        return ClipFlops.of(info, replace(size, frames=frames), blocks)

    alike: Counter[VideoGroup] = Counter()  # videos that are cut to the same length
    too_short = 0
    for group in dataset.groups:
        given = size.frames if group.frames is None else min(group.frames, size.frames)
        frames = rule.largest_at_most(given)
        if frames is None:
            too_short += group.videos
        else:
            alike[replace(group, frames=frames, videos=1)] += group.videos
    found = []
    for one, videos in alike.items():
        clip = replace(size, frames=one.frames or size.frames)
        found.append(_video_work(settings, replace(one, videos=videos), clip, flops(clip.frames)))
    longest = max((one.clip.frames for one in found), default=size.frames)
    return DatasetWork(tuple(found), replace(size, frames=longest), too_short)


def _video_work(
    settings: EditingSettings, group: VideoGroup, clip: ClipSize, flops: ClipFlops
) -> VideoWork:
    if group.guidance_scale is not None:
        how = replace(settings.reconstruction, guidance_scale=group.guidance_scale)
        settings = replace(settings, reconstruction=how)
    how = settings.reconstruction
    whole, rest = divmod(group.edits, how.edits_a_unit)
    sizes = [how.edits_a_unit] * whole + [rest] * bool(rest)
    units = {n: Unit(n, reconstruction_forwards(settings, n)) for n in set(sizes)}
    new = not group.inverted
    return VideoWork(
        videos=group.videos,
        clip=clip,
        flops=flops,
        inversion=inversion_forwards(settings) if new else 0,
        encodes=int(new),
        decodes=int(new and settings.inversion.vae_psnr),
        units=tuple(units[n] for n in sizes),
        tries=how.tries,
    )
