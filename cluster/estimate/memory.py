"""What one rank holds, by part, and which sizes of groups a kind of GPU has room for.

The choices are those that a rank makes itself from its free memory: tiles as `Codec` takes them
(`pipeline/model/tiles.py`), branches in a block at once as `VelocityModel` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.estimate.record import MemoryParts, Rate
from cluster.layout.work import unit_steps
from cluster.settings import GroupSettings
from pipeline.model.checkpoint import TRAINED_IN, CheckpointInfo
from pipeline.model.footprint import (
    GROUP_MARGIN,
    TOKENS_AT_ONCE,
    transformer_bytes,
    vae_bytes,
    weight_bytes,
)
from pipeline.model.memory import HEADROOM
from pipeline.model.parallel.degrees import Degrees, check_degrees, legal_degrees
from pipeline.model.prompts import text_precision
from pipeline.model.sizes import ClipSize
from pipeline.model.tiles import tiles_of
from pipeline.settings import EditingSettings, Precision
from pipeline.trajectories.index import ITEM_BYTES

CONTEXT_BYTES = 500_000_000
"""What a process with CUDA takes of a GPU before its first tensor, about."""


@dataclass(frozen=True)
class RankMemory:
    """One rank of a group.

    Args:
        parts: bytes by part.
        fits: whether a rank finds room for all of it.
        encode_work, decode_work: what the VAE computes in the tiles that fit, over the work of the
            frame whole.
    """

    parts: MemoryParts
    fits: bool
    encode_work: float
    decode_work: float

    @property
    def peak(self) -> int:
        parts = self.parts
        largest = max(parts.forward, parts.decode, parts.encode)
        return parts.transformer + parts.vae + largest


def item_bytes(info: CheckpointInfo, precision: Precision, *, gpu: bool) -> int:
    """Bytes of a value of the transformer and the VAE."""
    if precision == "auto":
        precision = TRAINED_IN[info.family] if gpu else "fp32"
    return ITEM_BYTES[precision]


def text_item_bytes(precision: Precision, *, gpu: bool) -> int:
    """Bytes of a value of the text encoder and of its embeddings."""
    return ITEM_BYTES[text_precision(precision, gpu=gpu)]


def rank_memory(
    info: CheckpointInfo,
    settings: EditingSettings,
    clip: ClipSize,
    edits: int,
    rate: Rate,
    degrees: Degrees,
    *,
    gpu: bool = True,
) -> RankMemory:
    """What one rank of a group needs.

    Args:
        clip: the largest.
        edits: the most that a video has; 0 for a group that only inverts.
        rate: of the device; the memory of a CPU is shared by all ranks of a group.
    """
    item = item_bytes(info, settings.precision, gpu=gpu)
    transformer = weight_bytes(info, "transformer", item, settings.speed.weights)
    vae = weight_bytes(info, "vae", item)
    device = "gpu" if gpu else "cpu"
    memory = rate.memory_bytes - CONTEXT_BYTES if gpu else rate.memory_bytes / degrees.ranks
    allowed = HEADROOM[device] * (memory - transformer - vae)
    forward = _forward_bytes(info, settings, clip, edits, item, allowed, degrees, device)
    encode, encode_work = _vae(info, clip, item, allowed, decode=False)
    decode, decode_work = _vae(info, clip, item, allowed, decode=True)
    text = weight_bytes(info, "text_encoder", text_item_bytes(settings.precision, gpu=gpu))
    parts = MemoryParts(transformer, vae, forward, decode, encode, text)
    fits = max(forward, encode, decode) <= allowed
    return RankMemory(parts, fits, encode_work, decode_work)


def _forward_bytes(
    info: CheckpointInfo,
    settings: EditingSettings,
    clip: ClipSize,
    edits: int,
    item: int,
    allowed: float,
    degrees: Degrees,
    device: str,
) -> int:
    """Bytes of activations of the largest forward, its branches in parts as a rank takes them."""
    video = info.video_tokens(clip.frames, clip.height, clip.width)
    tokens = sum(-(-count // degrees.token_ranks) for count in (info.text_tokens, video))
    if degrees.ranks > 1:
        allowed /= GROUP_MARGIN

    def needed(size: int, branches: int, seen: int, cached: int) -> int:
        batch = branches + seen
        size = min(size, batch)
        return transformer_bytes(
            info, tokens, size, item, batch=batch, references=seen, cached=cached
        )

    most = 0
    for batch in _batches(settings, edits, degrees.cfg):
        size = max(1, TOKENS_AT_ONCE[device] // tokens)
        while device == "gpu" and size > 1 and needed(size, *batch) > allowed:
            size -= 1
        most = max(most, needed(size, *batch))
    return most


def _batches(settings: EditingSettings, edits: int, cfg: int) -> Iterator[tuple[int, int, int]]:
    """(branches, references, branches that a step cache keeps) of one rank's forwards.

    Each kind once; the inversion's too.
    """
    yield 1, 0, 0
    if not edits:
        return
    how = settings.reconstruction
    together = min(how.edits_a_unit, edits)
    steps = unit_steps(how, settings.inversion.steps, together)
    attending = {(step.attending, step.references) for step in steps if step.attending}
    for branches, shared in attending | {(step.plain, 0) for step in steps if step.plain}:
        if cfg == 2 and branches > 1:
            branches = (branches + 1) // 2
            shared = min(shared, branches)  # the references of one half
        yield branches, shared, branches if settings.speed.step_cache else 0


def _vae(
    info: CheckpointInfo, clip: ClipSize, item: int, allowed: float, *, decode: bool
) -> tuple[int, float]:
    """Bytes of the VAE's activations in the first way that fits, else in the last, and its work."""
    height, width, scale = clip.height, clip.width, info.spatial_compression
    needed, work = 0, 1.0
    for tiles in tiles_of(info.vae, height, width, decode=decode):
        tile = None if tiles is None else tiles.pixels(scale)
        work = 1.0 if tiles is None else tiles.work * scale**2 / (height * width)
        needed = vae_bytes(info, clip.frames, height, width, item, decode=decode, tile=tile)
        if needed <= allowed:
            break
    return needed, work


def degrees_for(info: CheckpointInfo, shape: GroupSettings, gpus: int, clip: ClipSize) -> Degrees:
    """How a group of so many GPUs divides the work: as the job says where that is possible.

    Raises:
        ValueError: the group has the job's own size, and its degrees are wrong.
    """
    own = gpus == shape.gpus
    try:
        return check_degrees(
            info,
            gpus=gpus,
            ulysses=shape.ulysses if own else "auto",
            ring=shape.ring,
            cfg=shape.cfg,
            frames=clip.frames,
            height=clip.height,
            width=clip.width,
        )
    except ValueError:
        if own:
            raise
    tokens = info.video_tokens(clip.frames, clip.height, clip.width)
    # Without cfg: what does not fit needs its tokens split.
    return next(one for one in legal_degrees(gpus, info.heads, tokens) if one.cfg == 1)


def legal_sizes(info: CheckpointInfo, clip: ClipSize, most: int) -> tuple[int, ...]:
    """The sizes of groups, up to a machine's GPUs, that the heads and tokens allow."""
    tokens = info.video_tokens(clip.frames, clip.height, clip.width)
    sizes = range(1, most + 1)
    return tuple(size for size in sizes if legal_degrees(size, info.heads, tokens))
