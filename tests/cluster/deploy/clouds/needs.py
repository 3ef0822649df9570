"""What jobs need, for the tests of clouds."""

from __future__ import annotations

from typing import Any

import yaml

from cluster.deploy.needs import AJob, Choices, Needs, needs_of
from cluster.settings import ClusterSettings

S3 = {"manifest": "s3://in/manifest.parquet", "output": "s3://out/edits"}
GCS = {"manifest": "gs://in/manifest.parquet", "output": "gs://out/edits"}


def needs(
    places: dict[str, str] = S3, settings: ClusterSettings | None = None, **choices: Any
) -> Needs:
    locations = {**places, "checkpoint": "zai-org/CogVideoX-5b"}
    text = yaml.safe_dump(locations)
    job = AJob("horses", text, settings or ClusterSettings(), locations)
    return needs_of(job, Choices(**choices))
