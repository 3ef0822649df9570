"""The one engine: read, encode, invert, reconstruct, decode; one process or one rank of a group.

    from pipeline import Editor

    editor = Editor.from_pretrained("zai-org/CogVideoX-5b", device="cuda")
    trajectory = editor.invert("horse.mp4", steps=50)
    videos = editor.reconstruct(trajectory, ["a zebra gallops"], start=0.6)
    editor.write("zebra.mp4", videos[0], fps=trajectory.fps)

Nothing here needs Ray, a job file or an output folder. Keep `trajectory`: more prompts cost no
inversion. A rank process uses the same class and adds storage (`cluster/ranks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import inputs, plan
from pipeline.algorithm.branches import Prompt
from pipeline.algorithm.inversion import climb
from pipeline.algorithm.masks import composite
from pipeline.algorithm.reconstruction import Edited, reconstruct
from pipeline.algorithm.schedule import Schedule
from pipeline.editor.parts import Parts
from pipeline.errors import ErrorCode, RowError
from pipeline.inputs.masks import EditMask, MaskGiven, Masks, masks_of, source_frames
from pipeline.media.decoding import Clip
from pipeline.model.checkpoint import CheckpointInfo, load_transformer, load_vae, open_checkpoint
from pipeline.model.group import OneRank, TokenGroup
from pipeline.model.memory import host_buffer, wait_for
from pipeline.model.scheduler import schedule_from_config, script_schedule
from pipeline.model.sizes import check_blocks
from pipeline.model.text_encoder import Embeddings, TextEncoder
from pipeline.model.transformer import VelocityModel
from pipeline.model.transformer.step_cache import with_step_cache
from pipeline.model.vae import Codec, to_uint8
from pipeline.records import EditSpec, derived_seed
from pipeline.settings import Inversion, Reconstruction, Speed
from pipeline.trajectories.trajectory import Trajectory

StepCallback = Callable[["Editor", int, int, dict[str, Tensor]], dict[str, Tensor] | None]
"""(editor, step, timestep, {"latents": [K, F, C, H, W], float32}) -> what takes the latents' place,
if anything, in the same form: diffusers' `callback_on_step_end`."""


@dataclass(repr=False)
class Editor(Parts):
    """A checkpoint ready to edit; `Editor.from_pretrained` makes one.

    Args:
        info: what the checkpoint's configuration says.
        model: predicts velocities. `model.forwards` counts what was computed.
        codec: the VAE.
        text: gives prompt embeddings.
    """

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | CheckpointInfo,
        *,
        torch_dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
        group: TokenGroup | None = None,
        text: Embeddings | None = None,
        speed: Speed | None = None,
    ) -> Editor:
        """Load a checkpoint into this process.

        Args:
            checkpoint: `embedded`, a folder in diffusers format, an fsspec URI of one, or a name on
                the Hugging Face Hub; or one that is open.
            torch_dtype: by default float32 on CPU, else what the checkpoint was trained in.
            device: `cuda` where there is one, by default. The text encoder is loaded when a prompt
                needs it, and is there only while it encodes the prompts of a call.
            group: the ranks that compute together, of which this process is one.
            text: gives prompt embeddings; by default the checkpoint's text encoder.
            speed: what makes the model faster; a named attention kernel is tried at first use.

        Raises:
            UnsupportedCheckpoint: it is no CogVideoX text-to-video model.
            ValueError: a dtype, a device or a way to be faster that cannot be had.
            MemoryError: the device has no room for the weights.
        """
        place = inputs.usable_device(device)
        info = open_checkpoint(checkpoint)
        dtype = inputs.usable_dtype(torch_dtype, info, place)
        ranks, speed = group or OneRank(), inputs.usable_speed(speed)
        transformer = load_transformer(info, dtype, place, speed.weights)
        return cls(
            info=info,
            model=VelocityModel(transformer, ranks, speed=speed),
            codec=Codec(load_vae(info, dtype, place), info.latent_frames_multiple, group=ranks),
            text=text or TextEncoder(info, dtype, ranks),
        )

    def __repr__(self) -> str:
        return f"Editor(CogVideoX {self.info.family}, {self.info.path}, on {self.device})"

    def schedule(self, steps: int, method: str) -> Schedule:
        """The checkpoint's noise levels for so many steps of an inversion's method."""
        make = script_schedule if method == "script" else schedule_from_config
        return make(self.info.scheduler, steps)

    def encode_prompts(self, texts: Iterable[str]) -> None:
        """Encode those that are new together: the text encoder comes to the device once."""
        if isinstance(self.text, TextEncoder):
            self.text.encode(texts, self.device)

    def prompt(self, text: str) -> Prompt:
        """A prompt with its embedding on the model's device."""
        self.encode_prompts([text])
        return Prompt(text, self.text.embedding(text).to(self.device))

    def encode(self, frames: Tensor, inversion: Inversion, seed: int = 0) -> Tensor:
        """Frames, uint8 [F, H, W, 3], to the clean latent, float32 [F', C, h, w].

        Args:
            seed: of the draw from the VAE's posterior, where `inversion.posterior` is `sample`.
        """
        with self._at_work(self.codec.vae):
            return self.codec.encode(frames, inversion.posterior, seed)

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """A latent [F', C, h, w] to frames, float32 [F, H, W, 3]; 0 is black and 1 is white."""
        with self._at_work(self.codec.vae):
            return self.codec.decode(latents, frames)

    def extend(
        self, top: Tensor, level: int, schedule: Schedule, inversion: Inversion, highest: int
    ) -> Tensor:
        """The entries from `level` to `highest`, [highest - level + 1, F, C, H, W], float32.

        They lie in host memory: those of 1.5 take more than 1 GB.

        Args:
            top: the highest known entries, [1 or 2, F, C, H, W], the last one that of `level`.

        Raises:
            RowError: a value is not finite.
        """
        top = top.to(self.device, torch.float32)
        velocity = self.model.velocity(self.prompt(""))
        how: Any = {"method": inversion.method, "iterations": inversion.iterations}
        with self._at_work(self.model.transformer), self._bar(highest - level, "inversion") as bar:
            above = climb(velocity, top, level, schedule, highest=highest, **how)
            made = host_buffer((highest - level + 1, *top.shape[1:]), self.device)
            made[0].copy_(top[-1], non_blocking=True)
            for place, x in enumerate(above, 1):
                made[place].copy_(x, non_blocking=True)
                bar.update()
            wait_for(self.device)
        if not torch.isfinite(made).all():
            raise RowError(
                ErrorCode.NOT_FINITE,
                "the inversion gave values that are not finite; use bf16 or fp32 (a job's "
                "precision, or torch_dtype)",
            )
        return made

    def invert(
        self,
        source: Clip | Tensor | np.ndarray | str | Path,
        inversion: Inversion | None = None,
        *,
        highest: float = 1.0,
        seed: int = 0,
        **changes: Any,
    ) -> Trajectory:
        """Invert a clip with the empty prompt.

        Args:
            source: a path or URI, a clip, or frames uint8 [F, H, W, 3]; F of the form 4k + 1, H and
                W multiples of `info.size_multiple`.
            highest: the fraction of the levels to stop at; edits cannot start higher.
            seed: of the draw from the VAE's posterior, where `posterior` is `sample`.
            changes: fields of `Inversion`, such as `steps=25`.

        Raises:
            ValueError: the frames are none that the checkpoint takes, or `highest` or the number of
                steps is out of range.
            RowError: the file cannot be read, or the trajectory is not finite.
        """
        inversion = inputs.with_changes(inversion or Inversion(), changes, Inversion)
        inputs.check_seed(seed)
        schedule = self.schedule(inversion.steps, inversion.method)
        level = schedule.level_at(highest, "highest")
        if inputs.is_location(source):
            source = self.read(source)  # type: ignore[arg-type]
        frames = inputs.as_frames(source)  # type: ignore[arg-type]
        inputs.check_frames(frames, self.info)
        clean = self.encode(frames, inversion, seed)
        entries = self.extend(clean[None], 0, schedule, inversion, level)
        fps, made_by = source.fps if isinstance(source, Clip) else 8.0, self.info.fingerprint
        return Trajectory(entries, schedule, len(frames), fps, inversion.method, made_by)

    def reconstruct(
        self,
        trajectory: Trajectory,
        prompts: str | EditSpec | Sequence[str | EditSpec],
        settings: Reconstruction | None = None,
        *,
        source_prompt: str = "",
        mask: MaskGiven = None,
        source: Clip | Tensor | np.ndarray | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        output_type: inputs.OutputType = "uint8",
        callback_on_step_end: StepCallback | None = None,
        **changes: Any,
    ) -> list[Any]:
        """Make one video for each prompt, `edits_at_once` in lockstep; with `candidates`, one
        prompt's videos come one after the other, the edit itself first.

        Args:
            prompts: one, several, or `EditSpec`s where an edit has settings of its own.
            source_prompt: of the source, for `reference="source"`.
            mask: where edits may change the source: an array or tensor [F, H, W] or [H, W], a path
                or URI (read from its first frame on), `auto`, or a list with one of these or None
                for each prompt. By default an `EditSpec`'s own, else that of the settings.
            source: the clip's frames, for `composite=True`.
            seed: of the start from `noise`: each edit has one of its own, which follows from `seed`
                and its prompt, so an edit is the same beside any others.
            generator: gives the seed instead, as in diffusers.
            output_type: `uint8` (tensors [F, H, W, 3]), `np` (arrays of the same), `pil` (lists of
                images) or `latent` (tensors [F', C, h, w], float32).
            callback_on_step_end: called after each step (`StepCallback`).
            changes: fields of `Reconstruction`, such as `guidance_scale=4`.

        Raises:
            ValueError: no prompt, a trajectory of another checkpoint or below the settings' start,
                `inject_blocks` that the checkpoint lacks, a mask or source of another size.
            RowError: an edit is not finite, or a mask cannot be used.
            TrajectoryDamaged: a stored one was altered; invert the clip again.
        """
        settings = inputs.with_changes(settings or Reconstruction(), changes, Reconstruction)
        inputs.check_output_type(output_type)
        inputs.check_is_trajectory(trajectory)
        inputs.check_seed(seed)
        specs = inputs.as_specs(prompts)
        masks = masks_of(mask, specs, settings, self.info, trajectory)
        pixels = source_frames(source, settings, self.info, trajectory, output_type)
        trajectory = self._checked(trajectory, settings, masks)
        seed = seed if generator is None else inputs.drawn_seed(generator)
        edits = [settings.filled(spec, derived_seed(seed, spec.prompt)) for spec in specs]
        self.encode_prompts(plan.texts_of(settings, edits, source_prompt))
        made: list[Any] = []
        for first in range(0, len(edits), settings.edits_a_unit):
            unit = slice(first, first + settings.edits_a_unit)
            how = settings, source_prompt, callback_on_step_end, masks[unit]
            edited = self.denoise(trajectory, edits[unit], *how)
            for number, (x, used) in enumerate(zip(edited.latents, edited.masks, strict=True)):
                kept = None if pixels is None or used is None else (pixels, used)
                edit = edits[unit][number // settings.tries]
                made.append(self._finished(edit, x, trajectory.frames, output_type, kept))
        return made

    def _checked(
        self, trajectory: Trajectory, settings: Reconstruction, masks: Sequence[EditMask]
    ) -> Trajectory:
        """The trajectory along the checkpoint's own levels. Raises as `reconstruct`."""
        check_blocks(settings, self.info)
        schedule = self.schedule(trajectory.schedule.steps, trajectory.method)
        masked = any(one is not None for one in masks)
        inputs.check_trajectory(trajectory, schedule, settings, self.info, masked=masked)
        return replace(trajectory, schedule=schedule)

    def denoise(
        self,
        trajectory: Trajectory,
        edits: Sequence[EditSpec],
        settings: Reconstruction,
        source_prompt: str = "",
        callback: StepCallback | None = None,
        masks: Sequence[EditMask] = (),
        number: int = 0,
    ) -> Edited:
        """The latents of edits, with nothing left out of them (`Reconstruction.filled`).

        Each with all its candidates, in the order of `pipeline.plan.edit_plans`.

        Args:
            masks: one for each edit, or none at all; a candidate may have another.
            number: of the round, as of `edit_plans`.
        """
        schedule, plans = trajectory.schedule, plan.edit_plans(settings, edits, number)
        how = [one.settings for one in plans]
        given = Masks.of(plans, masks, self.info, trajectory.frames)
        held = given.latent(schedule.steps, self.device)
        scales = [float(one.edit.guidance_scale or 0) for one in plans]
        steps = plan.denoising_steps(how, schedule.steps, scales)
        self.encode_prompts(plan.texts_of(settings, edits, source_prompt))
        levels = [plan.skippable(one, self.model.speed, schedule.steps) for one in how]
        prompts = [
            plan.edit_prompts(settings, one.edit, source_prompt, self.prompt) for one in plans
        ]
        with self._at_work(self.model.transformer), self._bar(len(steps), "denoising") as bar:

            def on_step(level: int, x: Tensor) -> Tensor | None:
                bar.update()
                if callback is None:
                    return None
                done = steps[0].level - level - 1
                timestep = schedule.levels[level + 1].timestep
                changed = callback(self, done, timestep, {"latents": x}) or {}
                return changed["latents"].to(x) if "latents" in changed else None

            edited = reconstruct(
                with_step_cache(self.model, schedule, levels),
                plan.start_latents(plans, trajectory.latents, schedule).to(self.device),
                lambda level: trajectory.on_device(level, self.device),
                prompts,
                steps,
                schedule,
                empty=self.prompt(""),
                residual=settings.residual,
                blocks=settings.inject_blocks,
                share=settings.reference != "script",
                masks=held,
                on_step=on_step,
            )
        return replace(edited, masks=given.used(held))

    def _finished(
        self,
        edit: EditSpec,
        latents: Tensor,
        frames: int,
        output: inputs.OutputType,
        kept: tuple[Tensor, Tensor] | None,
    ) -> Any:
        """An edit's latents [F', C, h, w] in the form that was asked for.

        Args:
            kept: the source's frames and the mask, where its pixels take the place of the edit's.
        """
        decoded = latents if output == "latent" else self.decode(latents, frames)
        if not (torch.isfinite(latents).all() and torch.isfinite(decoded).all()):
            raise RowError(
                ErrorCode.NOT_FINITE,
                f"edit {edit.prompt!r}: values that are not finite; load the checkpoint with "
                "torch_dtype=torch.bfloat16 or float32, or take a lower guidance_scale",
            )
        if output == "latent":
            return latents.cpu().clone()
        if kept is not None:
            decoded = composite(decoded, *kept)
        return inputs.as_output(to_uint8(decoded), output)
