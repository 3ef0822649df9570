"""What four edits of one video cost, side by side in one run: the public script's plan and ours.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.cost

A mid-sized random model on CPU: 2,000 video tokens, 48 of text, 6 layers of width 512; 10 steps.
The script's plan runs once for each prompt: an inversion with guidance, then a walk down with a
reference for each half of the guidance. Its four runs stand between ours, so that a machine that
slows down slows all of them. What counts is wall time, of an idle machine; beside it stands CPU
time, of the median call of each kind times the number of such calls, for a machine that is not.

The table is printed and written to `cost.md` beside this file. Takes about 20 minutes of one core;
exits with 1 where a plan misses its target.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch
from pipeline.algorithm.inversion import invert
from pipeline.model.scheduler import schedule_from_config, script_schedule
from pipeline.model.transformer import ForwardCounter
from pipeline.plan import highest_stored
from pipeline.settings import Reconstruction
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.small_models import make_transformer, scheduler

STEPS, LAYERS = 10, 6
LATENTS = (5, 16, 40, 40)
EDITS = [Edit(f"edit {i}", seed=i) for i in range(4)]
# Guided in all steps, as the script is: what sharing saves is measured here, and nothing else.
GUIDED = Reconstruction(start="noise", guidance_steps=(0, 1))
SCRIPT = replace(GUIDED, reference="script")
PLANS: dict[str, tuple[Reconstruction, float]] = {
    "shared reference (exact)": (replace(GUIDED, reference="shared"), 1.5),
    "empty reference": (GUIDED, 1.95),
    "empty, in the first half of the steps": (replace(GUIDED, inject_steps=(0, 0.5)), 2.3),
    "empty, from 60% of the levels": (replace(GUIDED, start=0.6), 3.0),
}
"""Each plan's settings, and how many times cheaper than the script's it has to be."""


@dataclass
class Measured:
    """What a plan took: seconds of wall time and of CPU time, and its forwards."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    plain: int = 0
    injected: int = 0

    def add(self, other: Measured) -> None:
        self.wall_s += other.wall_s
        self.cpu_s += other.cpu_s
        self.plain += other.plain
        self.injected += other.injected


class TimedModel(NamedModel):
    """A model that notes the CPU time of each call by its kind: (branches, references seen)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.calls: dict[tuple[int, int, bool], list[float]] = defaultdict(list)

    def predict(
        self, branches: Sequence[Branch], *arguments: Any, **options: Any
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        start = time.process_time()
        answer = super().predict(branches, *arguments, **options)
        references = len({b.reference for b in branches} - {None})
        kind = len(branches), references, options.get("share", True)
        self.calls[kind].append(time.process_time() - start)
        return answer


def main() -> int:
    model, clean = mid_sized_model(), torch.randn(LATENTS)
    model.predict([Branch(clean, model.named(""))], 500)  # warm
    script, ours = Measured(), {}
    for edit, (name, (settings, _)) in zip(EDITS, PLANS.items(), strict=True):
        script.add(measure(model, partial(script_plan, model, clean, edit)))
        say(f"the script, {edit.prompt}: {script.wall_s:.0f} s of wall time so far")
        ours[name] = measure(model, partial(our_plan, model, clean, settings))
        say(f"{name}: {ours[name].wall_s:.0f} s of wall time")
    report = table(script, ours)
    print(report)
    Path(__file__).with_suffix(".md").write_text(report)
    met = all(script.wall_s / ours[name].wall_s >= target for name, (_, target) in PLANS.items())
    return 0 if met else 1


def script_plan(model: NamedModel, clean: Tensor, edit: Edit, steps: int | None = None) -> None:
    """The public script for one prompt: everything anew, and guidance in the inversion as well."""
    schedule = script_schedule(scheduler(), steps or STEPS)

    def guided(x: Tensor, timestep: int) -> Tensor:
        negative, positive = model.predict([Branch(x, model.named(""))] * 2, timestep)[0]
        return negative + 6.0 * (positive - negative)

    trajectory = invert(guided, clean, schedule, method="script")
    edit_with(model, lambda level: trajectory[level], [edit], schedule, SCRIPT)


def our_plan(model: NamedModel, clean: Tensor, settings: Reconstruction) -> None:
    """One inversion up to the highest level needed, and four edits in lockstep."""
    schedule = schedule_from_config(scheduler(), STEPS)
    highest = highest_stored(settings, STEPS)
    trajectory = invert(model.velocity(), clean, schedule, highest=highest)
    edit_with(model, lambda level: trajectory[level], EDITS, schedule, settings)


def measure(model: TimedModel, run: Callable[[], None]) -> Measured:
    model.calls.clear()
    model.forwards = ForwardCounter()
    start = time.perf_counter()
    run()
    wall = time.perf_counter() - start
    cpu = sum(len(calls) * statistics.median(calls) for calls in model.calls.values())
    return Measured(wall, cpu, model.forwards.plain, model.forwards.injected)


def mid_sized_model() -> TimedModel:
    transformer: Any = make_transformer(
        "5b",
        attention_head_dim=64,
        num_layers=LAYERS,
        time_embed_dim=512,
        max_text_seq_length=48,
        sample_height=LATENTS[2],
        sample_width=LATENTS[3],
        sample_frames=17,
    )
    names = ["", *(edit.prompt for edit in EDITS)]
    return TimedModel(transformer, {name: torch.randn(48, 32) for name in names})


def table(script: Measured, ours: dict[str, Measured]) -> str:
    lines = [
        "# Four edits of one video: the script's plan against ours",
        "",
        f"{datetime.date.today().isoformat()}; {processor()}, {torch.get_num_threads()} thread(s), "
        f"{os.cpu_count()} shared cores; torch {torch.__version__}, float32. Written by "
        "`python -m tests.benchmarks.cost`, whose docstring says what is measured and how.",
        "",
        "| plan | forwards: plain | with reference | wall s | cheaper | target | CPU s | cheaper |",
        "|---|---|---|---|---|---|---|---|",
        f"| the script, four times | {script.plain} | {script.injected} | {script.wall_s:.0f} | | "
        f"| {script.cpu_s:.0f} | |",
    ]
    for name, found in ours.items():
        lines.append(
            f"| {name} | {found.plain} | {found.injected} | {found.wall_s:.0f} | "
            f"{script.wall_s / found.wall_s:.2f}x | {PLANS[name][1]}x | {found.cpu_s:.0f} | "
            f"{script.cpu_s / found.cpu_s:.2f}x |"
        )
    return "\n".join(lines) + "\n"


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
