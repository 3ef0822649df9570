"""The Editor in a rank process: composed with a job's settings and its output folder.

Every rank of a group runs one. All ranks of a group are given the same requests in the same order;
each holds the latents whole, computes its share of the tokens, and stores its own slice of the
trajectory. Rank 0 writes what a group writes once. The work itself stands in `invert_video.py` and
`edit_video.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from pipeline.algorithm.schedule import Schedule
from pipeline.editor import Editor
from pipeline.errors import RowError
from pipeline.media.decoding import Clip
from pipeline.media.encoding import write_clip
from pipeline.model.checkpoint import CheckpointInfo, open_checkpoint
from pipeline.model.group import OneRank, TokenGroup
from pipeline.model.text_encoder import PromptStore, RecentEmbeddings
from pipeline.plan import highest_stored
from pipeline.records import VideoSpec, derived_seed
from pipeline.settings import EditingSettings
from pipeline.storage import Folder
from pipeline.trajectories.index import CHUNKS, TrajectoryDamaged

T = TypeVar("T")

ALGORITHM = 1
"""Raised when a change makes trajectories differ for the same settings: stored ones are then stale.
Edits made from them are stale only where `cluster.job.ALGORITHM` is raised too."""


def prompt_store(settings: EditingSettings, info: CheckpointInfo) -> PromptStore:
    """Where a job keeps prompt embeddings; those of another checkpoint lie elsewhere."""
    return PromptStore(Folder(settings.output).child(f"prompts/{info.fingerprint}"))


@dataclass
class RankEditor:
    """One rank of a job.

    Args:
        settings: the job's.
        editor: does the model work.
    """

    settings: EditingSettings
    editor: Editor

    @classmethod
    def load(
        cls, settings: EditingSettings, device: torch.device, group: TokenGroup | None = None
    ) -> RankEditor:
        """Load the job's checkpoint onto a device, as one of the ranks that compute together."""
        info = open_checkpoint(settings.checkpoint)
        editor = Editor.from_pretrained(
            settings.checkpoint,
            torch_dtype=info.dtype(settings.precision, device),
            device=device,
            group=group or OneRank(),
            text=RecentEmbeddings(prompt_store(settings, info)),
        )
        editor.set_progress_bar_config(disable=True)
        return cls(settings, editor)

    @property
    def group(self) -> TokenGroup:
        return self.editor.model.group

    @cached_property
    def output(self) -> Folder:
        return Folder(self.settings.output)

    @cached_property
    def schedule(self) -> Schedule:
        """The levels that the job's inversions and reconstructions share."""
        inversion = self.settings.inversion
        return self.editor.schedule(inversion.steps, inversion.method)

    @cached_property
    def highest(self) -> int:
        """The highest level that the job's edits read; inversions stop there."""
        return highest_stored(self.settings.reconstruction, self.schedule.steps)

    def together(self, work: Callable[[], T]) -> T:
        """Do something on every rank of the group; where it fails on one, it fails on all.

        A rank that went on alone would wait for ever for the others.

        Raises:
            RowError, TrajectoryDamaged: what the first rank that failed raised.
        """
        value: T | None = None
        problem: Exception | None = None
        try:
            value = work()
        except (RowError, TrajectoryDamaged) as error:
            problem = error
        for one in self.group.gather_objects(problem):
            if one is not None:
                raise one
        return cast(T, value)

    def read(self, video: VideoSpec) -> Clip:
        """The clip of a video.

        Raises:
            RowError: the file is not there, not a video, or too short.
        """
        return self.editor.read(
            video.video,
            self.settings.video,
            start_frame=video.start_frame or 0,
            num_frames=video.num_frames,
            fps=video.fps,
        )

    def trajectory_key(self, video: VideoSpec, clip: Clip) -> str:
        """A hash of all that determines a trajectory, and of nothing else."""
        inversion, info = self.settings.inversion, self.editor.info
        # A source of varying rate can have the asked one on average, and other frames.
        asked_fps = video.fps or self.settings.video.fps
        parts: dict[str, Any] = {
            "algorithm": ALGORITHM,
            "content": clip.content,
            "frames": [video.start_frame or 0, len(clip.frames), asked_fps, clip.fps],
            "size": [*clip.frames.shape[1:3], self.settings.video.fit],
            "checkpoint": info.fingerprint,
            "levels": [(at.timestep, round(at.alpha, 9)) for at in self.schedule.levels],
            "method": [inversion.method, inversion.iterations, inversion.posterior],
            "stored": [self.settings.trajectory.dtype, CHUNKS],
            "precision": str(info.dtype(self.settings.precision, self.editor.device)),
        }
        if clip.variant:
            parts["variant"] = clip.variant
        if self.settings.trajectory.keep == "never":
            # Deleted when its video's edits are done: another row's would go with it.
            parts["video_id"] = video.video_id
        if inversion.posterior == "sample":
            parts["seed"] = self.seed(video, "posterior")
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def trajectory_folder(self, key: str) -> Folder:
        return self.output.child(f"trajectories/{key}")

    def seed(self, video: VideoSpec, *use: str | None) -> int:
        own = self.settings.seed if video.seed is None else video.seed
        return derived_seed(own, video.video_id, *use)

    def write_clip(self, name: str, frames: Tensor, fps: float) -> None:
        """Store frames, uint8 [F, H, W, 3], as an MP4 below the output folder."""
        buffer = io.BytesIO()
        write_clip(buffer, frames, fps=fps)
        self.output.write(name, buffer.getvalue())
