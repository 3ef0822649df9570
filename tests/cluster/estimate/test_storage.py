"""The bytes of a plan are those that a run stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from cluster.estimate.dataset import Dataset, VideoGroup
from cluster.estimate.storage import BITS_A_PIXEL, storage_parts
from cluster.estimate.work import dataset_work
from pipeline.model.prompts import PromptStore
from pipeline.model.scheduler import schedule_from_config
from pipeline.settings import EditingSettings, Reconstruction, TrajectorySettings
from pipeline.storage import Folder
from pipeline.trajectories.index import TrajectoryIndex, commit
from pipeline.trajectories.writer import ShardWriter
from tests.cluster.estimate.checkpoints import real
from tests.published_models import published
from tests.small_models import scheduler


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_stored_trajectory_has_the_bytes_that_are_counted(
    dtype: Literal["fp16", "fp32"], tmp_path: Path
) -> None:
    settings = EditingSettings(
        output="o",
        reconstruction=Reconstruction(start=0.1),
        trajectory=TrajectorySettings(dtype=dtype),
    )
    settings = replace(settings, video=replace(settings.video, height=240, width=360 // 16 * 16))
    info = real("5b", tmp_path)
    work = dataset_work(settings, info, Dataset((VideoGroup(3, 1, 17),), 0))
    folder = Folder(str(tmp_path / "stored"))
    schedule = schedule_from_config(scheduler("5b"), 50)
    writer = ShardWriter(folder, dtype)
    shape = info.latent_shape(17, 240, 352)
    for _ in range(6):  # levels 0 to 5: a tenth of 50
        writer.add(torch.zeros(shape))
    levels = schedule.levels
    commit(
        folder,
        TrajectoryIndex(
            key="k" * 24,
            shape=shape,
            dtype=dtype,
            shards=(writer.store(),),
            timesteps=tuple(level.timestep for level in levels),
            alphas=tuple(level.alpha for level in levels),
            about={"noise_level": 0.1, "noise_mean": 0.001, "noise_std": 0.99, "vae_psnr_db": 31.2},
        ),
    )
    stored = sum(size for _, size in folder.sizes())
    counted = storage_parts(settings, info, work, 0, gpu=True).trajectories
    assert counted == pytest.approx(3 * stored, rel=0.01)


def test_an_embedding_has_the_bytes_that_are_counted(tmp_path: Path) -> None:
    store = PromptStore(Folder(str(tmp_path / "prompts")))
    store.write("a zebra gallops on a beach", torch.zeros(226, 4096, dtype=torch.bfloat16))
    stored = sum(size for _, size in store.folder.sizes())
    settings = EditingSettings(output="o")
    info = published("5b")
    work = dataset_work(settings, info, Dataset((), 0))
    counted = storage_parts(settings, info, work, 10, gpu=True).prompts
    assert counted == pytest.approx(10 * stored, rel=0.001)
    assert storage_parts(settings, info, work, 10, gpu=False).prompts > 1.9 * counted


def test_clips_are_counted_by_their_pixels() -> None:
    settings, info = EditingSettings(output="o"), published("5b")
    work = dataset_work(settings, info, Dataset((VideoGroup(2, 3, 49),), 0))
    parts = storage_parts(settings, info, work, 0, gpu=True)
    clip = 49 * 480 * 720 * BITS_A_PIXEL / 8
    assert (parts.sources, parts.edits) == (2 * clip, 6 * clip)
    stored = dataset_work(settings, info, Dataset((VideoGroup(2, 3, 49, inverted=True),), 0))
    more = storage_parts(settings, info, stored, 0, gpu=True)
    assert (more.trajectories, more.sources, more.edits) == (0, 0, 6 * clip), "they are there"
    # 31 levels of 2.25 MB, as 16 bits have it.
    assert parts.trajectories / 2 / 31 == pytest.approx(2.25e6, rel=0.01)
