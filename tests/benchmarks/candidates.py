"""What candidates cost and bring: shapes that the best of four gets right, on held-out drawn clips.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.candidates [--clips 48] [--find] [--seed N]

Every clip gets one edit of shape, the kind that fails most, made with the defaults and with each
variation from one trajectory in one lockstep. The oracle is the drawn world's judge, which looks at
the asked scene (`jobs/demo/judge.py`): what it takes, the best choice could take. `--find` tries
many variations on clips of another seed, and of these on those alone where the edit itself fails;
those of `FOUR` were chosen so, then run on the held-out ones. Forwards are counted; times are
compared side by side, an edit without and with candidates in turn.
"""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser, Namespace
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from jobs.demo import world
from jobs.demo.judge import judge
from pipeline import Editor
from pipeline.model.transformer import ForwardCounter
from pipeline.model.vae import to_uint8
from pipeline.plan import highest_stored
from pipeline.records import EditSpec
from pipeline.settings import Inversion, Reconstruction, Variation
from pipeline.trajectories.trajectory import Trajectory
from tests.benchmarks.edits import SEED, STEPS, wishes
from tests.benchmarks.figures import Figure, Measured, run, say

FIND_SEED = 20_261_201
"""Of the clips on which variations are chosen."""
AT_MOST = 0.6
"""Of a full edit, that a further candidate may cost."""
TIMED = 6
"""Pairs of a lockstep without and with candidates that are timed in turn."""

FOUR = (
    Variation(noise=0.5),
    Variation(guidance_scale=4.0),
    Variation(start=0.8, noise=0.8),
)
"""Beside the edit itself."""
MANY = (
    Variation(start=0.5),
    Variation(start=0.8),
    Variation(start=1.0),
    Variation(guidance_scale=4.0),
    Variation(guidance_steps=(0.0, 1.0)),
    Variation(inject_steps=(0.0, 0.5)),
    Variation(inject_steps=(0.3, 1.0)),
    Variation(noise=0.3),
    Variation(noise=0.5),
    Variation(noise=0.5),
    Variation(noise=0.8),
    Variation(noise=1.0),
    Variation(start=0.8, noise=0.5),
    Variation(start=0.8, noise=0.8),
    Variation(start=0.8, guidance_scale=4.0, noise=0.5),
    Variation(start="noise"),
)


def measure(given: Namespace) -> Measured:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    editor = Editor.from_pretrained("embedded", device="cpu")
    editor.set_progress_bar_config(disable=True)
    how = Reconstruction(candidates=MANY if given.find else FOUR)
    seed = given.seed or (FIND_SEED if given.find else SEED)
    clips = 1 if given.quick else given.clips
    right, background, change = verdicts(editor, how, clips, seed, failing=given.find)
    tables = {"each": each(how, right, background)}
    if given.find:
        say(tables["each"])
        return Measured([], tables)
    forwards, seconds = cost(editor, how)
    own, best = int(right[:, 0].sum()), int(right.sum(0).max())
    note = f"of {len(right)} shape edits"
    figures = [
        Figure("a further candidate, in forwards", forwards, "x", "counted", at_most=AT_MOST),
        Figure("a further candidate, in time", seconds, "x", "ratio", at_most=AT_MOST),
        Figure("right: the edit itself", own, "edits", "measured", note=note),
        Figure("right: the best single candidate", best, "edits", "measured", note=note),
        Figure("right: the oracle's best of four", int(right.any(1).sum()), "edits", "measured"),
    ]
    for name, score in (("background dB", background), ("change", change)):
        picked = right[np.arange(len(right)), score.argmax(1)]
        figures.append(Figure(f"right: the most {name}", int(picked.sum()), "edits", "measured"))
    return Measured(figures, tables)


def verdicts(
    editor: Editor, how: Reconstruction, clips: int, seed: int, *, failing: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each clip and candidate: is the shape right; dB of its background; the change. [N, C]

    Args:
        failing: leave out the clips whose edit itself is right.
    """
    rng = np.random.default_rng(seed)
    right, background, change = [], [], []
    for number in range(clips):
        scene = world.random_scene(rng)
        wish = dict(wishes(scene, rng))["shape-0"]
        source = torch.from_numpy(world.draw(scene))
        trajectory = inverted(editor, source, how)
        edit = how.filled(EditSpec(world.prompt(wish)), number)
        if failing:
            alone = editor.denoise(trajectory, [edit], replace(how, candidates=())).latents[0]
            made = to_uint8(editor.decode(alone, trajectory.frames))
            if judge(scene, wish, made.numpy()).shape_right:
                continue
        latents = editor.denoise(trajectory, [edit], how).latents
        frames = [to_uint8(editor.decode(x, trajectory.frames)) for x in latents]
        found = [judge(scene, wish, one.numpy()) for one in frames]
        right.append([bool(one.shape_right) for one in found])
        background.append([one.background_psnr_db for one in found])
        change.append([changed(one, source) for one in frames])
        say(f"clip {number}: {''.join('.x'[not one] for one in right[-1])}")
    return np.array(right), np.array(background), np.array(change)


def inverted(editor: Editor, source: Tensor, how: Reconstruction) -> Trajectory:
    top = highest_stored(how, STEPS)
    return editor.invert(source, Inversion(steps=STEPS, vae_psnr=False), highest=top / STEPS)


def changed(edit: Tensor, source: Tensor) -> float:
    return float((edit.float() - source.float()).abs().mean()) / 255


def each(how: Reconstruction, right: np.ndarray, background: np.ndarray) -> str:
    """The table of each candidate alone, and what it gets right where the edit itself fails."""
    if not len(right):
        return "no clip fails"
    lost = ~right[:, 0]
    lines = [
        "| candidate | shapes right | of those that the edit itself gets wrong | background dB |",
        "|---|---|---|---|",
    ]
    for number, one in enumerate((Variation(), *how.candidates)):
        name = ", ".join(f"{k} {v}" for k, v in one.changes().items()) or "the edit itself"
        rescued = int((right[:, number] & lost).sum())
        lines.append(
            f"| {name} | {int(right[:, number].sum())} of {len(right)} | {rescued} of "
            f"{int(lost.sum())} | {background[:, number].mean():.1f} |"
        )
    return "\n".join(lines)


def cost(editor: Editor, how: Reconstruction) -> tuple[float, float]:
    """A further candidate over a full edit: in counted forwards, and in wall time.

    A full edit is one made alone from a trajectory that it needs: its inversion is part of it. That
    of candidates that start higher is theirs.
    """
    rng = np.random.default_rng(SEED)
    scene = world.random_scene(rng)
    source = torch.from_numpy(world.draw(scene))
    edit = how.filled(EditSpec("a red square"), 0)
    alone = replace(how, candidates=())

    def spent(settings: Reconstruction) -> tuple[float, float]:
        editor.model.forwards = ForwardCounter()
        began = time.perf_counter()
        trajectory = inverted(editor, source, settings)
        for x in editor.denoise(trajectory, [edit], settings).latents:
            editor.decode(x, trajectory.frames)
        return editor.model.forwards.total, time.perf_counter() - began

    ratios: list[tuple[float, float]] = []
    spent(alone)
    for _ in range(TIMED):
        (one, one_s), (all_, all_s) = spent(alone), spent(how)
        more = len(how.candidates)
        ratios.append(((all_ - one) / more / one, (all_s - one_s) / more / one_s))
    forwards, seconds = zip(*ratios, strict=True)
    return forwards[0], statistics.median(seconds)


def parser() -> ArgumentParser:
    made = ArgumentParser()
    made.add_argument("--clips", type=int, default=48)
    made.add_argument("--find", action="store_true", help="try many variations on other clips")
    made.add_argument("--seed", type=int, default=None, help="of the clips")
    return made


if __name__ == "__main__":
    run(measure, __doc__, parser())
