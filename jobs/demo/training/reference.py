"""Stage 3: reference attention, taught on pairs of clips with one geometry and two looks.

In each step the edited clip's attention layers see `[own; reference]` keys and values, where the
reference is a plain forward of the source clip at the same level. Four things are varied:

- *Where the source comes from*: the trajectory of a real inversion, or the clip mixed with noise.
- *Where the edit left it.* An edit that starts at level k of the source's trajectory carries the
  source in its noise: at level t below k its latent is `a_t·edit + s_t·e`, with
  `e = (x_k - a_k·edit) / s_k`, for as long as the prediction is right. Training draws k from t up
  to the top, so that starting in the middle is something that the model has seen.
- *The reference's prompt*: empty, the edit's, or the source's.
- *The noise*: mostly the source's own; sometimes fresh noise, as in the public script.

Colours and backgrounds are learned first, in a few hundred steps. A new shape needs to know where
the middle of the old one is, and among edits of all kinds its word is not learned at all. So the
steps between a quarter and a half of the stage are nearly all edits of a shape alone, mostly at the
level that they start from, where nothing else tells the shape; after that half of them are. A part
of these ask for the shape that is there: taught on changes alone, a ring in the source speaks
against the word "ring", and an edit that names it loses it.

The reference half is a plain forward, so with its own or the empty prompt, and noise that was mixed
in, it is trained as one, and plain sampling stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from jobs.demo import world
from jobs.demo.training.attention import TrainingAttention
from jobs.demo.training.common import Stage, step_draws
from jobs.demo.training.plan import TransformerPlan
from jobs.demo.training.pool import Pool
from jobs.demo.training.trajectories import entries, on_grid
from jobs.demo.training.transformer import (
    Denoiser,
    stratified_levels,
    training_prompt,
    with_latent_noise,
)

SAME_LOOK = 0.2
OTHER_BACKGROUND = 0.4
SAME_SHAPES = 0.35
FRESH_NOISE = 0.1
FROM_THE_TOP = 0.2
JUST_LEFT = 0.4
SHAPES_FROM, SHAPES_TO = 0.28, 0.5
SHAPES_ALONE = 0.85
JUST_LEFT_WITH_SHAPES = 0.8
SHAPES_ALONE_LATER = 0.45
SHAPE_AS_IT_IS = 0.25
LOWEST_START = 350
EDIT_PROMPT_REFERENCE = 0.25
SOURCE_PROMPT_REFERENCE = 0.35
OBJECT_WEIGHT = 6.0
CHANGE_WEIGHT = 10.0


def train_reference(
    denoiser: Denoiser,
    plan: TransformerPlan,
    pool: Pool,
    trajectories: torch.Tensor,
    seed: int,
    work: Path,
    report: Callable[[str], None] = print,
) -> None:
    """Teach a trained denoiser reference attention, in place."""
    denoiser.transformer.set_attn_processor(TrainingAttention(reference=True))
    stage = Stage(
        "reference",
        denoiser,
        work / "reference.pt",
        plan.reference_steps,
        plan.reference_learning_rate,
        plan.reference_muon_rate,
        average=0.998,
        report=report,
    )
    stage.run(lambda step: reference_loss(denoiser, plan, pool, trajectories, seed, step))


def reference_loss(
    denoiser: Denoiser,
    plan: TransformerPlan,
    pool: Pool,
    trajectories: torch.Tensor,
    seed: int,
    step: int,
) -> torch.Tensor:
    """Squared error of the edits' velocity, and of the references' where they are plain."""
    rng, generator = step_draws(seed, "reference", step)
    batch = plan.reference_batch
    # Low levels only finish what is decided: an exponent below one draws fewer of them.
    levels = stratified_levels(rng, batch, exponent=0.75).numpy()
    shapes_alone, just_left = curriculum(step / plan.reference_steps)
    starts = draw_starts(levels, rng, just_left)
    inverted = np.arange(batch) < round(plan.inverted_share * batch)
    levels = np.where(inverted, on_grid(levels), levels)
    starts = np.where(inverted, on_grid(starts), starts)
    scenes, source_looks, edit_looks = draw_pairs(
        rng, pool, inverted, len(trajectories), shapes_alone
    )

    edit_prompts, reference_prompts, own = draw_prompts(rng, pool, scenes, source_looks, edit_looks)
    plain = ~inverted & own
    # Nothing asked, nothing changed: guidance then pushes away from the source where the edit is to
    # differ, and nowhere else.
    edit_looks = np.where([prompt == "" for prompt in edit_prompts], source_looks, edit_looks)

    # One posterior noise for both: what is not edited is to be copied to the last digit.
    drawn = torch.Generator().manual_seed(int(rng.integers(2**62)))
    shift = with_latent_noise(torch.zeros(batch, *pool.latents.shape[2:]), plan, drawn)
    shift[: inverted.sum()] = 0.0
    source = pool.clean(scenes, source_looks) + shift
    edit = pool.clean(scenes, edit_looks) + shift

    noise = torch.randn(source.shape, generator=generator)
    noisy_source, source_target = denoiser.mix(source, noise, torch.from_numpy(levels))
    left_at, _ = denoiser.mix(source, noise, torch.from_numpy(starts))
    rows = np.flatnonzero(inverted)
    noisy_source[rows] = entries(trajectories, scenes[rows], levels[rows])
    left_at[rows] = entries(trajectories, scenes[rows], starts[rows])

    edit_noise = carried_noise(denoiser, left_at, edit, torch.from_numpy(starts))
    fresh = torch.from_numpy(rng.random(batch) < FRESH_NOISE).view(-1, 1, 1, 1, 1)
    edit_noise = torch.where(fresh, torch.randn(noise.shape, generator=generator), edit_noise)
    noisy_edit, edit_target = denoiser.mix(edit, edit_noise, torch.from_numpy(levels))

    velocity = denoiser.velocity(
        torch.cat([noisy_edit, noisy_source]),
        torch.from_numpy(np.concatenate([levels, levels])),
        edit_prompts + reference_prompts,
    )
    return _weighted_error(
        velocity,
        torch.cat([edit_target, source_target]),
        pool.object_weight(scenes, OBJECT_WEIGHT),
        CHANGE_WEIGHT * change(source, edit),
        plain,
    )


def draw_prompts(
    rng: np.random.Generator,
    pool: Pool,
    scenes: np.ndarray,
    source_looks: np.ndarray,
    edit_looks: np.ndarray,
) -> tuple[list[str], list[str], np.ndarray]:
    """The prompts of the edits and of the references, and which references have their own."""
    edits, references, own = [], [], []
    for scene, of_source, of_edit in zip(scenes, source_looks, edit_looks, strict=True):
        looks = pool.looks[scene]
        edits.append(training_prompt(looks[of_edit], rng))
        prompt, is_own = reference_prompt(looks[of_source], edits[-1], rng)
        references.append(prompt)
        own.append(is_own)
    return edits, references, np.array(own, dtype=bool)


def _weighted_error(
    velocity: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    changed: torch.Tensor,
    plain: np.ndarray,
) -> torch.Tensor:
    """The squared error of both halves of a batch `[edits | sources]`.

    Args:
        weight: of each place; `changed` adds to it for the edits.
        plain: which of the sources count.
    """
    of_edits, of_sources = (velocity - target).square().chunk(2)
    of_plain = weight * torch.from_numpy(plain).view(-1, 1, 1, 1, 1) / weight.mean()
    weight = weight + changed
    return (weight * of_edits).mean() / weight.mean() + 0.5 * (of_plain * of_sources).mean()


def change(source: torch.Tensor, edit: torch.Tensor) -> torch.Tensor:
    """Where the edit differs from its source, 0 to 1 in each pair: [B, F, 1, H, W].

    Between two shapes that is the smaller part of an object, which little else would draw the
    model's eye to.
    """
    difference = (edit - source).abs().mean(dim=2, keepdim=True)
    return difference / difference.amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-3)


def curriculum(along: float) -> tuple[float, float]:
    """The shares of pairs that differ in a shape alone, and of edits that have just left, by how
    much of the stage is done."""
    if SHAPES_FROM <= along < SHAPES_TO:
        return SHAPES_ALONE, JUST_LEFT_WITH_SHAPES
    return (0.0 if along < SHAPES_FROM else SHAPES_ALONE_LATER), JUST_LEFT


def draw_starts(
    levels: np.ndarray, rng: np.random.Generator, just_left: float = JUST_LEFT
) -> np.ndarray:
    """The level at which each edit left its source's trajectory, not below `levels`."""
    lowest = np.maximum(levels, LOWEST_START)
    # More of the starts lie close above the level: there the edit's latent is still the source's.
    starts = (lowest + rng.random(len(levels)) ** 1.5 * (999 - lowest)).astype(np.int64)
    chance = rng.random(len(levels))
    starts = np.where(chance < just_left, lowest, starts)
    starts[chance > 1.0 - FROM_THE_TOP] = 999
    return starts


def carried_noise(
    denoiser: Denoiser, left_at: torch.Tensor, edit: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """The noise of an edit that left its source's trajectory at `left_at`, on the levels `starts`.

    With it the edit's latent at the start is the source's own, whatever the edit.
    """
    a = denoiser.signal[starts].view(-1, 1, 1, 1, 1)
    s = denoiser.noise[starts].view(-1, 1, 1, 1, 1)
    return (left_at - a * edit) / s


def draw_pairs(
    rng: np.random.Generator,
    pool: Pool,
    inverted: np.ndarray,
    trajectories: int,
    shapes_alone: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scenes, and the looks of source and edit: mostly two different ones, sometimes one twice.

    A source that is `inverted` (bool [B]) is the first look of one of the first `trajectories`
    scenes. A share `shapes_alone` of the pairs differs in shapes and in nothing else, or is one of
    these looks twice. Of the others those with another shape, the hardest to learn, are kept more
    often, and those with another background, the easiest, less often.
    """
    pairs: list[tuple[int, int, int]] = []
    alone = rng.random(len(inverted)) < shapes_alone
    while len(pairs) < len(inverted):
        first_only = inverted[len(pairs)]
        if alone[len(pairs)]:
            known = pool.shape_pairs
            if first_only:
                known = known[(known[:, 0] < trajectories) & (known[:, 1] == 0)]
            if len(known):
                scene, source, edit = (int(index) for index in known[rng.integers(len(known))])
                asked = source if rng.random() < SHAPE_AS_IT_IS else edit
                pairs.append((scene, source, asked))
                continue
        scene = int(rng.integers(trajectories if first_only else len(pool.looks)))
        looks = pool.looks[scene]
        source, edit = (int(look) for look in rng.choice(len(looks), size=2, replace=False))
        if first_only and source > 0:
            source, edit = 0, source
        if rng.random() < SAME_LOOK:
            pairs.append((scene, source, source))
            continue
        keep = 1.0 if looks[source].background == looks[edit].background else OTHER_BACKGROUND
        if _shapes(looks[source]) == _shapes(looks[edit]):
            keep *= SAME_SHAPES
        if rng.random() < keep:
            pairs.append((scene, source, edit))
    scenes, sources, edits = np.asarray(pairs).T
    return scenes, sources, edits


def _shapes(scene: world.Scene) -> list[str]:
    return [one.shape for one in scene.objects]


def reference_prompt(
    source: world.Scene, edit_prompt: str, rng: np.random.Generator
) -> tuple[str, bool]:
    """The prompt of a reference forward, and whether to train a plain forward on it."""
    draw = rng.random()
    if draw < EDIT_PROMPT_REFERENCE:
        return edit_prompt, edit_prompt == ""
    if draw < EDIT_PROMPT_REFERENCE + SOURCE_PROMPT_REFERENCE:
        return world.random_prompt(source, rng), True
    return "", True
