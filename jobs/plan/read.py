"""A job as far as a plan needs it: its settings, its manifest's footers, its model's configuration.

No weights are read, and none need be there. What is done already is known from the output folder,
which says itself which checkpoint it was made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.job import Job
from cluster.output.naming import run_name
from cluster.pending.done import DONE, QUARANTINED, Answered, find_answered
from cluster.pending.scan import scan_manifest
from cluster.stages.blocks import RESERVED
from jobs.errors import JobError, ManifestError
from jobs.manifest.checks import check_manifest
from jobs.prepare import read_checkpoint
from jobs.spec import ABOUT, JobSpec, read_resolved
from pipeline.errors import Unreadable
from pipeline.media.counts import FrameRule
from pipeline.model.checkpoint import CheckpointInfo, open_configuration
from pipeline.redaction import redacted
from pipeline.storage import Folder


@dataclass(frozen=True)
class Read:
    """A job that a plan can be made of.

    Args:
        job: its settings and the files of its manifest.
        info: what the checkpoint's configuration says.
        frames: the most that a clip can have, a number that the checkpoint takes.
        rule: which numbers it takes.
    """

    job: Job
    info: CheckpointInfo
    frames: int
    rule: FrameRule


@dataclass(frozen=True)
class Ledger:
    """What the output folder says of a job.

    Args:
        answered: which edits are made; None where nothing is known: all are pending.
        note: why it is not, where there are results; or that there may be.
    """

    answered: Answered | None = None
    note: str = ""

    @property
    def done(self) -> int:
        return self.answered.count(DONE) if self.answered else 0

    @property
    def quarantined(self) -> int:
        return self.answered.count(QUARANTINED) if self.answered else 0


def read_job(spec: JobSpec) -> Read:
    """Open the manifest and the checkpoint's configuration.

    Raises:
        JobError: with every problem found.
    """
    problems: list[str] = []
    editing = spec.editing()
    model = read_checkpoint(spec, editing, problems, open_configuration)
    try:
        manifest = check_manifest(spec.manifest, reserved=RESERVED, leave_out=editing.output)
    except (ManifestError, Unreadable) as error:
        raise JobError("\n".join([str(error), *problems])) from error
    if model is None:
        raise JobError("\n".join(problems))
    info, clip = model
    rule = FrameRule.of(info)
    job = Job(
        manifest=spec.manifest,
        files=manifest.files,
        base=manifest.base,
        editing=editing,
        cluster=spec.cluster,
        checkpoint_fingerprint=info.fingerprint,
        run=run_name(),
    )
    return Read(job, info, rule.largest_at_most(clip.frames) or clip.frames, rule)


def read_ledger(job: Job) -> Ledger:
    """What of a manifest is done, by the results in the output folder.

    An edit counts as done if its result has the fingerprint that the job asks for, with the
    checkpoint that the last run there had.
    """
    output = Folder(job.editing.output)
    try:
        before = read_resolved(output)
    except Exception as error:  # a plan is made for what is not there yet, too
        return Ledger(note=f"{error}: all edits are taken for pending")
    checkpoint = _checkpoint_of(before)
    if checkpoint is None:
        return Ledger()
    if before.get("checkpoint") != redacted(job.editing.checkpoint):
        return Ledger(
            note=f"the results in {output.uri} are of the checkpoint {before.get('checkpoint')}: "
            "all edits are taken for pending"
        )
    known = replace(job, checkpoint_fingerprint=checkpoint)
    return Ledger(find_answered(known, scan_manifest(job.files)))


def _checkpoint_of(resolved: Mapping[str, Any]) -> str | None:
    """The fingerprint of the checkpoint that a run had; None where no run was there."""
    about = resolved.get(ABOUT)
    prints = about.get("fingerprints") if isinstance(about, Mapping) else None
    found = prints.get("checkpoint") if isinstance(prints, Mapping) else None
    return found if isinstance(found, str) else None
