"""A job run: everything refused that can be before a GPU starts, then the graph, then the end."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import yaml

from cluster.job import Job
from cluster.results.ledger import Keys, read_done
from cluster.scan import Scan, count_owed, scan_manifest
from cluster.stages.blocks import RESERVED
from cluster.stages.check import CheckRows
from jobs.manifest.checks import ManifestError, check_manifest
from jobs.spec import JobError, JobSpec, absolute
from pipeline.storage import Folder

if TYPE_CHECKING:
    from cluster.dataflow import Counts
    from pipeline.model.checkpoint import CheckpointInfo

PACKAGES = ("torch", "diffusers", "transformers", "ray", "xfuser", "pyarrow", "av", "retake")
COUNT_UP_TO = 100_000


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
    from pipeline.errors import UnsupportedCheckpoint
    from pipeline.model.checkpoint import open_checkpoint
    from pipeline.model.sizes import check_blocks, clip_size

    problems: list[str] = []
    manifest_uri = absolute(spec.manifest)
    manifest = scan = checkpoint = clip = None
    editing = spec.editing()
    try:
        manifest = check_manifest(manifest_uri, reserved=RESERVED, leave_out=editing.output)
        problems.extend(
            f"manifest {file}: its name has no ending; rename it to end in .parquet"
            for file in manifest.files
            if "." not in file.rsplit("/", 1)[-1]
        )
        scan = scan_manifest(manifest.files)
    except ManifestError as error:
        problems.append(str(error))
    except (OSError, pa.ArrowException) as error:
        problems.append(f"manifest {manifest_uri}: its rows cannot be read: {error}")
    try:
        checkpoint = open_checkpoint(editing.checkpoint)
        clip = clip_size(editing.video, checkpoint)
        check_blocks(editing.reconstruction, checkpoint)
        check_groups(spec, checkpoint, clip)
    except (UnsupportedCheckpoint, ValueError) as error:
        problems.append(str(error))
    except Exception as error:  # each storage has its own kinds of failure
        said = f"{type(error).__name__}: {error}"
        problems.append(f"checkpoint {editing.checkpoint}: cannot be read: {said}")
    problems.extend(_storage_problems(editing.output))
    if problems or manifest is None or scan is None or checkpoint is None:
        raise JobError("\n".join(problems))
    job = Job(
        manifest=manifest_uri,
        files=manifest.files,
        base=manifest_folder(manifest_uri, manifest.files),
        editing=editing,
        cluster=spec.cluster,
        checkpoint_fingerprint=checkpoint.fingerprint,
        run=datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f"),
    )
    return Prepared(spec, job, scan, checkpoint, clip, manifest.extra_columns, manifest.warnings)


def manifest_folder(uri: str, files: tuple[str, ...]) -> str:
    """What relative videos are relative to: the manifest itself where it is a folder of files."""
    own = fsspec.core.url_to_fs(uri)[1].rstrip("/")
    is_file = [fsspec.core.url_to_fs(file)[1] for file in files] == [own]
    return uri.rstrip("/").rsplit("/", 1)[0] if is_file else uri.rstrip("/")


def check_groups(spec: JobSpec, checkpoint: CheckpointInfo, clip: Any) -> None:
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


@dataclass(frozen=True)
class Owed:
    """What is still to be done of a job.

    Args:
        done: what stands in the results already.
        edits: results that a run will give; exact for manifests of up to `COUNT_UP_TO` edits.
    """

    done: Keys
    edits: int


def owed(prepared: Prepared) -> Owed:
    """Compare the manifest with the results."""
    done = read_done(Folder(prepared.job.editing.output))
    edits = prepared.scan.edits
    # Counting walks the whole manifest; it is worth that where the answer may be "nothing".
    if edits <= COUNT_UP_TO or len(done) >= edits:
        check = CheckRows(prepared.job, done, prepared.scan.repeated)
        return Owed(done, count_owed(prepared.job.files, check))
    return Owed(done, max(0, edits - len(done)))


def run(prepared: Prepared, what: Owed, on_progress: Callable[[Counts], None]) -> Counts:
    """Run a prepared job to its end. Raises what `cluster.dataflow.run` raises."""
    from cluster.dataflow import run as run_graph

    Folder(prepared.job.editing.output).write("job.yaml", resolved(prepared).encode())
    return run_graph(prepared.job, what.done, prepared.scan.repeated, on_progress)


def resolved(prepared: Prepared) -> str:
    """The job with every default filled in, and what it ran with, as YAML."""
    spec = prepared.spec.model_dump(mode="json")
    spec |= {"manifest": prepared.job.manifest, "output": prepared.job.editing.output}
    about = {
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "fingerprints": {
            "job": prepared.job.fingerprint(),
            "checkpoint": prepared.checkpoint.fingerprint,
        },
        "family": prepared.checkpoint.family,
        "run": prepared.job.run,
    }
    return yaml.safe_dump({**spec, "about": about}, sort_keys=False, allow_unicode=True)


def _storage_problems(output: str) -> list[str]:
    """Try the output folder before hours of work find out that it cannot be written."""
    folder, probe = Folder(output), ".retake-can-write"
    try:
        folder.write(probe, b"ok")
        folder.remove(probe)
    except Exception as error:
        return [f"output {output}: cannot be written: {type(error).__name__}: {error}"]
    return []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
