"""A job as the cluster sees it: the settings, and what identifies an edit made under them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.manifest import ManifestFiles
from cluster.settings import ClusterSettings
from pipeline.model.checkpoint import CheckpointPin
from pipeline.records import EditSpec, VideoSpec
from pipeline.settings import EditingSettings, Reconstruction, ScoreSettings

ALGORITHM = 1
"""Raised when a change makes edits differ for the same settings: made ones are stale then."""

NOT_IN_FINGERPRINT = {
    "checkpoint": "stands there by the fingerprint of its contents",
    "output": "a moved folder is not stale",
    "trajectory.keep": "changes nothing of an edit",
    "reconstruction.edits_at_once": "changes nothing beyond rounding",
    "reconstruction.keep_candidates": "keeps files, and changes nothing",
    "reconstruction.until_accepted": "an edit that is made stays until a round makes a better one",
    "inversion.vae_psnr": "measures, and changes nothing",
    "inversion.round_trip": "measures, and changes nothing",
    "limits": "refuses a video, and changes nothing of an edit",
}

NAMES_IN_FINGERPRINT = {("reconstruction.reference", "empty"): "null"}
"""Values that have another name today than in fingerprints: edits made before stay made."""

_RECONSTRUCTION = Reconstruction()
NEW_IN_FINGERPRINT = {
    f"reconstruction.{name}": getattr(_RECONSTRUCTION, name)
    for name in ("mask", "mask_grow", "mask_feather", "composite", "noise", "candidates")
}
"""Settings that came after version 1, by their defaults: with these, edits made before stay made.
"""


OF_MASKS = ("mask_grow", "mask_feather", "composite")
"""Settings that change edits with a mask only."""


class CannotRun(Exception):
    """The job cannot run on this cluster; the text says what is missing and the way out."""


class WorkLost(CannotRun):
    """All work at the groups was lost again and again: perhaps by the doing of a row."""


@dataclass(frozen=True)
class Job:
    """All that a run needs.

    Args:
        manifest: where it is.
        files: its Parquet files, and how their rows are read.
        base: what relative video paths in the manifest are resolved against.
        checkpoint_fingerprint: of the checkpoint's contents.
        run: names this run's results; sorts by time.
        checkpoint: by which the ranks open it, at the version that the driver has checked.
        injected: what a forward with reference attention costs with it, in plain ones; the layout
            follows from it, and no edit.
        score: what is measured of each edit.
        accept: the rules that an edit must satisfy.
        round: how often the candidates of the edits were made before, since none was accepted.
    """

    manifest: str
    files: ManifestFiles
    base: str
    editing: EditingSettings
    cluster: ClusterSettings
    checkpoint_fingerprint: str
    run: str
    checkpoint: CheckpointPin | None = None
    injected: float = 1.49
    score: ScoreSettings = ScoreSettings()
    accept: tuple[str, ...] = ()
    round: int = 0

    def fingerprint(self) -> str:
        """Of everything in the job that changes an edit."""
        settings, how = asdict(self.editing), self.editing.reconstruction
        settings["speed"] = self.editing.speed.changes_edits()
        if not settings["speed"]:
            del settings["speed"]  # as in versions without it: edits made before stay made
        for name, default in NEW_IN_FINGERPRINT.items():
            place, last = _place(settings, name)
            if place[last] == default:
                del place[last]
        if how.mask == "none" and not any(one.mask == "auto" for one in how.candidates):
            for name in OF_MASKS:  # an edit with a mask of its own has them with it
                settings["reconstruction"].pop(name, None)
        if how.candidates:  # one that is declared later changes no candidate that lacks it
            settings["reconstruction"]["candidates"] = [one.changes() for one in how.candidates]
        for name in NOT_IN_FINGERPRINT:
            place, last = _place(settings, name)
            del place[last]
        for (name, today), before in NAMES_IN_FINGERPRINT.items():
            place, last = _place(settings, name)
            if place[last] == today:
                place[last] = before
        return digest(
            _text({**settings, "algorithm": ALGORITHM, "weights": self.checkpoint_fingerprint})
        )

    def edit_fingerprint(self, job: str, video: VideoSpec, edit: EditSpec) -> str:
        """Of everything that changes one edit; `job` is the job's own fingerprint."""
        described = self.editing.reconstruction.reference == "source"
        return digest(
            fingerprint_of(
                job,
                video=video.video,
                frames=[video.start_frame, video.num_frames, video.fps],
                seed=video.seed,
                source_prompt=video.source_prompt if described else None,
                edit=changing(edit, self.editing.reconstruction),
            )
        )


def changing(edit: EditSpec, how: Reconstruction) -> dict[str, Any]:
    """What of an edit changes it; without a mask of its own, as before there were masks."""
    values = {name: value for name, value in vars(edit).items() if name != "instruction"}
    if edit.mask in (None, how.mask):  # the job's own is a part of the job's fingerprint
        del values["mask"]
    else:
        values["mask"] = edit.mask + used_mask(how)
    return values


def used_mask(how: Reconstruction) -> str:
    """What follows the name of an edit's own mask: how it is used, where not as by default."""
    changes = {name: getattr(how, name) for name in OF_MASKS}
    changes = {n: value for n, value in changes.items() if value != getattr(_RECONSTRUCTION, n)}
    return f" {_text(changes)}" if changes else ""


def fingerprint_of(
    job: str, *, video: str, frames: Any, seed: Any, source_prompt: Any, edit: Mapping[str, Any]
) -> str:
    """The text whose hash is an edit's fingerprint."""
    return _text(
        {
            "job": job,
            "video": video,
            "frames": frames,
            "seed": seed,
            "source_prompt": source_prompt,
            "edit": edit,
        }
    )


def _place(settings: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The section that holds a setting, and its name there."""
    *sections, last = name.split(".")
    for section in sections:
        settings = settings[section]
    return settings, last


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


def digest(text: str) -> str:
    """The fingerprint that a text gives."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]
