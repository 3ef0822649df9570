"""The certificate of a committed inversion: what goes wrong in it costs a metric, and no more."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.ranks import invert_video as module
from cluster.ranks.channel import whole
from cluster.ranks.edit_video import edit_video
from cluster.ranks.editing import RankEditor, prompt_store
from cluster.ranks.invert_video import invert_video
from pipeline.errors import ErrorCode, RowError
from pipeline.media.encoding import write_clip
from pipeline.model.checkpoint import open_checkpoint
from pipeline.model.group import OneRank
from pipeline.quality.certificate import (
    MOST_TRIES,
    NOISE,
    ROUND_TRIP,
    VAE_PSNR,
    as_metrics,
    begun,
    measured,
    missing,
)
from pipeline.records import EditSpec, InversionResult, VideoSpec
from pipeline.settings import EditingSettings, Inversion, Reconstruction, VideoSettings
from pipeline.trajectories.index import TrajectoryIndex, read_index
from tests.drawn_videos import waves
from tests.stub_memory import GB, StubMemory

RED = EditSpec("a red fox", edit_id="red")
WAIT_S = 30


@pytest.fixture
def settings(checkpoints: dict[str, Path], tmp_path: Path) -> EditingSettings:
    return EditingSettings(
        checkpoint=str(checkpoints["5b"]),
        output=str(tmp_path / "out"),
        video=VideoSettings(height=32, width=48, frames=5),
        inversion=Inversion(steps=4, round_trip=True),
        reconstruction=Reconstruction(start=0.5, guidance_scale=2.0),
    )


@pytest.fixture
def video(tmp_path: Path) -> Iterator[VideoSpec]:
    with (tmp_path / "clip.mp4").open("wb") as file:
        write_clip(file, torch.from_numpy(waves(6, 40, 60)), fps=8)
    yield VideoSpec(str(tmp_path / "clip.mp4"), "clip", edits=(RED,))


def a_rank(settings: EditingSettings, group: OneRank | None = None) -> RankEditor:
    info = open_checkpoint(settings.checkpoint)
    store = prompt_store(settings, info)
    draw = torch.Generator().manual_seed(0)
    for prompt in ("", RED.prompt):
        store.write(prompt, torch.randn(info.text_tokens, 32, generator=draw))
    return RankEditor.load(settings, torch.device("cpu"), group)


def index_of(rank: RankEditor, inverted: InversionResult) -> TrajectoryIndex:
    index = read_index(rank.trajectory_folder(inverted.trajectory), inverted.trajectory)
    assert index is not None
    return index


def fails_with(error: Exception) -> Callable[..., Any]:
    def failing(*_: Any, **__: Any) -> Any:
        raise error

    return failing


def full_decoder(rank: RankEditor, patch: pytest.MonkeyPatch) -> None:
    rank.editor.codec.memory = StubMemory(GB)
    patch.setattr(rank.editor.codec.vae, "decode", fails_with(torch.OutOfMemoryError("full")))


def full_transformer(rank: RankEditor, patch: pytest.MonkeyPatch) -> None:
    """Memory runs out from the fourth forward on: the inversion has three, the way down two."""
    forward, left = rank.editor.model._forward, iter(range(3))

    def tight(*how: Any) -> Any:
        if next(left, None) is None:
            raise torch.OutOfMemoryError("full")
        return forward(*how)

    rank.editor.model.memory = StubMemory(GB)
    patch.setattr(rank.editor.model, "_forward", tight)


FAILURES: dict[str, tuple[Callable[[RankEditor, pytest.MonkeyPatch], None], set[str], str]] = {
    "the VAE's memory": (full_decoder, {VAE_PSNR}, "the VAE ran out of memory to decode 5 frames"),
    "the transformer's memory": (full_transformer, {ROUND_TRIP}, "1 branch of 1 in a block"),
    "a bug in a metric": (
        lambda _, patch: patch.setattr(module, "vae_psnr_db", fails_with(KeyError("luma"))),
        {VAE_PSNR},
        "vae_psnr_db: KeyError: 'luma'",
    ),
    "a bug in the noise's": (
        lambda _, patch: patch.setattr(module, "noise_metrics", fails_with(ValueError("empty"))),
        {NOISE, "noise_mean", "noise_std", "noise_kurtosis"},
        "noise_level: ValueError: empty",
    ),
    "the accelerator": (
        lambda rank, patch: patch.setattr(
            rank.editor, "decode", fails_with(RuntimeError("CUDA error: misaligned address"))
        ),
        {VAE_PSNR},
        "vae_psnr_db: RuntimeError: CUDA error: misaligned address",
    ),
    "the prompt's storage": (
        lambda rank, patch: patch.setattr(
            module, "way_down", fails_with(ConnectionError("no route"))
        ),
        {ROUND_TRIP},
        "round_trip_db: ConnectionError: no route",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_in_a_certificate_costs_a_metric_and_not_the_inversion(
    failure: str, settings: EditingSettings, video: VideoSpec
) -> None:
    rank = a_rank(settings)
    spoil, lost, reason = FAILURES[failure]
    with pytest.MonkeyPatch.context() as patch:
        spoil(rank, patch)
        inverted = invert_video(rank, video)
    assert rank.broken == (failure == "the accelerator"), "whether it can take another request"
    metrics = vars(inverted.metrics)
    asked = {NOISE, "noise_mean", "noise_std", "noise_kurtosis", VAE_PSNR, ROUND_TRIP}
    assert {name for name in asked if metrics[name] is None} == lost
    assert reason in str(metrics["unmeasured"])
    (edit,) = whole(edit_video(rank, video, inverted), rank.overlap.begun())
    assert edit.error_code is None
    assert edit.metrics.unmeasured == metrics["unmeasured"]
    again = invert_video(a_rank(settings), video)
    assert again.forwards == (2 if ROUND_TRIP in lost else 0), "it was inverted again"
    assert again.metrics.unmeasured is None
    assert all(vars(again.metrics)[name] is not None for name in asked)
    assert "tries" not in index_of(rank, again).about


def test_a_trajectory_is_committed_before_anything_is_measured(
    settings: EditingSettings, video: VideoSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the process in the certificate leaves the trajectory, and the reason."""
    monkeypatch.setattr(module, "noise_metrics", fails_with(SystemExit(9)))
    with pytest.raises(BaseException) as ended:
        invert_video(a_rank(settings), video)
    assert ended.type is SystemExit
    monkeypatch.undo()
    (key,) = (path.name for path in (Path(settings.output) / "trajectories").iterdir())
    rank = a_rank(settings)
    index = read_index(rank.trajectory_folder(key), key)
    assert index is not None
    assert index.highest == 2
    reason = "the process ended while it was measured"
    assert index.about["reasons"] == dict.fromkeys((NOISE, VAE_PSNR, ROUND_TRIP), reason)
    found = invert_video(rank, video)
    assert (found.forwards, found.metrics.unmeasured) == (2, None)  # the round trip's alone


def test_a_metric_that_never_can_be_had_is_not_tried_for_ever(
    settings: EditingSettings, video: VideoSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def broken(*_: Any) -> float:
        tries.append(1)
        raise ValueError("no luma")

    monkeypatch.setattr(module, "vae_psnr_db", broken)
    rank = a_rank(settings)
    found = [invert_video(rank, video) for _ in range(MOST_TRIES + 2)]
    assert len(tries) == MOST_TRIES
    assert {one.metrics.unmeasured for one in found} == {"vae_psnr_db: ValueError: no luma"}
    assert {one.metrics.round_trip_db for one in found} == {found[0].metrics.round_trip_db}
    higher = replace(settings, reconstruction=Reconstruction(start="inverted"))
    invert_video(a_rank(higher), video)
    assert len(tries) == MOST_TRIES + 1, "a trajectory that was extended is measured again"


def test_a_trajectory_that_another_group_put_there_meanwhile_keeps_its_index(
    settings: EditingSettings, video: VideoSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate takes seconds: what it adds must not undo an extension."""
    rank, higher = a_rank(settings), replace(settings, reconstruction=Reconstruction())
    higher = replace(higher, reconstruction=Reconstruction(start="inverted"))
    real = module.noise_metrics

    def meanwhile(*how: Any) -> dict[str, float]:
        monkeypatch.undo()
        invert_video(a_rank(higher), video)
        return real(*how)

    monkeypatch.setattr(module, "noise_metrics", meanwhile)
    inverted = invert_video(rank, video)
    assert inverted.metrics.noise_level == 0.5
    index = index_of(rank, inverted)
    assert (index.highest, index.about[NOISE]) == (4, 1.0)


def test_a_storage_that_refuses_the_certificate_does_not_fail_the_video(
    settings: EditingSettings, video: VideoSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, times = module.commit, iter(range(9))

    def once(*how: Any) -> None:
        if next(times) > 0:
            raise PermissionError("read-only")
        commit(*how)

    monkeypatch.setattr(module, "commit", once)
    inverted = invert_video(a_rank(settings), video)
    assert inverted.metrics.vae_psnr_db is not None
    assert inverted.metrics.unmeasured is None


# Groups


class ThreadRank(OneRank):
    """One of two ranks that are threads; both compute every token."""

    ranks = 2

    def __init__(self, rank: int, barrier: threading.Barrier, given: list[Any]) -> None:
        self.rank, self.barrier, self.given = rank, barrier, given

    def gather_objects(self, value: Any) -> list[Any]:
        self.given[self.rank] = value
        self.barrier.wait(WAIT_S)
        values = list(self.given)
        self.barrier.wait(WAIT_S)
        return values


def invert_on_two(
    settings: EditingSettings, video: VideoSpec, spoil: Callable[[int, RankEditor], None]
) -> list[InversionResult | BaseException]:
    """What each of two ranks returns or raises; those that wait for one that left raise."""
    barrier, given = threading.Barrier(2), [None, None]
    ranks = [a_rank(settings, ThreadRank(i, barrier, given)) for i in range(2)]

    def work(number: int) -> InversionResult | BaseException:
        spoil(number, ranks[number])
        try:
            return invert_video(ranks[number], video)
        except Exception as error:
            barrier.abort()  # the owner ends the others
            return error

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(work, range(2)))


def test_one_rank_of_a_group_decodes_for_all(settings: EditingSettings, video: VideoSpec) -> None:
    decoded: list[int] = []

    def watch(number: int, rank: RankEditor) -> None:
        decode = rank.editor.codec.decode

        def watched(*how: Any) -> Any:
            decoded.append(number)
            return decode(*how)

        rank.editor.codec.decode = watched  # type: ignore[method-assign]

    first, other = invert_on_two(settings, video, watch)
    assert isinstance(first, InversionResult)
    assert isinstance(other, InversionResult)
    assert decoded == [0]
    assert first.metrics == other.metrics
    assert None not in (first.metrics.vae_psnr_db, first.metrics.round_trip_db)
    alone = invert_video(a_rank(replace(settings, output=settings.output + "-alone")), video)
    assert first.metrics == alone.metrics


@pytest.mark.parametrize(
    ("number", "part", "reason"),
    [
        (0, "decode", "vae_psnr_db: ValueError: of rank 0"),
        (0, "prompt", "round_trip_db: ValueError: of rank 0"),
        (1, "prompt", "round_trip_db: ValueError: of rank 1"),
    ],
)
def test_ranks_of_a_group_stay_in_step_where_one_fails_in_its_own_part(
    number: int, part: str, reason: str, settings: EditingSettings, video: VideoSpec
) -> None:
    def spoil(rank_number: int, rank: RankEditor) -> None:
        if rank_number != number:
            return
        real, extend = getattr(rank.editor, part), rank.editor.extend

        def extended(*how: Any) -> Any:
            entries = extend(*how)
            setattr(rank.editor, part, fails_with(ValueError(f"of rank {number}")))
            return entries

        assert real
        rank.editor.extend = extended  # type: ignore[method-assign]

    first, other = invert_on_two(settings, video, spoil)
    assert isinstance(first, InversionResult)
    assert isinstance(other, InversionResult)
    assert first.metrics == other.metrics
    assert first.metrics.unmeasured == reason
    assert (first.metrics.round_trip_db is None) == (part == "prompt")


@pytest.mark.parametrize(
    ("error", "code", "needs_restart"),
    [
        (RowError(ErrorCode.VIDEO_UNREADABLE, "no video"), ErrorCode.VIDEO_UNREADABLE, False),
        (ConnectionError("no route"), ErrorCode.STORAGE, False),
        (MemoryError("no more"), ErrorCode.OUT_OF_MEMORY, False),
        (KeyError("a bug"), ErrorCode.INTERNAL, False),
        (RuntimeError("CUDA error: misaligned address"), ErrorCode.INTERNAL, True),
    ],
)
def test_what_one_rank_meets_as_it_reads_ahead_fails_the_video_on_all_alike(
    error: Exception,
    code: ErrorCode,
    needs_restart: bool,
    settings: EditingSettings,
    video: VideoSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    barrier, given = threading.Barrier(2), [None, None]
    ranks = [a_rank(settings, ThreadRank(i, barrier, given)) for i in range(2)]
    monkeypatch.setattr(ranks[1], "_decoded", fails_with(error))

    def raised(rank: RankEditor) -> tuple[ErrorCode, str, bool]:
        rank.read_ahead(video, nullcontext())
        with pytest.raises(RowError) as caught:
            invert_video(rank, video)
        return caught.value.code, caught.value.message, caught.value.needs_restart

    with ThreadPoolExecutor(2) as threads:
        first, other = threads.map(raised, ranks)
    assert first == other
    assert (first[0], first[2]) == (code, needs_restart)
    assert str(error) in first[1]


@pytest.mark.parametrize(
    ("number", "part"), [(0, "store"), (1, "store"), (0, "commit"), (1, "prompt")]
)
def test_a_storage_that_refuses_one_ranks_part_fails_the_video_on_all_alike(
    number: int,
    part: str,
    settings: EditingSettings,
    video: VideoSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None waits for the one that failed, and the group needs no restart."""
    barrier, given = threading.Barrier(2), [None, None]
    ranks = [a_rank(settings, ThreadRank(i, barrier, given)) for i in range(2)]
    full = OSError(28, "No space left on device")
    if part == "commit":
        monkeypatch.setattr(module, "commit", fails_with(full))
    elif part == "prompt":
        ranks[number].editor.text = SimpleNamespace(embedding=fails_with(full))
    else:
        real = module.ShardWriter.store

        def store(writer: Any) -> Any:
            if writer.rank == number:
                raise full
            return real(writer)

        monkeypatch.setattr(module.ShardWriter, "store", store)

    def raised(rank: RankEditor) -> tuple[ErrorCode, str, bool]:
        with pytest.raises(RowError, match="No space left") as caught:
            invert_video(rank, video)
        return caught.value.code, caught.value.message, caught.value.needs_restart

    with ThreadPoolExecutor(2) as threads:
        first, other = threads.map(raised, ranks)
    assert first == other
    assert (first[0], first[2]) == (ErrorCode.STORAGE, False)


def test_memory_that_runs_out_in_a_groups_round_trip_leaves_the_inversion(
    settings: EditingSettings, video: VideoSpec
) -> None:
    """The others wait in an exchange, so the group restarts; what it finished is there."""

    def spoil(number: int, rank: RankEditor) -> None:
        if number == 1:
            full_transformer(rank, pytest.MonkeyPatch())

    _, error = invert_on_two(settings, video, spoil)
    assert isinstance(error, RowError)
    assert (error.code, error.needs_restart) == (ErrorCode.OUT_OF_MEMORY, True)
    rank = a_rank(settings)
    found = invert_video(rank, video)
    assert (found.forwards, found.metrics.unmeasured) == (2, None)


def test_memory_that_runs_out_in_a_groups_inversion_names_the_video_and_restarts_it(
    settings: EditingSettings, video: VideoSpec
) -> None:
    rank = a_rank(settings)
    failing = fails_with(RowError(ErrorCode.OUT_OF_MEMORY, "no room", needs_restart=True))
    rank.editor.extend = failing  # type: ignore[method-assign]
    with pytest.raises(RowError, match=r"clip\.mp4: no room") as no:
        invert_video(rank, video)
    assert no.value.needs_restart


# What a certificate is made of


def test_a_certificate_keeps_the_reason_of_what_is_not_there() -> None:
    asked = Inversion(round_trip=True)
    known = begun({}, missing(asked, {}))
    assert missing(asked, known) == (NOISE, VAE_PSNR, ROUND_TRIP)
    known = measured(known, NOISE, {NOISE: 0.5, "noise_std": 1.0})
    known = measured(known, VAE_PSNR, "no memory")
    known = measured(known, ROUND_TRIP, {ROUND_TRIP: 30.0})
    assert known == {
        NOISE: 0.5,
        "noise_std": 1.0,
        ROUND_TRIP: 30.0,
        "tries": {VAE_PSNR: 1},
        "reasons": {VAE_PSNR: "no memory"},
    }
    assert as_metrics(json.loads(json.dumps(known))).unmeasured == "vae_psnr_db: no memory"
    for _ in range(MOST_TRIES - 1):
        assert missing(asked, known) == (VAE_PSNR,)
        known = begun(known, [VAE_PSNR])
    assert missing(asked, known) == ()
    assert as_metrics({NOISE: 0.5, "later": 1.0}).unmeasured is None
