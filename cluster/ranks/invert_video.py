"""One video inverted: read, encoded, carried up the levels, stored, and certified."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.ranks.editing import EditingProcess
from cluster.ranks.requests import Inverted, VideoRequest
from pipeline.algorithm.inversion import extend
from pipeline.dtypes import DTYPES
from pipeline.errors import ErrorCode, RowError
from pipeline.media.decoding import Clip
from pipeline.quality.certificate import ROUND_TRIP, certify, missing
from pipeline.storage import Folder
from pipeline.timing import Timer
from pipeline.trajectories.index import TrajectoryDamaged, TrajectoryIndex, commit, read_index
from pipeline.trajectories.reader import TrajectoryReader
from pipeline.trajectories.writer import ShardWriter


def invert_video(
    process: EditingProcess, request: VideoRequest, *, damaged: str | None = None
) -> Inverted:
    """Invert a video, or find that its trajectory is stored and reaches high enough.

    A trajectory that is stored up to a lower level is extended; a damaged one is inverted anew. Its
    index stays until that of the new one takes its place: it may be another group's new one.

    Args:
        damaged: what is known to be wrong with the stored trajectory.

    Raises:
        RowError: the video cannot be read, or its trajectory is not finite.
    """
    timer = Timer(process.device)
    with timer("read"):
        clip, content = process.together(lambda: process.read(request))
    key = process.trajectory_key(request, clip, content)
    folder = process.trajectory_folder(key)
    before = process.model.forwards.total
    stored = _Stored(damaged=damaged) if damaged else _stored(folder, key, process)
    index = stored.index
    if index is None or index.highest < process.highest:
        index = _climb(process, request, clip, folder, key, stored, timer)
    elif stored.clean is not None and stored.top is not None:
        top = stored.top[-1]
        about = certify(process, clip, stored.clean, top, index.highest, index.about, timer)
        index = index.extended((), about)
        if process.group.rank == 0:
            commit(folder, index)
    source = f"sources/{request.video_id}.mp4"
    if process.group.rank == 0:
        with timer("write"):
            process.write_clip(source, clip.frames, clip.fps)
    return Inverted(
        key=key,
        frames=len(clip.frames),
        height=clip.frames.shape[1],
        width=clip.frames.shape[2],
        fps=clip.fps,
        source=source,
        certificate=dict(index.about),
        forwards=process.model.forwards.total - before,
        timings=timer.seconds,
        damaged=stored.damaged,
    )


@dataclass(frozen=True)
class _Stored:
    """What storage holds of a trajectory.

    Args:
        index: None where nothing is committed.
        top: its last two entries [2, F, C, H, W] (one where only level 0 is there), which an
            extension starts from, and
        clean: its first entry [F, C, H, W], where there is more to compute.
        damaged: what is wrong with what is there.
    """

    index: TrajectoryIndex | None = None
    top: Tensor | None = None
    clean: Tensor | None = None
    damaged: str | None = None

    @property
    def level(self) -> int:
        return -1 if self.index is None else self.index.highest


def _stored(folder: Folder, key: str, process: EditingProcess) -> _Stored:
    def look() -> _Stored:
        index = shared_index(process, folder, key)
        if index is None or (
            index.highest >= process.highest
            and not missing(process.settings.inversion, index.about)
        ):
            return _Stored(index)
        with TrajectoryReader(folder, index, highest=0, read_ahead=1) as reader:
            clean = reader.entry(0)
            levels = range(max(0, index.highest - 1), index.highest + 1)
            return _Stored(index, torch.stack([reader.entry(level) for level in levels]), clean)

    try:
        return process.together(look)
    except TrajectoryDamaged as error:
        return _Stored(damaged=str(error))


def shared_index(process: EditingProcess, folder: Folder, key: str) -> TrajectoryIndex | None:
    """A trajectory's index as rank 0 sees it, on every rank.

    Another group may commit the same trajectory between two ranks' looks.

    Raises:
        TrajectoryDamaged: as `read_index`.
    """
    mine = process.together(lambda: read_index(folder, key) if process.group.rank == 0 else None)
    index: TrajectoryIndex | None = process.group.gather_objects(mine)[0]
    return index


def _climb(
    process: EditingProcess,
    request: VideoRequest,
    clip: Clip,
    folder: Folder,
    key: str,
    stored: _Stored,
    timer: Timer,
) -> TrajectoryIndex:
    """Compute, store and commit the levels that are not stored yet."""
    inversion = process.settings.inversion
    top = stored.top
    if top is None:
        with timer("encode"):
            seed = process.seed(request, "posterior")
            top = process.codec.encode(clip.frames, inversion.posterior, seed)[None]
    process.know([""])
    start = max(stored.level, 0)
    with timer("invert"):
        entries = extend(
            process.model.velocity(""),
            top.to(process.device),
            start,
            process.schedule,
            inversion,
            highest=process.highest,
        )
    if not torch.isfinite(entries).all():
        raise RowError(
            ErrorCode.NOT_FINITE,
            f"{request.video}: the inversion gave values that are not finite; run the job with "
            "precision: bf16 or fp32",
        )
    stored_as = process.settings.trajectory.dtype
    if not torch.isfinite(entries.to(DTYPES[stored_as])).all():
        largest = float(entries.abs().max())
        raise RowError(
            ErrorCode.NOT_FINITE,
            f"{request.video}: the trajectory's largest value, {largest:g}, is more than "
            f"{stored_as} holds; run the job with trajectory.dtype: bf16 or fp32",
        )
    writer = ShardWriter(
        folder,
        stored_as,
        rank=process.group.rank,
        ranks=process.group.ranks,
        first_level=stored.level + 1,
    )
    for x in entries[stored.level + 1 - start :]:
        writer.add(x)
    with ThreadPoolExecutor(1) as uploads:  # the upload runs beside the certificate's work
        upload = uploads.submit(writer.store)
        about = _certified(process, clip, entries, stored, timer)
        with timer("write"):
            shards = process.group.gather_objects(upload.result())
    if stored.index is None:
        index = TrajectoryIndex(
            key=key,
            shape=(entries.shape[1], entries.shape[2], entries.shape[3], entries.shape[4]),
            dtype=stored_as,
            shards=tuple(shards),
            timesteps=tuple(level.timestep for level in process.schedule.levels),
            alphas=tuple(level.alpha for level in process.schedule.levels),
            about=about,
        )
    else:
        index = stored.index.extended(shards, about)
    if process.group.rank == 0:
        commit(folder, index)
    return index


def _certified(
    process: EditingProcess, clip: Clip, entries: Tensor, stored: _Stored, timer: Timer
) -> dict[str, float]:
    """The certificate of a trajectory with new entries [levels, F, C, H, W]."""
    clean = entries[0] if stored.clean is None else stored.clean
    known = dict(stored.index.about) if stored.index else {}
    known.pop(ROUND_TRIP, None)  # it was that of a shorter way
    return certify(process, clip, clean, entries[-1], process.highest, known, timer)
