"""Sets the scene of a campaign: storage, cluster, dataset, environment; and takes it down."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.fault_proxy import faulty
from tests.faults.campaign import Campaign
from tests.faults.checks import unused_memory
from tests.faults.injected import Scene
from tests.faults.record import Log
from tests.faults.scene.dataset import write_dataset
from tests.faults.scene.nodes import ray_nodes
from tests.faults.scene.places import LocalPlace, Place, S3Place, small_disk
from tests.faults.scene.processes import Family
from tests.faults.scene.runs import environment
from tests.s3_server import s3_server

BUCKET = "faults"
DISK_MB = 64


@dataclass(frozen=True)
class Setting:
    """What a campaign runs on.

    Args:
        storage: the output is in a folder, on a small disk, or on S3.
        workers: worker nodes of the cluster; 0 has the run start Ray itself.
        layout: one of `tests.faults.scene.dataset.LAYOUTS`.
        elsewhere: the URIs of videos beside those that are drawn, by their ids.
    """

    storage: Literal["local", "disk", "s3"]
    workers: int
    layout: str
    videos: int
    edits: int
    steps: int
    elsewhere: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def staged(setting: Setting, seed: int, log: Log, **cluster: Any) -> Iterator[Campaign]:
    """A campaign that is ready to go.

    Args:
        cluster: settings of the job's cluster.
    """
    # The path is short: Ray has sockets below it, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
    mark = f"RETAKE_FAULTS={folder.name}"
    shared = unused_memory()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        family = Family(mark)
        stack.callback(family.close)
        scene = Scene(random.Random(seed), family, workers=setting.workers)
        place, access = stack.enter_context(_storage(setting, folder, scene))
        dataset = write_dataset(
            folder,
            place.uri,
            videos=setting.videos,
            edits=setting.edits,
            layout=setting.layout,
            steps=setting.steps,
            elsewhere=setting.elsewhere,
            **cluster,
        )
        variables = environment(folder, mark, **access)
        if setting.workers:
            scene.nodes = stack.enter_context(ray_nodes(setting.workers, 4, variables))
            variables["RAY_ADDRESS"] = scene.nodes.address
        campaign = Campaign(
            scene, dataset, place, variables, folder, log, shared, own_cluster=not setting.workers
        )
        yield campaign


@contextmanager
def _storage(
    setting: Setting, folder: Path, scene: Scene
) -> Iterator[tuple[Place, dict[str, str]]]:
    """The place of the output, and the variables with which a run gets there."""
    if setting.storage == "local":
        yield LocalPlace(folder / "out"), {}
    elif setting.storage == "disk":
        with small_disk(folder / "disk", DISK_MB) as mounted:
            scene.disk = folder / "disk" if mounted else None
            yield LocalPlace(folder / "disk/out"), {}
    else:
        with s3_server() as access, faulty(access) as (proxy, through_proxy):
            scene.storage = proxy
            yield S3Place(f"s3://{BUCKET}/out", _client(access)), through_proxy


def _client(access: dict[str, str]) -> Any:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=access["AWS_ENDPOINT_URL"],
        aws_access_key_id=access["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=access["AWS_SECRET_ACCESS_KEY"],
        region_name=access["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket=BUCKET)
    return client
