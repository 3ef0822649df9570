"""The plan of a job as a person reads it: short, and each figure with where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.estimate.rates import CPU
from cluster.estimate.record import GpuPlan, JobPlan
from jobs.display import SafeConsole
from jobs.display.console import print_line
from jobs.display.words import duration
from jobs.errors import counted
from jobs.plan.as_json import clips_in_words
from jobs.plan.record import Planned
from pipeline.redaction import redacted

COUNTED, ASSUMED = "counted", "counted and assumed"
WIDEST = 100
"""Columns that the tables have at least, where figures are so long that 80 are too few."""


def show(planned: Planned, console: Console | None = None) -> None:
    """Print a plan."""
    console = console or SafeConsole()
    console.width = max(console.width, WIDEST)  # a table that is cut off would hide figures
    plan, trial = planned.plan, planned.trial
    console.print(_head(planned))
    console.print()
    console.print(_work(plan, trial))
    if plan.kinds:
        console.print()
        console.print(_kinds(plan, trial))
        print_line(
            console, "Memory is counted: the peak of a rank. Hours follow from these speeds:"
        )
        for source, names in _sources(plan).items():
            print_line(console, f"  {', '.join(names)}: {source}")
    if planned.savings:
        console.print()
        print_line(console, "cheaper, with other edits: try it on a few videos first")
    for one in planned.savings:
        print_line(console, f"  {one.share:>4.0%} less with --set '{one.change}'")
    for note in (*planned.notes, *plan.notes, *_notes(plan)):
        print_line(console, f"note: {note}")


def _head(planned: Planned) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, text in _about(planned):
        table.add_row(Text(name, "bold"), Text(redacted(text)))
    return table


def _about(planned: Planned) -> Iterator[tuple[str, str]]:
    plan = planned.plan
    clip, work = plan.clip, plan.flops
    yield "checkpoint", f"{planned.checkpoint} (CogVideoX {plan.family})"
    yield "clips", f"{clip.frames} frames of {clip.width}x{clip.height}, {plan.tokens:,} tokens"
    yield "", clips_in_words(planned)
    plain, injected = flops(work.plain_forward), flops(work.injected_forward)
    yield "a forward", f"{plain}; {injected} with reference attention ({COUNTED})"
    if planned.done or planned.quarantined:
        left = f", {planned.quarantined:,} quarantined" if planned.quarantined else ""
        yield "done", f"{counted(planned.done, 'edit')}{left}: left out (--all takes them too)"


def _work(plan: JobPlan, trial: JobPlan | None) -> Table:
    """What does not depend on the kind of GPU."""
    plans = [plan] if trial is None else [trial, plan]
    table = _table("", *("all" if one is plan else _first(one) for one in plans))
    table.add_column("")
    rows: list[tuple[str, Callable[[JobPlan], str], str]] = [
        ("videos", lambda p: f"{p.videos:,}", COUNTED),
        ("edits", lambda p: f"{p.edits:,}", COUNTED),
        ("different prompts", lambda p: f"{p.prompts:,}", COUNTED),
        ("forwards", lambda p: f"{p.forwards_plain + p.forwards_injected:,.0f}", COUNTED),
        ("work", lambda p: flops(p.flops.total), COUNTED),
        ("storage", lambda p: size(p.storage_bytes), ASSUMED),
        ("  trajectories", lambda p: size(p.storage.trajectories), COUNTED),
        ("  prompts", lambda p: size(p.storage.prompts), COUNTED),
        ("  sources, edits", lambda p: size(p.storage.sources + p.storage.edits), "assumed"),
    ]
    for name, text, basis in rows:
        table.add_row(Text(name, "bold"), *map(text, plans), Text(basis, "dim"))
    return table


def _kinds(plan: JobPlan, trial: JobPlan | None) -> Table:
    """The kinds of GPUs, a row each."""
    columns: dict[str, Callable[[GpuPlan], str]] = {
        "memory": _memory,
        "groups": lambda k: f"{k.groups} x {k.group_gpus}" if k.stages else "none fits",
        "machine hours" if _on_machines(plan) else "GPU hours": _gpu_hours,
        "time": _time,
    }
    if any(kind.price is not None for kind in plan.kinds):
        columns["price"] = lambda k: "" if k.price is None else f"{k.price:,.2f}"
    trials = {} if trial is None else {kind.gpu.name: _time(kind) for kind in trial.kinds}
    titles = [*columns, *([f"first {trial.videos:,}"] if trial else [])]
    what = "machine" if _on_machines(plan) else "GPU"
    table = _table(counted(plan.kinds[0].gpus, what), *titles)
    for kind in plan.kinds:
        cells = [text(kind) for text in columns.values()]
        cells += [trials[kind.gpu.name]] if trials else []
        table.add_row(Text(kind.gpu.name, "bold"), *cells)
    return table


def _on_machines(plan: JobPlan) -> bool:
    """Whether a plan is for machines without GPUs alone."""
    return all(kind.gpu.name == CPU for kind in plan.kinds)


def _table(first: str, *titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _first(trial: JobPlan) -> str:
    return f"first {counted(trial.videos, 'video')}"


def _memory(kind: GpuPlan) -> str:
    return f"{kind.memory_bytes / 1e9:.1f} of {kind.gpu.memory_bytes / 1e9:.0f} GB"


def _gpu_hours(kind: GpuPlan) -> str:
    hours = kind.gpu_hours
    if hours is None:
        return ""
    if 0 < hours < 0.001:
        return "< 0.001"
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2g}"


def _time(kind: GpuPlan) -> str:
    return "" if kind.wall_hours is None else duration(3600 * kind.wall_hours)


def _sources(plan: JobPlan) -> dict[str, list[str]]:
    """Where the speeds come from, each with the kinds that it is of."""
    found: dict[str, list[str]] = {}
    for kind in plan.kinds:
        found.setdefault(f"{kind.gpu.basis}, {kind.gpu.source}", []).append(kind.gpu.name)
    return found


def _notes(plan: JobPlan) -> list[str]:
    """The notes of the kinds, each once, with the kinds that it is of where these are not all."""
    found: dict[str, list[str]] = {}
    for kind in plan.kinds:
        for note in kind.notes:
            found.setdefault(note, []).append(kind.gpu.name)
    every = len(plan.kinds)
    return [
        note if len(kinds) == every else f"{', '.join(kinds)}: {note}"
        for note, kinds in found.items()
    ]


def flops(number: float) -> str:
    """`332 TFLOP`, `1.2 ZFLOP`."""
    return _scaled(number, "FLOP")


def size(number: float) -> str:
    """`2.25 MB`, `1.2 TB`: decimal units, as disks are sold in."""
    return _scaled(number, "B")


def _scaled(number: float, unit: str) -> str:
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
    step = min(len(prefixes) - 1, int(math.log10(max(1.0, number)) / 3 + 1e-9))
    return f"{number / 1000.0**step:.3g} {prefixes[step]}{unit}"
