"""The plan of a job, from its settings, its checkpoint's configuration files and its dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from cluster.estimate.dataset import Dataset
from cluster.estimate.hours import Hours, hours
from cluster.estimate.memory import (
    RankMemory,
    degrees_for,
    legal_sizes,
    rank_memory,
)
from cluster.estimate.rates import CPU
from cluster.estimate.record import ClipSize, Flops, GpuPlan, JobPlan, Rate
from cluster.estimate.storage import BITS_A_PIXEL, storage_parts
from cluster.estimate.work import ClipFlops, DatasetWork, dataset_work
from cluster.job import CannotRun, Job
from cluster.layout.work import injected_cost
from cluster.settings import GroupSettings
from pipeline.model.checkpoint import CheckpointInfo
from pipeline.model.footprint import text_flops
from pipeline.model.memory import gigabytes
from pipeline.model.parallel.degrees import Degrees


def estimate(
    job: Job,
    info: CheckpointInfo,
    dataset: Dataset,
    kinds: Sequence[Rate],
    *,
    gpus: int = 8,
    gpus_per_node: int = 8,
    price: float | Mapping[str, float] | None = None,
) -> JobPlan:
    """What a job takes on each kind of GPU; nothing of a checkpoint but its configuration is read.

    Args:
        job: of which the settings are read.
        info: the checkpoint; its folder has `text_encoder/config.json`.
        dataset: what is to be done.
        kinds: of GPUs, or `cpu`, one plan for each.
        gpus: that the job may use; machines, for `cpu`.
        gpus_per_node: of one machine; a group lies within one.
        price: of one GPU for an hour, for all kinds or by name.

    Raises:
        CannotRun: the checkpoint cannot take the job's clips, or the job asks for more groups than
            there are GPUs.
    """
    for name, count in (("gpus", gpus), ("gpus_per_node", gpus_per_node)):
        if count < 1:
            raise CannotRun(f"{name} is {count}; expected 1 or more")
    settings = job.editing
    try:
        work = dataset_work(settings, info, dataset)
    except ValueError as error:
        raise CannotRun(str(error)) from error
    clip = work.clip
    size = clip.frames, clip.height, clip.width
    job = replace(job, injected=injected_cost(settings, info, *size))
    text = text_flops(info) * dataset.prompts
    on_gpus = not kinds or any(kind.name != CPU for kind in kinds)
    storage = storage_parts(settings, info, work, dataset.prompts, gpu=on_gpus)
    return JobPlan(
        family=info.family,
        videos=dataset.videos,
        edits=dataset.edits,
        prompts=dataset.prompts,
        clip=ClipSize(*size),
        tokens=info.text_tokens + info.video_tokens(*size),
        forwards_plain=work.summed(lambda one: one.plain),
        forwards_injected=work.summed(lambda one: one.injected),
        flops=_flops(job, info, work, text),
        storage_bytes=sum(vars(storage).values()),
        storage=storage,
        kinds=tuple(
            _kind(job, info, work, text, kind, gpus, gpus_per_node, _price(price, kind))
            for kind in kinds
        ),
        notes=tuple(_notes(job, dataset, work)),
    )


def _flops(job: Job, info: CheckpointInfo, work: DatasetWork, text: int) -> Flops:
    """FLOPs of a forward of the largest clip, and of the job.

    Args:
        text: FLOPs of the text encoder for all prompts.
    """
    one = ClipFlops.of(info, work.clip, job.editing.reconstruction.inject_blocks)
    return Flops(
        plain_forward=one.plain,
        injected_forward=one.injected,
        vae=int(work.summed(lambda video: video.vae)),
        text_encoder=text,
        total=int(work.summed(lambda video: video.total)) + text,
    )


def _price(price: float | Mapping[str, float] | None, kind: Rate) -> float | None:
    return price.get(kind.name) if isinstance(price, Mapping) else price


def _kind(
    job: Job,
    info: CheckpointInfo,
    work: DatasetWork,
    text: int,
    rate: Rate,
    gpus: int,
    gpus_per_node: int,
    price: float | None,
) -> GpuPlan:
    """The plan on one kind of GPU.

    Args:
        text: FLOPs of the text encoder for all prompts.
        price: of one GPU for an hour.
    """
    on_gpu = rate.name != CPU
    job = replace(job, cluster=replace(job.cluster, device="gpu" if on_gpu else "cpu"))
    asked = job.cluster.reconstruction.gpus
    legal = legal_sizes(info, work.clip, min(gpus, gpus_per_node) if on_gpu else asked)
    fitting = [n for n in legal if _memory(job, info, work, rate, n).fits]
    whole = [n for n in fitting if gpus_per_node % n == 0]
    recommended = next(iter(whole or fitting), None)
    memory = _memory(job, info, work, rate, asked)
    small = _inverting(job, info, work, rate) if memory.fits else {"reconstruction": asked}
    if small and recommended is not None:
        job = _resized(job, recommended, small)
        memory = _memory(job, info, work, rate, job.cluster.reconstruction.gpus)
    found: Hours | None = None
    if not small or recommended is not None:
        shapes = job.cluster.inversion, job.cluster.reconstruction
        inverting, editing = (_degrees(info, shape, shape.gpus, work) for shape in shapes)
        pair = inverting, editing
        found = hours(job, work, rate, memory, pair, text, gpus, gpus_per_node)
    return GpuPlan(
        gpu=rate,
        gpus=gpus,
        fits=not small,
        group_gpus=job.cluster.reconstruction.gpus,
        memory_bytes=memory.peak,
        memory=memory.parts,
        legal_gpus=legal,
        recommended_gpus=recommended,
        layout=found.layout if found else "shared",
        stages=found.stages if found else (),
        gpu_hours=found.gpu if found else None,
        wall_hours=found.wall if found else None,
        price=gpus * found.wall * price if found and price is not None else None,
        notes=(*_memory_notes(job, rate, memory, small, recommended), *_rest(found)),
    )


def _degrees(info: CheckpointInfo, shape: GroupSettings, gpus: int, work: DatasetWork) -> Degrees:
    try:
        return degrees_for(info, shape, gpus, work.clip)
    except ValueError as error:
        raise CannotRun(str(error)) from error


def _memory(job: Job, info: CheckpointInfo, work: DatasetWork, rate: Rate, size: int) -> RankMemory:
    """What a rank needs in groups of a size."""
    degrees = _degrees(info, job.cluster.reconstruction, size, work)
    edits = max((one.edits for one in work.videos), default=1)
    on_gpu = rate.name != CPU
    return rank_memory(info, job.editing, work.clip, edits, rate, degrees, gpu=on_gpu)


def _inverting(job: Job, info: CheckpointInfo, work: DatasetWork, rate: Rate) -> Mapping[str, int]:
    """The size of groups that only invert, where the job has such and they are too small."""
    cluster = job.cluster
    if cluster.layout != "split" and not cluster.asks_for_split:
        return {}
    gpus, on_gpu = cluster.inversion.gpus, rate.name != CPU
    degrees = _degrees(info, cluster.inversion, gpus, work)
    memory = rank_memory(info, job.editing, work.clip, 0, rate, degrees, gpu=on_gpu)
    return {} if memory.fits else {"inversion": gpus}


def _resized(job: Job, gpus: int, small: Collection[str]) -> Job:
    """The job with groups of another size: in both stages, or in that for inversion alone."""
    cluster = job.cluster
    shape = replace(cluster.reconstruction, gpus=gpus, ulysses="auto")
    if shape.gpus % (shape.ring * shape.cfg):
        shape = replace(shape, ring=1, cfg=1)
    inversion = replace(shape, groups=cluster.inversion.groups)
    cluster = replace(cluster, inversion=inversion)
    if "reconstruction" in small:
        cluster = replace(cluster, reconstruction=shape)
    return replace(job, cluster=cluster)


def _rest(found: Hours | None) -> tuple[str, ...]:
    return found.notes if found else ()


def _memory_notes(
    job: Job,
    rate: Rate,
    memory: RankMemory,
    small: Mapping[str, int],
    recommended: int | None,
) -> Iterator[str]:
    """What of the memory, and of the precision, a reader must know.

    Args:
        small: the stages whose groups are too small as the job has them, and their size.
    """
    if job.editing.precision == "fp32" and rate.name != CPU:
        yield "precision is fp32, and the rates are those of 16 bits: it takes several times longer"
    if small and recommended is None:
        yield (
            f"one rank needs {gigabytes(memory.peak)} with the smallest tiles, and {rate.name} has "
            f"{gigabytes(rate.memory_bytes)}: no group fits. Make the clip smaller (video.height, "
            "video.width, video.frames), or take a kind with more memory"
        )
    for stage, gpus in small.items() if recommended is not None else ():
        yield (
            f"one rank of a group of {gpus} does not fit {rate.name}; the plan is for groups of "
            f"{recommended}: set cluster.{stage}.gpus to {recommended}"
        )
    if memory.decode_work > 1 or memory.encode_work > 1:
        yield (
            "the VAE works in tiles, which leave seams: it computes "
            f"{memory.encode_work:.2f} times as much to encode, {memory.decode_work:.2f} to decode"
        )


def _notes(job: Job, dataset: Dataset, work: DatasetWork) -> Iterator[str]:
    """What is known and assumed of the dataset."""
    if work.too_short:
        yield (
            f"videos with too few frames for a clip: {work.too_short}; their edits fail, and cost "
            "nothing here"
        )
    unknown = sum(group.videos for group in dataset.groups if group.frames is None)
    if unknown:
        yield (
            f"videos whose frames are not known: {unknown}; {work.clip.frames} frames are assumed, "
            "the most that a clip gets"
        )
    speed = job.editing.speed
    if speed.step_cache:
        yield "speed.step_cache skips work that is counted here: an upper bound of hours"
    if speed.weights != "native":
        yield (
            f"speed.weights is {speed.weights}, and the rates are those of 16 bits: an upper bound "
            "of hours"
        )
    keep = job.editing.trajectory.keep
    if keep != "always":
        when = "as soon as its edits are done" if keep == "never" else "by `retake gc`"
        yield f"trajectory.keep is {keep}: a trajectory is deleted {when}"
    yield f"sources and edits are counted with {BITS_A_PIXEL} bits a pixel, which is assumed"
