"""Needs of jobs, for the tests of all targets."""

from __future__ import annotations

from typing import Any

from cluster.deploy.needs import AJob, Choices, Needs, needs_of
from cluster.settings import ClusterSettings, GroupSettings, PromptSettings

ON_S3 = {
    "manifest": "s3://bucket/manifest.parquet",
    "output": "s3://bucket/out",
    "checkpoint": "zai-org/CogVideoX-5b",
}
HERE = {"manifest": "/data/manifest.parquet", "output": "/data/out", "checkpoint": "embedded"}
TEXT = "manifest: s3://bucket/manifest.parquet\noutput: s3://bucket/out\n"


def settings(**values: Any) -> ClusterSettings:
    """A section `cluster` from plain values."""
    kinds = {"inversion": GroupSettings, "reconstruction": GroupSettings, "prompts": PromptSettings}
    return ClusterSettings(**{k: kinds[k](**v) if k in kinds else v for k, v in values.items()})


def needs(
    locations: dict[str, str] = ON_S3, cluster: dict[str, Any] | None = None, **choices: Any
) -> Needs:
    job = AJob("horses", TEXT, settings(**(cluster or {})), locations)
    return needs_of(job, Choices(**choices))


SPLIT = {
    "layout": "split",
    "inversion": {"groups": 2},
    "reconstruction": {"groups": 3, "gpus": 4},
    "prompts": {"gpus": 1},
}
"""Groups of three kinds, each with their number."""

MANY = {
    "plain": needs(),
    "split": needs(cluster=SPLIT, gpu_kind="A100-80GB"),
    "spot": needs(gpu_kind="H100", nodes=4, spot=True, image="registry/retake:1"),
    "queue": needs(gpu_kind="L4", nodes=2, queue="team-a", env=("WANDB_API_KEY",)),
    "cpu": needs(HERE, {"device": "cpu"}, nodes=2),
}
"""What all files of a target are made for, by name."""
