"""One video in a notebook: load a checkpoint, invert, reconstruct.

    from pipeline import Inversion, Reconstruction, load

    editor = load("zai-org/CogVideoX-5b", device="cuda")
    clip = editor.read("horse.mp4")
    trajectory = editor.invert(clip.frames, Inversion(steps=50))
    videos = editor.reconstruct(trajectory, ["a zebra gallops"], Reconstruction(start=0.6))
    editor.write("zebra.mp4", videos[0], fps=clip.fps)

Nothing here needs Ray, storage or a job file. Keep `trajectory`: more prompts cost no inversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithm.inversion import invert
from pipeline.algorithm.reconstruction import Edit, reconstruct
from pipeline.algorithm.schedule import Schedule
from pipeline.errors import ErrorCode, RowError
from pipeline.media.decoding import Clip, FrameRule, read_clip
from pipeline.media.encoding import write_clip
from pipeline.model.checkpoint import (
    CheckpointInfo,
    load_text_encoder,
    load_transformer,
    load_vae,
    open_checkpoint,
)
from pipeline.model.scheduler import schedule_from_config, script_schedule
from pipeline.model.sizes import check_blocks, clip_size
from pipeline.model.text_encoder import encode_prompt
from pipeline.model.transformer import VelocityModel
from pipeline.model.vae import Codec, to_uint8
from pipeline.records import derived_seed
from pipeline.settings import Inversion, Precision, Reconstruction, VideoSettings


@dataclass(frozen=True)
class Trajectory:
    """An inverted video.

    Args:
        latents: [L + 1, F, C, H, W], float32: entry 0 is the clean latent, entry L the highest
            level that was reached.
        schedule: the levels 0..T that it was inverted along.
        frames: of the clip.
    """

    latents: Tensor
    schedule: Schedule
    frames: int


@dataclass
class Editor:
    """A checkpoint ready to edit; `load` makes one.

    Args:
        info: what the checkpoint's configuration says.
        model: predicts velocities. `model.forwards` counts what was computed.
        codec: the VAE.
    """

    info: CheckpointInfo
    model: VelocityModel
    codec: Codec
    tokenizer: Any
    text_encoder: Any
    device: torch.device

    def read(self, path: str | Path, settings: VideoSettings | None = None) -> Clip:
        """Frames, uint8 [F, H, W, 3], of a video file, as the checkpoint takes them.

        Raises:
            RowError: the file is no video, cut off, or too short.
            ValueError: the model cannot take the size that `settings` ask for.
        """
        settings = settings or VideoSettings()
        size = clip_size(settings, self.info)
        rule = frame_rule(self.info)
        with Path(path).open("rb") as file:
            return read_clip(
                file,
                name=str(path),
                height=size.height,
                width=size.width,
                frames=size.frames,
                rule=rule,
                fps=settings.fps,
                fit=settings.fit,
            )

    def invert(
        self,
        frames: Tensor,
        inversion: Inversion | None = None,
        *,
        highest: float = 1.0,
        seed: int = 0,
    ) -> Trajectory:
        """Invert a clip with the empty prompt.

        Args:
            frames: uint8 [F, H, W, 3]; F of the form 4k + 1, H and W multiples of
                `info.size_multiple`.
            highest: the fraction of the levels to stop at; edits cannot start higher.
            seed: of the draw from the VAE's posterior, where `inversion.posterior` is `sample`.

        Raises:
            ValueError: the frames are none that the checkpoint takes, or `highest` or the number of
                steps is out of range.
            RowError: the trajectory is not finite.
        """
        inversion = inversion or Inversion()
        check_frames(frames, self.info)
        make = script_schedule if inversion.method == "script" else schedule_from_config
        schedule = make(self.info.scheduler, inversion.steps)
        latents = self.codec.encode(frames, inversion.posterior, seed)
        self._know([""])
        entries = invert(
            self.model.velocity(""),
            latents,
            schedule,
            inversion,
            highest=schedule.level_at(highest),
        )
        if not torch.isfinite(entries).all():
            raise RowError(
                ErrorCode.NOT_FINITE,
                "the inversion gave values that are not finite; load the checkpoint with "
                'precision="bf16" or "fp32"',
            )
        return Trajectory(entries, schedule, len(frames))

    def reconstruct(
        self,
        trajectory: Trajectory,
        prompts: Sequence[str | Edit],
        settings: Reconstruction | None = None,
        *,
        seed: int = 0,
    ) -> list[Tensor]:
        """Make one video for each prompt, all in lockstep.

        Args:
            prompts: texts, or `Edit`s where an edit has its own guidance scale, negative prompt,
                seed or source prompt.
            seed: for texts, of the start from `noise`: each has one of its own, which follows from
                `seed` and the text, so an edit is the same beside any others.

        Returns:
            Frames, uint8 [F, H, W, 3], of each edit.

        Raises:
            ValueError: the trajectory does not reach the level that the settings start from, or
                `inject_blocks` names blocks that the checkpoint lacks.
            RowError: an edit is not finite.
        """
        settings = settings or Reconstruction()
        check_blocks(settings, self.info)
        needed = settings.highest_stored(trajectory.schedule)
        if needed >= len(trajectory.latents):
            raise ValueError(
                f"the settings need level {needed}; the trajectory reaches "
                f"{len(trajectory.latents) - 1}. Invert with a larger `highest`"
            )
        edits = [
            prompt
            if isinstance(prompt, Edit)
            else Edit(
                prompt,
                settings.negative_prompt,
                settings.guidance_scale,
                derived_seed(seed, prompt),
            )
            for prompt in prompts
        ]
        self._know(
            ["", *(p for e in edits for p in (e.prompt, e.negative_prompt, e.source_prompt))]
        )
        made = reconstruct(
            self.model,
            lambda level: trajectory.latents[level],
            edits,
            trajectory.schedule,
            settings,
        )
        return [
            self._finished(edit, x, trajectory.frames)
            for edit, x in zip(edits, made.latents, strict=True)
        ]

    def write(self, path: str | Path, frames: Tensor, *, fps: float) -> None:
        """Write frames, uint8 [F, H, W, 3], as an MP4."""
        with Path(path).open("wb") as file:
            write_clip(file, frames, fps=fps)

    def _finished(self, edit: Edit, latents: Tensor, frames: int) -> Tensor:
        """An edit's latents [F', C, h, w] as frames, uint8 [F, H, W, 3]."""
        decoded = self.codec.decode(latents, frames)
        if not (torch.isfinite(latents).all() and torch.isfinite(decoded).all()):
            raise RowError(
                ErrorCode.NOT_FINITE,
                f"edit {edit.prompt!r}: values that are not finite; load the checkpoint with "
                'precision="bf16" or "fp32", or take a lower guidance_scale',
            )
        return to_uint8(decoded)

    def _know(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            if prompt not in self.model.prompts:
                self.model.prompts[prompt] = encode_prompt(
                    self.tokenizer, self.text_encoder, prompt, self.info.text_tokens
                ).to(self.device)


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


def load(checkpoint: str, *, device: str | None = None, precision: Precision = "auto") -> Editor:
    """Load a whole checkpoint into this process.

    Args:
        checkpoint: a folder in diffusers format, an fsspec URI of one, or a name on the Hub.
        device: `cuda` where there is one, by default; the text encoder stays on the CPU.
        precision: `auto` is fp32 on CPU, else what the checkpoint was trained in.

    Raises:
        UnsupportedCheckpoint: it is no CogVideoX text-to-video model.
        ValueError: a precision that is not known.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    info = open_checkpoint(checkpoint)
    dtype = info.dtype(precision, place)
    tokenizer, text_encoder = load_text_encoder(info, info.dtype("auto", "cpu"), "cpu")
    return Editor(
        info=info,
        model=VelocityModel(load_transformer(info, dtype, place), {}),
        codec=Codec(load_vae(info, dtype, place), info.latent_frames_multiple),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        device=place,
    )
