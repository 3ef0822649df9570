"""What each speed-up costs in dB and gains in seconds, against the plain run, side by side.

    python -m tests.benchmarks.speedups [--clips 24] [--only NAME ...]

Two parts. *Quality*: held-out drawn clips on the trained embedded checkpoint, 25 steps and the
defaults, two edits of each clip, one of colour and one of shape. Each clip is inverted once; then
every variant makes its edits in turn, the plain run among them. The edited frames are compared with
the plain run's in dB, and judged as in `edits.py`. *Seconds*: a mid-sized random model with 500
video tokens, 12 layers of width 512; the plain run and a step cache in turn, twice. What a step
cache skips of a random model says nothing of a trained one, so it skips everything that its window
allows: the figure is how near the seconds saved come to the forwards saved.

Seconds are the process's CPU time, of one thread, which what runs beside it on the machine changes
little. torchao is taken from the folder beside the environment where it is there (`tests.beside`);
on a CPU fp8 rounds the weights alone. What is not installed has a row that says so; on a CPU
SageAttention never is.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from jobs.demo import world
from jobs.demo.judge import Verdict, judge
from pipeline.editor import Editor
from pipeline.model.scheduler import schedule_from_config
from pipeline.model.transformer import ForwardCounter
from pipeline.plan import highest_stored
from pipeline.settings import Inversion, Reconstruction, Speed
from pipeline.trajectories.trajectory import Trajectory
from tests.benchmarks.edits import SEED, STEPS, wishes
from tests.benchmarks.figures import Figure, Measured, run, say
from tests.beside import TORCHAO
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.small_models import make_transformer, scheduler

PLAIN = Speed(compile=False)
RECOMMENDED = "step cache 0.1"
WHOLE = (0.0, 1.0)
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3)
VARIANTS: dict[str, Speed] = {
    "plain": PLAIN,
    **{f"step cache {part:g}": replace(PLAIN, step_cache=part) for part in THRESHOLDS},
    "step cache 0.1 in all steps": replace(PLAIN, step_cache=0.1, step_cache_steps=WHOLE),
    "step cache 0.1 from 40%": replace(PLAIN, step_cache=0.1, step_cache_steps=(0.4, 0.9)),
    "compile": replace(PLAIN, compile=True),
    "fp8": replace(PLAIN, weights="fp8"),
    "sage": replace(PLAIN, attention="sage"),
}
FEW = (
    *("step cache 0.02", "step cache 0.05", "step cache 0.3", "compile"),
    *("step cache 0.1 in all steps", "step cache 0.1 from 40%"),
)
"""Variants that make the edits of a few clips only, to save time."""
FEW_CLIPS = 6
SAME_DB = 99.0
"""Stands for frames that are equal to the last bit."""
BLOCK = 1 / 12
"""The cost of a skipped forward on the mid-sized model, in whole ones."""

Edits = list[tuple[str, world.Scene]]


@dataclass
class Row:
    """What a variant did.

    Args:
        plain_s, seconds: of the plain run and of this one, on the same clips.
        db: PSNR of each edit's frames against the plain run's.
        verdicts: the judge's, by the kind of edit.
        forwards: of all edits.
        problem: why it could not run.
    """

    plain_s: float = 0.0
    seconds: float = 0.0
    db: list[float] = field(default_factory=list)
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    forwards: ForwardCounter = field(default_factory=ForwardCounter)
    problem: str = ""

    @property
    def faster(self) -> float:
        return self.plain_s / self.seconds if self.plain_s else 1.0

    @property
    def saved(self) -> float:
        """The part of the forwards that ended after the first block."""
        return self.forwards.skipped / (self.forwards.total + self.forwards.skipped)

    def right(self, kind: str) -> float:
        """The part of a kind of edit that shows what was asked for."""
        name = "colour_right" if kind == "colour" else "shape_right"
        return mean(float(getattr(verdict, name)) for verdict in self.verdicts[kind])

    @property
    def background_db(self) -> float:
        return mean(verdict.background_psnr_db for verdict in self.verdicts["colour"])


def measure(given: Namespace) -> Measured:
    torch.set_num_threads(1)  # the seconds of several would be added
    sys.path.append(str(TORCHAO))
    clips = 1 if given.quick else given.clips
    only = [RECOMMENDED] if given.quick else given.only
    names = ["plain", *(name for name in VARIANTS if name != "plain" and name in only)]
    steps = 10 if given.quick else given.steps
    rows = quality(clips, steps, {name: VARIANTS[name] for name in names})
    say(as_markdown(rows, clips))
    limit = seconds(1 if given.quick else 2, small=given.quick)
    found = [*figures(rows), *limit]
    return Measured(found, {"speedups": as_markdown(rows, clips)})


# Quality, on the trained model


def quality(clips: int, steps: int, variants: Mapping[str, Speed]) -> dict[str, Row]:
    """What each variant makes of held-out clips, beside what the plain run makes of them."""
    rows = {name: Row() for name in variants}
    editors = {name: prepared(speed, rows[name]) for name, speed in variants.items()}
    plain = editors.pop("plain")
    assert plain is not None
    rng = np.random.default_rng(SEED)
    for number in range(clips):
        scene = world.random_scene(rng)
        asked = {edit.split("-")[0]: (edit, wish) for edit, wish in wishes(scene, rng)}
        edits = [asked[kind] for kind in ("colour", "shape")]
        level = highest_stored(Reconstruction(), steps) / steps
        frames = torch.from_numpy(world.draw(scene))
        trajectory = plain.invert(frames, Inversion(steps=steps), highest=level)
        made, plain_s = timed(plain, rows["plain"], trajectory, edits)
        judged(rows["plain"], scene, edits, made, made)
        for name, editor in editors.items():
            if editor is None or (name in FEW and number >= FEW_CLIPS):
                continue
            row = rows[name]
            try:
                if number == 0:
                    edited(editor, trajectory, edits)  # kernels tried, blocks compiled
                found, _ = timed(editor, row, trajectory, edits)
            except Exception as error:
                row.problem, editors[name] = reason(error), None
                continue
            row.plain_s += plain_s
            judged(row, scene, edits, found, made)
        say(f"clip {number + 1} of {clips}, {time.process_time():.0f} s")
    return rows


def prepared(speed: Speed, row: Row) -> Editor | None:
    """An editor with a variant's settings; None, and the reason in its row, where it cannot be."""
    try:
        editor = Editor.from_pretrained("embedded", device="cpu", speed=speed)
    except Exception as error:
        row.problem = reason(error)
        return None
    editor.set_progress_bar_config(disable=True)
    return editor


def reason(error: Exception) -> str:
    """Why a variant cannot run here: `not installed`, or the error's first line."""
    if isinstance(error, ImportError) or "install" in str(error):
        return "not installed"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def timed(
    editor: Editor, row: Row, trajectory: Trajectory, edits: Edits
) -> tuple[list[Any], float]:
    """As `edited`; the seconds and the forwards are added to a row."""
    spent = editor.model.forwards = ForwardCounter()
    frames, taken = edited(editor, trajectory, edits)
    row.seconds += taken
    for part in ("plain", "injected", "skipped"):
        setattr(row.forwards, part, getattr(row.forwards, part) + getattr(spent, part))
    return frames, taken


def edited(editor: Editor, trajectory: Trajectory, edits: Edits) -> tuple[list[Any], float]:
    """The frames of edits, and the seconds that they took without their decoding."""
    prompts = [world.prompt(wish) for _, wish in edits]
    editor.encode_prompts(["", *prompts])
    began = time.process_time()
    latents = editor.reconstruct(trajectory, prompts, output_type="latent")
    taken = time.process_time() - began
    frames = [editor.decode(x, trajectory.frames).clamp(0, 1).mul(255).round() for x in latents]
    return frames, taken


def judged(
    row: Row, scene: world.Scene, edits: Edits, found: Sequence[Any], plain: Sequence[Any]
) -> None:
    """Add the verdicts on a clip's edits, and their distance from the plain run's."""
    for (edit, wish), frames, expected in zip(edits, found, plain, strict=True):
        error = (frames - expected).square().mean().item()
        row.db.append(SAME_DB if error == 0 else 10 * float(np.log10(255**2 / error)))
        verdict = judge(scene, wish, frames.byte().numpy())
        row.verdicts.setdefault(edit.split("-")[0], []).append(verdict)


# Seconds, on a model whose blocks take nearly all of them


def seconds(rounds: int, *, small: bool) -> list[Figure]:
    """How much a step cache gains where it skips whatever its window allows."""
    model, trajectory, schedule, settings = mid_sized(10, small=small)
    plans = {"plain": PLAIN, "skipping": Speed(compile=False, step_cache=1.0)}
    taken: dict[str, float] = dict.fromkeys(plans, 0.0)
    cost: dict[str, float] = {}
    for _ in range(rounds):
        for name, speed in plans.items():
            model.speed, model.forwards = speed, ForwardCounter()
            began = time.process_time()
            edit_with(model, trajectory, [Edit("a")], schedule, settings)
            taken[name] += time.process_time() - began
            cost[name] = model.forwards.total + BLOCK * model.forwards.skipped
    faster = taken["plain"] / taken["skipping"]
    return [
        Figure(
            "all that a step cache may skip",
            faster,
            "x",
            "ratio",
            note=f"mid-sized random model; {cost['plain'] / cost['skipping']:.2f}x by forwards",
        ),
        Figure(
            "step cache: time saved, of what its forwards say",
            faster / (cost["plain"] / cost["skipping"]),
            "x",
            "ratio",
            at_least=0.9,
            note="the step cache's own work and the ends of the model make the rest",
        ),
    ]


def mid_sized(
    steps: int, *, small: bool
) -> tuple[NamedModel, Callable[[int], torch.Tensor], Any, Reconstruction]:
    """A random model of width 512, a trajectory, its schedule, and the settings of an edit."""
    side = 8 if small else 20
    transformer: Any = make_transformer(
        "5b",
        attention_head_dim=64,
        num_layers=round(1 / BLOCK),
        time_embed_dim=512,
        max_text_seq_length=48,
        sample_height=side,
        sample_width=side,
        sample_frames=17,
    )
    model = NamedModel(transformer, {name: torch.randn(48, 32) for name in ("", "a")})
    schedule = schedule_from_config(scheduler(), steps)
    latents = torch.randn(steps + 1, 5, 16, side, side)
    return model, lambda level: latents[level], schedule, Reconstruction()


# What comes of it


def figures(rows: Mapping[str, Row]) -> list[Figure]:
    found = []
    for name, row in rows.items():
        if name == "plain" or row.problem:
            continue
        recommended = name == RECOMMENDED
        found.append(
            Figure(
                f"{name}: the worst edit against the plain run's",
                min(row.db),
                "dB",
                "measured",
                at_least=30.0 if recommended else None,
            )
        )
        least = 1.1 if recommended else None
        found.append(Figure(f"{name}: seconds", row.faster, "x", "ratio", at_least=least))
        if row.forwards.skipped:
            found.append(Figure(f"{name}: forwards skipped", 100 * row.saved, "%", "counted"))
    return found


def as_markdown(rows: Mapping[str, Row], clips: int) -> str:
    lines = [
        "| variant | dB against plain: median | worst | colour right | shape right | background dB "
        "| forwards skipped | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if row.problem:
            lines.append(f"| {name} | {row.problem} | | | | | | |")
            continue
        count = len(row.verdicts["colour"])
        shown = name if count == clips else f"{name} ({count} clips)"
        # No mean: edits that are equal have no dB.
        db = ["equal" if x == SAME_DB else f"{x:.1f}" for x in (median(row.db), min(row.db))]
        lines.append(
            f"| {shown} | {db[0]} | {db[1]} | {row.right('colour'):.2f} "
            f"| {row.right('shape'):.2f} | {row.background_db:.1f} | {row.saved:.0%} "
            f"| {row.faster:.2f}x |"
        )
    return "\n".join(lines) + "\n"


def parser() -> ArgumentParser:
    made = ArgumentParser()
    made.add_argument("--clips", type=int, default=24, help="of them two edits each")
    made.add_argument("--steps", type=int, default=STEPS, help="of the whole schedule")
    made.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    return made


if __name__ == "__main__":
    run(measure, __doc__, parser())
