"""What a user can choose about the model work, with units, defaults and the reasons for them.

These are sections of the job file and arguments of the Python API at once. Plain data: importing
this costs no torch. The bounds stand in the annotations; `pipeline/values/` enforces them, here
and in the job file, with the same messages; here as ValueErrors. What settings are called elsewhere
stands there too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from pipeline.settings.reconstruction import Fraction, Reconstruction, Variation
from pipeline.values import check_fields, declared
from pipeline.values.elsewhere import NAMES_ELSEWHERE

__all__ = [
    "EditingSettings",
    "Inversion",
    "Limits",
    "Precision",
    "Reconstruction",
    "ScoreSettings",
    "Speed",
    "TrajectorySettings",
    "Variation",
    "VideoSettings",
    "Weights",
    "places",
    "places_meant",
]

Precision = Literal["auto", "fp32", "fp16", "bf16"]
Weights = Literal["native", "fp8"]


@dataclass(frozen=True)
class VideoSettings:
    """How a source becomes the clip that the model sees.

    Args:
        height, width: in pixels; by default what the checkpoint was trained for.
        frames: at most so many; by default what the checkpoint was trained for. A clip gets the
            largest count of the form 4k + 1 that it has frames for, and at least 5.
        fps: frames a second to resample to; by default every frame of the source is kept.
        fit: `crop` covers the size and cuts what is over, `pad` fits inside and adds black.
    """

    height: Annotated[int, Ge(16)] | None = None
    width: Annotated[int, Ge(16)] | None = None
    frames: Annotated[int, Ge(5)] | None = None
    fps: Annotated[float, Gt(0), Le(240)] | None = None
    fit: Literal["crop", "pad"] = "crop"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Inversion:
    """How to invert.

    Args:
        steps: T, the number of levels above the clean latent.
        method: `pec` (one evaluation a step, and one more), `ddim` (one), `fixed_point`
            (1 + iterations) or `script` (as the public script does, for comparison).
        iterations: evaluations that `fixed_point` adds to each step's first one.
        posterior: take the VAE posterior's `mode`, or a seeded `sample` from it.
        vae_psnr: decode the clean latent once for each video, to certify what the VAE alone loses.
        round_trip: denoise the trajectory's top again with the empty prompt and certify the dB in
            latent space; costs one forward for each level.
    """

    steps: Annotated[int, Ge(1), Le(1000)] = 50
    method: Literal["pec", "ddim", "fixed_point", "script"] = "pec"
    iterations: Annotated[int, Ge(1), Le(20)] = 3
    posterior: Literal["mode", "sample"] = "mode"
    vae_psnr: bool = True
    round_trip: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def evaluations(self, levels: int) -> int:
        """Forwards that climbing so many levels from the clean latent takes."""
        if self.method == "pec":
            return levels + 1 if levels else 0
        return levels * (1 + self.iterations) if self.method == "fixed_point" else levels


@dataclass(frozen=True)
class TrajectorySettings:
    """How trajectories are kept.

    Args:
        keep: how long: `always` (a later prompt needs no inversion), `until_done` (until the job's
            edits of the video are done; `retake gc` deletes them) or `never` (as soon as they
            are done).
        dtype: of the stored values. fp16 keeps 62 dB of a latent, bf16 44.
    """

    keep: Literal["always", "until_done", "never"] = "always"
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Limits:
    """What a video may take. A file that asks for more costs its own edits, and not the node.

    Args:
        file_gb: GB of a video file; of a larger one nothing more is copied.
        pixels: of one frame as it is stored.
        frames: that are decoded of one file, those that are left out counted too.
        memory_gb: GB of memory that decoding takes, which a process of its own does.
        decode_stall_s: seconds without a decoded frame after which that process is ended.
    """

    file_gb: Annotated[float, Gt(0), Le(1_000_000)] = 50.0
    pixels: Annotated[int, Ge(256), Le(268_435_456)] = 67_108_864
    frames: Annotated[int, Ge(5)] = 10_000_000
    memory_gb: Annotated[float, Ge(0.2), Le(1_000_000)] = 4.0
    decode_stall_s: Annotated[float, Ge(1), Le(1_000_000)] = 120.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Speed:
    """What makes the model faster.

    `attention` and `compile` choose by themselves, by timing at the start, and change results
    within rounding only. `sage`, `fp8` and `step_cache` change them more; what each costs in dB is
    in docs/benchmarks.md.

    Args:
        attention: the kernel: `auto` times those at hand on the real shape and takes the fastest
            that is right. `sage` is SageAttention in 8 bits, where it is installed.
        compile: compile the transformer's blocks; `auto` does it on a GPU, and keeps what is
            faster.
        weights: of the blocks' linear layers: `native`, in the model's precision, or `fp8`, through
            torchao where it is installed.
        step_cache: skip the blocks of an edit's forward after the first one where that one's
            answer differs from the last computed step's by less than this part; 0 never skips.
            Reconstruction only.
        step_cache_steps: the window of the denoising steps that may skip, as fractions.
    """

    attention: Literal["auto", "flash_3", "flash_4", "cudnn", "flash", "efficient", "sage"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    weights: Weights = "native"
    step_cache: Annotated[float, Ge(0), Le(1)] = 0.0
    step_cache_steps: tuple[Fraction, Fraction] = (0.1, 0.9)

    def __post_init__(self) -> None:
        check_fields(self)
        first, last = self.step_cache_steps
        if first > last:
            raise ValueError(
                f"step_cache_steps is {[first, last]}: its first number is above its last; "
                "exchange them"
            )

    def changes_edits(self) -> dict[str, object]:
        """What of these settings changes an edit beyond rounding; empty by default."""
        changes: dict[str, object] = self.changes_trajectories()
        if self.step_cache:
            changes["step_cache"] = [self.step_cache, *self.step_cache_steps]
        return changes

    def changes_trajectories(self) -> dict[str, object]:
        """What of these settings changes a trajectory beyond rounding; empty by default."""
        changes: dict[str, object] = {}
        if self.attention == "sage":
            changes["attention"] = self.attention
        if self.weights != "native":
            changes["weights"] = self.weights
        return changes


@dataclass(frozen=True)
class ScoreSettings:
    """What is measured of each edit once it is stored; nothing by default.

    Args:
        frames: what frames alone say: is the background the source's, did anything change?
        clip: a CLIP model: agreement with the prompt.
        dino: a DINO model: agreement with the source.
        judge: an image-text-to-text model, a folder or name on the Hugging Face Hub; or the URL of
            an OpenAI-compatible server, such as http://host:8000/v1.
        judge_model: the model's name at that server; by default the first that it lists.
        judge_frames: frames of each clip that the judge is shown.
        judge_deadline_s: seconds that one answer may take.
        rank_by: the score that the best of an edit's candidates has most of, such as
            `clip.direction`; with a `-` before it least of, as `-dino.structure`.
    """

    frames: bool = False
    clip: Annotated[str, MinLen(1)] | None = None
    dino: Annotated[str, MinLen(1)] | None = None
    judge: Annotated[str, MinLen(1)] | None = None
    judge_model: Annotated[str, MinLen(1)] | None = None
    judge_frames: Annotated[int, Ge(1), Le(64)] = 4
    judge_deadline_s: Annotated[float, Gt(0), Le(86_400)] = 120.0
    rank_by: Annotated[str, MinLen(1)] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class EditingSettings:
    """All that a process which does the model work must know; the same for every row of a job.

    Args:
        output: folder that everything is written to, a path or fsspec URI.
        checkpoint: `embedded` (the tiny one that ships with Retake), a folder in diffusers format,
            an fsspec URI of one, or a name on the Hugging Face Hub.
        precision: of the model; `auto` is fp32 on CPU, else what the checkpoint was trained in.
        seed: every random draw comes from it, the video's id and the edit's id.
        video, inversion, reconstruction, trajectory, speed, limits: the sections of these settings.
    """

    output: Annotated[str, MinLen(1)]
    checkpoint: Annotated[str, MinLen(1)] = "embedded"
    precision: Precision = "auto"
    seed: Annotated[int, Ge(0)] = 0
    video: VideoSettings = VideoSettings()
    inversion: Inversion = Inversion()
    reconstruction: Reconstruction = Reconstruction()
    trajectory: TrajectorySettings = TrajectorySettings()
    speed: Speed = Speed()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        check_fields(self)


def places(section: type, above: str = "") -> list[str]:
    """The full names of all settings of a section and of those inside: `inversion.steps`."""
    found = []
    for name, (kind, _) in declared(section).items():
        inside = is_dataclass(kind) and isinstance(kind, type)
        found += places(kind, f"{above}{name}.") if inside else [f"{above}{name}"]
    return found


def places_meant(name: str, known: Iterable[str]) -> list[str]:
    """The full names of the settings that a name of this or another program may mean.

    Args:
        known: the full names that there are.
    """
    last = name.rsplit(".", 1)[-1].replace("-", "_").lower()
    by_name: dict[str, list[str]] = {}
    for place in known:
        by_name.setdefault(place.rsplit(".", 1)[-1], []).append(place)
    if last in NAMES_ELSEWHERE:
        return [NAMES_ELSEWHERE[last]]
    near = difflib.get_close_matches(last, by_name, n=1, cutoff=0.8)
    return by_name[near[0]] if near else []
