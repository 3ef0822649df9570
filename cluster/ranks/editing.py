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
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from cluster.ranks.failures import as_row_error, breaks_the_process
from cluster.ranks.overlap import Overlap
from pipeline.algorithm.schedule import Schedule
from pipeline.editor import Editor
from pipeline.errors import RowError
from pipeline.inputs import read_video
from pipeline.inputs.masks import read_mask
from pipeline.media.decoding import Clip
from pipeline.media.encoding import EDIT_CRF, write_clip
from pipeline.model.checkpoint import EDITING_PARTS, CheckpointInfo, open_checkpoint
from pipeline.model.group import OneRank, TokenGroup
from pipeline.model.prompts import PromptStore
from pipeline.model.text_encoder import RecentEmbeddings
from pipeline.plan import highest_stored
from pipeline.records import VideoSpec, derived_seed
from pipeline.redaction import log_error
from pipeline.settings import EditingSettings, Inversion
from pipeline.storage import Folder
from pipeline.timing import OnProgress, unheard
from pipeline.trajectories.index import CHUNKS, TrajectoryDamaged

T = TypeVar("T")

ALGORITHM = 1
"""Raised when a change makes trajectories differ for the same settings: stored ones are then stale.
Edits made from them are stale only where `cluster.job.ALGORITHM` is raised too."""


def prompt_store(settings: EditingSettings, info: CheckpointInfo) -> PromptStore:
    """Where a job keeps prompt embeddings; those of another checkpoint lie elsewhere."""
    return PromptStore.of(settings.output, info.fingerprint)


@dataclass
class _Editor(Editor):
    """An `Editor` whose progress goes to the owner, in the place of a bar."""

    on_progress: OnProgress = unheard

    def encode(self, frames: Tensor, inversion: Inversion, seed: int = 0) -> Tensor:
        latents = super().encode(frames, inversion, seed)
        self.on_progress("the encoding of a clip")
        return latents

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        decoded = super().decode(latents, frames)
        self.on_progress("the decoding of a clip")
        return decoded

    def _bar(self, total: int, what: str) -> Any:
        return _Steps(total, what, self.on_progress)


@dataclass
class _Steps:
    """Of tqdm's bar what an `Editor` uses."""

    total: int
    what: str
    on_progress: OnProgress
    done: int = 0

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self) -> None:
        self.done += 1
        self.on_progress(f"{self.what} step {self.done} of {self.total}")


@dataclass
class RankEditor:
    """One rank of a job.

    Args:
        settings: the job's.
        editor: does the model work.
        progress: is called with what was done last.
        pulse: is called while the same goes on.
        overlap: goes on beside the accelerator.

    Attributes:
        broken: every further call to the accelerator fails.
    """

    settings: EditingSettings
    editor: Editor
    progress: OnProgress = unheard
    pulse: Callable[[], None] = lambda: None
    overlap: Overlap = field(default_factory=Overlap)
    broken: bool = field(default=False, init=False)

    @classmethod
    def load(
        cls,
        settings: EditingSettings,
        device: torch.device,
        group: TokenGroup | None = None,
        info: CheckpointInfo | None = None,
    ) -> RankEditor:
        """Load the job's checkpoint onto a device, as one of the ranks that compute together.

        Raises:
            ValueError: `speed.attention` names a kernel that does not work on this device.
        """
        info = info or open_checkpoint(settings.checkpoint, parts=EDITING_PARTS)
        editor = _Editor.from_pretrained(
            info,
            torch_dtype=info.dtype(settings.precision, device),
            device=device,
            group=group or OneRank(),
            speed=settings.speed,
            text=RecentEmbeddings(prompt_store(settings, info)),
        )
        editor.model.check_attention()
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

    def highest(self, video: VideoSpec) -> int:
        """The highest level that the edits of a video read; its inversion stops there."""
        own = self.settings.reconstruction
        masks = {video.mask, *(edit.mask for edit in video.edits), own.mask} - {None, "none"}
        return highest_stored(own, self.schedule.steps, masked=bool(masks))

    def together(self, work: Callable[[], T]) -> T:
        """Do something on every rank of the group; where it fails on one, it fails on all.

        A rank that went on alone would wait for ever for the others.

        Raises:
            RowError, TrajectoryDamaged: what the first rank that failed raised; every other
                exception as a RowError.
        """
        value: T | None = None
        problem: Exception | None = None
        try:
            value = work()
        except (RowError, TrajectoryDamaged) as error:
            problem = error
        except Exception as error:
            problem = as_row_error(error)
        for one in self.group.gather_objects(problem):
            if one is not None:
                raise one
        return cast(T, value)

    def load_embeddings(self, prompts: Iterable[str]) -> None:
        """Have prompts' embeddings in memory, on every rank: in the midst of a forward the others
        would wait for one that cannot read its own.

        Raises:
            RowError: one cannot be read.
        """

        def load() -> None:
            for prompt in prompts:
                self.editor.text.embedding(prompt)

        self.together(load)

    def give_up(self, error: Exception) -> str:
        """Go on without what raised this: its text. The process' log tells it in full."""
        log_error(error)
        self.broken = self.broken or breaks_the_process(error)
        return error.message if isinstance(error, RowError) else f"{type(error).__name__}: {error}"

    def report_to(self, progress: OnProgress, pulse: Callable[[], None]) -> None:
        """Report all that goes on here.

        Args:
            pulse: called after each layer, some thousand times a denoising step, and as a video is
                read, in the thread that reads ahead.
        """
        self.progress, self.pulse = progress, pulse
        compiled = self.editor.model.compiled
        compiled.progress, compiled.pulse = progress, pulse
        if isinstance(self.editor, _Editor):
            self.editor.on_progress = progress
        layers = [
            *self.editor.model.transformer.transformer_blocks,
            *_layers(self.editor.codec.vae),
        ]
        for layer in layers:
            layer.register_forward_hook(lambda *_: pulse())

    def beside(self, work: Callable[[], T]) -> Future[T]:
        """Do something beside the next work of the accelerator (`Overlap.beside`)."""
        return self.overlap.beside(work)

    def read_ahead(self, video: VideoSpec, at_work: AbstractContextManager[None]) -> None:
        """Begin to read what the next request is going to `read`."""
        self.overlap.read_ahead(_frames(video), lambda: self._read(video), at_work)

    def read(self, video: VideoSpec) -> Clip:
        """The clip of a video, which may have been read ahead.

        Raises:
            RowError: the file is not there, not a video, or too short.
        """
        return self.overlap.read(_frames(video), lambda: self._read(video))

    def _read(self, video: VideoSpec) -> Clip:
        clip = self._decoded(video)
        self.progress(f"the reading of {video.video}")
        return clip

    def _decoded(self, video: VideoSpec) -> Clip:
        return read_video(
            video.video,
            self.settings.video,
            self.editor.info,
            start_frame=video.start_frame or 0,
            num_frames=video.num_frames,
            fps=video.fps,
            limits=self.settings.limits,
            on_read=self.pulse,
        )

    def read_mask(self, location: str, video: VideoSpec, clip: Clip) -> Tensor:
        """The mask of a clip, bool [F, H, W].

        Raises:
            RowError: it cannot be read, or is none for this clip.
        """
        mask = read_mask(
            location,
            clip,
            self.settings.video,
            self.editor.info,
            start_frame=video.start_frame or 0,
            fps=video.fps,
            limits=self.settings.limits,
            on_read=self.pulse,
        )
        self.progress(f"the reading of {location}")
        return mask

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
        if changes := self.settings.speed.changes_trajectories():
            parts["speed"] = changes
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

    def write_clip(self, name: str, frames: Tensor, fps: float, crf: int = EDIT_CRF) -> int:
        """Store frames, uint8 [F, H, W, 3], as an MP4 below the output folder; its bytes."""
        buffer = io.BytesIO()
        write_clip(buffer, frames, fps=fps, crf=crf)
        self.output.write(name, buffer.getvalue())
        self.progress(f"the writing of {name}")
        return buffer.tell()


def _frames(video: VideoSpec) -> tuple[str, int | None, int | None, float | None]:
    """What determines a clip, but for the settings of the job."""
    return video.video, video.start_frame, video.num_frames, video.fps


def _layers(vae: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of a VAE that take a part of its time each."""
    return [one for one in vae.modules() if type(one).__name__.endswith("ResnetBlock3D")]
