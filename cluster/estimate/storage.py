"""The bytes that a job leaves in its output folder."""

from __future__ import annotations

from math import prod

from cluster.estimate.memory import text_item_bytes
from cluster.estimate.record import StorageParts
from cluster.estimate.work import DatasetWork, VideoWork
from pipeline.model.checkpoint import CheckpointInfo
from pipeline.plan import highest_stored
from pipeline.settings import EditingSettings
from pipeline.trajectories.index import CHUNKS, ITEM_BYTES

BITS_A_PIXEL = 0.5
"""Of an edit or a source as `pipeline/media/encoding.py` writes it (H.264, crf 17). Assumed: three
clips of 49x480x720 at 8 fps took 0.37, 0.52 and 0.60; others may take much less or twice that."""
DIGEST_BYTES = 20
"""Of a chunk's checksum in a trajectory's index: 16 hex digits, quotes, a comma and a blank."""
LEVEL_BYTES = 80
"""What a level takes in a shard's header."""
STEP_BYTES = 28
"""What a level of the schedule takes in the index: its timestep and its alpha."""
INDEX_BYTES = 1500
"""What else an index holds, the certificate included."""
EMBEDDING_BYTES = 200
"""The header of an embedding, with a prompt of some 100 letters."""


def storage_parts(
    settings: EditingSettings, info: CheckpointInfo, work: DatasetWork, prompts: int, *, gpu: bool
) -> StorageParts:
    """The bytes that are written for a dataset, with trajectories in one shard each.

    Of a video whose trajectory is there already, it and the source are not written again.

    Args:
        prompts: different texts.
        gpu: whether the models run on GPUs, where embeddings take half.
    """
    kept, how = settings.trajectory.keep != "never", settings.reconstruction
    files = 1 + how.tries if how.candidates and how.keep_candidates else 1
    width = int(info.transformer["text_embed_dim"])
    item = text_item_bytes(settings.precision, gpu=gpu)
    embedding = info.text_tokens * width * item + EMBEDDING_BYTES
    clip = work.summed(lambda one: bool(one.encodes) * _clip_bytes(one))
    stored = work.summed(lambda one: bool(one.encodes) * trajectory_bytes(settings, info, one))
    return StorageParts(
        trajectories=int(stored) * kept,
        prompts=prompts * embedding,
        sources=int(clip),
        edits=int(work.summed(lambda one: files * one.edits * _clip_bytes(one))),
    )


def trajectory_bytes(settings: EditingSettings, info: CheckpointInfo, video: VideoWork) -> int:
    """Of one video: the shard with all stored levels, and the index."""
    steps = settings.inversion.steps
    levels = highest_stored(settings.reconstruction, steps) + 1
    clip = video.clip
    values = prod(info.latent_shape(clip.frames, clip.height, clip.width))
    shard = levels * (values * ITEM_BYTES[settings.trajectory.dtype] + LEVEL_BYTES)
    index = levels * CHUNKS * DIGEST_BYTES + (steps + 1) * STEP_BYTES + INDEX_BYTES
    return shard + index


def _clip_bytes(video: VideoWork) -> float:
    clip = video.clip
    return clip.frames * clip.height * clip.width * BITS_A_PIXEL / 8
