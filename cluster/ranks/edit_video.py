"""One inverted video edited: a few prompts walked down in lockstep, decoded, measured, written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from cluster.ranks.editing import EditingProcess
from cluster.ranks.invert_video import invert_video, shared_index
from cluster.ranks.requests import EditRequest, Inverted, Reconstructed, VideoRequest
from pipeline.algorithm.reconstruction import Edit, Edited, reconstruct
from pipeline.errors import ErrorCode, RowError
from pipeline.model.vae import to_uint8
from pipeline.quality import metrics
from pipeline.timing import Timer
from pipeline.trajectories.index import TrajectoryDamaged
from pipeline.trajectories.reader import OtherSliceDamaged, TrajectoryReader

WALKS = 3
"""Tries to walk a trajectory, which is made again between two of them."""


def edit_video(
    process: EditingProcess,
    request: VideoRequest,
    inverted: Inverted,
    requests: Sequence[EditRequest],
    source_prompt: str | None = None,
) -> list[Reconstructed]:
    """Make edits of an inverted video, in lockstep.

    A trajectory that turns out to be damaged is inverted anew, and every edit says so. An edit that
    is not finite is a failed edit; the others beside it are not touched.

    Raises:
        RowError: the source cannot be read any more, or storage damages every trajectory.
    """
    timer = Timer(process.device)
    with timer("read"):
        source = process.together(lambda: process.read(request))[0].frames / 255
    edits = [_edit(process, request, wanted, source_prompt) for wanted in requests]
    before = asdict(process.model.forwards)
    inverted, made = _walk_mended(process, request, inverted, edits, timer)
    forwards = {
        name: (count - before[name]) / len(edits)
        for name, count in asdict(process.model.forwards).items()
    }
    shared = {part: seconds / len(edits) for part, seconds in timer.seconds.items()}

    def finish(place: int) -> Reconstructed:
        own = Timer(process.device, dict(shared))
        wanted, edit, x = requests[place], edits[place], made.latents[place]
        result = _finish(process, request, inverted, wanted, edit, x, source, own)
        result.metrics["largest_residual"] = made.largest_residual
        return replace(result, forwards=forwards, timings=own.seconds, damaged=inverted.damaged)

    # Every rank holds the latents whole: each decodes and writes its own share of the edits.
    rank, ranks = process.group.rank, process.group.ranks
    shares = process.together(lambda: [finish(i) for i in range(rank, len(edits), ranks)])
    every = process.group.gather_objects(shares)
    return [every[place % ranks][place // ranks] for place in range(len(edits))]


def edit_output(video_id: str, edit_id: str) -> str:
    """Where an edit's file lies, relative to the output folder."""
    return f"edits/{video_id}/{edit_id}.mp4"


def _edit(
    process: EditingProcess, request: VideoRequest, wanted: EditRequest, source_prompt: str | None
) -> Edit:
    """A request with the job's settings filled in."""
    settings = process.settings.reconstruction
    scale = settings.guidance_scale if wanted.guidance_scale is None else wanted.guidance_scale
    seed = process.seed(request, wanted.edit_id) if wanted.seed is None else wanted.seed
    return Edit(
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt or settings.negative_prompt,
        guidance_scale=scale,
        seed=seed,
        source_prompt=source_prompt or "",
    )


def _walk_mended(
    process: EditingProcess,
    request: VideoRequest,
    inverted: Inverted,
    edits: Sequence[Edit],
    timer: Timer,
) -> tuple[Inverted, Edited]:
    """Walk a trajectory, and make it again where it is damaged; `Inverted` tells of the new one.

    Raises:
        RowError: as `edit_video`.
    """
    walks = 0
    while True:
        walks += 1
        try:
            return inverted, _walk(process, inverted.key, edits, timer)
        except TrajectoryDamaged as error:
            found = _found(process, error)
            if walks == WALKS:
                raise RowError(
                    ErrorCode.STORAGE,
                    f"{request.video}: its trajectory was made again {walks - 1} times and is "
                    f"damaged still: {found}. Check the storage of the output folder",
                ) from error
            inverted = invert_video(process, request, damaged=found)
            timer.add(inverted.timings)


def _found(process: EditingProcess, error: TrajectoryDamaged) -> str:
    """What is damaged, in the words of a rank that saw it."""
    seen = None if isinstance(error, OtherSliceDamaged) else str(error)
    return next(said for said in process.group.gather_objects(seen) if said)


def _walk(process: EditingProcess, key: str, edits: Sequence[Edit], timer: Timer) -> Edited:
    folder = process.trajectory_folder(key)
    index = shared_index(process, folder, key)
    if index is None or index.highest < process.highest:
        raise TrajectoryDamaged(f"{folder.uri}: no trajectory is committed up to the level needed")
    process.know(["", *(p for e in edits for p in (e.prompt, e.negative_prompt, e.source_prompt))])
    reader = TrajectoryReader(
        folder,
        index,
        rank=process.group.rank,
        ranks=process.group.ranks,
        gather=process.group.gather_values,
        highest=process.highest,
    )
    with timer("reconstruct"), reader:
        return reconstruct(
            process.model,
            lambda level: reader.entry(level).to(process.device),
            edits,
            process.schedule,
            process.settings.reconstruction,
            shape=index.shape,
        )


def _finish(
    process: EditingProcess,
    request: VideoRequest,
    inverted: Inverted,
    wanted: EditRequest,
    edit: Edit,
    latents: Tensor,
    source: Tensor,
    timer: Timer,
) -> Reconstructed:
    """Decode, measure and write one edit."""
    result = Reconstructed(wanted.edit_id, None, edit.guidance_scale, edit.seed)
    with timer("decode"):
        frames = process.codec.decode(latents, inverted.frames)
    if not (torch.isfinite(latents).all() and torch.isfinite(frames).all()):
        return replace(
            result,
            error_code=ErrorCode.NOT_FINITE,
            error=f"edit {wanted.edit_id!r}: values that are not finite; run the job with "
            "precision: bf16 or fp32, or a lower guidance_scale",
        )
    clipped = metrics.clipped_fraction(frames)
    frames = frames.clamp(0, 1)
    output = edit_output(request.video_id, wanted.edit_id)
    with timer("write"):
        process.write_clip(output, to_uint8(frames), inverted.fps)
    certificate: dict[str, float | None] = {
        **inverted.certificate,
        "clipped_fraction": clipped,
        "flicker": metrics.flicker(frames),
        "flicker_source": metrics.flicker(source),
        "motion_agreement": metrics.motion_agreement(frames, source),
    }
    return replace(result, output=output, metrics=certificate)
