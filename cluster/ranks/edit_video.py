"""One inverted video edited: a few prompts denoised in lockstep, decoded, measured, written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from cluster.ranks.editing import RankEditor
from cluster.ranks.invert_video import invert_video, shared_index
from pipeline.algorithm.reconstruction import Edited
from pipeline.errors import ErrorCode, RowError
from pipeline.model.vae import to_uint8
from pipeline.quality.certificate import edit_metrics
from pipeline.records import (
    EditResult,
    EditSpec,
    Forwards,
    InversionResult,
    Metrics,
    Timings,
    VideoSpec,
)
from pipeline.timing import Timer
from pipeline.trajectories.index import TrajectoryDamaged
from pipeline.trajectories.reader import OtherSliceDamaged, TrajectoryReader
from pipeline.trajectories.trajectory import Trajectory

TRIES = 3
"""Tries to read a trajectory, which is made again between two of them."""


def edit_video(rank: RankEditor, video: VideoSpec, inversion: InversionResult) -> list[EditResult]:
    """Make the edits of an inverted video, in lockstep.

    A trajectory that turns out to be damaged is inverted anew, and every edit says so. An edit that
    is not finite is a failed edit; the others beside it are not touched.

    Args:
        video: with the edits that are to be made.

    Returns:
        What the rank knows of each edit; the owner fills in the rest of the row.

    Raises:
        RowError: the source cannot be read any more, or storage damages every trajectory.
    """
    settings = rank.settings.reconstruction
    timer = Timer(rank.editor.device)
    with timer("read"):
        source = rank.together(lambda: rank.read(video)).frames / 255
    edits = [settings.filled(edit, rank.seed(video, edit.edit_id)) for edit in video.edits]
    before = asdict(rank.editor.model.forwards)
    tries = 0
    while True:
        tries += 1
        try:
            with timer("reconstruct"), _reader(rank, inversion.trajectory) as reader:
                trajectory = Trajectory(reader, rank.schedule, inversion.frames, inversion.fps)
                prompt = video.source_prompt or ""
                edited = rank.editor.denoise(trajectory, edits, settings, prompt)
            break
        except TrajectoryDamaged as error:
            found = _damage(rank, error)
            if tries == TRIES:
                raise RowError(
                    ErrorCode.STORAGE,
                    f"{video.video}: its trajectory was made again {tries - 1} times and is "
                    f"damaged still: {found}. Check the storage of the output folder",
                ) from error
            inversion = invert_video(rank, video, damaged=found)
            timer.add(asdict(inversion.timings))
    after = asdict(rank.editor.model.forwards)
    share = Forwards(**{name: (after[name] - before[name]) / len(edits) for name in after})
    work = _Finish(rank, video, inversion, edited, source, share)
    return work.all(edits, Timings(**timer.seconds).shared(len(edits)))


def edit_output(video_id: str | None, edit_id: str | None) -> str:
    """Where an edit's file lies, relative to the output folder."""
    return f"edits/{video_id}/{edit_id}.mp4"


def _reader(rank: RankEditor, key: str) -> TrajectoryReader:
    """The stored trajectory, read by all ranks of the group together.

    Raises:
        TrajectoryDamaged: it is not committed up to the level that the edits need.
    """
    folder, group = rank.trajectory_folder(key), rank.group
    index = shared_index(rank, key)
    if index is None or index.highest < rank.highest:
        raise TrajectoryDamaged(f"{folder.uri}: no trajectory is committed up to the level needed")
    return TrajectoryReader(
        folder,
        index,
        rank=group.rank,
        ranks=group.ranks,
        gather=group.gather_values,
        highest=rank.highest,
    )


def _damage(rank: RankEditor, error: TrajectoryDamaged) -> str:
    """What is damaged, as a rank that saw it reports it."""
    seen = None if isinstance(error, OtherSliceDamaged) else str(error)
    return next(report for report in rank.group.gather_objects(seen) if report)


@dataclass(frozen=True)
class _Finish:
    """What follows the last denoising step: every rank finishes its own share of the edits.

    Args:
        source: the clip's frames [F, H, W, 3], 0 to 1.
        forwards: each edit's share.
    """

    rank: RankEditor
    video: VideoSpec
    inversion: InversionResult
    edited: Edited
    source: Tensor
    forwards: Forwards

    def all(self, edits: Sequence[EditSpec], timings: Timings) -> list[EditResult]:
        """The results of all edits, on every rank: each holds the latents whole."""
        rank, ranks = self.rank.group.rank, self.rank.group.ranks
        own = range(rank, len(edits), ranks)
        shares = self.rank.together(
            lambda: [self.one(edits[i], self.edited.latents[i], timings) for i in own]
        )
        every = self.rank.group.gather_objects(shares)
        return [every[place % ranks][place // ranks] for place in range(len(edits))]

    def one(self, edit: EditSpec, latents: Tensor, shared: Timings) -> EditResult:
        """Decode, measure and write one edit."""
        timer = Timer(self.rank.editor.device, asdict(shared))
        with timer("decode"):
            frames = self.rank.editor.decode(latents, self.inversion.frames)
        result = EditResult(
            edit_id=edit.edit_id,
            guidance_scale=edit.guidance_scale,
            seed=edit.seed,
            forwards=self.forwards,
            trajectory_damage=self.inversion.trajectory_damage,
        )
        if not (torch.isfinite(latents).all() and torch.isfinite(frames).all()):
            return replace(
                result,
                timings=Timings(**timer.seconds),
                metrics=Metrics(largest_residual=self.edited.largest_residual),
                error_code=ErrorCode.NOT_FINITE,
                error=f"edit {edit.edit_id!r}: values that are not finite; run the job with "
                "precision: bf16 or fp32, or a lower guidance_scale",
            )
        output = edit_output(self.video.video_id, edit.edit_id)
        with timer("write"):
            self.rank.write_clip(output, to_uint8(frames), self.inversion.fps)
        return replace(
            result,
            output=output,
            metrics=self._measured(frames),
            timings=Timings(**timer.seconds),
        )

    def _measured(self, frames: Tensor) -> Metrics:
        """The certificate of an edit's frames [F, H, W, 3], which may lie outside of [0, 1]."""
        return replace(
            self.inversion.metrics,
            largest_residual=self.edited.largest_residual,
            **edit_metrics(frames, self.source),
        )
