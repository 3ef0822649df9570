"""A process that does the model work: a checkpoint on a device, and what a job says of it.

Every rank of a group runs one. All ranks of a group are given the same requests in the same order;
each holds the latents whole, computes its share of the tokens, and stores its own slice of the
trajectory. Rank 0 writes what a group writes once. The work itself stands in `invert_video.py` and
`edit_video.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from cluster.ranks.requests import VideoRequest
from pipeline.algorithm.schedule import Schedule
from pipeline.errors import ErrorCode, RowError
from pipeline.media.decoding import Clip, FrameRule, read_clip
from pipeline.media.encoding import write_clip
from pipeline.model.checkpoint import CheckpointInfo, load_transformer, load_vae, open_checkpoint
from pipeline.model.scheduler import schedule_from_config, script_schedule
from pipeline.model.sizes import clip_size
from pipeline.model.text_encoder import PromptStore
from pipeline.model.transformer import OneRank, VelocityModel
from pipeline.model.vae import Codec
from pipeline.records import derived_seed
from pipeline.settings import EditingSettings
from pipeline.storage import Folder, local_copy
from pipeline.trajectories.index import CHUNKS, TrajectoryDamaged

T = TypeVar("T")

ALGORITHM = 1
"""Raised when a change makes trajectories differ for the same settings: stored ones are then stale,
and so are the edits made from them."""


def job_schedule(settings: EditingSettings, info: CheckpointInfo) -> Schedule:
    """The levels that a job's inversions and reconstructions walk."""
    make = script_schedule if settings.inversion.method == "script" else schedule_from_config
    return make(info.scheduler, settings.inversion.steps)


def prompt_store(settings: EditingSettings, info: CheckpointInfo) -> PromptStore:
    """Where a job keeps prompt embeddings; those of another checkpoint lie elsewhere."""
    return PromptStore(Folder(settings.output).child(f"prompts/{info.fingerprint}"))


@dataclass
class EditingProcess:
    """One rank.

    Args:
        settings: the job's.
        device: where the transformer and the VAE live.
        group: the ranks that compute together.
    """

    settings: EditingSettings
    device: torch.device
    group: Any = field(default_factory=OneRank)

    def __post_init__(self) -> None:
        self.info = open_checkpoint(self.settings.checkpoint)
        self.size = clip_size(self.settings.video, self.info)
        self.schedule = job_schedule(self.settings, self.info)
        self.output = Folder(self.settings.output)
        self.prompts = prompt_store(self.settings, self.info)
        dtype = self.info.dtype(self.settings.precision, self.device)
        vae = load_vae(self.info, dtype, self.device)
        self.codec = Codec(vae, self.info.latent_frames_multiple)
        transformer = load_transformer(self.info, dtype, self.device)
        self.model = VelocityModel(transformer, {}, group=self.group)

    @cached_property
    def highest(self) -> int:
        """The highest level that the job's edits read; inversions stop there."""
        return self.settings.reconstruction.highest_stored(self.schedule)

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

    def read(self, request: VideoRequest) -> tuple[Clip, str]:
        """The clip of a video, and the hash of the file that it comes from.

        Raises:
            RowError: the file is not there, not a video, or too short.
        """
        size, video = self.size, self.settings.video
        with local_copy(request.video) as (file, content):
            clip = read_clip(
                file,
                name=request.video,
                height=size.height,
                width=size.width,
                frames=min(request.num_frames or size.frames, size.frames),
                rule=FrameRule(self.info.temporal_compression, self.info.latent_frames_multiple),
                start_frame=request.start_frame or 0,
                fps=request.fps or video.fps,
                fit=video.fit,
            )
        return clip, content

    def trajectory_key(self, request: VideoRequest, clip: Clip, content: str) -> str:
        """A hash of all that determines a trajectory, and of nothing else."""
        inversion = self.settings.inversion
        # A source of varying rate can have the asked one on average, and other frames.
        asked_fps = request.fps or self.settings.video.fps
        parts: dict[str, Any] = {
            "algorithm": ALGORITHM,
            "content": content,
            "frames": [request.start_frame or 0, len(clip.frames), asked_fps, clip.fps],
            "size": [self.size.height, self.size.width, self.settings.video.fit],
            "checkpoint": self.info.fingerprint,
            "levels": [(at.timestep, round(at.alpha, 9)) for at in self.schedule.levels],
            "method": [inversion.method, inversion.iterations, inversion.posterior],
            "stored": [self.settings.trajectory.dtype, CHUNKS],
            "precision": str(self.info.dtype(self.settings.precision, self.device)),
        }
        if self.settings.trajectory.keep == "never":
            # Deleted when its video's edits are done: another row's would go with it.
            parts["video_id"] = request.video_id
        if inversion.posterior == "sample":
            parts["seed"] = self.seed(request, "posterior")
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def trajectory_folder(self, key: str) -> Folder:
        return self.output.child(f"trajectories/{key}")

    def seed(self, request: VideoRequest, *use: str) -> int:
        own = self.settings.seed if request.seed is None else request.seed
        return derived_seed(own, request.video_id, *use)

    def know(self, prompts: Iterable[str]) -> None:
        """Give the model the embeddings of some prompts, and forget all others."""
        known = self.model.prompts
        wanted = dict.fromkeys(prompts)
        self.model.prompts = {
            prompt: known[prompt] if prompt in known else self._embedding(prompt)
            for prompt in wanted
        }

    def write_clip(self, name: str, frames: Tensor, fps: float) -> None:
        """Store frames, uint8 [F, H, W, 3], as an MP4 below the output folder."""
        buffer = io.BytesIO()
        write_clip(buffer, frames, fps=fps)
        self.output.write(name, buffer.getvalue())

    def _embedding(self, prompt: str) -> Tensor:
        try:
            return self.prompts.read(prompt).to(self.device)
        except FileNotFoundError:
            raise RowError(
                ErrorCode.STORAGE,
                f"the embedding of the prompt {prompt!r} is not in {self.prompts.folder.uri}; "
                "run the job again to encode it",
            ) from None
