"""What masks do for the background of edits, against edits without one, in one run.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.masks [--clips 48] [--seed N]

Held-out drawn clips on the trained embedded checkpoint, 25 steps and the defaults, one colour and
one shape edit of each. Each clip is inverted once; every variant then makes its edits from that
trajectory: without a mask, with the true region given (that of the source's object and that of the
asked one together), with the mask found on the way, and with the given
mask composed in pixels. The judge measures as in `edits.py`, against the scene that was asked for;
the agreement of the found mask (IoU) is counted in latents, against those that the true region
touches. Forwards are counted. The composite is written as the MP4 of a job and read again, and its
background compared with that of the source clip, 2 pixels and more away from the mask.

A second table says what keeps the given mask from the VAE's own background: the error is parted by
place, and single causes are taken away.
"""

from __future__ import annotations

import io
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.demo import world
from jobs.demo.judge import MARGIN_PX, Verdict, judge
from pipeline.algorithm.masks import blend, composite, in_pixels, pooled, softened
from pipeline.editor import Editor
from pipeline.media.decoding import read_clip
from pipeline.media.encoding import COMPOSITE_CRF, write_clip
from pipeline.model.transformer import ForwardCounter
from pipeline.model.vae import to_uint8
from pipeline.plan import highest_stored
from pipeline.records import EditSpec
from pipeline.settings import Inversion, Reconstruction
from pipeline.trajectories.trajectory import Trajectory
from tests.benchmarks.edits import SEED, STEPS, wishes
from tests.benchmarks.figures import Figure, Measured, run, say

KINDS = ("colour", "shape")
GROWN_PX = 2
NONE, GIVEN, GROWN, AUTO = "none", "given", f"given, grown by {GROWN_PX} px", "auto"
COMPOSED = "given, composite"
VAE = "the VAE alone"
VARIANTS = (NONE, GIVEN, GROWN, AUTO, COMPOSED, VAE)
GAINS = {(GIVEN, "colour"): 2.8, (GIVEN, "shape"): 5.0, (AUTO, "colour"): 1.8, (AUTO, "shape"): 3.0}
"""dB of background that a variant must be better than no mask by."""
IOU = 0.62
STORED_DB = 45.0
DEFAULTS = Reconstruction()


@dataclass
class Row:
    """What a variant made of a kind of edit.

    Args:
        ious: of the used masks with the true regions, in latents.
        forwards: of all edits.
        stored_db: of each stored file away from the mask, against the source clip.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    forwards: float = 0.0
    stored_db: list[float] = field(default_factory=list)

    @property
    def background_db(self) -> float:
        return mean(verdict.background_psnr_db for verdict in self.verdicts)

    def right(self, what: str) -> int:
        return sum(bool(getattr(verdict, f"{what}_right")) for verdict in self.verdicts)


Rows = dict[tuple[str, str], Row]


@dataclass(frozen=True)
class Case:
    """A clip with the edits that are asked for.

    Args:
        frames: uint8 [F, H, W, 3].
        wishes: a scene for each kind of edit.
        regions: of each, bool [F, H, W]: where the source's object or the asked one is.
    """

    scene: world.Scene
    frames: Tensor
    wishes: Mapping[str, world.Scene]
    regions: Mapping[str, Tensor]


def measure(given: Namespace) -> Measured:
    torch.set_num_threads(1)
    editor = Editor.from_pretrained("embedded", device="cpu")
    editor.set_progress_bar_config(disable=True)
    clips = 1 if given.quick else given.clips
    rows: Rows = {(name, kind): Row() for name in VARIANTS for kind in KINDS}
    causes: dict[str, list[Causes]] = {kind: [] for kind in KINDS}
    for number, case in enumerate(cases(clips, given.seed)):
        level = highest_stored(DEFAULTS, STEPS) / STEPS
        trajectory = editor.invert(case.frames, Inversion(steps=STEPS), highest=level)
        latents = one_clip(editor, case, trajectory, rows)
        for kind in KINDS:
            causes[kind].append(causes_of(editor, case, kind, trajectory, latents[kind]))
        say(f"clip {number + 1} of {clips}")
    say(as_markdown(rows))
    return Measured(figures(rows), {"masks": as_markdown(rows), "background": causes_table(causes)})


def cases(count: int, seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        scene = world.random_scene(rng)
        asked = {edit.split("-")[0]: wish for edit, wish in wishes(scene, rng)}
        own = {kind: asked[kind] for kind in KINDS}
        regions = {kind: region(scene, wish) for kind, wish in own.items()}
        file = io.BytesIO()  # the source is a file, as in a job, and has lost what files lose
        write_clip(file, torch.from_numpy(world.draw(scene)), fps=world.FPS)
        found.append(Case(scene, read_again(file), own, regions))
    return found


def region(scene: world.Scene, wish: world.Scene) -> Tensor:
    """Where the edited object is, in the source or as it was asked for: bool [F, H, W]."""
    both = np.maximum(world.draw_masks(scene)[0], world.draw_masks(wish)[0])
    return torch.from_numpy(both > 0)


def one_clip(editor: Editor, case: Case, trajectory: Trajectory, rows: Rows) -> dict[str, Tensor]:
    """Make a clip's edits in every way; returns the latents of those with a given mask, by kind."""
    kept: dict[str, Tensor] = {}
    regions = [case.regions[kind] for kind in KINDS]
    plans: dict[str, tuple[Any, Reconstruction]] = {
        NONE: (None, DEFAULTS),
        GIVEN: (regions, DEFAULTS),
        GROWN: (regions, replace(DEFAULTS, mask_grow=GROWN_PX)),
        AUTO: ("auto", DEFAULTS),
    }
    for name, (masks, settings) in plans.items():
        editor.model.forwards = ForwardCounter()
        latents, used = made(editor, trajectory, case, masks, settings)
        for kind, x, mask in zip(KINDS, latents, used, strict=True):
            frames = editor.decode(x, trajectory.frames)
            row = rows[name, kind]
            row.forwards += editor.model.forwards.total / len(KINDS)
            row.verdicts.append(verdict(case, kind, frames))
            if mask is None:
                continue
            row.ious.append(iou(editor, mask, case.regions[kind]))
            if name == GIVEN:
                kept[kind] = x
                composed(rows[COMPOSED, kind], case, kind, frames, mask)
                rows[COMPOSED, kind].forwards += editor.model.forwards.total / len(KINDS)
    own = editor.decode(trajectory.on_device(0, editor.device), trajectory.frames)
    for kind in KINDS:
        rows[VAE, kind].verdicts.append(verdict(case, kind, own))
    return kept


def made(
    editor: Editor, trajectory: Trajectory, case: Case, masks: Any, settings: Reconstruction
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The latents of a clip's edits, [K, F, C, h, w], and the masks as they were used."""
    edits = [settings.filled(EditSpec(world.prompt(case.wishes[kind])), seed=0) for kind in KINDS]
    each: Any = [masks] * len(KINDS) if masks is None or isinstance(masks, str) else masks
    edited = editor.denoise(trajectory, edits, settings, masks=each)
    return edited.latents, edited.masks


def verdict(case: Case, kind: str, frames: Tensor) -> Verdict:
    return judge(case.scene, case.wishes[kind], to_uint8(frames).numpy())


def iou(editor: Editor, mask: Tensor, truth: Tensor) -> float:
    one, other = (touched(editor, each.float()) for each in (mask, truth))
    return float((one & other).sum() / (one | other).sum())


def touched(editor: Editor, mask: Tensor) -> Tensor:
    """The latents of which the mask has any pixel: bool [F', h, w]."""
    info = editor.info
    rows = F.max_pool2d(mask[:, None], info.spatial_compression)
    groups = rows[1:].unflatten(0, (-1, info.temporal_compression))
    return torch.cat([rows[:1], groups.amax(1)])[:, 0] > 0


def in_latents(editor: Editor, mask: Tensor) -> Tensor:
    info = editor.info
    return pooled(mask, space=info.spatial_compression, time=info.temporal_compression)


def composed(row: Row, case: Case, kind: str, frames: Tensor, mask: Tensor) -> None:
    """Compose, store and read an edit; the judge sees what was read."""
    pixels = to_uint8(composite(frames, case.frames, mask))
    file = io.BytesIO()
    write_clip(file, pixels, fps=world.FPS, crf=COMPOSITE_CRF)
    read = read_again(file)
    row.verdicts.append(judge(case.scene, case.wishes[kind], read.numpy()))
    # As the judge does, and since H.264 has one colour for 2x2 pixels: those at the edge of the
    # edit share it.
    outside = softened(mask > 0, grow=MARGIN_PX, feather=0) == 0
    error = (read.float() - case.frames.float()).square()[outside].mean().item()
    row.stored_db.append(10 * float(np.log10(255**2 / max(error, 1e-9))))


def read_again(file: io.BytesIO) -> Tensor:
    """The frames of a file that was written: uint8 [F, H, W, 3]."""
    file.seek(0)
    size = {"height": world.SIZE, "width": world.SIZE, "frames": world.FRAMES}
    return read_clip(file, name="clip", **size).frames


# What keeps the given mask from the VAE's own background

NEAR_PX = 8
"""So near to the mask, in pixels, the decoder's filters reach it most."""
PLACES = ("in the mask's latents", f"up to {NEAR_PX} px around it", "further away")


@dataclass(frozen=True)
class Causes:
    """What is wrong with the background of one edit with a given mask.

    Args:
        db: of the background, as it is and with one cause taken away, by name.
        error: by place, the part of the mean squared error of the edit, and of the VAE alone.
        area: by place, the part of the background.
    """

    db: dict[str, float]
    error: list[tuple[float, float]]
    area: list[float]


def causes_of(
    editor: Editor, case: Case, kind: str, trajectory: Trajectory, edited: Tensor
) -> Causes:
    """Part the error of an edit's background by place, and take single causes away."""
    asked, source = case.wishes[kind], trajectory.on_device(0, editor.device)
    kept = in_latents(editor, softened(case.regions[kind], grow=DEFAULTS.mask_grow, feather=0))
    info = editor.info
    inside = in_pixels(
        kept, world.FRAMES, space=info.spatial_compression, time=info.temporal_compression
    )
    around = softened(inside > 0, grow=NEAR_PX, feather=0)
    places = (inside > 0, (around > 0) & (inside == 0), around == 0)
    truth = torch.from_numpy(world.draw_background(asked.background))
    away = background(case.scene, asked)

    def errors(latents: Tensor) -> Tensor:
        frames = to_uint8(editor.decode(latents, trajectory.frames)).float()
        return (frames - truth).square().mean(-1) * away / away.sum()

    target = editor.encode(torch.from_numpy(world.draw(asked)), Inversion())
    own, vae = errors(edited), errors(source)
    found = {
        "the edit with its given mask": own,
        "the source's own pixels inside of the mask": torch.where(inside > 0, vae, own),
        "the VAE's alone outside of the mask": torch.where(inside > 0, own, vae),
        "the asked clip's own latents in the mask": errors(blend(target, source, kept)),
        "the asked clip through the VAE": errors(target),
        "the VAE alone": vae,
    }
    total = float(own.sum())
    return Causes(
        {name: 10 * float(np.log10(255**2 / float(error.sum()))) for name, error in found.items()},
        [(float(own[p].sum()) / total, float(vae[p].sum()) / total) for p in places],
        [float((away & p).sum() / away.sum()) for p in places],
    )


def background(scene: world.Scene, asked: world.Scene) -> Tensor:
    """The pixels that the judge counts as background: bool [F, H, W]."""
    objects = np.maximum(world.draw_masks(scene), world.draw_masks(asked)).max(axis=0) > 0
    return softened(torch.from_numpy(objects), grow=MARGIN_PX, feather=0) == 0


# What comes of it


def figures(rows: Rows) -> list[Figure]:
    found = []
    for (name, kind), least in GAINS.items():
        gain = rows[name, kind].background_db - rows[NONE, kind].background_db
        title = f"{name} mask, {kind} edits: background better by"
        found.append(Figure(title, gain, "dB", "measured", at_least=least))
    for kind in KINDS:
        for name in (GIVEN, AUTO):
            lost = rows[NONE, kind].right(kind) - rows[name, kind].right(kind)
            title = f"{name} mask, {kind} edits: right in fewer clips"
            found.append(Figure(title, lost, "clips", "measured", at_most=1))
        more = max(rows[name, kind].forwards for name in (GIVEN, AUTO))
        more -= rows[NONE, kind].forwards
        title = f"forwards more than without a mask, {kind} edits"
        found.append(Figure(title, more, "", "counted", at_most=0))
    ious = [mean(rows[AUTO, kind].ious) for kind in KINDS]
    stored = [db for kind in KINDS for db in rows[COMPOSED, kind].stored_db]
    return [
        *found,
        Figure("auto: IoU with the true region", mean(ious), "", "measured", at_least=IOU),
        Figure("composite: stored background against the source's, mean", mean(stored), "dB",
               "measured", at_least=STORED_DB),
        Figure("composite: the worst file's", min(stored), "dB", "measured"),
    ]  # fmt: skip


def as_markdown(rows: Rows) -> str:
    clips = len(rows[NONE, KINDS[0]].verdicts)
    lines = [
        f"{clips} clips; in each cell colour edits / shape edits. IoU: of the mask with the true "
        "region, in latents.\n",
        "| mask | background dB | colours right | shapes right | centroid px | IoU | forwards |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        both = [rows[name, kind] for kind in KINDS]
        cells = [
            [f"{row.background_db:.1f}" for row in both],
            [str(row.right("colour")) for row in both],
            [str(row.right("shape")) for row in both],
            [f"{mean(v.mean_centroid_error_px for v in row.verdicts):.1f}" for row in both],
            [f"{mean(row.ious):.2f}" if row.ious else "" for row in both],
            [f"{row.forwards / clips:.1f}" if row.forwards else "" for row in both],
        ]
        if name == VAE:  # it made no edit
            cells[1:3] = [["", ""]] * 2
        shown = " | ".join(" / ".join(cell) if any(cell) else "" for cell in cells)
        lines.append(f"| {name} | {shown} |")
    return "\n".join(lines) + "\n"


def causes_table(causes: Mapping[str, Sequence[Causes]]) -> str:
    """Two tables: the background with one cause taken away, and the error by place."""
    columns = " | ".join(f"{kind} edits" for kind in KINDS)
    lines = [f"| background | {columns} |", "|---|" + "---|" * len(KINDS)]
    for name in causes[KINDS[0]][0].db:
        values = (mean(one.db[name] for one in causes[kind]) for kind in KINDS)
        lines.append(f"| {name} | " + " | ".join(f"{value:.1f} dB" for value in values) + " |")
    lines += [
        "",
        f"| place | part of the background | {columns}: of the edit's error, "
        "and the VAE's own there |",
        "|---|---|" + "---|",
    ]
    for number, place in enumerate(PLACES):
        area = mean(one.area[number] for kind in KINDS for one in causes[kind])
        cells = []
        for kind in KINDS:
            own, vae = (mean(one.error[number][which] for one in causes[kind]) for which in (0, 1))
            cells.append(f"{own:.0%} ({vae:.0%})")
        lines.append(f"| {place} | {area:.0%} | " + ", ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parser() -> ArgumentParser:
    made = ArgumentParser()
    made.add_argument("--clips", type=int, default=48, help="of them two edits each")
    made.add_argument("--seed", type=int, default=SEED, help="of the clips")
    return made


if __name__ == "__main__":
    run(measure, __doc__, parser())
