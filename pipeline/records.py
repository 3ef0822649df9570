"""The plain records between the parts: each thing of the product is declared here, once.

The manifest's columns are `VideoSpec`, the columns of the results are `EditResult`. Arrow schemas
(`arrow_schema`), the JSON between an owner and its ranks (`dataclasses.asdict` and `from_dict`) and
the tables of the documentation follow from these declarations. Importing this costs no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import datetime
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pipeline.errors import ErrorCode
from pipeline.redaction import redacted
from pipeline.scores import Scores

if TYPE_CHECKING:
    import pyarrow as pa

Record = TypeVar("Record")


@dataclass(frozen=True)
class EditSpec:
    """One edit of a video. None stands for the job's own setting.

    Args:
        edit_id: names the edit and its file; by default derived from the rest.
        prompt: describes the edited video.
        negative_prompt: what the edit is guided away from.
        guidance_scale: of classifier-free guidance; 1 and below turn it off.
        seed: of the noise, for the start `noise`.
        mask: path or URI of a video or image of the source's proportions, white where the edit may
            change it; or `auto`; or `none`.
        instruction: what a person would ask for, such as "make the horse a zebra"; changes nothing
            of the edit.
    """

    edit_id: str | None = field(default=None, kw_only=True)
    prompt: str
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    mask: str | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class VideoSpec:
    """One row of the manifest. None stands for the job's own setting.

    Args:
        video: path or URI of the video file; a relative one is relative to the manifest's folder.
        video_id: unique, and safe as a file name; by default the file's stem and 8 digits of a
            hash.
        source_prompt: describes the source.
        edits: to be made of it.
        start_frame: frames of the source to leave out.
        num_frames: at most so many frames are edited.
        fps: frames a second to resample to.
        seed: every random draw for this video comes from it.
        mask: of the edits that have none of their own.
    """

    video: str
    video_id: str | None = None
    source_prompt: str | None = None
    edits: tuple[EditSpec, ...] = ()
    start_frame: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    seed: int | None = None
    mask: str | None = None


@dataclass(frozen=True)
class Forwards:
    """Forwards of the transformer, each of one latent.

    Args:
        inversion: an edit's share of those of its video's inversion.
        plain: attention to the branch itself alone; an edit's share of the reference's among them.
        injected: attention to the reference too, about 1.5 times a plain one.
        skipped: those that `speed.step_cache` ended after the first block; they are in none of the
            others.
    """

    inversion: float = 0.0
    plain: float = 0.0
    injected: float = 0.0
    skipped: float = 0.0

    @property
    def computed(self) -> float:
        """Those that went through all blocks."""
        return float(sum(getattr(self, name) for name in COMPUTED))


COMPUTED = ("inversion", "plain", "injected")
"""The fields of `Forwards` that went through all blocks."""


@dataclass(frozen=True)
class Timings:
    """Seconds by part of the work.

    Args:
        read: waiting until the source is read and decoded, which begins beside earlier work.
        encode: the VAE, frames to latents.
        invert: the climb up the noise levels.
        round_trip: the way down again that `inversion.round_trip` asks for.
        reconstruct: the denoising steps of the edits.
        decode: the VAE, latents to frames.
        write: files encoded and stored, those of an edit beside later work.
    """

    read: float = 0.0
    encode: float = 0.0
    invert: float = 0.0
    round_trip: float = 0.0
    reconstruct: float = 0.0
    decode: float = 0.0
    write: float = 0.0

    def shared(self, count: int) -> Timings:
        """The share of one of `count`."""
        return Timings(**{f.name: getattr(self, f.name) / count for f in fields(self)})

    def __add__(self, other: Timings) -> Timings:
        names = [f.name for f in fields(self)]
        return Timings(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def total(self) -> float:
        return float(sum(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Metrics:
    """Numbers that need no other model; None where one was not asked for or could not be had.

    Args:
        noise_level: how high the trajectory goes, as a fraction of the levels.
        noise_mean: mean of its highest entry; 0 for true noise, which it is only at level 1.
        noise_std: standard deviation of its highest entry; 1 for true noise.
        noise_kurtosis: excess kurtosis of its highest entry; 0 for true noise.
        round_trip_db: signal to error in dB of what comes back from the highest entry.
        vae_psnr_db: PSNR in dB of the source through the VAE and back.
        largest_residual: root mean square of the reference's worst step off its trajectory.
        clipped_fraction: share of values decoded outside of [0, 1] by more than 0.02.
        flicker: mean absolute second difference of luma in time, 0 to 1.
        flicker_source: the same of the source clip.
        motion_agreement: 1 where the edit moves in the same places as its source, 0 if unrelated.
        unmeasured: the metrics that were asked for and could not be had, each with its reason.
    """

    noise_level: float | None = None
    noise_mean: float | None = None
    noise_std: float | None = None
    noise_kurtosis: float | None = None
    round_trip_db: float | None = None
    vae_psnr_db: float | None = None
    largest_residual: float | None = None
    clipped_fraction: float | None = None
    flicker: float | None = None
    flicker_source: float | None = None
    motion_agreement: float | None = None
    unmeasured: str | None = None


@dataclass(frozen=True)
class InversionResult:
    """An inverted video.

    Args:
        trajectory: the key that its trajectory is stored under.
        frames, height, width, fps: of the clip that was inverted.
        source: the clip as a file, relative to the output folder.
        metrics: the certificate of the inversion.
        forwards: that this call computed; 0 where the trajectory was stored already.
        timings: seconds, by part of the work.
        trajectory_damage: what was wrong with the stored trajectory, which was made again.
        stored_bytes: of the trajectory's files that this call wrote.
    """

    trajectory: str
    frames: int
    height: int
    width: int
    fps: float
    source: str
    metrics: Metrics = Metrics()
    forwards: int = 0
    timings: Timings = Timings()
    trajectory_damage: str | None = None
    stored_bytes: int = 0


@dataclass(frozen=True)
class Candidate:
    """One of several tries at an edit.

    Args:
        number: 0 is the edit with the job's own settings.
        changes: what it has otherwise, as JSON.
        output, size_bytes, mask: as of an `EditResult`; None where it was dropped.
        error_code, error: why there is none.
        metrics, scores: of it.
    """

    number: int
    changes: str = "{}"
    output: str | None = None
    size_bytes: int | None = None
    mask: str | None = None
    error_code: ErrorCode | None = None
    error: str | None = None
    metrics: Metrics = Metrics()
    scores: Scores = Scores()


@dataclass(frozen=True)
class EditResult:
    """One row of the results: an edit, made or failed. A rank fills in what it knows of it.

    Args:
        video_id, edit_id: name the edit.
        video, prompt, source_prompt, instruction: as the manifest has them; a secret in `video` is
            `***`.
        status: `ok`, `failed`, or `quarantined` (the video killed or hung its group on every try).
        error_code, error: why it failed; None where it did not.
        output: the edited video, relative to the output folder.
        size_bytes: of the edited video's file; a run that finds another size makes the edit again.
        source: the source as the model saw it, relative to the output folder.
        mask: the mask as it was used, a video in grey; None without one.
        trajectory: the key of the trajectory.
        trajectory_damage: what was wrong with a stored trajectory that was made again.
        trajectory_bytes: this edit's share of the bytes that were stored of it; 0 where it was
            there before.
        attempts: how often the group was asked.
        forwards: this edit's share of what its group computed.
        gpu_seconds: seconds that it held its group, times the group's GPUs, with its share of the
            inversion; nothing for what goes on beside other work, nor for tries that killed the
            group; 0 on CPUs.
        memory_bytes: the most of its GPU that the rank had held until then; None on CPUs.
        timings: seconds, by part of the work; this edit's share.
        metrics: the certificate of the edit.
        scores: what was measured after it was stored (the job's `score`).
        accepted: whether all rules of the job's `accept` hold; None without rules, or before the
            edit has its scores.
        rejected_for: the rules that do not hold.
        candidate: the number of the one that became the edit.
        candidates: of the edit, where the job has some; empty for an edit made once.
        round: how often candidates were made before, since none was accepted.
        guidance_scale, seed: that the edit was made with.
        frames, height, width, fps: of the clip.
        fingerprint: of everything that changes the edit; None for a refused row.
        run: the run that wrote the row; sorts by time.
        finished_at: when.
    """

    video_id: str | None = None
    edit_id: str | None = None
    video: str | None = None
    prompt: str | None = None
    source_prompt: str | None = None
    instruction: str | None = None
    status: str = "ok"
    error_code: ErrorCode | None = None
    error: str | None = None
    output: str | None = None
    size_bytes: int | None = None
    source: str | None = None
    mask: str | None = None
    trajectory: str | None = None
    trajectory_damage: str | None = None
    trajectory_bytes: int = 0
    attempts: int = 0
    forwards: Forwards = Forwards()
    gpu_seconds: float = 0.0
    memory_bytes: int | None = None
    timings: Timings = Timings()
    metrics: Metrics = Metrics()
    scores: Scores = Scores()
    accepted: bool | None = None
    rejected_for: tuple[str, ...] = ()
    candidate: int = 0
    candidates: tuple[Candidate, ...] = ()
    round: int = 0
    guidance_scale: float | None = None
    seed: int | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    fingerprint: str | None = None
    run: str | None = None
    finished_at: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("video", "error", "trajectory_damage"):
            object.__setattr__(self, name, redacted(getattr(self, name)))


def derived_seed(*parts: Any) -> int:
    """A seed of 63 bits from the job's seed, the video's id, the edit's id, and what it is for.

    The same parts give the same draw wherever and in whatever order the work is done.
    """
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def arrow_schema(record: type) -> pa.Schema:
    """The Arrow schema of a record: a column for each field, a struct for each record inside.

    Only a column that the record requires may not be null.
    """
    import pyarrow as pa

    kinds = get_type_hints(record)
    return pa.schema(
        [
            pa.field(f.name, arrow_type(kinds[f.name]), nullable=not _is_required(f))
            for f in fields(record)
        ]
    )


def arrow_type(kind: Any) -> pa.DataType:
    """The Arrow type of a field's type."""
    import pyarrow as pa

    kind = without_none(kind)
    if get_origin(kind) is tuple:
        return pa.list_(arrow_type(get_args(kind)[0]))
    if is_dataclass(kind):
        inner = get_type_hints(cast(type, kind))
        return pa.struct([(f.name, arrow_type(inner[f.name])) for f in fields(kind)])
    if issubclass(kind, str):
        return pa.string()
    plain = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return pa.timestamp("us", tz="UTC") if kind is datetime else plain[kind]


def from_dict(record: type[Record], values: Mapping[str, Any]) -> Record:
    """A record from its values by name, as `dataclasses.asdict`, JSON or Arrow give them.

    A field that is not there has its default.

    Raises:
        TypeError: a value has a name that the record does not know, or a required one is missing.
    """
    kinds = _kinds(cast(Any, record))
    return record(
        **{name: _converted(kinds.get(name), value) for name, value in values.items()},
    )


@cache
def _kinds(record: type) -> dict[str, Any]:
    return {name: without_none(kind) for name, kind in get_type_hints(record).items()}


def _converted(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(kind) is tuple:
        return tuple(_converted(get_args(kind)[0], item) for item in value)
    if is_dataclass(kind):
        return from_dict(cast(type, kind), value)
    return ErrorCode(value) if kind is ErrorCode else value


def without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        return next((k for k in get_args(kind) if k is not NoneType), kind)
    return kind


def _is_required(one: Any) -> bool:
    return bool(one.default is MISSING and one.default_factory is MISSING)
