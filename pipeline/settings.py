"""What a user can choose about the model work, with units, defaults and the reasons for them.

These are sections of the job file and arguments of the Python API at once. Plain data: importing
this costs no torch. The bounds stand in the annotations; `pipeline/values.py` enforces them, here
and in the job file, with the same messages; here as ValueErrors. At the end stands what settings
are called elsewhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from pipeline.records import EditSpec
from pipeline.values import Also, check_fields, declared

Precision = Literal["auto", "fp32", "fp16", "bf16"]
Weights = Literal["native", "fp8"]
Fraction = Annotated[float, Ge(0), Le(1)]
StartName = Literal["noise", "inverted"]
Start = StartName | Annotated[float, Gt(0), Le(1)]
Reference = Annotated[
    Literal["empty", "shared", "source", "script", "none"],
    Also(((None, "empty"), ("null", "empty"))),  # its name before, which YAML reads as no value
]


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
class Reconstruction:
    """How to make edits from a trajectory.

    The defaults are those that edit the embedded checkpoint's clips best (the table in
    `tests/benchmarks/edits.md`); a larger model, which was not taught to edit, may like others.

    Args:
        start: where the denoising steps start: a fraction of the levels (0.6 starts at the
            trajectory's level there: place is kept better, and the steps above cost nothing, in the
            inversion either), `inverted` (the trajectory's top, x_T), or `noise` (seeded, as in the
            script).
        guidance_scale: of classifier-free guidance; 1 or less turns it off, and half of the
            forwards.
        negative_prompt: for edits that name none.
        reference: how the reference branch is described: `empty` with the empty prompt (cheapest),
            `shared` with the edit's own prompts, the negative one computed once for all edits,
            `source` with the manifest's source prompt, `script` as `shared` but nothing shared (the
            same numbers, for comparison), `none` for no reference attention.
        inject_steps: the window of the denoising steps with reference attention, as fractions.
        inject_blocks: the transformer blocks first <= i < last with it; all by default.
        guidance_steps: the window of the denoising steps with guidance, as fractions. What an edit
            is to be is decided in the first ones; guidance in the last ones costs time and draws
            the rest of the picture away from its source (Kynkaanniemi et al., "Applying Guidance
            in a Limited Interval", 2024, find it needless at low noise in images, too).
        dynamic_guidance: let guidance grow from 1 to 1 + scale along the steps. The formula is that
            of diffusers' `use_dynamic_cfg`, with the step's number in the place of `num_steps - t`,
            where diffusers takes the training timestep for t. A scale of 1 or less stays as it is.
            It needs `guidance_steps` to reach the last step.
        residual: add at each step what the reference's own step misses of the trajectory
            (DirectInversion, Ju et al., ICLR 2024).
        edits_at_once: K, the edits of a video that are denoised in lockstep and share its
            reference.
    """

    start: Start = 0.6
    guidance_scale: Annotated[float, Ge(0), Le(100)] = 2.0
    negative_prompt: str = ""
    reference: Reference = "empty"
    inject_steps: tuple[Fraction, Fraction] = (0.0, 1.0)
    inject_blocks: tuple[Annotated[int, Ge(0)], Annotated[int, Ge(0)]] | None = None
    guidance_steps: tuple[Fraction, Fraction] = (0.0, 0.4)
    dynamic_guidance: bool = False
    residual: bool = False
    edits_at_once: Annotated[int, Ge(1), Le(64)] = 4

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("inject_steps", "inject_blocks", "guidance_steps"):
            window = getattr(self, name)
            if window is not None and window[0] > window[1]:
                raise ValueError(
                    f"{name} is {list(window)}: its first number is above its last; exchange them"
                )
        if self.dynamic_guidance and self.guidance_steps[1] < 1:
            raise ValueError(
                f"dynamic_guidance grows in the last steps, and guidance_steps is "
                f"{list(self.guidance_steps)}; make it [0, 1]"
            )

    def filled(self, edit: EditSpec, seed: int) -> EditSpec:
        """An edit with these settings in the place of what it leaves open.

        Args:
            seed: for an edit that has none of its own.
        """
        scale = edit.guidance_scale
        return replace(
            edit,
            negative_prompt=edit.negative_prompt or self.negative_prompt,
            guidance_scale=self.guidance_scale if scale is None else scale,
            seed=seed if edit.seed is None else edit.seed,
        )


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


NAMES_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(
        ("num_inference_steps", "num_inversion_steps", "inference_steps", "num_steps"),
        "inversion.steps",
    ),
    "inversion_method": "inversion.method",
    **dict.fromkeys(
        ("guidance", "cfg_scale", "text_guidance_scale"), "reconstruction.guidance_scale"
    ),
    **dict.fromkeys(("strength", "denoising_strength"), "reconstruction.start"),
    **dict.fromkeys(("use_dynamic_cfg", "use_dynamic_guidance"), "reconstruction.dynamic_guidance"),
    **dict.fromkeys(("batch_size", "num_videos_per_batch"), "reconstruction.edits_at_once"),
    **dict.fromkeys(("num_frames", "max_num_frames", "video_length"), "video.frames"),
    **dict.fromkeys(("frame_rate", "frame_sample_step"), "video.fps"),
    **dict.fromkeys(("generator", "random_seed"), "seed"),
    **dict.fromkeys(("dtype", "torch_dtype", "weight_dtype", "mixed_precision"), "precision"),
    **dict.fromkeys(
        ("model", "model_path", "model_id", "pretrained_model_name_or_path", "checkpoint_path"),
        "checkpoint",
    ),
    **dict.fromkeys(("output_path", "output_dir", "output_folder"), "output"),
    "ulysses_degree": "cluster.reconstruction.ulysses",
    "ring_degree": "cluster.reconstruction.ring",
    "use_cfg_parallel": "cluster.reconstruction.cfg",
}
"""What diffusers, the public script and xFuser call a setting, and its place here."""

IN_THE_MANIFEST: Mapping[str, str] = {
    **dict.fromkeys(("video_path", "videos", "video_paths", "input_video"), "video"),
    **dict.fromkeys(("prompt", "prompts", "edits", "edit_prompt"), "edits"),
    "source_prompt": "source_prompt",
    **dict.fromkeys(("start_frame", "skip_frames_start"), "start_frame"),
    "skip_frames_end": "num_frames",
}
"""What belongs to one video, and the column of the manifest that it is in."""

NOT_THERE: Mapping[str, str] = {
    "num_videos_per_prompt": "each edit gives one video; for more, repeat the prompt, with another "
    "seed each",
    "eta": "every step is deterministic; `inversion.method` chooses how to invert",
    **dict.fromkeys(
        ("prompt_embeds", "negative_prompt_embeds"), "prompts are given as text, and encoded once"
    ),
    "latents": "edits start from a trajectory; `reconstruction.start` says where",
    **dict.fromkeys(
        ("address", "ray_address"),
        "the environment variable RAY_ADDRESS names the cluster to run on",
    ),
    "max_sequence_length": "the checkpoint says how many tokens a prompt has",
    **dict.fromkeys(
        ("inversion_deadline_s", "reconstruction_deadline_s"),
        "`cluster.stall_deadline_s` takes its place: so many seconds without progress, however "
        "long a video takes",
    ),
}
"""What diffusers or an earlier version takes and Retake does not, and what to do instead."""


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
