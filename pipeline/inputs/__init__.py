"""What a caller may give to the `Editor`, and how each form becomes the one that it works with."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from pipeline.algorithm.schedule import Schedule
from pipeline.dtypes import DTYPES
from pipeline.media.apart import read_clip_apart
from pipeline.media.counts import FrameRule
from pipeline.media.decoding import Clip
from pipeline.model.checkpoint import CheckpointInfo
from pipeline.model.sizes import clip_size
from pipeline.plan import highest_stored
from pipeline.records import EditSpec
from pipeline.settings import (
    EditingSettings,
    Inversion,
    Limits,
    Reconstruction,
    Speed,
    VideoSettings,
    places,
    places_meant,
)
from pipeline.storage import local_copy
from pipeline.trajectories.trajectory import Trajectory
from pipeline.values import WrongValue, checked
from pipeline.values.elsewhere import IN_THE_MANIFEST, NAMES_ELSEWHERE, NOT_THERE

Settings = TypeVar("Settings", Inversion, Reconstruction)
OutputType = Literal["uint8", "pil", "np", "latent"]


def with_changes(settings: Settings, changes: dict[str, Any], wanted: type[Settings]) -> Settings:
    """Settings with some fields changed.

    Raises:
        TypeError: a name that is none of their fields, with the one that was meant; or no settings.
        ValueError: a value that they refuse.
    """
    if not isinstance(settings, wanted):
        example = "steps=25" if wanted is Inversion else "guidance_scale=4"
        raise TypeError(
            f"settings are {_kind(settings)}; expected {wanted.__name__}: give single values by "
            f"name, as {example}"
        )
    known = [field.name for field in fields(settings)]
    for name in changes:
        if name not in known:
            raise TypeError(
                f"{type(settings).__name__} has no setting {name!r}; {_meant(name, known)}"
            )
    return replace(settings, **changes)


def _kind(value: Any) -> str:
    """`a list`, `an int`, `None`: what a value is, for messages."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


_WHERE = {
    "video": "`Editor.read(..., VideoSettings({0}=...))` takes {0!r}",
    "inversion": "`Editor.invert(..., {0}=...)` takes {0!r}",
    "reconstruction": "`Editor.reconstruct(..., {0}=...)` takes {0!r}",
    "precision": "`Editor.from_pretrained(..., torch_dtype=...)` takes the dtype",
    "seed": "give `seed=...`",
    "checkpoint": "`Editor.from_pretrained(checkpoint)` takes the checkpoint",
    "output": "`Editor.write(path, frames, fps=...)` takes the file to write",
}
"""Where a setting of a section is given in Python."""

_PER_VIDEO = {
    "video": "`Editor.invert(path)` takes the video",
    "edits": "`Editor.reconstruct(trajectory, prompts)` takes the prompts",
    "source_prompt": "`Editor.reconstruct(..., source_prompt=...)` takes it",
    "start_frame": "`Editor.read(..., start_frame=...)` takes it",
    "num_frames": "`Editor.read(..., num_frames=...)` takes it",
}
"""Where that is given in Python which a manifest has in a column."""


def _meant(name: str, known: list[str]) -> str:
    """Where a setting that is not among the known ones is given; else the nearest known one."""
    if name in NOT_THERE:
        return NOT_THERE[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if near and name not in NAMES_ELSEWHERE:
        return f"did you mean {near[0]!r}?"
    if name in IN_THE_MANIFEST:
        return _PER_VIDEO[IN_THE_MANIFEST[name]]
    for place in places_meant(name, places(EditingSettings)):
        section, _, last = place.rpartition(".")
        if last in known:
            return f"did you mean {last!r}?"
        if (section or last) in _WHERE:
            return _WHERE[section or last].format(last)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


_OF_AN_EDIT = {
    "prompt": Annotated[str, MinLen(1)],
    "negative_prompt": str | None,
    "guidance_scale": Annotated[float, Ge(0)] | None,
    "seed": Annotated[int, Ge(0)] | None,
}


def as_specs(prompts: str | EditSpec | Sequence[str | EditSpec]) -> list[EditSpec]:
    """Edits from one prompt, several, or specs.

    Raises:
        ValueError: there are none, or one is empty or neither a text nor an `EditSpec`.
    """
    if isinstance(prompts, Mapping | Set | bytes) or not isinstance(
        prompts, str | EditSpec | Iterable
    ):
        raise ValueError(
            f"prompts are {_kind(prompts)}; expected a prompt, or a list of prompts, since the "
            "videos come in their order"
        )
    given = [prompts] if isinstance(prompts, str | EditSpec) else list(prompts)
    if not given:
        raise ValueError("there are no prompts; give one prompt, or a list of prompts")
    return [_as_spec(prompt) for prompt in given]


def _as_spec(given: str | EditSpec) -> EditSpec:
    if not isinstance(given, str | EditSpec):
        raise ValueError(f"a prompt is {given!r}; expected a text or an EditSpec")
    spec = EditSpec(given) if isinstance(given, str) else given
    if isinstance(spec.prompt, str) and not spec.prompt.strip():
        raise ValueError("a prompt is empty; say what the edit should show")
    values = {}
    for name, kind in _OF_AN_EDIT.items():
        try:
            values[name] = checked(kind, getattr(spec, name), None)
        except WrongValue as error:
            raise ValueError(f"an edit's {name} {error}") from None
    return replace(spec, **values)


def as_frames(source: Clip | Tensor | np.ndarray) -> Tensor:
    """The frames of a clip, a tensor or an array."""
    if isinstance(source, Clip):
        return source.frames
    if isinstance(source, np.ndarray):
        return torch.from_numpy(np.array(source))  # a copy: torch has no arrays that are read-only
    if isinstance(source, Tensor):
        return source
    raise ValueError(
        f"frames are {_kind(source)}; expected uint8 [F, H, W, 3] as a tensor or an "
        "array, a Clip, or for `invert` a path or URI"
    )


def is_location(source: Any) -> bool:
    return isinstance(source, str | Path)


def frame_rule(info: CheckpointInfo) -> FrameRule:
    """Which frame counts a checkpoint accepts."""
    return FrameRule.of(info)


def read_video(
    location: str,
    settings: VideoSettings,
    info: CheckpointInfo,
    *,
    start_frame: int = 0,
    num_frames: int | None = None,
    fps: float | None = None,
    limits: Limits | None = None,
    stills: bool = False,
    on_read: Callable[[], None] = lambda: None,
) -> Clip:
    """The clip of a video file, as a checkpoint takes it. Arguments and errors: `Editor.read`.

    Args:
        limits: what the file may take; the default ones by default.
        stills: whether it may be a still image, too; it gives one frame.
        on_read: called as the file is read, which may take long.
    """
    size, limits = clip_size(settings, info), limits or Limits()
    with local_copy(location, on_read, int(limits.file_gb * 1e9)) as (file, content):
        clip = read_clip_apart(
            file,
            on_read,
            name=location,
            height=size.height,
            width=size.width,
            frames=size.frames if num_frames is None else min(num_frames, size.frames),
            rule=frame_rule(info),
            start_frame=start_frame,
            fps=settings.fps if fps is None else fps,
            fit=settings.fit,
            limits=limits,
            stills=stills,
        )
    return replace(clip, content=content)


def check_frames(frames: Tensor, info: CheckpointInfo) -> None:
    """Whether a checkpoint takes a clip as it is.

    Raises:
        ValueError: it is not uint8 [F, H, W, 3], or F, H or W is not one that the checkpoint takes.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(
            f"frames are {str(frames.dtype).removeprefix('torch.')} {list(frames.shape)}; expected "
            "uint8 [F, H, W, 3], RGB from 0 to 255: `Editor.read` gives them so"
        )
    count, height, width = frames.shape[:3]
    rule = frame_rule(info)
    accepted = rule.largest_at_most(count)
    if accepted != count:
        way_out = f"cut it to frames[:{accepted}]" if accepted else "take a longer one"
        raise ValueError(
            f"the clip's number of frames is {count}; the model takes "
            f"{rule.temporal_compression}k + 1, at least {rule.minimum}: {way_out}"
        )
    for name, value in (("height", height), ("width", width)):
        if value % info.size_multiple:
            raise ValueError(
                f"the clip's {name} is {value}; this checkpoint needs a multiple of "
                f"{info.size_multiple}: crop or scale it, as `Editor.read` does"
            )


def usable_speed(given: Any) -> Speed:
    """What makes the model faster; the default for None. Raises TypeError for anything else."""
    if given is None:
        return Speed()
    if not isinstance(given, Speed):
        raise TypeError(
            f"speed is {given!r}; expected what `from pipeline.settings import Speed` gives, as "
            'Speed(weights="fp8")'
        )
    return given


def check_is_trajectory(given: Any) -> None:
    """Raises TypeError for what is no `Trajectory`."""
    if not isinstance(given, Trajectory):
        raise TypeError(
            f"the trajectory is {_kind(given)}; expected a Trajectory: `Editor.invert(video)` "
            "makes one, and `Trajectory.load(folder)` opens one that is stored"
        )


def check_ending(path: str | Path) -> None:
    """Raises ValueError for the name of a file that is no MP4."""
    if Path(path).suffix.lower() != ".mp4":
        raise ValueError(f"path is {str(path)!r}; edits are MP4 files: end its name in .mp4")


def check_seed(seed: Any) -> None:
    """Raises ValueError for what is no seed."""
    try:
        checked(Annotated[int, Ge(0)], seed, 0)
    except WrongValue as error:
        raise ValueError(f"seed {error}") from None


def check_trajectory(
    trajectory: Trajectory,
    schedule: Schedule,
    settings: Reconstruction,
    info: CheckpointInfo,
    *,
    masked: bool = False,
) -> None:
    """Whether edits can be made from a trajectory.

    Args:
        schedule: the checkpoint's own, of as many steps.
        masked: whether an edit has a mask.

    Raises:
        ValueError: it is another checkpoint's, or does not reach the level that the settings need.
    """
    differ = trajectory.checkpoint not in ("", info.fingerprint) or any(
        abs(ours.alpha - theirs.alpha) > 1e-6
        for ours, theirs in zip(schedule.levels, trajectory.schedule.levels, strict=True)
    )
    if differ:
        raise ValueError(
            f"the trajectory was inverted with another checkpoint than {info.path} "
            f"({info.fingerprint}); invert the clip with this one"
        )
    needed = highest_stored(settings, schedule.steps, masked=masked)
    if needed > trajectory.highest:
        raise ValueError(
            f"start {settings.start} needs level {needed} of {schedule.steps}; the trajectory "
            f"reaches level {trajectory.highest}. Invert with a larger `highest`, or take a lower "
            "`start`"
        )


def usable_device(device: str | torch.device | None) -> torch.device:
    """A device that this build of torch and this machine have; the best one by default.

    Raises:
        ValueError: there is no such device.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:1'") from error
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {str(place)!r}; expected 'cpu', 'cuda' or 'cuda:1'")
    if place.index is not None and 0 < torch.cuda.device_count() <= place.index:
        raise ValueError(
            f"device is {str(place)!r}, but this machine has {torch.cuda.device_count()} GPUs, "
            "counted from 0"
        )
    if place.type == "cuda" and not torch.cuda.is_available():
        why = "this build of torch is for CPUs" if not torch.version.cuda else "torch finds no GPU"
        raise ValueError(
            f"device is {str(place)!r}, but {why}; install a CUDA build of torch, or use "
            "device='cpu' (--device cpu)"
        )
    return place


def usable_dtype(
    dtype: torch.dtype | str | None, info: CheckpointInfo, device: torch.device
) -> torch.dtype:
    """The dtype to load in; None and `auto` are fp32 on CPU, else what the family was trained in.

    Raises:
        ValueError: a dtype that the models do not run in.
    """
    if dtype is None or dtype == "auto":
        return info.dtype("auto", device)
    if dtype in DTYPES.values():
        return dtype  # type: ignore[return-value]
    known = ", ".join(str(one) for one in DTYPES.values())
    raise ValueError(f"torch_dtype is {dtype!r}; expected {known}, or 'auto'")


def drawn_seed(generator: torch.Generator) -> int:
    """A seed drawn from a generator, on whatever device it is."""
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator is {_kind(generator)}; expected one torch.Generator. For a seed "
            "of each edit give EditSpec(prompt, seed=...)"
        )
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))


def check_output_type(output_type: str) -> None:
    """Raises ValueError for a form of output that is not known."""
    known = get_args(OutputType)
    if output_type not in known:
        raise ValueError(f"output_type is {output_type!r}; expected one of {', '.join(known)}")


def as_output(frames: Tensor, output_type: OutputType) -> Any:
    """Frames, uint8 [F, H, W, 3], in the form that was asked for."""
    if output_type == "pil":
        from PIL import Image

        return [Image.fromarray(frame) for frame in frames.numpy()]
    return frames.numpy() if output_type == "np" else frames
