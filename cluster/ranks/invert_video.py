"""One video inverted: read, encoded, carried up the levels, stored, committed, and certified.

The trajectory is committed before anything is measured. What goes wrong in the certificate costs a
metric, which is null with its reason, and never the inversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from cluster.ranks.editing import RankEditor
from pipeline.dtypes import DTYPES
from pipeline.errors import ErrorCode, RowError
from pipeline.media.decoding import Clip
from pipeline.quality.certificate import (
    NOISE,
    ROUND_TRIP,
    VAE_PSNR,
    Certificate,
    as_metrics,
    begun,
    measured,
    missing,
    noise_metrics,
    signal_to_error_db,
    still_true,
    vae_psnr_db,
    way_down,
)
from pipeline.records import InversionResult, Timings, VideoSpec
from pipeline.redaction import log_error
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

T = TypeVar("T")


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
    before, highest = rank.editor.model.forwards.total, rank.highest(video)
    stored = _Stored(damaged=damaged) if damaged else _stored(rank, key, highest)
    index, asked = stored.index, rank.settings.inversion
    names: tuple[str, ...] = ()
    clean, top = stored.clean, stored.top
    if index is None or index.highest < highest:
        known = {} if index is None else still_true(index.about)
        names = missing(asked, known)
        if top is None:
            with timer("encode"), _named(video):
                top = rank.editor.encode(clip.frames, asked, rank.seed(video, "posterior"))[None]
        with timer("invert"), _named(video):
            rank.load_embeddings([""])
            level = max(stored.level, 0)
            entries = rank.editor.extend(top, level, rank.schedule, asked, highest)
        clean, top = entries[0] if clean is None else clean, entries[-1:]
        index = _store(rank, video, key, clip, stored, entries, begun(known, names), timer)
    elif top is not None:
        names = missing(asked, index.about)
        index = index.extended((), begun(index.about, names), **_facts(rank, clip))
        _commit_again(rank, index)
    source = f"sources/{video.video_id}.mp4"
    if rank.group.rank == 0:
        rank.beside(lambda: rank.write_clip(source, clip.frames, clip.fps))
    if clean is not None and top is not None:
        index = replace(index, about=certify(rank, clip, clean, top[-1], index, names, timer))
        _commit_again(rank, index)
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
        stored_bytes=_written(stored.index, index),
    )


def _written(before: TrajectoryIndex | None, now: TrajectoryIndex) -> int:
    """Bytes of the shards that an index has more than before."""
    known = {shard.file for shard in before.shards} if before else set()
    return sum(shard.bytes for shard in now.shards if shard.file not in known)


@contextmanager
def _named(video: VideoSpec) -> Iterator[None]:
    """What the model cannot do says of which video."""
    try:
        yield
    except RowError as error:
        text = f"{video.video}: {error.message}"
        raise RowError(error.code, text, error.needs_restart) from error


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


def _stored(rank: RankEditor, key: str, highest: int) -> _Stored:
    folder, asked = rank.trajectory_folder(key), rank.settings.inversion

    def look() -> _Stored:
        index = shared_index(rank, key)
        if index is None or (index.highest >= highest and not missing(asked, index.about)):
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
    about: Certificate,
    timer: Timer,
) -> TrajectoryIndex:
    """Store and commit the entries [levels, F, C, H, W] that are not stored yet."""
    folder = rank.trajectory_folder(key)
    writer = _filled_writer(rank, video, folder, stored, entries)
    with timer("write"):
        own = rank.together(writer.store)
        shards: list[Shard] = rank.group.gather_objects(own)
    rank.progress("the storing of a trajectory")
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
    rank.together(lambda: commit(folder, index) if rank.group.rank == 0 else None)
    return index


def _commit_again(rank: RankEditor, index: TrajectoryIndex) -> None:
    """Commit what is known now of a trajectory, where it is still the one that is stored.

    Another group may have put its own in its place, or extended it, or the job that uses it may
    have deleted it. A storage that fails costs what would have been known, not the inversion.
    """
    if rank.group.rank:
        return
    folder, files = rank.trajectory_folder(index.key), [shard.file for shard in index.shards]
    try:
        there = read_index(folder, index.key)
        if there is not None and [shard.file for shard in there.shards] == files:
            commit(folder, index)
    except Exception as error:
        log_error(error)


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
    index: TrajectoryIndex,
    names: tuple[str, ...],
    timer: Timer,
) -> Certificate:
    """The certificate of a committed trajectory, on every rank.

    Args:
        clean, top: its lowest and its highest entry, [F, C, H, W].
        names: of the metrics to measure. What cannot be had has its reason instead of a number.

    Raises:
        Exception: in a group only, from a forward: the others wait for this rank in an exchange.
    """
    editor, level = rank.editor, index.highest
    about: Certificate = dict(index.about)

    def vae_psnr() -> dict[str, float]:
        with timer("decode"):
            frames = len(clip.frames)
            psnr = vae_psnr_db(clip.frames, clean, lambda x: editor.decode(x, frames))
        return {VAE_PSNR: psnr}

    if NOISE in names:
        noise = _on_first(rank, lambda: noise_metrics(top, level / rank.schedule.steps))
        about = measured(about, NOISE, noise)
    if VAE_PSNR in names:
        about = measured(about, VAE_PSNR, _on_first(rank, vae_psnr))
    if ROUND_TRIP in names:
        about = measured(about, ROUND_TRIP, _round_trip(rank, clean, top, level, timer))
    return about


def _round_trip(
    rank: RankEditor, clean: Tensor, top: Tensor, level: int, timer: Timer
) -> dict[str, float] | str:
    """The round trip's metric, or why there is none. The ranks denoise together or not at all."""
    editor, group = rank.editor, rank.group
    start = _tried(rank, lambda: (editor.model.velocity(editor.prompt("")), top.to(editor.device)))
    problems = group.gather_objects(start if isinstance(start, str) else None)
    if isinstance(start, str) or any(problems):
        return next(problem for problem in problems if problem)
    velocity, x = start

    def down() -> Tensor:
        with timer("round_trip"):
            return way_down(velocity, rank.schedule, x, level)

    back = down() if group.ranks > 1 else _tried(rank, down)
    if isinstance(back, str):
        return back
    return _on_first(rank, lambda: {ROUND_TRIP: signal_to_error_db(clean, back)})


def _on_first(rank: RankEditor, work: Callable[[], dict[str, float]]) -> dict[str, float] | str:
    """What rank 0 measures, on every rank; or why it could not."""
    outcome = _tried(rank, work) if rank.group.rank == 0 else ""
    first: dict[str, float] | str = rank.group.gather_objects(outcome)[0]
    return first


def _tried(rank: RankEditor, work: Callable[[], T]) -> T | str:
    """What `work` returns, or the text of what it raised."""
    try:
        return work()
    except Exception as error:
        return rank.give_up(error)
