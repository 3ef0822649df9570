"""What `retake edit` is asked for, and where its files go; wrong values are refused here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cluster.rows import check_row
from jobs.errors import UserError, WrongOption
from jobs.one_video.options import flag, settings_from, values_from, with_flags
from pipeline.errors import RowError
from pipeline.records import VideoSpec
from pipeline.settings import EditingSettings, Inversion, Reconstruction, Speed, VideoSettings
from pipeline.storage import Folder, explain, is_folder

ENDING = ".mp4"
OTHER_ENDINGS = (".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".gif", ".ts")
DEFAULT_OUTPUT = "{video}-{prompt}.mp4"
PLACES = ("prompt", "n", "video")
"""What may stand in braces in the name of an output."""
MAX_NAME = 80


@dataclass(frozen=True)
class Places:
    """Where the files of `retake edit` lie.

    Args:
        output: a file for one prompt, a folder, or a name with {prompt}, {n} or {video} in it.
        overwrite: whether a file may be replaced.
        trajectory: a folder with a stored one, which is used instead of inverting.
        keep_trajectory: a folder to store it in.
    """

    output: str | None = None
    overwrite: bool = False
    trajectory: str | None = None
    keep_trajectory: str | None = None


@dataclass(frozen=True)
class Request:
    """What `retake edit` is asked for.

    Args:
        video: as a row of a manifest, with an edit for each prompt.
        settings: as those of a job.
        places: where files are written and read.
        device: None for the best one.
    """

    video: VideoSpec
    settings: EditingSettings
    places: Places
    device: str | None = None


def request_of(
    video: str, prompts: Sequence[str], places: Places, device: str, options: Mapping[str, Any]
) -> Request:
    """A request from the values of the options.

    Raises:
        WrongOption: a value that cannot be.
    """
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise WrongOption(f"prompt {number} is empty; say what the edit should show")
        if prompt in prompts[: number - 1]:
            raise WrongOption(f"prompt {prompt!r} was given twice; leave one out")
    edits = [{"prompt": prompt} for prompt in prompts]
    row = {"video": video, "mask": options.get("mask"), "edits": edits}
    try:
        checked = check_row(row | values_from(VideoSpec, options))
    except RowError as error:
        raise WrongOption(with_flags(VideoSpec, error.message)) from error
    if checked.failures:
        raise WrongOption(checked.failures[0].message.replace("the row's mask", "--mask"))
    if places.trajectory:
        for name in (field.name for field in fields(Inversion)):
            if options.get(name) is not None:
                raise WrongOption(f"{flag(name)} does nothing with --trajectory; leave one out")
        if places.keep_trajectory:
            raise WrongOption("--keep-trajectory does nothing with --trajectory; leave one out")
    settings = settings_from(
        EditingSettings,
        options,
        output=".",
        video=settings_from(VideoSettings, options),
        inversion=settings_from(Inversion, options),
        reconstruction=settings_from(Reconstruction, options),
        speed=settings_from(Speed, options),
    )
    if options.get("mask") == "auto":
        try:
            settings.reconstruction.check_auto_mask()
        except ValueError as error:
            raise WrongOption(with_flags(Reconstruction, str(error))) from error
    return Request(checked.video, settings, places, None if device == "auto" else device)


def targets_of(video: VideoSpec, output: str | None) -> list[str]:
    """The file that each edit of a video is written to.

    Args:
        output: as `Places.output`.

    Raises:
        WrongOption: it names no MP4 files, or one file for several prompts.
    """
    prompts = [edit.prompt for edit in video.edits]
    output = output or DEFAULT_OUTPUT
    lowered = output.lower()
    if lowered.endswith(OTHER_ENDINGS):
        raise WrongOption(f"--output {output!r}: edits are MP4 files; end its name in {ENDING}")
    if not lowered.endswith(ENDING):
        single = len(prompts) == 1 and not output.endswith("/")
        if single and not _is_folder(output):
            raise WrongOption(
                f"--output {output!r}: end it in {ENDING} for a file, or in / for a folder"
            )
        output = f"{output.rstrip('/')}/{{prompt}}{ENDING}"
    elif len(prompts) > 1 and not re.search(r"\{(prompt|n)\}", output):
        raise WrongOption(
            f"--output {output!r} is one file for {len(prompts)} prompts; give a folder, "
            "or a name with {prompt} or {n} in it"
        )
    unknown = [name for name in re.findall(r"\{(\w*)\}", output) if name not in PLACES]
    if unknown:
        raise WrongOption(
            f"--output {output!r}: {{{unknown[0]}}} stands for nothing; expected {{prompt}}, {{n}} "
            "or {video}"
        )
    stem = str(video.video_id).rsplit("-", 1)[0]
    targets: list[str] = []
    for number, prompt in enumerate(prompts, 1):
        target = output
        for name, text in {"prompt": slug(prompt), "n": str(number), "video": stem}.items():
            target = target.replace(f"{{{name}}}", text)
        if target in targets:  # two prompts that differ in signs only
            target = f"{target[: -len(ENDING)]}-{number}{ENDING}"
        targets.append(target)
    return targets


def _is_folder(output: str) -> bool:
    try:
        return is_folder(output)
    except (OSError, ValueError, ImportError) as error:
        raise WrongOption(f"--output {output!r} cannot be opened: {error}") from error


def slug(prompt: str) -> str:
    """A prompt as a file's name."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")
    return words.encode()[:MAX_NAME].decode(errors="ignore").rstrip("-") or "edit"


def check_target(target: str, video: str, *, overwrite: bool) -> None:
    """Find out whether an edit can be written, and make its folder.

    Raises:
        WrongOption: it may not be written over.
        UserError: it cannot be written.
    """
    if _is_same(target, video):
        raise WrongOption(
            f"--output {target!r} is the source itself, which is never replaced; give another name"
        )
    folder, _, name = target.rpartition("/")
    place, probe = Folder(folder or "/" if "/" in target else "."), ".retake-can-write"
    try:
        if is_folder(target):
            raise WrongOption(f"--output {target!r} is a folder; give another name")
        if not overwrite and place.exists(name):
            raise WrongOption(f"--output {target!r} exists; give --overwrite to replace it")
        place.write(probe, b"ok")
        place.remove(probe)
    except UserError:
        raise
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"--output {target!r} cannot be written: {folder} is a file; expected a folder"
        ) from error
    except Exception as error:  # each storage has its own kinds of failure
        raise UserError(f"--output {target!r}: {explain(error, target, 'written').text}") from error


def _is_same(target: str, video: str) -> bool:
    if "://" in target or "://" in video:
        return target == video
    return Path(target).expanduser().resolve() == Path(video).expanduser().resolve()
