"""What `retake plan` says of a job: its JSON and its tables in the documentation follow from here.

Every figure is counted, measured or assumed. Counted are forwards, FLOPs, bytes and groups: they
follow from the settings and the configuration files. Seconds and hours come from a `Rate`, which
says itself whether it was measured or is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Basis = Literal["measured", "assumed"]


@dataclass(frozen=True)
class Rate:
    """How fast one kind of device computes.

    Args:
        name: of the kind, as a user gives it: `H100`.
        memory_bytes: of one device.
        peak_flops: FLOPs a second in 16 bits without sparsity, from its data sheet.
        plain_mfu: the share of the peak that a plain forward reaches.
        injected_mfu: the same of a forward with reference attention.
        vae_mfu: the same of the VAE.
        basis: whether the shares were measured or are assumed.
        source: where they come from: a results file with its date, or the reason for the guess.
    """

    name: str
    memory_bytes: int
    peak_flops: float
    plain_mfu: float
    injected_mfu: float
    vae_mfu: float
    basis: Basis
    source: str


@dataclass(frozen=True)
class ClipSize:
    """A clip as the model sees it; frames are counted after fitting to the form 4k + 1."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Flops:
    """FLOPs; a multiplication and an addition are two.

    Args:
        plain_forward: of one branch that attends to itself.
        injected_forward: of one that attends to a reference too, without the reference's own.
        vae: of encoding and decoding, over the whole job, of whole frames: tiles cost more.
        text_encoder: of all prompts.
        total: of the whole job.
    """

    plain_forward: int
    injected_forward: int
    vae: int
    text_encoder: int
    total: int


@dataclass(frozen=True)
class MemoryParts:
    """Bytes of one rank; the peak is the weights with the largest of the activations.

    What a CUDA context takes (about 0.5 GB) is not in it, as in what torch says it allocated.

    Args:
        transformer: its weights.
        vae: its weights.
        forward: activations of K edits in lockstep with their references.
        decode: activations of the VAE, in the tiles that fit.
        encode: the same while a clip becomes a latent.
        text_encoder: weights of the text encoder, in a process of its own; not in the peak.
    """

    transformer: int
    vae: int
    forward: int
    decode: int
    encode: int
    text_encoder: int


@dataclass(frozen=True)
class StagePlan:
    """The rank groups of one stage.

    Args:
        stage: `editing` where groups make all of a video, else `inversion` and `reconstruction`;
            `prompts` for text encoders.
        groups: how many.
        gpus: of each; 0 on CPUs.
        busy: the share of the run's time in which they have work.
    """

    stage: str
    groups: int
    gpus: int
    busy: float


@dataclass(frozen=True)
class StorageParts:
    """Bytes that a job leaves in its output folder.

    Args:
        trajectories: 0 where each is deleted as soon as its edits are done.
        prompts: their embeddings.
        sources: the clips as the model saw them.
        edits: these two with an assumed number of bits a pixel.
    """

    trajectories: int
    prompts: int
    sources: int
    edits: int


@dataclass(frozen=True)
class GpuPlan:
    """What a job takes on one kind of GPU.

    Args:
        gpu: the rate that it was computed from.
        gpus: how many the job may use; machines, for `cpu`.
        fits: whether one rank's memory is enough in groups as the job has them.
        group_gpus: the size of the groups that the rest of this plan has: the job's, or where that
            does not fit the recommended one.
        memory_bytes: the peak of one rank.
        memory: the same by part.
        legal_gpus: sizes of a group whose degrees the checkpoint's heads and tokens allow.
        recommended_gpus: the smallest of these that fits, for throughput, of those that divide a
            machine's GPUs if any does; null where none fits.
        layout: `shared` or `split`.
        stages: their groups.
        gpu_hours: that the GPUs compute; null where no group fits.
        wall_hours: from the first row to the last, start-up left out; null where no group fits.
        price: of all the GPUs for the wall time, in the currency of the price an hour; null
            without one.
        notes: what a reader must know: what does not fit, what stays idle.
    """

    gpu: Rate
    gpus: int
    fits: bool
    group_gpus: int
    memory_bytes: int
    memory: MemoryParts
    legal_gpus: tuple[int, ...]
    recommended_gpus: int | None
    layout: str
    stages: tuple[StagePlan, ...]
    gpu_hours: float | None
    wall_hours: float | None
    price: float | None
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> int:
        """Rank groups at work on videos."""
        return sum(stage.groups for stage in self.stages if stage.stage != "prompts")


@dataclass(frozen=True)
class JobPlan:
    """What a job takes; the figures that do not depend on the GPU, and one plan for each kind.

    Args:
        family: of the checkpoint.
        videos, edits: pending, or all where nothing is known of what is done.
        prompts: different texts to encode.
        clip: the largest clip of the job.
        tokens: of one branch, text and video.
        forwards_plain, forwards_injected: of the whole job.
        flops: of a forward, and of the whole job.
        storage_bytes: that the job writes into its output folder.
        storage: the same by part.
        kinds: one for each kind of GPU, the asked ones in their order.
        notes: what a reader must know of the dataset and of what is assumed.
    """

    family: str
    videos: int
    edits: int
    prompts: int
    clip: ClipSize
    tokens: int
    forwards_plain: float
    forwards_injected: float
    flops: Flops
    storage_bytes: int
    storage: StorageParts
    kinds: tuple[GpuPlan, ...]
    notes: tuple[str, ...] = ()
