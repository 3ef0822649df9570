"""One inverted video edited: a few prompts denoised in lockstep, decoded, measured, written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from cluster.candidates.made import candidate_mask, candidate_output, edit_output, mask_output
from cluster.ranks.editing import RankEditor
from cluster.ranks.failures import as_row_error, failure
from cluster.ranks.invert_video import invert_video, shared_index
from cluster.ranks.messages import Answer
from pipeline.algorithm.masks import composite
from pipeline.algorithm.reconstruction import Edited
from pipeline.errors import ErrorCode, RowError
from pipeline.inputs.masks import EditMask
from pipeline.media.decoding import Clip
from pipeline.media.encoding import COMPOSITE_CRF, EDIT_CRF, MASK_CRF
from pipeline.media.masks import grey
from pipeline.model.memory import most_held
from pipeline.model.vae import to_uint8
from pipeline.plan import EditPlan, edit_plans, texts_of
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

NEAR = 8 / 255
"""More than a mask's file differs from it."""
TRIES = 3
"""Tries to read a trajectory, which is made again between two of them."""


def edit_video(
    rank: RankEditor, video: VideoSpec, inversion: InversionResult, number: int = 0
) -> list[Future[EditResult] | None]:
    """Make the edits of an inverted video, in lockstep.

    A trajectory that turns out to be damaged is inverted anew, and every edit says so. An edit that
    is not finite, or whose mask cannot be used, is a failed edit; the others beside it are not
    touched.

    Args:
        video: with the edits that are to be made.
        number: of the round (`EditVideo.number`).

    Returns:
        For each edit what the rank knows of it, once it is encoded, measured and written; the owner
        fills in the rest of the row. None where another rank finishes the edit. With candidates it
        is so for each of them, in the order of `edit_plans`.

    Raises:
        RowError: the source cannot be read any more, or storage damages every trajectory.
    """
    settings, prompt = rank.settings.reconstruction, video.source_prompt or ""
    timer = Timer(rank.editor.device)
    with timer("read"):
        clip = rank.together(lambda: rank.read(video))
        masks = _masks(rank, video, clip)
    edits = [settings.filled(edit, rank.seed(video, edit.edit_id)) for edit in video.edits]
    refused = _refused(rank, edits, masks, number)
    if len(refused) == len(edits):
        return list(refused.values())
    places = [place for place in range(len(edits)) if place not in refused]
    some, given = [edits[n] for n in places], [cast(EditMask, masks[n]) for n in places]
    before = asdict(rank.editor.model.forwards)
    rank.load_embeddings(texts_of(settings, some, prompt))
    tries, edited = 0, None
    while edited is None:
        tries += 1
        seen: str | None = None
        try:
            with timer("reconstruct"), _reader(rank, video, inversion.trajectory) as reader:
                levels = Trajectory(reader, rank.schedule, inversion.frames, inversion.fps)
                how = settings, prompt, None, given, number
                edited = rank.editor.denoise(levels, some, *how)
        except TrajectoryDamaged as error:
            seen = None if isinstance(error, OtherSliceDamaged) else str(error)
        if edited is None:  # outside of the `except`, whose traceback holds latents
            inversion = _inverted_anew(rank, video, seen, tries)
            timer.add(asdict(inversion.timings))
    after = asdict(rank.editor.model.forwards)
    plans = edit_plans(settings, some, number)
    share = Forwards(**{name: (after[name] - before[name]) / len(plans) for name in after})
    work = _Finish(rank, video, inversion, edited, clip.frames, share)
    made = work.all(plans, Timings(**timer.seconds).shared(len(plans)))
    by_edit = {place: [one] for place, one in refused.items()}
    for plan, one in zip(plans, made, strict=True):
        by_edit.setdefault(places[plan.source], []).append(one)
    return [one for place in sorted(by_edit) for one in by_edit[place]]


def _masks(rank: RankEditor, video: VideoSpec, clip: Clip) -> list[EditMask | RowError]:
    """The mask of each edit, or why it cannot be used: the same on every rank of the group."""
    names = [edit.mask or rank.settings.reconstruction.mask for edit in video.edits]
    known: dict[str, EditMask | RowError] = {"none": None, "auto": "auto"}
    if known.keys() >= set(names):
        return [known[name] for name in names]
    for name in names:
        if name not in known:
            known[name] = _read_mask(rank, name, video, clip)
    own = {name: one for name, one in known.items() if isinstance(one, RowError)}
    for errors in reversed(rank.group.gather_objects(own)):
        known |= errors  # what one rank cannot read, none uses
    return [known[name] for name in names]


def _read_mask(rank: RankEditor, name: str, video: VideoSpec, clip: Clip) -> EditMask | RowError:
    try:
        return rank.read_mask(name, video, clip)
    except RowError as error:
        return error
    except Exception as error:  # of this edit alone
        return as_row_error(error)


def _refused(
    rank: RankEditor,
    edits: Sequence[EditSpec],
    masks: Sequence[EditMask | RowError],
    number: int,
) -> dict[int, Future[EditResult] | None]:
    """The results of edits whose masks cannot be used, by place; the first rank gives them."""
    results: dict[int, Future[EditResult] | None] = {}
    for place, (edit, error) in enumerate(zip(edits, masks, strict=True)):
        if not isinstance(error, RowError):
            continue
        result = EditResult(
            edit_id=edit.edit_id,
            guidance_scale=edit.guidance_scale,
            seed=edit.seed,
            candidate=number * rank.settings.reconstruction.tries,
            error_code=error.code,
            error=error.message,
        )
        first = rank.group.rank == 0
        results[place] = rank.beside(partial(_as_it_is, result)) if first else None
    return results


def _as_it_is(result: EditResult) -> EditResult:
    return result


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


def decided(mask: Tensor) -> Tensor:
    """A mask without values so near to one half that a video's rounding moves them over it."""
    return torch.where(mask >= 0.5, mask.clamp_min(0.5 + NEAR), mask.clamp_max(0.5 - NEAR))


def _reader(rank: RankEditor, video: VideoSpec, key: str) -> TrajectoryReader:
    """The stored trajectory, read by all ranks of the group together.

    Raises:
        TrajectoryDamaged: it is not committed up to the level that the edits need.
    """
    folder, group, highest = rank.trajectory_folder(key), rank.group, rank.highest(video)
    index = shared_index(rank, key)
    if index is None or index.highest < highest:
        raise TrajectoryDamaged(f"{folder.uri}: no trajectory is committed up to the level needed")
    return TrajectoryReader(
        folder,
        index,
        rank=group.rank,
        ranks=group.ranks,
        gather=group.gather_values,
        highest=highest,
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

    def all(self, plans: Sequence[EditPlan], timings: Timings) -> list[Future[EditResult] | None]:
        """The results of this rank's edits at their places; each rank holds the latents whole."""
        rank, ranks = self.rank.group.rank, self.rank.group.ranks
        return [
            self.one(plan, place, timings) if place % ranks == rank else None
            for place, plan in enumerate(plans)
        ]

    def one(self, plan: EditPlan, place: int, shared: Timings) -> Future[EditResult]:
        """Decode an edit, and have it measured and written beside the next work.

        Args:
            place: of its latents among those of the lockstep.
        """
        latents, mask = self.edited.latents[place], self.edited.masks[place]
        timer = Timer(self.rank.editor.device, asdict(shared))
        result = EditResult(
            edit_id=plan.edit.edit_id,
            guidance_scale=plan.edit.guidance_scale,
            seed=plan.edit.seed,
            candidate=plan.number,
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
        return self.rank.beside(lambda: self._finished(result, frames, mask, finite, spent))

    def _decoded(self, latents: Tensor, timer: Timer) -> Tensor | Answer:
        """The frames of an edit, or why there are none: no other rank decodes this one."""
        try:
            with timer("decode"):
                return self.rank.editor.decode(latents, self.inversion.frames)
        except RowError as error:
            return failure(error)

    def _finished(
        self,
        result: EditResult,
        frames: Tensor,
        mask: Tensor | None,
        finite: bool,
        spent: Mapping[str, float],
    ) -> EditResult:
        """The result of an edit's frames [F, H, W, 3], which may lie outside of [0, 1].

        Args:
            mask: it was made with, [F, H, W].
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
        (output, of_mask), mask_file, crf = self._names(result), None, EDIT_CRF
        if mask is not None and self.rank.settings.reconstruction.composite:
            frames, crf = composite(frames, self.source, mask), COMPOSITE_CRF
        try:
            with timer("write"):
                if mask is not None:
                    mask_file = of_mask
                    pixels = grey(decided(mask))
                    self.rank.write_clip(mask_file, pixels, self.inversion.fps, MASK_CRF)
                size = self.rank.write_clip(output, to_uint8(frames), self.inversion.fps, crf)
        except Exception as error:  # of this edit alone: no other rank waits for it
            return _failed(result, failure(error, together=False), timer)
        return replace(
            result,
            output=output,
            size_bytes=size,
            mask=mask_file,
            metrics=self._measured(frames),
            timings=Timings(**timer.seconds),
        )

    def _names(self, result: EditResult) -> tuple[str, str]:
        """Where the file of an edit, or of one of its candidates, is written; and its mask's."""
        ids = self.video.video_id, result.edit_id
        if not self.rank.settings.reconstruction.candidates:
            return edit_output(*ids), mask_output(*ids)
        number = result.candidate
        return candidate_output(*ids, number), candidate_mask(*ids, number)

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
