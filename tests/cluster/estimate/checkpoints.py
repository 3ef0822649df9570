"""Checkpoints without weights, and jobs, for plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from cluster.job import Job
from cluster.manifest import ManifestFiles
from cluster.settings import ClusterSettings
from pipeline.model.checkpoint import CheckpointInfo, Family
from pipeline.settings import EditingSettings
from tests.published_models import T5, published


def with_text_encoder(
    info: CheckpointInfo, folder: Path, config: dict[str, Any] | None = None
) -> CheckpointInfo:
    """The checkpoint in a folder that holds no more than its text encoder's configuration."""
    (folder / "text_encoder").mkdir(exist_ok=True)
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config or T5))
    return replace(info, path=folder)


def real(family: Family, folder: Path) -> CheckpointInfo:
    """A published checkpoint's configuration."""
    return with_text_encoder(published(family), folder)


def job_of(settings: EditingSettings | None = None, **cluster: Any) -> Job:
    """A job with such settings, without manifest."""
    editing = settings or EditingSettings(output="o")
    files = cast(ManifestFiles, ())
    return Job("m", files, "", editing, ClusterSettings(**cluster), "f", "r")
