"""What edits of one video cost: the public script's plan against ours, for 1, 4 and 8 edits.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.cost

The script's plan runs once for each prompt: an inversion with guidance, then `STEPS` steps of a
batch of four, an edit's negative and positive branch and a reference for each. Ours inverts once.

Forwards: each plan runs with a transformer without blocks, whose forwards the engine counts. They
must be those of the plan's formula (`PLANS`), for each number of edits.

Time: a mid-sized random model on CPU (1,280 video tokens, 48 of text, width 320). A plan is a few
kinds of calls of the model, each made many times. Every kind is timed in turn, round after round,
so that a machine that slows down slows all of them. A plan's time is the sum of its calls, each at
the median of its kind; what a whole run takes beside its calls is measured too. Takes about 4
minutes of one core.
"""

from __future__ import annotations

import math
import statistics
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch
from pipeline.algorithm.inversion import invert
from pipeline.model.footprint import forward_flops
from pipeline.model.scheduler import schedule_from_config, script_schedule
from pipeline.plan import highest_stored
from pipeline.settings import Reconstruction
from tests.benchmarks.figures import Figure, Measured, run, say
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.published_models import CLIPS, published
from tests.small_models import make_transformer, scheduler

STEPS = 50
LATENTS = (5, 16, 32, 32)
LAYERS, WIDTH, TEXT = 4, 320, 48
ROUNDS = 5
SEVERAL = (1, 4, 8)
"""The numbers of edits of one video."""
DEFAULTS = Reconstruction()
# Guided in all steps from noise, as the script is.
GUIDED = Reconstruction(start="noise", guidance_steps=(0, 1))
SCRIPT = replace(GUIDED, reference="script")
Kind = tuple[int, int, bool]
"""Of a call: branches, different prompts of references, whether references are shared."""


@dataclass(frozen=True)
class Numbers:
    """What the formulas are made of.

    Args:
        s: the steps of the schedule.
        n: the edits of the video.
    """

    s: int
    n: int

    @property
    def l(self) -> int:  # noqa: E743
        """The levels up to the default start."""
        return round(0.6 * self.s)

    @property
    def g(self) -> int:
        """The guided steps of the defaults."""
        return math.ceil(round(0.4 * self.l, 6))

    @property
    def i(self) -> int:
        """The steps in the first half of the schedule."""
        return math.ceil(self.s / 2)


@dataclass(frozen=True)
class Plan:
    """A way to make N edits of one video.

    The formulas are the usual accounting of the forwards of classifier-free guidance with a
    reference branch: a guided step is two branches for each edit, and its references. Our
    inversion, PEC, takes one evaluation more than it has levels.

    Args:
        settings: of the reconstruction; None for the script itself.
        formula: forwards of one edit in words: S steps, N edits, c what a forward with reference
            attention costs in plain ones.
        plain, injected: the same for all N edits, as numbers of forwards without and with it.
        target: how many times the script's rate 4 edits must reach.
        timed: whether its time is measured, too.
    """

    settings: Reconstruction | None
    formula: str
    plain: Callable[[Numbers], int]
    injected: Callable[[Numbers], int]
    target: float | None = None
    timed: bool = True


PLANS = {
    "the script, for each prompt": Plan(
        None, "S(4 + 2c)", lambda k: 4 * k.s * k.n, lambda k: 2 * k.s * k.n
    ),
    "one inversion, without guidance": Plan(
        SCRIPT,
        "(S + 1)/N + S(2 + 2c)",
        lambda k: k.s + 1 + 2 * k.s * k.n,
        lambda k: 2 * k.s * k.n,
        timed=False,
    ),
    "shared reference (exact)": Plan(
        replace(GUIDED, reference="shared"),
        "(2S + 1)/N + S(1 + 2c)",
        lambda k: 2 * k.s + 1 + k.s * k.n,
        lambda k: 2 * k.s * k.n,
        1.5,
    ),
    "empty reference (null)": Plan(
        GUIDED, "(2S + 1)/N + 2Sc", lambda k: 2 * k.s + 1, lambda k: 2 * k.s * k.n, 1.95
    ),
    "empty, in the first half of the steps": Plan(
        replace(GUIDED, inject_steps=(0, 0.5)),
        "(S + 1 + I)/N + 2Ic + 2(S - I), I = S/2",
        lambda k: k.s + 1 + k.i + 2 * (k.s - k.i) * k.n,
        lambda k: 2 * k.i * k.n,
        2.3,
    ),
    "empty, from 60% of the levels": Plan(
        replace(GUIDED, start=0.6),
        "(2L + 1)/N + 2Lc, L = 0.6 S",
        lambda k: 2 * k.l + 1,
        lambda k: 2 * k.l * k.n,
        3.3,
    ),
    "the defaults": Plan(
        DEFAULTS,
        "(2L + 1)/N + (L + G)c, L = 0.6 S, G = 0.4 L",
        lambda k: 2 * k.l + 1,
        lambda k: (k.l + k.g) * k.n,
        4.2,
    ),
}


class Recorder(NamedModel):
    """A model that counts its calls by their kind, and keeps the arguments of each kind's first.

    Args:
        seconds: what its calls took, one after the other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.calls: Counter[Kind] = Counter()
        self.first: dict[Kind, tuple[Any, ...]] = {}
        self.seconds: list[float] = []

    def predict(
        self, branches: Sequence[Branch], *arguments: Any, **options: Any
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        seen = {b.reference.text for b in branches if b.reference is not None}
        kind = len(branches), len(seen), bool(options.get("share", True))
        self.calls[kind] += 1
        self.first.setdefault(kind, (branches, arguments, options))
        began = time.perf_counter()
        answer = super().predict(branches, *arguments, **options)
        self.seconds.append(time.perf_counter() - began)
        return answer


def measure(given: Namespace) -> Measured:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    say("counting")
    recorded = {(name, n): recorded_run(plan, n) for name, plan in PLANS.items() for n in SEVERAL}
    wrong = [
        f"{name}, N = {n}: {forwards} are not {expected(PLANS[name], n)}"
        for (name, n), model in recorded.items()
        if (forwards := (model.forwards.plain, model.forwards.injected)) != expected(PLANS[name], n)
    ]
    say("\n".join(wrong))
    times = timed([m for (name, _), m in recorded.items() if PLANS[name].timed], given.quick)
    rates = {
        (name, n): total(recorded[next(iter(PLANS)), n], times) / total(model, times)
        for (name, n), model in recorded.items()
        if PLANS[name].timed
    }
    most = 2 * max(SEVERAL)
    c = (times[most, 1, True] - times[1, 0, True]) / times[most, 0, True]
    return Measured(
        [
            Figure("plans that take other forwards than their formula", len(wrong), "", "counted",
                   at_most=0, note=f"of {len(recorded)}, each at S = {STEPS}"),
            Figure("c: a forward with reference attention, in plain ones", c, "", "ratio"),
            Figure("time of a whole run beside its calls", beside_calls(given.quick), "%", "ratio"),
            *(
                Figure(f"{edits(n)}, {name}", rate, "x", "ratio",
                       at_least=PLANS[name].target if n == 4 else None)
                for (name, n), rate in rates.items() if PLANS[name].settings
            ),
        ],
        {"forwards": forwards_table(), "rates": rates_table(rates, c, layers(given.quick))},
    )  # fmt: skip


def recorded_run(plan: Plan, n: int) -> Recorder:
    """A run of a plan with a transformer that has no blocks: its calls, and its forwards."""
    model = random_model(layers=0, heads=1)
    carry_out(plan, model, torch.zeros(LATENTS), n)
    return model


def carry_out(plan: Plan, model: NamedModel, clean: Tensor, n: int, steps: int = 0) -> None:
    """Make n edits of a clean latent [F, C, H, W] in the way of a plan."""
    for edit in edits_of(n) if plan.settings is None else ():
        script_plan(model, clean, edit, steps)
    if plan.settings is not None:
        our_plan(model, clean, plan.settings, n, steps)


def script_plan(model: NamedModel, clean: Tensor, edit: Edit, steps: int = 0) -> None:
    """The public script for one prompt: everything anew, and guidance in the inversion as well."""
    schedule = script_schedule(scheduler(), steps or STEPS)

    def guided(x: Tensor, timestep: int) -> Tensor:
        negative, positive = model.predict([Branch(x, model.named(""))] * 2, timestep)[0]
        return negative + 6.0 * (positive - negative)

    trajectory = invert(guided, clean, schedule, method="script")
    edit_with(model, lambda level: trajectory[level], [edit], schedule, SCRIPT)


def our_plan(
    model: NamedModel, clean: Tensor, settings: Reconstruction, n: int, steps: int = 0
) -> None:
    """One inversion up to the highest level needed, and n edits in lockstep."""
    schedule = schedule_from_config(scheduler(), steps or STEPS)
    highest = highest_stored(settings, schedule.steps)
    trajectory = invert(model.velocity(), clean, schedule, highest=highest)
    edit_with(model, lambda level: trajectory[level], edits_of(n), schedule, settings)


def edits_of(n: int) -> list[Edit]:
    return [Edit(f"edit {i}", seed=i) for i in range(n)]


def random_model(layers: int, heads: int) -> Recorder:
    transformer = make_transformer(
        "5b",
        num_attention_heads=heads,
        attention_head_dim=64,
        num_layers=layers,
        time_embed_dim=512,
        max_text_seq_length=TEXT,
        sample_height=LATENTS[2],
        sample_width=LATENTS[3],
        sample_frames=4 * LATENTS[0] - 3,
    )
    names = ["", *(edit.prompt for edit in edits_of(max(SEVERAL)))]
    return Recorder(transformer, {name: torch.randn(TEXT, 32) for name in names})


def expected(plan: Plan, n: int) -> tuple[int, int]:
    """The forwards of n edits by a plan's formula: plain ones, and those with a reference."""
    numbers = Numbers(STEPS, n)
    return plan.plain(numbers), plan.injected(numbers)


def timed(recorded: Sequence[Recorder], quick: bool) -> dict[Kind, float]:
    """Median seconds of each kind of call, all of them in turn, round after round."""
    model = random_model(layers(quick), WIDTH // 64)
    calls = {kind: call for one in recorded for kind, call in one.first.items()}
    seconds: dict[Kind, list[float]] = {kind: [] for kind in calls}
    for turn in range(2 if quick else ROUNDS + 1):
        for kind, (branches, arguments, options) in calls.items():
            model.predict(branches, *arguments, **options)
            if turn:  # the first round warms up
                seconds[kind].append(model.seconds[-1])
        say(f"round {turn} of {1 if quick else ROUNDS}: {sum(model.seconds):.0f} s so far")
    return {kind: statistics.median(took) for kind, took in seconds.items()}


def total(recorded: Recorder, times: dict[Kind, float]) -> float:
    """Seconds of a plan's calls."""
    return sum(count * times[kind] for kind, count in recorded.calls.items())


def beside_calls(quick: bool) -> float:
    """Percent of a short whole run of four edits, with the exact plan, that are outside of calls.

    Each plan's steps do the same beside their calls; this one's calls are among the shortest.
    """
    model = random_model(layers(quick), WIDTH // 64)
    began = time.perf_counter()
    our_plan(model, torch.zeros(LATENTS), replace(GUIDED, reference="shared"), 4, 2)
    return 100 * (1 - sum(model.seconds) / (time.perf_counter() - began))


def forwards_table() -> str:
    """Forwards of one edit by the formulas, at c of the published 5b, counted in FLOPs."""
    info, clip = published("5b"), CLIPS["5b"]
    c = forward_flops(info, *clip, injected=True) / forward_flops(info, *clip)
    heads = "".join(f" N = {n} |" for n in SEVERAL)
    lines = [
        f"Forwards of one edit, in plain ones: S = {STEPS} steps, N edits of a video; a forward "
        f"with reference attention costs c = {c:.2f} of 5b at its native size.\n",
        f"| plan | forwards of an edit |{heads}",
        "|---|---|" + "---|" * len(SEVERAL),
    ]
    for name, plan in PLANS.items():
        counts = [(n, *expected(plan, n)) for n in SEVERAL]
        shown = "".join(f" {(plain + c * injected) / n:.0f} |" for n, plain, injected in counts)
        lines.append(f"| {name} | {plan.formula} |{shown}")
    return "\n".join(lines) + "\n"


def rates_table(rates: dict[tuple[str, int], float], c: float, blocks: int) -> str:
    """How many times the script's rate: timed, and what the counted forwards come to."""
    heads = "".join(f" N = {n}, timed | by forwards |" for n in SEVERAL)
    lines = [
        f"Times the rate of the script's plan: {blocks} block(s) of width {WIDTH}, S = {STEPS}, "
        f"one thread, float32. By forwards, with the c of this run, {c:.2f}.\n",
        f"| plan |{heads}",
        "|---|" + "---|---|" * len(SEVERAL),
    ]
    script = next(iter(PLANS.values()))
    for name in dict.fromkeys(name for name, _ in rates if PLANS[name].settings):
        row = f"| {name} |"
        for n in SEVERAL:
            theirs, ours = ((p + c * i) for p, i in (expected(x, n) for x in (script, PLANS[name])))
            row += f" {rates[name, n]:.2f}x | {theirs / ours:.2f}x |"
        lines.append(row)
    return "\n".join(lines) + "\n"


def layers(quick: bool) -> int:
    return 1 if quick else LAYERS


def edits(n: int) -> str:
    return "1 edit" if n == 1 else f"{n} edits"


if __name__ == "__main__":
    run(measure, __doc__)
