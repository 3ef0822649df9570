"""What of a job travels to a cluster, and what is refused: places that only this machine has.

On this machine, and with `--shared`, all locations stay as they are. Elsewhere a local manifest
travels with the job; its videos, the output and the checkpoint must be where the cluster sees them.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cluster.submission.submit import JOB, Submission
from jobs.errors import JobError, counted
from jobs.jobfile.paths import EMBEDDED
from jobs.jobfile.scores import model_folders
from jobs.spec import JobSpec
from pipeline.locations import is_local
from pipeline.storage import explain, open_file

MANIFEST, ONLY = "manifest", "only"
"""The folders that a manifest and the lists of `--only` travel in."""
LISTS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".pq", ".txt")
SHARED = (
    "If all nodes of the cluster see this machine's paths, as on a shared file system, give "
    "--shared"
)
NAMED = 3


@dataclass(frozen=True)
class RunOptions:
    """The options of `retake run` there.

    Args:
        limit, only, retry_failed, codes, retry_quarantined: as its options.
    """

    limit: int | None = None
    only: Sequence[str] = ()
    retry_quarantined: bool = False
    retry_failed: bool = False
    codes: Sequence[str] = ()


def travelling(spec: JobSpec, options: RunOptions, *, sees_files: bool) -> Submission:
    """A job as it is sent.

    Args:
        sees_files: whether the cluster sees the files of this machine, under the same paths.

    Raises:
        JobError: with everything that the cluster could not see.
    """
    values, files, problems = spec.plain(), dict[str, bytes](), list[str]()
    if not sees_files:
        problems.extend(_unseen(spec))
        if _is_plain(spec.manifest):
            name, files = _manifest(spec.manifest, problems)
            values["manifest"] = name
        elif is_local(spec.manifest):
            problems.append(f"manifest {spec.manifest}: {ELSEWHERE}")
    if problems:
        raise JobError(f"{chr(10).join(problems)}\n{SHARED}")
    arguments, lists = _options(options)
    return Submission(
        name=spec.name or posixpath.basename(spec.output.rstrip("/")),
        job=yaml.safe_dump(_first(values), sort_keys=False, allow_unicode=True),
        files={**files, **lists},
        options=arguments,
        output=spec.output,
        embedded=spec.checkpoint == EMBEDDED,
        stop_grace_s=spec.cluster.stop_grace_s,
    )


ELSEWHERE = "is on this machine, where the cluster does not see it; put it into object storage"


def _first(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in ("manifest", "output")} | dict(values)


def _unseen(spec: JobSpec) -> Iterable[str]:
    if is_local(spec.output):
        yield (
            f"output {spec.output}: is a folder of this machine; the cluster would write to its "
            "own. Name one in object storage, as s3://bucket/folder"
        )
    if spec.checkpoint != EMBEDDED and _is_path(spec.checkpoint):
        yield f"checkpoint {spec.checkpoint}: {ELSEWHERE}, or name one on the Hugging Face Hub"
    for name, place in model_folders(spec.score).items():
        if _is_path(place):
            yield (
                f"score.{name} {place}: is on this machine, where the cluster does not see it; "
                "name one on the Hugging Face Hub, or a folder that all nodes see"
            )


def _is_path(checkpoint: str) -> bool:
    """Whether a checkpoint is local; `owner/name` is one of the Hub."""
    return is_local(checkpoint) and (os.path.isabs(checkpoint) or "::" in checkpoint)


def _is_plain(location: str) -> bool:
    """Whether a location is a file or folder of this machine, and neither pattern nor archive."""
    return "::" not in location and is_local(location) and os.path.exists(_path(location))


def _path(location: str) -> str:
    return location.partition("://")[2] or location


def _manifest(location: str, problems: list[str]) -> tuple[str, dict[str, bytes]]:
    """The name that a local manifest has on the cluster, and its files by their names there."""
    from cluster.stages.blocks import RESERVED
    from jobs.manifest.checks import check_manifest
    from jobs.manifest.files import find_files

    info = check_manifest(location, reserved=RESERVED, leave_out=None)
    local: list[str] = []
    for table in info.files.tables(["video"]):
        local += [one for one in table["video"].to_pylist() if isinstance(one, str) and one]
        local = [one for one in local if is_local(one)]
    if local:
        few = ", ".join(map(repr, local[:NAMED])) + ", ..." * (len(local) > NAMED)
        problems.append(
            f"manifest {location}: {counted(len(local), 'row')} with a video of this machine "
            f"({few}); the cluster does not see it. Put the videos into object storage, and have "
            "the manifest name them there"
        )
    root = _path(location)
    files = {}
    for found in find_files(location, None).files:
        path = _path(found.uri)
        inner = os.path.relpath(path, root) if os.path.isdir(root) else os.path.basename(path)
        files[f"{MANIFEST}/{inner.replace(os.sep, '/')}"] = _read(found.uri, "manifest")
    return (MANIFEST if os.path.isdir(root) else next(iter(files))), files


def _options(options: RunOptions) -> tuple[list[str], dict[str, bytes]]:
    """The options of `retake run`, and the lists that they name, which travel."""
    arguments: list[str] = []
    files: dict[str, bytes] = {}
    for number, text in enumerate(options.only):
        uri = text.removeprefix("@")
        if (uri != text or text.lower().endswith(LISTS)) and is_local(uri):
            name = f"{ONLY}/{number}-{os.path.basename(uri)}"
            files[name] = _read(uri, "--only")
            text = f"@{name}"
        arguments.append(f"--only={text}")
    if options.limit is not None:
        arguments.append(f"--limit={options.limit}")
    if options.retry_failed:
        arguments.append("--retry-failed")
    arguments += [f"--code={code}" for code in options.codes]
    if options.retry_quarantined:
        arguments.append("--retry-quarantined")
    assert JOB not in files
    return arguments, files


def _read(uri: str, what: str) -> bytes:
    try:
        with open_file(uri) as file:
            return bytes(file.read())
    except Exception as error:  # each storage has its own kinds of failure
        raise JobError(f"{what} {uri}: {explain(error, uri).text}") from error
