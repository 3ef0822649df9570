"""`retake edit`: one video, some prompts, no manifest and no Ray; one process and one device.

The edits are those of a job with the same settings whose manifest names the video as it is named
here and gives no ids: the seeds come from the same ids, and the trajectory is rounded as a stored
one is. What can be refused is refused before the weights are loaded.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from cluster.rows import NO_FILES
from jobs.errors import UserError, WrongOption
from jobs.one_video.options import with_option_names
from jobs.one_video.request import Places, Request, check_target, targets_of
from pipeline.errors import RowError
from pipeline.imports import large_imports
from pipeline.plan import texts_of
from pipeline.records import EditSpec, derived_seed
from pipeline.redaction import say
from pipeline.storage import Folder, check_file, write_file

if TYPE_CHECKING:
    from pipeline.editor import Editor
    from pipeline.media.decoding import Clip
    from pipeline.trajectories.trajectory import Trajectory

SAME_CLIP = 0.3
"""A trajectory's clean latent differs by less of its norm from that of its own clip, encoded anew:
by rounding, and by the draw where the posterior is sampled."""


class EditFailed(UserError):
    """An edit could not be made; the text says why."""


def edit_video(request: Request) -> None:
    """Make the edits, and print the name and the seconds of each.

    Raises:
        WrongOption: an output that cannot be.
        UserError: the video, the checkpoint or the device cannot be used, or an edit failed.
    """
    video, prompts = request.video, [edit.prompt for edit in request.video.edits]
    _note(f"editing {video.video} with {len(prompts)} prompt{'s' * (len(prompts) > 1)}")
    targets = targets_of(video, request.places.output)
    _check_file(video.video)
    if (mask := _mask_file(request)) is not None:
        _check_file(mask)
    _check_trajectories(request.places)
    for target in targets:
        check_target(target, video.video, overwrite=request.places.overwrite)
    _note(f"loading {request.settings.checkpoint}")
    with _as_messages(request):
        clip, editor = _loaded(request)
        how, specs = request.settings.reconstruction, request.video.edits
        filled = [how.filled(spec, 0) for spec in specs]
        editor.encode_prompts(texts_of(how, filled, request.video.source_prompt or ""))
        mask = _mask(editor, clip, request)
        trajectory = _trajectory(editor, clip, request)
        _edit(editor, clip, mask, trajectory, targets, request)


def _loaded(request: Request) -> tuple[Clip, Editor]:
    """The clip, which is read before the weights, and the editor."""
    with large_imports():
        from transformers.utils.logging import disable_progress_bar as hide_loading

        from pipeline.editor import Editor
        from pipeline.inputs import read_video, usable_device
        from pipeline.model.checkpoint import open_checkpoint
        from pipeline.model.sizes import check_blocks

    settings = request.settings
    device = usable_device(request.device)
    info = open_checkpoint(settings.checkpoint, parts=())
    check_blocks(settings.reconstruction, info)
    # Reading needs the checkpoint's configuration alone; a bad file is found before the weights.
    clip = read_video(
        request.video.video,
        settings.video,
        info,
        start_frame=request.video.start_frame or 0,
        num_frames=request.video.num_frames,
    )
    size = f"{clip.frames.shape[2]}x{clip.frames.shape[1]}"
    dtype = info.dtype(settings.precision, device)
    _note(f"{len(clip.frames)} frames of {size} at {clip.fps:g} fps, in {dtype} on {device}")
    started = time.monotonic()
    if not sys.stderr.isatty():
        hide_loading()
    info = open_checkpoint(info.pin or settings.checkpoint)
    editor = Editor.from_pretrained(info, torch_dtype=dtype, device=device, speed=settings.speed)
    editor.model.check_attention()
    _note(f"loaded in {time.monotonic() - started:.1f} s")
    return clip, editor


def _trajectory(editor: Editor, clip: Clip, request: Request) -> Trajectory:
    """The trajectory of the clip: the one that was given, or a new one."""
    from pipeline.plan import highest_stored
    from pipeline.trajectories.trajectory import Trajectory

    settings, places = request.settings, request.places
    seed = _seed(request, "posterior")
    if places.trajectory:
        given = Trajectory.load(places.trajectory)
        if given.checkpoint not in ("", editor.info.fingerprint):
            raise UserError(
                f"--trajectory {places.trajectory} was made with another checkpoint than "
                f"{settings.checkpoint}; leave it out to invert the clip"
            )
        clean = editor.encode(clip.frames, settings.inversion, seed)
        _check_same_clip(given, clean, len(clip.frames), request)
        return given
    inversion = settings.inversion
    schedule = editor.schedule(inversion.steps, inversion.method)
    level = highest_stored(settings.reconstruction, schedule.steps, masked=_is_masked(request))
    started = time.monotonic()
    editor.set_progress_bar_config(desc="inverting", disable=None)
    made = editor.invert(clip, inversion, highest=level / schedule.steps, seed=seed)
    _note(f"inverted {level} of {schedule.steps} levels in {time.monotonic() - started:.1f} s")
    _certify(editor, clip, made, request)
    made, dtype = _as_stored(made)
    if places.keep_trajectory:
        made.save(places.keep_trajectory, dtype=cast(Any, dtype))
        _note(f"trajectory stored in {places.keep_trajectory}")
    return made


def _is_masked(request: Request) -> bool:
    return request.video.edits[0].mask not in (None, "none")


def _mask_file(request: Request) -> str | None:
    """Where the mask of the edits lies; None where they have none, or it is found on the way."""
    mask = request.video.edits[0].mask
    return None if mask in (None, *NO_FILES) else mask


def _mask(editor: Editor, clip: Clip, request: Request) -> Any:
    """The mask of the edits, as `Editor.reconstruct` takes it."""
    from pipeline.inputs.masks import read_mask

    video = request.video
    if (mask := _mask_file(request)) is None:
        return video.edits[0].mask
    first = video.start_frame or 0
    return read_mask(mask, clip, request.settings.video, editor.info, start_frame=first)


def _edit(
    editor: Editor,
    clip: Clip,
    mask: Any,
    trajectory: Trajectory,
    targets: Sequence[str],
    request: Request,
) -> None:
    """Make the edits, and write each group of them that is denoised together."""
    from pipeline.media.encoding import COMPOSITE_CRF, EDIT_CRF, write_clip

    how = request.settings.reconstruction
    editor.set_progress_bar_config(desc="editing", disable=None)
    edits = request.video.edits
    specs = [EditSpec(edit.prompt, seed=_seed(request, edit.edit_id)) for edit in edits]
    prompt = request.video.source_prompt or ""
    crf = COMPOSITE_CRF if how.composite and _is_masked(request) else EDIT_CRF
    for first in range(0, len(specs), how.edits_a_unit):
        some = specs[first : first + how.edits_a_unit]
        started = time.monotonic()
        videos = editor.reconstruct(
            trajectory, some, how, source_prompt=prompt, mask=mask, source=clip
        )
        share = (time.monotonic() - started) / len(some)
        for target, frames in zip(targets[first:], videos, strict=False):
            buffer = io.BytesIO()
            write_clip(buffer, frames, fps=trajectory.fps, crf=crf)
            write_file(target, buffer.getvalue())
            say(f"{target}  {share:.1f} s")


def _seed(request: Request, use: str | None) -> int:
    """The seed that a job gives to an edit, or to another use."""
    return derived_seed(request.settings.seed, request.video.video_id, use)


def _as_stored(trajectory: Trajectory) -> tuple[Trajectory, str]:
    """A trajectory as it comes back from storage, so that an edit is the same from either.

    Where fp16 does not hold its values, it stays as it is.
    """
    import torch

    rounded = cast(torch.Tensor, trajectory.latents).half()
    if not torch.isfinite(rounded).all():
        return trajectory, "fp32"
    return replace(trajectory, latents=rounded.float()), "fp16"


def _certify(editor: Editor, clip: Clip, trajectory: Trajectory, request: Request) -> None:
    """Report what the settings of the inversion ask to be measured."""
    from pipeline.quality.certificate import round_trip_db, vae_psnr_db

    inversion, latents = request.settings.inversion, trajectory.latents
    if inversion.vae_psnr:
        psnr = vae_psnr_db(clip.frames, latents[0], lambda x: editor.decode(x, len(clip.frames)))
        _note(f"the VAE alone keeps {psnr:.1f} dB of the clip")
    if inversion.round_trip:
        velocity = editor.model.velocity(editor.prompt(""))
        top = trajectory.highest
        db = round_trip_db(velocity, trajectory.schedule, latents[0], latents[top], top)
        _note(f"the inversion comes back at {db:.1f} dB in latent space")


def _check_file(location: str) -> None:
    """Raises a UserError where there is no such file."""
    try:
        check_file(location)
    except RowError as error:
        raise UserError(error.message) from error


def _check_trajectories(places: Places) -> None:
    """Refuse a folder that holds no trajectory to use, or one that would be written over."""
    if places.trajectory and not Folder(places.trajectory).exists("index.json"):
        raise UserError(
            f"--trajectory {places.trajectory}: no trajectory is stored there (it has no "
            "index.json); give a folder of --keep-trajectory, or leave it out to invert the clip"
        )
    if places.keep_trajectory and Folder(places.keep_trajectory).list():
        raise WrongOption(
            f"--keep-trajectory {places.keep_trajectory}: there are files already; give another "
            "folder, or --trajectory to use what is there"
        )


def _check_same_clip(given: Trajectory, clean: Any, frames: int, request: Request) -> None:
    """Refuse a trajectory of another clip, or one that does not reach the start level."""
    from pipeline.plan import highest_stored

    at = f"--trajectory {request.places.trajectory}"
    stored = given.latents[0].to(clean)
    differs = stored.shape != clean.shape or given.frames != frames
    if differs or float((stored - clean).norm()) > SAME_CLIP * float(clean.norm()):
        raise UserError(
            f"{at} is of another clip than {request.video.video} with these frames and this size; "
            "leave it out to invert the clip"
        )
    how, steps = request.settings.reconstruction, given.schedule.steps
    needed = highest_stored(how, steps, masked=_is_masked(request))
    if needed > given.highest:
        raise UserError(
            f"{at} reaches level {given.highest} of {given.schedule.steps}, and these settings "
            f"need level {needed}; start lower, or leave it out to invert the clip"
        )


@contextmanager
def _as_messages(request: Request) -> Iterator[None]:
    """What a user can repair, as one message."""
    import torch

    from pipeline.trajectories.index import TrajectoryDamaged

    try:
        yield
    except (RowError, TrajectoryDamaged, MemoryError, ValueError) as error:
        raise EditFailed(with_option_names(str(error))) from error
    except torch.OutOfMemoryError as error:
        raise EditFailed(
            "the GPU has not enough memory: take fewer --frames, a smaller --height and --width, "
            f"or a lower --edits-at-once ({error})"
        ) from error
    except OSError as error:
        place = request.settings.checkpoint
        raise EditFailed(f"a file could not be read or written ({place}): {error}") from error


def _note(text: str) -> None:
    say(text, problem=True)
