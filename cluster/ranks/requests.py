"""What an owner asks of its ranks and what they answer: plain data, small enough for a block."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import ErrorCode


@dataclass(frozen=True)
class VideoRequest:
    """One video to invert. None stands for the job's own setting."""

    video_id: str
    video: str
    start_frame: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class EditRequest:
    """One edit to make. None stands for the job's own setting."""

    edit_id: str
    prompt: str
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Inverted:
    """An inverted video.

    Args:
        key: of its trajectory.
        frames, height, width, fps: of the clip that was inverted.
        source: the clip as a file, relative to the output folder.
        certificate: metrics of the inversion, by name.
        forwards: that this call computed; 0 where the trajectory was there already.
        timings: seconds, by part of the work.
        damaged: what was wrong with the stored trajectory, which was made again; None where nothing
            was.
    """

    key: str
    frames: int
    height: int
    width: int
    fps: float
    source: str
    certificate: dict[str, float]
    forwards: int
    timings: dict[str, float]
    damaged: str | None = None


@dataclass(frozen=True)
class Reconstructed:
    """One edit, made or failed.

    Args:
        output: the video file, relative to the output folder; None where it failed.
        error_code, error: why it failed; None where it did not.
        metrics: by name; None stands for what could not be had.
        forwards: plain and injected, this edit's share of what its group computed.
        timings: seconds, by part of the work; this edit's share.
        damaged: as of `Inverted`, found then or before this edit.
    """

    edit_id: str
    output: str | None
    guidance_scale: float
    seed: int
    metrics: dict[str, float | None] = field(default_factory=dict)
    forwards: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    error_code: ErrorCode | None = None
    error: str | None = None
    damaged: str | None = None
