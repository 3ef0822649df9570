"""One inverted video edited: a few prompts denoised in lockstep, decoded, measured, written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from cluster.ranks.editing import RankEditor
from cluster.ranks.failures import failure
from cluster.ranks.invert_video import invert_video, shared_index
from cluster.ranks.messages import Answer
from pipeline.algorithm.reconstruction import Edited
from pipeline.errors import ErrorCode, RowError
from pipeline.model.memory import most_held
from pipeline.model.vae import to_uint8
from pipeline.plan import texts_of
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


def edit_video(
    rank: RankEditor, video: VideoSpec, inversion: InversionResult
) -> list[Future[EditResult] | None]:
    """Make the edits of an inverted video, in lockstep.

    A trajectory that turns out to be damaged is inverted anew, and every edit says so. An edit that
    is not finite is a failed edit; the others beside it are not touched.

    Args:
        video: with the edits that are to be made.

    Returns:
        For each edit what the rank knows of it, once it is encoded, measured and written; the owner
        fills in the rest of the row. None where another rank finishes the edit.

    Raises:
        RowError: the source cannot be read any more, or storage damages every trajectory.
    """
    settings = rank.settings.reconstruction
    timer = Timer(rank.editor.device)
    with timer("read"):
        source = rank.together(lambda: rank.read(video)).frames
    edits = [settings.filled(edit, rank.seed(video, edit.edit_id)) for edit in video.edits]
    before = asdict(rank.editor.model.forwards)
    rank.load_embeddings(texts_of(settings, edits, video.source_prompt or ""))
    tries, edited = 0, None
    while edited is None:
        tries += 1
        seen: str | None = None
        try:
            with timer("reconstruct"), _reader(rank, inversion.trajectory) as reader:
                trajectory = Trajectory(reader, rank.schedule, inversion.frames, inversion.fps)
                prompt = video.source_prompt or ""
                edited = rank.editor.denoise(trajectory, edits, settings, prompt)
        except TrajectoryDamaged as error:
            seen = None if isinstance(error, OtherSliceDamaged) else str(error)
        if edited is None:  # outside of the `except`, whose traceback holds latents
            inversion = _inverted_anew(rank, video, seen, tries)
            timer.add(asdict(inversion.timings))
    after = asdict(rank.editor.model.forwards)
    share = Forwards(**{name: (after[name] - before[name]) / len(edits) for name in after})
    work = _Finish(rank, video, inversion, edited, source, share)
    return work.all(edits, Timings(**timer.seconds).shared(len(edits)))


def _inverted_anew(
    rank: RankEditor, video: VideoSpec, seen: str | None, tries: int
) -> InversionResult:
    """The inversion made again, on all ranks, since its trajectory is damaged.

    Args:
        seen: what this rank saw of it, if anything.
        tries: how often the trajectory was read.
    """
    found = next(report for report in rank.group.gather_objects(seen) if report)
    if tries == TRIES:
        raise RowError(
            ErrorCode.STORAGE,
            f"{video.video}: its trajectory was made again {tries - 1} times and is "
            f"damaged still: {found}. Check the storage of the output folder",
        )
    return invert_video(rank, video, damaged=found)


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


@dataclass(frozen=True)
class _Finish:
    """What follows the last denoising step: every rank finishes its own share of the edits.

    The accelerator works in this thread and decodes; what follows goes on beside its next work.

    Args:
        source: the clip's frames, uint8 [F, H, W, 3].
        forwards: each edit's share.
    """

    rank: RankEditor
    video: VideoSpec
    inversion: InversionResult
    edited: Edited
    source: Tensor
    forwards: Forwards

    def all(self, edits: Sequence[EditSpec], timings: Timings) -> list[Future[EditResult] | None]:
        """The results of this rank's edits at their places; each rank holds the latents whole."""
        rank, ranks = self.rank.group.rank, self.rank.group.ranks
        return [
            self.one(edit, self.edited.latents[place], timings) if place % ranks == rank else None
            for place, edit in enumerate(edits)
        ]

    def one(self, edit: EditSpec, latents: Tensor, shared: Timings) -> Future[EditResult]:
        """Decode an edit, and have it measured and written beside the next work."""
        timer = Timer(self.rank.editor.device, asdict(shared))
        result = EditResult(
            edit_id=edit.edit_id,
            guidance_scale=edit.guidance_scale,
            seed=edit.seed,
            metrics=Metrics(largest_residual=self.edited.largest_residual),
            forwards=self.forwards,
            memory_bytes=most_held(self.rank.editor.device),
            trajectory_damage=self.inversion.trajectory_damage,
        )
        finite = bool(torch.isfinite(latents).all())
        frames = self._decoded(latents, timer)
        if isinstance(frames, Answer):
            failed = _failed(result, frames, timer)
            return self.rank.beside(lambda: failed)
        spent = dict(timer.seconds)
        return self.rank.beside(lambda: self._finished(result, frames, finite, spent))

    def _decoded(self, latents: Tensor, timer: Timer) -> Tensor | Answer:
        """The frames of an edit, or why there are none: no other rank decodes this one."""
        try:
            with timer("decode"):
                return self.rank.editor.decode(latents, self.inversion.frames)
        except RowError as error:
            return failure(error)

    def _finished(
        self, result: EditResult, frames: Tensor, finite: bool, spent: Mapping[str, float]
    ) -> EditResult:
        """The result of an edit's frames [F, H, W, 3], which may lie outside of [0, 1].

        Args:
            finite: whether its latents are.
            spent: seconds by part, up to now.
        """
        timer = Timer(torch.device("cpu"), dict(spent))
        if not (finite and torch.isfinite(frames).all()):
            return replace(
                result,
                timings=Timings(**timer.seconds),
                error_code=ErrorCode.NOT_FINITE,
                error=f"edit {result.edit_id!r}: values that are not finite; run the job with "
                "precision: bf16 or fp32, or a lower guidance_scale",
            )
        output = edit_output(self.video.video_id, result.edit_id)
        try:
            with timer("write"):
                size = self.rank.write_clip(output, to_uint8(frames), self.inversion.fps)
        except Exception as error:  # of this edit alone: no other rank waits for it
            return _failed(result, failure(error, together=False), timer)
        return replace(
            result,
            output=output,
            size_bytes=size,
            metrics=self._measured(frames),
            timings=Timings(**timer.seconds),
        )

    def _measured(self, frames: Tensor) -> Metrics:
        """The certificate of an edit's frames [F, H, W, 3]."""
        known = replace(self.inversion.metrics, largest_residual=self.edited.largest_residual)
        try:
            return replace(known, **edit_metrics(frames, self.source / 255))
        except Exception as error:  # the edit is written, and stays
            reason = f"the metrics of the edit: {self.rank.give_up(error)}"
            return replace(known, unmeasured="; ".join(filter(None, (known.unmeasured, reason))))


def _failed(result: EditResult, why: Answer, timer: Timer) -> EditResult:
    """An edit that failed by itself."""
    timings = Timings(**timer.seconds)
    return replace(result, timings=timings, error_code=why.error_code, error=why.error)
