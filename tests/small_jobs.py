"""A job for tests of what goes round the model: it has settings, and no manifest or checkpoint."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any, cast

import yaml

from cluster.job import Job
from cluster.manifest import ManifestFiles
from cluster.settings import ClusterSettings
from jobs.manifest.writing import write_manifest
from pipeline.settings import EditingSettings

NUMBER = count()
"""Each job has an output folder of its own, which is nowhere on this machine."""


def a_job(**cluster: Any) -> Job:
    """A job with such settings of its cluster."""
    return Job(
        manifest="m",
        files=cast(ManifestFiles, ()),
        base="/clips",
        editing=EditingSettings(checkpoint="c", output=f"memory://o{next(NUMBER)}"),
        cluster=ClusterSettings(**cluster),
        checkpoint_fingerprint="f",
        run="r",
    )


def a_job_file(folder: Path) -> str:
    """A job file of one video that is not there; its output folder `new` is new."""
    row = {"video": "a.mp4", "edits": [{"prompt": "red"}]}
    write_manifest([row], str(folder / "m.parquet"))
    path = folder / "job.yaml"
    path.write_text(
        yaml.safe_dump({"manifest": "m.parquet", "output": "new", "checkpoint": "embedded"})
    )
    return str(path)
