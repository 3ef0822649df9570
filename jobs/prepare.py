"""Everything of a job that can be refused before a GPU starts is refused here."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.accept import WrongRule, rules_of
from cluster.candidates.choice import Ranking
from cluster.job import Job
from cluster.layout.work import injected_cost
from cluster.output.naming import run_name
from cluster.pending.scan import Scan, scan_manifest
from cluster.stages.blocks import RESERVED
from jobs.errors import JobError, ManifestError
from jobs.jobfile.scores import score_problems
from jobs.manifest.checks import ManifestInfo, check_manifest
from jobs.spec import JobSpec
from pipeline.errors import Unreadable
from pipeline.media.counts import FrameRule
from pipeline.settings import EditingSettings
from pipeline.storage import Folder, explain

if TYPE_CHECKING:
    from pipeline.model.checkpoint import CheckpointInfo


@dataclass(frozen=True)
class Prepared:
    """A job that was found good: nothing has run and no result was written yet."""

    spec: JobSpec
    job: Job
    scan: Scan
    checkpoint: CheckpointInfo
    clip: Any
    extra_columns: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def most_frames(self) -> int:
        """The most frames that a clip can have: a number that the checkpoint accepts."""
        rule = FrameRule.of(self.checkpoint)
        return rule.largest_at_most(self.clip.frames) or self.clip.frames


def prepare(spec: JobSpec, *, write: bool = True) -> Prepared:
    """Check all of a job that can be checked without its videos.

    Args:
        write: try the output folder by writing to it; else it is only looked at.

    Raises:
        JobError: with every problem found.
    """
    problems: list[str] = []
    editing = spec.editing()
    manifest = _read_manifest(spec.manifest, editing, problems)
    model = read_checkpoint(spec, editing, problems, _whole)
    alike = manifest[1].alike if manifest else None
    problems.extend(score_problems(spec.score))
    problems.extend(
        _write_problems(editing.output, alike) if write else _output_problems(editing.output)
    )
    if problems or manifest is None or model is None:
        raise JobError("\n".join(problems))
    (info, scan), (checkpoint, clip) = manifest, model
    job = Job(
        manifest=spec.manifest,
        files=info.files,
        base=info.base,
        editing=editing,
        cluster=spec.cluster,
        checkpoint_fingerprint=checkpoint.fingerprint,
        checkpoint=checkpoint.pin,
        run=run_name(),
        injected=injected_cost(editing, checkpoint, clip.frames, clip.height, clip.width),
        score=spec.score,
        accept=spec.accept,
    )
    try:
        rules_of(job)
    except WrongRule as error:
        raise JobError("\n".join(f"accept: {line}" for line in str(error).splitlines())) from error
    try:
        Ranking.of(job)
    except WrongRule as error:
        raise JobError(str(error)) from error
    warnings = (*info.warnings, _alike(*scan.alike)) if scan.alike else info.warnings
    return Prepared(spec, job, scan, checkpoint, clip, info.extra_columns, warnings)


def _read_manifest(
    uri: str, editing: EditingSettings, problems: list[str]
) -> tuple[ManifestInfo, Scan] | None:
    try:
        manifest = check_manifest(uri, reserved=RESERVED, leave_out=editing.output)
        return manifest, scan_manifest(manifest.files)
    except (ManifestError, Unreadable) as error:
        problems.append(str(error))
    return None


def _whole(checkpoint: str) -> CheckpointInfo:
    from pipeline.model.checkpoint import open_checkpoint

    return open_checkpoint(checkpoint, parts=())


def read_checkpoint(
    spec: JobSpec,
    editing: EditingSettings,
    problems: list[str],
    opened: Callable[[str], CheckpointInfo],
) -> tuple[CheckpointInfo, Any] | None:
    """The checkpoint and the size of the clips, where the settings fit both.

    Args:
        problems: gets what is wrong.
        opened: gives the checkpoint of a location.
    """
    from pipeline.model.sizes import check_blocks, check_steps, clip_size

    try:
        checkpoint = opened(editing.checkpoint)
        clip = clip_size(editing.video, checkpoint)
        check_blocks(editing.reconstruction, checkpoint)
        check_steps(editing.inversion, checkpoint)
        _check_groups(spec, checkpoint, clip)
        return checkpoint, clip
    except ValueError as error:
        problems.append(str(error))
    except Exception as error:  # each storage has its own kinds of failure
        why = explain(error, editing.checkpoint).text
        problems.append(f"checkpoint {editing.checkpoint!r}: {why}")
    return None


def _check_groups(spec: JobSpec, checkpoint: CheckpointInfo, clip: Any) -> None:
    """Refuse degrees that the checkpoint or the clip's size cannot be split by."""
    for stage in (spec.cluster.inversion, spec.cluster.reconstruction):
        if stage.gpus == 1:
            continue
        from pipeline.model.parallel.degrees import check_degrees

        check_degrees(
            checkpoint,
            gpus=stage.gpus,
            ulysses=stage.ulysses,
            ring=stage.ring,
            cfg=stage.cfg,
            frames=clip.frames,
            height=clip.height,
            width=clip.width,
        )


def _write_problems(output: str, alike: tuple[str, str] | None) -> list[str]:
    """Try the output folder before hours of work find out that it cannot be written.

    Args:
        alike: ids whose files must not be the same one.
    """
    folder, probe = Folder(output), ".retake-can-write"
    try:
        folder.write(probe, b"ok")
        folder.remove(probe)
        if alike and _are_one_file(folder, *alike):
            one, other = map(repr, alike)
            return [
                f"output {output}: its file system takes {one} and {other} for the same name, and "
                "both are ids in the manifest: give one of them another id, or take an output "
                "folder whose file system tells upper from lower case"
            ]
    except Exception as error:
        return [f"output {output}: {explain(error, output, 'written').text}"]
    return []


def _are_one_file(folder: Folder, one: str, other: str) -> bool:
    probe = f".retake-{uuid.uuid4().hex[:8]}-"
    folder.write(f"{probe}{one}", b"ok")
    try:
        return folder.exists(f"{probe}{other}")
    finally:
        folder.remove(f"{probe}{one}")


def _alike(one: str, other: str) -> str:
    return (
        f"the ids {one!r} and {other!r} are the same but for letter case; an output folder whose "
        "file system does not tell them apart (macOS, Windows, some shares) is refused"
    )


def _output_problems(output: str) -> list[str]:
    """What can be seen of an output folder without writing to it."""
    folder = Folder(output)
    try:
        problem = _local_problem(Path(folder.path())) if folder.is_local else _no_bucket(folder)
    except Exception as error:  # each storage has its own kinds of failure
        problem = explain(error, output, "reached").text
    return [f"output {output}: {problem}"] if problem else []


def _no_bucket(folder: Folder) -> str:
    bucket = folder.path().split("/")[0]
    there = folder.exists("") or folder.fs.exists(bucket)
    return "" if there else f"there is no bucket {bucket!r}; make it first"


def _local_problem(place: Path) -> str:
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir():
        which = "" if there == place else f"{there} "
        return f"{which}is a file; expected a folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} may not be written to"
