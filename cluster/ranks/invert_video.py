"""One video inverted: read, encoded, carried up the levels, stored, and certified."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cluster.ranks.editing import RankEditor
from pipeline.dtypes import DTYPES
from pipeline.errors import ErrorCode, RowError
from pipeline.media.decoding import Clip
from pipeline.quality.certificate import (
    ROUND_TRIP,
    VAE_PSNR,
    as_metrics,
    missing,
    noise_metrics,
    round_trip_db,
    vae_psnr_db,
)
from pipeline.records import InversionResult, Timings, VideoSpec
from pipeline.storage import Folder
from pipeline.timing import Timer
from pipeline.trajectories.index import (
    Shard,
    TrajectoryDamaged,
    TrajectoryIndex,
    commit,
    read_index,
)
from pipeline.trajectories.reader import TrajectoryReader
from pipeline.trajectories.trajectory import stacked
from pipeline.trajectories.writer import ShardWriter


def invert_video(
    rank: RankEditor, video: VideoSpec, *, damaged: str | None = None
) -> InversionResult:
    """Invert a video, or find that its trajectory is stored and reaches high enough.

    A trajectory that is stored up to a lower level is extended; a damaged one is inverted anew. Its
    index stays until that of the new one takes its place: it may be another group's new one.

    Args:
        damaged: what is known to be wrong with the stored trajectory.

    Raises:
        RowError: the video cannot be read, or its trajectory is not finite.
    """
    timer = Timer(rank.editor.device)
    with timer("read"):
        clip = rank.together(lambda: rank.read(video))
    key = rank.trajectory_key(video, clip)
    before = rank.editor.model.forwards.total
    stored = _Stored(damaged=damaged) if damaged else _stored(rank, key)
    index = stored.index
    if index is None or index.highest < rank.highest:
        inversion = rank.settings.inversion
        top = stored.top
        if top is None:
            with timer("encode"):
                top = rank.editor.encode(clip.frames, inversion, rank.seed(video, "posterior"))[
                    None
                ]
        with timer("invert"):
            start = max(stored.level, 0)
            try:
                entries = rank.editor.extend(top, start, rank.schedule, inversion, rank.highest)
            except RowError as error:
                raise RowError(error.code, f"{video.video}: {error.message}") from error
        index = _store(rank, video, key, clip, stored, entries, timer)
    elif stored.clean is not None and stored.top is not None:
        about = certify(rank, clip, stored.clean, stored.top[-1], index.highest, index.about, timer)
        index = index.extended((), about, **_facts(rank, clip))
        if rank.group.rank == 0:
            commit(rank.trajectory_folder(key), index)
    source = f"sources/{video.video_id}.mp4"
    if rank.group.rank == 0:
        with timer("write"):
            rank.write_clip(source, clip.frames, clip.fps)
    return InversionResult(
        trajectory=key,
        frames=len(clip.frames),
        height=clip.frames.shape[1],
        width=clip.frames.shape[2],
        fps=clip.fps,
        source=source,
        metrics=as_metrics(index.about),
        forwards=rank.editor.model.forwards.total - before,
        timings=Timings(**timer.seconds),
        trajectory_damage=stored.damaged,
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


def _stored(rank: RankEditor, key: str) -> _Stored:
    folder, asked = rank.trajectory_folder(key), rank.settings.inversion

    def look() -> _Stored:
        index = shared_index(rank, key)
        if index is None or (index.highest >= rank.highest and not missing(asked, index.about)):
            return _Stored(index)
        with TrajectoryReader(folder, index, highest=0, read_ahead=1) as reader:
            clean = reader.entry(0)
            top = stacked(reader, range(max(0, index.highest - 1), index.highest + 1))
            return _Stored(index, top, clean)

    try:
        return rank.together(look)
    except TrajectoryDamaged as error:
        return _Stored(damaged=str(error))


def shared_index(rank: RankEditor, key: str) -> TrajectoryIndex | None:
    """A trajectory's index as rank 0 sees it, on every rank.

    Another group may commit the same trajectory between two ranks' looks.

    Raises:
        TrajectoryDamaged: as `read_index`.
    """
    folder = rank.trajectory_folder(key)
    mine = rank.together(lambda: read_index(folder, key) if rank.group.rank == 0 else None)
    index: TrajectoryIndex | None = rank.group.gather_objects(mine)[0]
    return index


def _store(
    rank: RankEditor,
    video: VideoSpec,
    key: str,
    clip: Clip,
    stored: _Stored,
    entries: Tensor,
    timer: Timer,
) -> TrajectoryIndex:
    """Store, certify and commit the entries [levels, F, C, H, W] that are not stored yet."""
    folder = rank.trajectory_folder(key)
    writer = _filled_writer(rank, video, folder, stored, entries)
    with ThreadPoolExecutor(1) as uploads:  # the upload runs beside the certificate's work
        upload = uploads.submit(writer.store)
        known = dict(stored.index.about) if stored.index else {}
        known.pop(ROUND_TRIP, None)  # it was that of a shorter way
        clean = entries[0] if stored.clean is None else stored.clean
        about = certify(rank, clip, clean, entries[-1], rank.highest, known, timer)
        with timer("write"):
            shards: list[Shard] = rank.group.gather_objects(upload.result())
    if stored.index is not None:
        index = stored.index.extended(shards, about, **_facts(rank, clip))
    else:
        frames, channels, height, width = entries.shape[1:]
        index = TrajectoryIndex(
            key=key,
            shape=(frames, channels, height, width),
            dtype=rank.settings.trajectory.dtype,
            shards=tuple(shards),
            timesteps=tuple(level.timestep for level in rank.schedule.levels),
            alphas=tuple(level.alpha for level in rank.schedule.levels),
            about=about,
            **_facts(rank, clip),
        )
    if rank.group.rank == 0:
        commit(folder, index)
    return index


def _facts(rank: RankEditor, clip: Clip) -> dict[str, Any]:
    """What the index holds for those who open a trajectory without its job."""
    return {
        "frames": len(clip.frames),
        "fps": clip.fps,
        "method": rank.settings.inversion.method,
        "checkpoint": rank.editor.info.fingerprint,
    }


def _filled_writer(
    rank: RankEditor, video: VideoSpec, folder: Folder, stored: _Stored, entries: Tensor
) -> ShardWriter:
    """This rank's writer with the new entries in host memory.

    Raises:
        RowError: the stored dtype cannot hold a value.
    """
    dtype = rank.settings.trajectory.dtype
    if not torch.isfinite(entries.to(DTYPES[dtype])).all():
        largest = float(entries.abs().max())
        raise RowError(
            ErrorCode.NOT_FINITE,
            f"{video.video}: the trajectory's largest value, {largest:g}, is more than "
            f"{dtype} holds; run the job with trajectory.dtype: bf16 or fp32",
        )
    writer = ShardWriter(
        folder,
        dtype,
        rank=rank.group.rank,
        ranks=rank.group.ranks,
        first_level=stored.level + 1,
    )
    for x in entries[stored.level + 1 - max(stored.level, 0) :]:
        writer.add(x)
    return writer


def certify(
    rank: RankEditor,
    clip: Clip,
    clean: Tensor,
    top: Tensor,
    level: int,
    known: Mapping[str, float],
    timer: Timer,
) -> dict[str, float]:
    """The certificate of a trajectory, by metric.

    Args:
        clean, top: its lowest and its highest entry, [F, C, H, W].
        level: of the highest entry.
        known: what holds of it still.
    """
    editor, schedule = rank.editor, rank.schedule
    found = {**known, **noise_metrics(top, level / schedule.steps)}
    wanted = missing(rank.settings.inversion, known)
    if VAE_PSNR in wanted:
        with timer("decode"):
            found[VAE_PSNR] = vae_psnr_db(
                clip.frames, clean, lambda x: editor.decode(x, len(clip.frames))
            )
    if ROUND_TRIP in wanted:
        with timer("round_trip"):
            velocity = editor.model.velocity(editor.prompt(""))
            found[ROUND_TRIP] = round_trip_db(
                velocity, schedule, clean, top.to(editor.device), level
            )
    return found
