"""A job for tests of what goes round the model: it has settings, and no manifest or checkpoint."""

from __future__ import annotations

from itertools import count
from typing import Any, cast

from cluster.job import Job
from cluster.manifest import ManifestFiles
from cluster.settings import ClusterSettings
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
