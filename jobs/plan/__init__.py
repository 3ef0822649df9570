"""`retake plan`: what a job is going to take, before a GPU is.

The manifest is counted by columns, the checkpoint by its configuration files; a few videos are
opened to see how long clips really are. What it comes to is in `cluster/estimate/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.accept import measured_kinds
from cluster.deploy.gpus import GPUS
from cluster.estimate.dataset import Dataset
from cluster.estimate.plan import estimate
from cluster.estimate.rates import kinds, rate_of, read_rates
from cluster.estimate.record import JobPlan, Rate
from cluster.job import CannotRun
from cluster.selection.entries import Selection
from jobs.errors import WrongOption, counted
from jobs.plan.clips import Seen, as_seen, look_at
from jobs.plan.count import Counted, Wanted, count, groups_of
from jobs.plan.read import Ledger, Read, read_job, read_ledger
from jobs.plan.record import Planned
from jobs.plan.savings import savings_of
from jobs.spec import JobSpec
from jobs.trial import refuse_unknown
from pipeline.settings import EditingSettings, ScoreSettings

KINDS = ("H100", "H200", "A100-80GB", "L40S")
"""Side by side where no kind is named; `cpu` alone where the job asks for CPUs."""
TRIAL = 10
"""Videos of a first trial."""
SAMPLE = 16
"""Videos that are opened."""
PER_NODE = 8
"""GPUs of a machine of a kind that `retake deploy` does not know."""


@dataclass(frozen=True)
class Asked:
    """What a user asks for beside the job.

    Args:
        gpus: kinds of GPUs, by name; none for `KINDS`.
        count: GPUs that the job may use.
        price: of an hour, each a number, or a kind and its number (`H100=2.5`).
        rates: a file of rates, over those that are known.
        sample: videos to open.
        everything: plan all edits, those that are done too.
        selection: the edits to plan.
        limit: videos of a first trial.
    """

    gpus: tuple[str, ...] = ()
    count: int = 8
    price: tuple[str, ...] = ()
    rates: str | None = None
    sample: int = SAMPLE
    everything: bool = False
    selection: Selection | None = None
    limit: int = TRIAL


def plan_job(spec: JobSpec, asked: Asked, name: str) -> Planned:
    """The plan of a job. Nothing is written, and nothing is started.

    Args:
        name: of the job, as the user gave it.

    Raises:
        WrongOption: a price is no number, or that of a kind which the plan is not for.
        JobError: the manifest cannot be used, or the checkpoint's configuration.
        CannotRun: a kind of GPU is not known, or the job does not fit what it asks for.
        Unreadable: rows of the manifest cannot be read.
    """
    devices = _devices(spec, asked)
    read = read_job(spec)
    if asked.selection:
        refuse_unknown(read.job.files, asked.selection)
    ledger = Ledger() if asked.everything else read_ledger(read.job)
    wanted = Wanted(
        frames=read.frames,
        rule=read.rule,
        how=read.job.editing.reconstruction,
        kept=read.job.editing.trajectory.keep != "never",
        answered=ledger.answered,
        selection=asked.selection,
        sample=asked.sample,
        seed=spec.seed,
    )
    whole = count(read.job.files, wanted)
    trial = count(read.job.files, replace(wanted, limit=asked.limit, sample=0))
    seen = look_at(whole.sources, read.job.base, read.job.editing, read.rule, read.frames)
    made = _Estimator(read, devices, asked.count, seen)
    plan = made.of(whole)
    return Planned(
        job=name,
        checkpoint=spec.checkpoint,
        plan=plan,
        counted=whole,
        trial=made.of(trial) if 0 < trial.videos < whole.videos else None,
        seen=seen,
        done=ledger.done,
        quarantined=ledger.quarantined,
        savings=savings_of(read.job.editing, lambda other: made.flops(whole, other)),
        notes=(*_notes(whole, ledger, seen), *_not_planned(spec.score)),
    )


@dataclass(frozen=True)
class Devices:
    """The kinds of devices that a plan is made for.

    Args:
        rates: of each, in the user's order.
        prices: of an hour, by the kind's name.
    """

    rates: tuple[Rate, ...]
    prices: Mapping[str, float] = field(default_factory=dict)


def _devices(spec: JobSpec, asked: Asked) -> Devices:
    known = read_rates(asked.rates) if asked.rates else None
    named = asked.gpus or (("cpu",) if spec.cluster.device == "cpu" else KINDS)
    rates = kinds(named, known) if known else kinds(named)
    prices: dict[str, float] = {}
    for text in sorted(asked.price, key=lambda one: "=" in one):  # those of a kind count more
        kind, equals, number = text.rpartition("=")
        price = _price(number, text)
        of = [rate_of(kind, known) if known else rate_of(kind)] if equals else rates
        if left := [rate.name for rate in of if rate not in rates]:
            raise WrongOption(
                f"--price {text!r}: the plan is for {', '.join(rate.name for rate in rates)}; "
                f"expected one of these, or --gpu {left[0]} beside it"
            )
        prices |= {rate.name: price for rate in of}
    return Devices(rates, prices)


def _price(number: str, text: str) -> float:
    try:
        price = float(number)
    except ValueError:
        price = -1.0
    if not 0 <= price < float("inf"):
        raise WrongOption(
            f"--price {text!r}: expected what a GPU costs an hour, as 2.5, or a kind and what it "
            "costs, as H100=2.5"
        )
    return price


@dataclass(frozen=True)
class _Estimator:
    """Makes plans of parts of one job."""

    read: Read
    devices: Devices
    gpus: int
    seen: Seen

    def of(self, some: Counted) -> JobPlan:
        """The plan of what was counted; a kind that has no room for the job's groups is a note.

        Raises:
            CannotRun: none has.
        """
        dataset = self._dataset(some)
        plans, notes = list[JobPlan](), list[str]()
        for rate in self.devices.rates:
            try:
                plans.append(self._on(rate, dataset))
            except CannotRun as error:
                if len(self.devices.rates) == len(notes) + 1:
                    raise
                notes.append(f"{rate.name} is left out: {error}")
        kinds = tuple(one for plan in plans for one in plan.kinds)
        return replace(plans[0], kinds=kinds, notes=(*notes, *plans[0].notes))

    def _on(self, rate: Rate, dataset: Dataset) -> JobPlan:
        """The plan on one kind: a machine has as many GPUs as is usual for it."""
        return estimate(
            self.read.job,
            self.read.info,
            dataset,
            [rate],
            gpus=self.gpus,
            gpus_per_node=per_node(rate.name),
            price=self.devices.prices.get(rate.name),
        )

    def flops(self, some: Counted, settings: EditingSettings) -> int:
        """FLOPs of what was counted, with other settings."""
        job = replace(self.read.job, editing=settings)
        return estimate(job, self.read.info, self._dataset(some), ()).flops.total

    def _dataset(self, some: Counted) -> Dataset:
        videos = some.kinds
        if self.seen.frames:
            videos = as_seen(videos, self.seen.frames, self.read.rule)
        return Dataset(groups_of(videos), some.prompts)


def per_node(kind: str) -> int:
    """How many GPUs the usual machine of a kind has, as `retake deploy` takes it."""
    known = GPUS.get(kind)
    return known.per_node if known else PER_NODE


def _not_planned(score: ScoreSettings) -> Iterator[str]:
    if kinds := measured_kinds(score):
        yield f"scores ({', '.join(kinds)}) are not planned: they are measured beside the groups"


def _notes(whole: Counted, ledger: Ledger, seen: Seen) -> Sequence[str]:
    notes = [ledger.note]
    if not whole.videos:
        notes.append("nothing is pending; --all plans all edits, those that are done too")
    if whole.too_short:
        notes.append(
            f"{counted(whole.too_short, 'video')} left out: num_frames is below what a clip needs"
        )
    if whole.mixed_guidance:
        notes.append(
            f"{counted(whole.mixed_guidance, 'video')} with edits of different guidance scales: "
            "counted with the job's"
        )
    if seen.failed:
        notes.append(f"{seen.failed} of {counted(seen.asked, 'video')} not opened: {seen.why}")
    if seen.late:
        notes.append(f"{seen.late} of {counted(seen.asked, 'video')} not opened in time")
    return [note for note in notes if note]
