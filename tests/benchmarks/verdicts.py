"""What rules on frame measures say of edits, against the judge of the drawn world.

    python -m tests.benchmarks.verdicts [--clips 48] [--keep FILE]
    python -m tests.benchmarks.verdicts --find [--clips 48]

Held-out drawn clips on the embedded checkpoint, 25 steps. Each clip gets an edit of colour and one
of shape with each of `SETTINGS`: good ones, and ones with a known fault. Every edit is stored as a
job stores it, read again, and measured as `score: {frames: true}` does, with the mask of the object
as it was and as it should be, grown by 2 pixels; and once more without a mask. The rules go through
`accept`. The judge (`jobs/demo/judge.py`) sees what they cannot: which colour and which shape there
is. An edit is good where every object has the colour and the shape that was asked for, the edited
one is in its place, and the background is the source's (`GOOD_DB`, `GOOD_PX`).

The thresholds of the rules were found with `--find` on clips of another seed (`FOUND_ON`): those
that keep the most good edits at a precision of `AIM` or more.
"""

from __future__ import annotations

import io
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cluster.accept import Rules
from jobs.demo import world
from jobs.demo.judge import judge
from pipeline.editor import Editor
from pipeline.media.decoding import read_clip
from pipeline.media.encoding import write_clip
from pipeline.quality.scoring import Pair, Scorer
from pipeline.settings import Inversion, Reconstruction, ScoreSettings
from tests.benchmarks.edits import SEED, STEPS, wishes
from tests.benchmarks.figures import Figure, Measured, run, say

FOUND_ON = 20_261_201
"""The seed of the clips that the rules were found on; those that are reported have `SEED`."""
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "guidance 6": {"guidance_scale": 6},
    "start 0.15": {"start": 0.15},
    "start 0.3": {"start": 0.3},
    "start noise": {"start": "noise"},
    "no reference": {"start": "noise", "reference": "none"},
}
GOOD_DB = 28.0
"""Of the background, for an edit to be good: errors of 10 of 255, a third of the contrast of the
world's faintest pattern. The VAE alone has about 40 dB, a typical edit of the defaults 32."""
GOOD_PX = 3.0
"""Of the object's centre, the mean over frames."""
GROWN_PX = 2
AIM = 0.95
WITH_MASK = {
    "colour": ("background_psnr_db >= 28", "change >= 0.14"),
    "shape": ("background_psnr_db >= 28", "change >= 0.105"),
}
"""By the kind of edit, as a job of edits of one kind would have them: another colour changes all of
an object, another shape its rim only."""
_ANY = (
    "background_psnr_db >= 27.5",
    "change >= 0.22",
    "changed_fraction <= 0.24",
    "frames.motion_agreement >= 0.4",
)
RULES: dict[str, Mapping[str, tuple[str, ...]]] = {
    "given": WITH_MASK,
    "none": {"colour": _ANY, "shape": _ANY},
}
"""By the mask that the measures had."""
FAULTS = ("nothing wrong", "background", "place", "colour", "shape", "another object")

Row = dict[str, Any]


def measure(given: Namespace) -> Measured:
    torch.set_num_threads(1)
    clips = range(given.first, given.first + (1 if given.quick else given.clips))
    rows = made(FOUND_ON if given.find else SEED, clips, given.keep)
    if given.find:
        say(best_rules(rows))
    found = {mask: counts(rows, mask) for mask in RULES}
    tables = {"verdicts": by_setting(rows), "faults": by_fault(rows)}
    say("\n".join(tables.values()))
    return Measured(
        [
            *figures(found["given"], "given masks", target=True),
            *figures(found["none"], "without a mask", target=False),
        ],
        tables,
    )


def made(seed: int, clips: range, keep: Path | None) -> list[Row]:
    """The edits of a seed's clips; read from a file where they are kept, and kept there."""
    if keep and keep.exists():
        return pq.read_table(keep).to_pylist()
    rows = list(edits(seed, clips))
    if keep:
        pq.write_table(pa.Table.from_pylist(rows), keep)
    return rows


# --- verdicts ----------------------------------------------------------------------------------


def fault(row: Row) -> str:
    """What the judge finds wrong with an edit, the plainest first."""
    wrong = {
        "background": not row["background_right"] or row["background_db"] < GOOD_DB,
        "place": row["centroid_px"] > GOOD_PX,
        "colour": not row["colour_right"],
        "shape": not row["shape_right"],
        "another object": not row["others_right"],
    }
    return next((name for name, is_wrong in wrong.items() if is_wrong), FAULTS[0])


def accepted(row: Row, mask: str) -> bool:
    """What `accept` says of an edit."""
    scores = {key.split(".")[1]: value for key, value in row.items() if key.startswith(f"{mask}.")}
    rules = Rules.parse(RULES[mask][row["kind"]])
    return bool(rules.verdict({"status": "ok", "scores": {"frames": scores}})[0])


def counts(rows: Sequence[Row], mask: str) -> dict[str, int]:
    """Edits that are good, accepted, and both."""
    taken = [accepted(row, mask) for row in rows]
    good = [fault(row) == FAULTS[0] for row in rows]
    both = sum(a and g for a, g in zip(taken, good, strict=True))
    return {"edits": len(rows), "good": sum(good), "accepted": sum(taken), "both": both}


def figures(found: Mapping[str, int], what: str, *, target: bool) -> list[Figure]:
    precision = found["both"] / max(1, found["accepted"])
    recall = found["both"] / max(1, found["good"])
    of = f"{found['both']} of {found['accepted']} accepted"
    among = f"{found['both']} of {found['good']} good, {found['edits']} edits"
    least = (95, 90) if target else (None, None)
    return [
        Figure(f"precision, {what}", 100 * precision, "%", "measured", least[0], note=of),
        Figure(f"recall, {what}", 100 * recall, "%", "measured", least[1], note=among),
    ]


def by_setting(rows: Sequence[Row]) -> str:
    """Good and accepted edits of each setting, with given masks, as Markdown."""
    lines = [
        "| setting | edits | edits good | accepted | good of the accepted |",
        "|---|---|---|---|---|",
    ]
    for kind, setting in product(("colour", "shape"), SETTINGS):
        some = [row for row in rows if (row["kind"], row["setting"]) == (kind, setting)]
        n = counts(some, "given")
        cells = f"{n['edits']} | {n['good']} | {n['accepted']} | {n['both']}"
        lines.append(f"| {setting}, {kind} | {cells} |")
    return "\n".join(lines) + "\n"


def by_fault(rows: Sequence[Row]) -> str:
    """What becomes of edits with each fault, as Markdown."""
    lines = [
        "| what the judge finds wrong | edits | accepted, given masks | accepted, without a mask |",
        "|---|---|---|---|",
    ]
    for name in FAULTS:
        some = [row for row in rows if fault(row) == name]
        taken = [counts(some, mask)["accepted"] for mask in RULES]
        lines.append(f"| {name} | {len(some)} | {taken[0]} | {taken[1]} |")
    return "\n".join(lines) + "\n"


def best_rules(rows: Sequence[Row]) -> str:
    """The thresholds that keep the most good edits at a precision of `AIM`, with given masks."""
    good = np.array([fault(row) == FAULTS[0] for row in rows])
    is_colour = np.array([row["kind"] == "colour" for row in rows])
    db, change = (
        np.array([-1.0 if (value := row[f"given.{name}"]) is None else value for row in rows])
        for name in ("background_psnr_db", "change")
    )
    best = (0.0, 0.0, 0.0, 0.0, 0.0)
    steps = np.arange(27, 31, 0.5), np.arange(0.05, 0.2, 0.005), np.arange(0.03, 0.15, 0.005)
    for least_db, colour, shape in product(*steps):
        taken = (db >= least_db) & (change >= np.where(is_colour, colour, shape))
        precision = (taken & good).sum() / max(1, taken.sum())
        recall = (taken & good).sum() / max(1, good.sum())
        if precision >= AIM:
            best = max(best, (recall, precision, least_db, colour, shape))
    recall, precision, least_db, colour, shape = best
    return (
        f"background_psnr_db >= {least_db:g}, change >= {colour:.3g} of colours and {shape:.3g} of "
        f"shapes: precision {precision:.3f} at recall {recall:.3f}"
    )


# --- edits, measured and judged ----------------------------------------------------------------


def edits(seed: int, numbers: range) -> Iterator[Row]:
    """The edits of some of a seed's clips: a row each, of its measures and of the judge's."""
    editor = Editor.from_pretrained("embedded", device="cpu")
    editor.set_progress_bar_config(disable=True)
    scorer = Scorer.load(ScoreSettings(frames=True))
    rng = np.random.default_rng(seed)
    for number in range(numbers.stop):
        scene = world.random_scene(rng)
        asked = {edit.split("-")[0]: wish for edit, wish in wishes(scene, rng)}
        if number not in numbers:
            continue
        drawn = torch.from_numpy(world.draw(scene))
        trajectory = editor.invert(drawn, Inversion(steps=STEPS))
        source = stored(drawn)
        wanted = {kind: asked[kind] for kind in ("colour", "shape")}
        prompts = [world.prompt(wish) for wish in wanted.values()]
        for setting, changes in SETTINGS.items():
            made = editor.reconstruct(trajectory, prompts, Reconstruction(**changes))
            for (kind, wish), frames in zip(wanted.items(), made, strict=True):
                row = {"clip": number, "kind": kind, "setting": setting}
                yield row | looked_at(scorer, scene, wish, source, stored(frames))
        say(f"clip {number + 1} of {numbers.stop}")


def looked_at(
    scorer: Scorer, scene: world.Scene, wish: world.Scene, source: Tensor, frames: Tensor
) -> Row:
    """What the measures and the judge say of one edit."""
    verdict, *others = (
        judge(scene, wish, frames.numpy(), index) for index in range(len(wish.objects))
    )
    found: Row = {
        "colour_right": verdict.colour_right,
        "shape_right": verdict.shape_right,
        "others_right": all(one.colour_right and one.shape_right for one in others),
        "background_right": verdict.background_right,
        "centroid_px": verdict.mean_centroid_error_px,
        "background_db": verdict.background_psnr_db,
    }
    for name, mask in (("given", mask_of(scene, wish)), ("none", None)):
        scores = scorer.score(Pair(source, frames, mask)).frames
        assert scores
        found |= {f"{name}.{key}": value for key, value in asdict(scores).items()}
    return found


def mask_of(scene: world.Scene, wish: world.Scene) -> Tensor:
    """Where the edited object is or should be, grown: float32 [F, H, W]."""
    both = np.maximum(world.draw_masks(scene)[0], world.draw_masks(wish)[0])
    size = 2 * GROWN_PX + 1
    grown = torch.nn.functional.max_pool2d(torch.from_numpy(both)[:, None], size, 1, GROWN_PX)
    return (grown[:, 0] > 0).float()


def stored(frames: Tensor) -> Tensor:
    """Frames as they are read from the file that a job writes."""
    file = io.BytesIO()
    write_clip(file, frames, fps=world.FPS)
    file.seek(0)
    size = {"height": world.SIZE, "width": world.SIZE, "frames": world.FRAMES}
    return read_clip(file, name="an edit", **size).frames


def parser() -> ArgumentParser:
    made = ArgumentParser()
    made.add_argument("--clips", type=int, default=48)
    made.add_argument("--first", type=int, default=0)
    made.add_argument("--find", action="store_true", help="find rules on other clips")
    made.add_argument("--keep", type=Path, metavar="FILE", help="keep the edits' measures there")
    return made


if __name__ == "__main__":
    run(measure, __doc__, parser())
