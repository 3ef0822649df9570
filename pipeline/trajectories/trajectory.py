"""A trajectory, wherever its latents lie: in memory, in a folder, or in a job's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pipeline.algorithm.schedule import Level, Schedule
from pipeline.storage import Folder
from pipeline.trajectories.index import TrajectoryIndex, commit, read_index
from pipeline.trajectories.reader import TrajectoryReader
from pipeline.trajectories.writer import Dtype, ShardWriter


class Entries(Protocol):
    """The latents of the levels 0, 1, ...: a tensor [L + 1, F, C, H, W], or a reader of shards."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, level: int, /) -> Tensor: ...


@dataclass(frozen=True)
class Trajectory:
    """An inverted video.

    Args:
        latents: entry 0 is the clean latent [F, C, H, W], float32, and the last entry the highest
            level that was reached.
        schedule: the levels 0..T that it was inverted along.
        frames: of the clip.
        fps: of the clip, frames a second.
        method: of the inversion.
        checkpoint: the fingerprint of the one that inverted it; empty where it is not known.
    """

    latents: Entries
    schedule: Schedule
    frames: int
    fps: float = 8.0
    method: str = "pec"
    checkpoint: str = ""

    @property
    def highest(self) -> int:
        """The highest level that is there; edits cannot start above it."""
        return len(self.latents) - 1

    def on_device(self, level: int, device: torch.device) -> Tensor:
        """The latent of a level, [F, C, H, W], float32, on a device that is not waited for."""
        entry = self.latents[level]
        # From pageable memory the host would wait until the GPU has done all that it was given.
        if device.type == "cuda" and entry.device.type == "cpu":
            entry = entry.pin_memory()
        return entry.to(device, non_blocking=True).float()

    def __repr__(self) -> str:
        return (
            f"Trajectory({self.frames} frames at {self.fps:g} fps, levels 0..{self.highest} of "
            f"{self.schedule.steps}, method {self.method!r})"
        )

    def save(self, folder: str | Path, dtype: Dtype = "fp16") -> None:
        """Store it as a job does: one safetensors shard, and an index that is written last.

        Args:
            folder: a path or any fsspec URI.
            dtype: of the stored values. fp16 keeps 62 dB of a latent, bf16 44.

        Raises:
            ValueError: a value is not finite in `dtype`.
        """
        target = Folder(str(folder))
        writer = ShardWriter(target, dtype)
        for level in range(len(self.latents)):
            writer.add(self.latents[level])
        frames, channels, height, width = self.latents[0].shape
        index = TrajectoryIndex(
            key=target.uri.rstrip("/").rsplit("/", 1)[-1],
            shape=(frames, channels, height, width),
            dtype=dtype,
            shards=(writer.store(),),
            timesteps=tuple(level.timestep for level in self.schedule.levels),
            alphas=tuple(level.alpha for level in self.schedule.levels),
            frames=self.frames,
            fps=self.fps,
            method=self.method,
            checkpoint=self.checkpoint,
        )
        commit(target, index)

    @classmethod
    def load(cls, folder: str | Path) -> Trajectory:
        """Open a stored trajectory; its latents are read as they are asked for.

        Args:
            folder: what `save` wrote, or `<output>/trajectories/<key>` of a job, where `key` is the
                column `trajectory` of its results. A path or any fsspec URI.

        Raises:
            ValueError: no trajectory is stored there, or by a version that left out its frames.
            TrajectoryDamaged: what is stored is not what its index says; invert the clip again.
                Bytes that were altered are found when they are read, by `Editor.reconstruct`.
        """
        source = Folder(str(folder))
        index = read_index(source, None)
        if index is None:
            raise ValueError(
                f"{folder}: no trajectory is stored there (it has no index.json); expected a "
                "folder that `Trajectory.save` wrote, or <output>/trajectories/<key> of a job"
            )
        if not index.frames:
            raise ValueError(
                f"{folder}: stored by an older version, which left out the clip's frames; run the "
                "job again, which adds them where it makes an edit, or invert the clip again"
            )
        levels = zip(index.timesteps, index.alphas, strict=True)
        schedule = Schedule(tuple(Level(timestep, alpha) for timestep, alpha in levels))
        reader = TrajectoryReader(source, index, highest=-1)  # nothing is read before it is asked
        return cls(reader, schedule, index.frames, index.fps, index.method, index.checkpoint)


def stacked(entries: Entries, levels: range) -> Tensor:
    """Some levels of a trajectory, [len(levels), F, C, H, W]."""
    return torch.stack([entries[level] for level in levels])
