"""A job as the cluster sees it: the settings, and what identifies an edit made under them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.settings import ClusterSettings
from pipeline.records import EditSpec, VideoSpec
from pipeline.settings import EditingSettings

ALGORITHM = 1
"""Raised when a change makes edits differ for the same settings: made ones are stale then."""

NOT_IN_FINGERPRINT = {
    "checkpoint": "stands there by the fingerprint of its contents",
    "output": "a moved folder is not stale",
    "trajectory.keep": "changes nothing of an edit",
    "reconstruction.edits_at_once": "changes nothing beyond rounding",
    "inversion.vae_psnr": "measures, and changes nothing",
    "inversion.round_trip": "measures, and changes nothing",
}


class CannotRun(Exception):
    """The job cannot run on this cluster; the text says what is missing and the way out."""


@dataclass(frozen=True)
class Job:
    """All that a run needs.

    Args:
        manifest: the Parquet files, and the filesystem's URI of each.
        base: what relative video paths in the manifest are resolved against.
        checkpoint_fingerprint: of the checkpoint's contents.
        run: names this run's results; sorts by time.
    """

    manifest: str
    files: tuple[str, ...]
    base: str
    editing: EditingSettings
    cluster: ClusterSettings
    checkpoint_fingerprint: str
    run: str

    def fingerprint(self) -> str:
        """Of everything in the job that changes an edit."""
        settings = asdict(self.editing)
        for name in NOT_IN_FINGERPRINT:
            *sections, last = name.split(".")
            place = settings
            for section in sections:
                place = place[section]
            del place[last]
        return _hash({**settings, "algorithm": ALGORITHM, "weights": self.checkpoint_fingerprint})

    def edit_fingerprint(self, job: str, video: VideoSpec, edit: EditSpec) -> str:
        """Of everything that changes one edit; `job` is the job's own fingerprint."""
        row: Mapping[str, Any] = {
            "job": job,
            "video": video.video,
            "frames": [video.start_frame, video.num_frames, video.fps],
            "seed": video.seed,
            "source_prompt": video.source_prompt
            if self.editing.reconstruction.reference == "source"
            else None,
            "edit": asdict(edit),
        }
        return _hash(row)


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]
