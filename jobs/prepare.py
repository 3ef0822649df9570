"""Everything of a job that can be refused before a GPU starts is refused here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cluster.job import Job
from cluster.scan import Scan, scan_manifest
from cluster.stages.blocks import RESERVED
from jobs.errors import JobError, ManifestError
from jobs.manifest.checks import ManifestInfo, check_manifest
from jobs.spec import JobSpec, absolute
from pipeline.settings import EditingSettings
from pipeline.storage import Folder, split

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


def prepare(spec: JobSpec) -> Prepared:
    """Check all of a job that can be checked without its videos.

    Raises:
        JobError: with every problem found.
    """
    problems: list[str] = []
    editing, manifest_uri = spec.editing(), absolute(spec.manifest)
    manifest = _read_manifest(manifest_uri, editing, problems)
    model = _read_checkpoint(spec, editing, problems)
    problems.extend(_storage_problems(editing.output))
    if problems or manifest is None or model is None:
        raise JobError("\n".join(problems))
    (info, scan), (checkpoint, clip) = manifest, model
    job = Job(
        manifest=manifest_uri,
        files=info.files,
        base=manifest_folder(manifest_uri, info.files),
        editing=editing,
        cluster=spec.cluster,
        checkpoint_fingerprint=checkpoint.fingerprint,
        run=datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f"),
    )
    return Prepared(spec, job, scan, checkpoint, clip, info.extra_columns, info.warnings)


def manifest_folder(uri: str, files: tuple[str, ...]) -> str:
    """What relative videos are relative to: the manifest itself where it is a folder of files."""
    is_file = [split(file)[1] for file in files] == [split(uri)[1]]
    return uri.rstrip("/").rsplit("/", 1)[0] if is_file else uri.rstrip("/")


def _read_manifest(
    uri: str, editing: EditingSettings, problems: list[str]
) -> tuple[ManifestInfo, Scan] | None:
    try:
        manifest = check_manifest(uri, reserved=RESERVED, leave_out=editing.output)
        problems.extend(
            f"manifest {file}: its name has no ending; rename it to end in .parquet"
            for file in manifest.files
            if "." not in file.rsplit("/", 1)[-1]
        )
        return manifest, scan_manifest(manifest.files)
    except ManifestError as error:
        problems.append(str(error))
    except (OSError, pa.ArrowException) as error:
        problems.append(f"manifest {uri}: its rows cannot be read: {error}")
    return None


def _read_checkpoint(
    spec: JobSpec, editing: EditingSettings, problems: list[str]
) -> tuple[CheckpointInfo, Any] | None:
    """The checkpoint and the size of the clips, where the settings fit both."""
    from pipeline.model.checkpoint import open_checkpoint
    from pipeline.model.sizes import check_blocks, clip_size

    try:
        checkpoint = open_checkpoint(editing.checkpoint)
        clip = clip_size(editing.video, checkpoint)
        check_blocks(editing.reconstruction, checkpoint)
        _check_groups(spec, checkpoint, clip)
        return checkpoint, clip
    except ValueError as error:
        problems.append(str(error))
    except Exception as error:  # each storage has its own kinds of failure
        reason = f"{type(error).__name__}: {error}"
        problems.append(f"checkpoint {editing.checkpoint}: cannot be read: {reason}")
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


def _storage_problems(output: str) -> list[str]:
    """Try the output folder before hours of work find out that it cannot be written."""
    folder, probe = Folder(output), ".retake-can-write"
    try:
        folder.write(probe, b"ok")
        folder.remove(probe)
    except Exception as error:
        return [f"output {output}: cannot be written: {type(error).__name__}: {error}"]
    return []
