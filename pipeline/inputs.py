"""What a caller may give to the `Editor`, and how each form becomes the one that it works with."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from pipeline.algorithm.schedule import Schedule
from pipeline.dtypes import DTYPES
from pipeline.media.decoding import Clip
from pipeline.media.frames import FrameRule
from pipeline.model.checkpoint import CheckpointInfo
from pipeline.plan import highest_stored
from pipeline.records import EditSpec
from pipeline.settings import Inversion, Reconstruction
from pipeline.trajectories.trajectory import Trajectory

Settings = TypeVar("Settings", Inversion, Reconstruction)
OutputType = Literal["uint8", "pil", "np", "latent"]


def with_changes(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Settings with some fields changed.

    Raises:
        TypeError: a name that is none of their fields, with the nearest one that is.
        ValueError: a value that they refuse.
    """
    known = [field.name for field in fields(settings)]
    for name in changes:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise TypeError(f"{type(settings).__name__} has no setting {name!r}; {hint}")
    return replace(settings, **changes)


def as_specs(prompts: str | EditSpec | Sequence[str | EditSpec]) -> list[EditSpec]:
    """Edits from one prompt, several, or specs.

    Raises:
        ValueError: there are none, or one is empty or neither a text nor an `EditSpec`.
    """
    given = [prompts] if isinstance(prompts, str | EditSpec) else list(prompts)
    if not given:
        raise ValueError("there are no prompts; give one prompt, or a list of prompts")
    specs = []
    for prompt in given:
        if not isinstance(prompt, str | EditSpec):
            raise ValueError(f"a prompt is {prompt!r}; expected a text or an EditSpec")
        spec = EditSpec(prompt) if isinstance(prompt, str) else prompt
        if not spec.prompt.strip():
            raise ValueError("a prompt is empty; say what the edit should show")
        specs.append(spec)
    return specs


def as_frames(source: Clip | Tensor | np.ndarray) -> Tensor:
    """The frames of a clip, a tensor or an array."""
    if isinstance(source, Clip):
        return source.frames
    if isinstance(source, np.ndarray):
        return torch.from_numpy(np.array(source))  # a copy: torch has no arrays that are read-only
    if isinstance(source, Tensor):
        return source
    raise ValueError(
        f"frames are a {type(source).__name__}; expected uint8 [F, H, W, 3] as a tensor or an "
        "array, or a Clip (to `invert` a path or a URI, too)"
    )


def is_location(source: Any) -> bool:
    return isinstance(source, str | Path)


def frame_rule(info: CheckpointInfo) -> FrameRule:
    """Which frame counts a checkpoint accepts."""
    return FrameRule(info.temporal_compression, info.latent_frames_multiple)


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


def check_trajectory(
    trajectory: Trajectory, schedule: Schedule, settings: Reconstruction, info: CheckpointInfo
) -> None:
    """Whether edits can be made from a trajectory.

    Args:
        schedule: the checkpoint's own, of as many steps.

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
    needed = highest_stored(settings, schedule)
    if needed > trajectory.highest:
        raise ValueError(
            f"the settings need level {needed}; the trajectory reaches {trajectory.highest}. "
            "Invert with a larger `highest`"
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
            "device='cpu'"
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
            f"generator is a {type(generator).__name__}; expected one torch.Generator. For a seed "
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
