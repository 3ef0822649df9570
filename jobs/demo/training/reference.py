"""Stage 3: reference attention, taught on pairs of clips with one geometry and two looks.

In each step the edited clip's attention layers see `[own; reference]` keys and values, where the
reference is a plain forward of the source clip at the same level. Three things are varied:

- *Where the edit came from.* An edit that starts at level k of the source's trajectory carries the
  source in its noise: at level t below k its latent is `a_t·edit + s_t·e`, with
  `e = noise + (a_k / s_k)·(source − edit)`, for as long as the prediction is right. Training draws
  k up to the top, where the term vanishes, and trains on these latents, so that starting in the
  middle is something that the model has seen.
- *The reference's prompt*: empty, the edit's, or the source's.
- *The noise*: mostly the source's own; sometimes fresh noise, as in the public script.

The reference half is a plain forward, so with its own or the empty prompt it is trained as one,
and plain sampling stays what it was.
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
from jobs.demo.training.transformer import (
    Denoiser,
    stratified_levels,
    training_prompt,
    with_latent_noise,
)

SAME_LOOK = 0.06
OTHER_BACKGROUND = 0.4
SAME_SHAPES = 0.6
FRESH_NOISE = 0.1
FROM_THE_TOP = 0.2
JUST_LEFT = 0.4
LOWEST_START = 350
EDIT_PROMPT_REFERENCE = 0.25
SOURCE_PROMPT_REFERENCE = 0.35
# Objects are a tenth of the frame and most of the matter: with even weights, a small model learns
# the words for backgrounds long before those for colours.
OBJECT_WEIGHT = 12.0


def train_reference(
    denoiser: Denoiser,
    plan: TransformerPlan,
    pool: Pool,
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
        average=0.998,
        report=report,
    )
    stage.run(lambda step: reference_loss(denoiser, plan, pool, seed, step))


def reference_loss(
    denoiser: Denoiser, plan: TransformerPlan, pool: Pool, seed: int, step: int
) -> torch.Tensor:
    """Squared error of the edits' velocity, and of the references' where they are plain."""
    rng, generator = step_draws(seed, "reference", step)
    batch = plan.reference_batch
    scenes, source_looks, edit_looks = draw_pairs(rng, pool, batch)
    drawn = torch.Generator().manual_seed(int(rng.integers(2**62)))
    # One posterior noise for both: what is not edited is to be copied to the last digit.
    shift = with_latent_noise(torch.zeros(batch, *pool.latents.shape[2:]), plan, drawn)
    source = pool.clean(scenes, source_looks) + shift
    edit = pool.clean(scenes, edit_looks) + shift

    noise = torch.randn(source.shape, generator=generator)
    # Low levels only finish what is decided: an exponent below one draws fewer of them.
    levels = stratified_levels(rng, batch, exponent=0.75)
    edit_noise = carried_noise(denoiser, noise, source, edit, levels, rng)
    fresh = torch.from_numpy(rng.random(batch) < FRESH_NOISE).view(-1, 1, 1, 1, 1)
    edit_noise = torch.where(fresh, torch.randn(noise.shape, generator=generator), edit_noise)

    edit_prompts, reference_prompts, plain = [], [], []
    for scene, of_source, of_edit in zip(scenes, source_looks, edit_looks, strict=True):
        looks = pool.looks[scene]
        edit_prompts.append(training_prompt(looks[of_edit], rng))
        prompt, trained = reference_prompt(looks[of_source], edit_prompts[-1], rng)
        reference_prompts.append(prompt)
        plain.append(trained)

    noisy_edit, edit_target = denoiser.mix(edit, edit_noise, levels)
    noisy_source, source_target = denoiser.mix(source, noise, levels)
    velocity = denoiser.velocity(
        torch.cat([noisy_edit, noisy_source]),
        torch.cat([levels, levels]),
        edit_prompts + reference_prompts,
    )
    of_edit, of_source = velocity.chunk(2)
    places = [object_places(pool.looks[scene][0], source.shape[-1]) for scene in scenes]
    weight = 1.0 + OBJECT_WEIGHT * torch.from_numpy(np.stack(places))
    edited = (weight * (of_edit - edit_target).square()).mean()
    kept = torch.tensor(plain, dtype=torch.float32).view(-1, 1, 1, 1, 1)
    return edited + 0.5 * (kept * (of_source - source_target).square()).mean()


def object_places(scene: world.Scene, latent_px: int) -> np.ndarray:
    """Where a latent holds an object of any shape: float32 [latent frames, 1, H, W]."""
    scale = latent_px / world.SIZE
    masks = [
        world.shape_mask("circle", 1.3 * scale * one.size, scale * one.path.centres(), latent_px)
        for one in scene.objects
    ]
    mask = np.max(masks, axis=0)
    # The first latent frame holds one frame and each of the others four.
    later = mask[1:].reshape(-1, 4, latent_px, latent_px).max(axis=1)
    return np.concatenate([mask[:1], later])[:, None]


def carried_noise(
    denoiser: Denoiser,
    noise: torch.Tensor,
    source: torch.Tensor,
    edit: torch.Tensor,
    levels: torch.Tensor,
    rng: np.random.Generator,
) -> torch.Tensor:
    """The noise of an edit that left the source's trajectory at a level not below `levels`."""
    batch = len(levels)
    lowest = np.maximum(levels.numpy(), LOWEST_START)
    # More of the starts lie close above the level: there the edit's latent is still the source's.
    starts = (lowest + rng.random(batch) ** 1.5 * (999 - lowest)).astype(np.int64)
    chance = rng.random(batch)
    starts = np.where(chance < JUST_LEFT, lowest, starts)
    starts[chance > 1.0 - FROM_THE_TOP] = 999
    start = torch.from_numpy(starts)
    ratio = (denoiser.signal[start] / denoiser.noise[start]).view(-1, 1, 1, 1, 1)
    return noise + ratio * (source - edit)


def draw_pairs(
    rng: np.random.Generator, pool: Pool, batch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scenes, and the looks of source and edit: mostly two different ones, sometimes one twice.

    Pairs with another shape, the hardest to learn, are kept more often than others, and pairs with
    another background, the easiest, less often.
    """
    pairs: list[tuple[int, int, int]] = []
    while len(pairs) < batch:
        scene = int(rng.integers(len(pool.looks)))
        looks = pool.looks[scene]
        source, edit = (int(look) for look in rng.choice(len(looks), size=2, replace=False))
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
