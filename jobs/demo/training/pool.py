"""The pool of encoded clips: scenes of many geometries, each in a few looks.

Encoding costs more than a step can spare, so clips are drawn and encoded once. Looks of one
geometry are kept together: stage 2 reads them as single clips, stage 3 as source and edit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file, save_file

from jobs.demo import world
from jobs.demo.training.common import device_of, step_draws
from jobs.demo.training.plan import TransformerPlan
from jobs.demo.training.vae import to_tensor

ENCODE_BATCH = 8


@dataclass(frozen=True)
class Pool:
    """`latents` [scenes, looks, F, C, H, W] in float16, scaled; `looks`: the scenes in order."""

    latents: torch.Tensor
    looks: tuple[tuple[world.Scene, ...], ...]

    def clean(self, scenes: np.ndarray, looks: np.ndarray) -> torch.Tensor:
        """float32 [B, F, C, H, W]."""
        return self.latents[torch.from_numpy(scenes), torch.from_numpy(looks)].float()

    @cached_property
    def shape_pairs(self) -> np.ndarray:
        """Pairs of looks that differ in shapes and in nothing else: int [N, 3], each the scene and
        its two looks."""
        pairs = [
            (index, one, other)
            for index, looks in enumerate(self.looks)
            for one, other in permutations(range(len(looks)), 2)
            if looks[one] != looks[other] and _shapeless(looks[one]) == _shapeless(looks[other])
        ]
        return np.asarray(pairs, dtype=np.int64).reshape(-1, 3)

    def object_weight(self, scenes: np.ndarray, extra: float) -> torch.Tensor:
        """How much each place counts: `1 + extra` on objects against 1 elsewhere.

        Objects are a tenth of the frame and most of the matter: with even weights, a small model
        learns the words for backgrounds long before those for colours. float32 [B, F, 1, H, W].
        """
        side = self.latents.shape[-1]
        places = np.stack([object_places(self.looks[scene][0], side) for scene in scenes])
        return 1.0 + extra * torch.from_numpy(places)


def make_pool(
    vae: AutoencoderKLCogVideoX,
    plan: TransformerPlan,
    seed: int,
    work: Path,
    report: Callable[[str], None] = print,
) -> Pool:
    """Draw and encode the pool, or read the one that an earlier run left in `work`."""
    path = work / "pool.safetensors"
    looks = tuple(scene_looks(seed, index, plan.pool_looks) for index in range(plan.pool_scenes))
    if path.exists():
        return Pool(load_file(path)["latents"], looks)
    flat = [scene for same in looks for scene in same]
    parts = []
    for start in range(0, len(flat), ENCODE_BATCH):
        clips = np.stack([world.draw(scene) for scene in flat[start : start + ENCODE_BATCH]])
        device = device_of(vae)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            latents = vae.encode(to_tensor(clips).to(device)).latent_dist.mean
        scaled = latents.float().cpu() * vae.config.scaling_factor
        parts.append(scaled.permute(0, 2, 1, 3, 4).to(torch.float16))
        if start % (ENCODE_BATCH * 200) == 0:
            report(f"pool {start}/{len(flat)}")
    latents = torch.cat(parts).unflatten(0, (plan.pool_scenes, plan.pool_looks)).contiguous()
    save_file({"latents": latents}, path)
    return Pool(latents, looks)


def scene_looks(seed: int, index: int, looks: int) -> tuple[world.Scene, ...]:
    """One geometry: a random scene, then the same with other colours, shapes or background."""
    rng, _ = step_draws(seed, "pool", index)
    first = world.random_scene(rng)
    return (first, *(world.random_relook(first, rng) for _ in range(looks - 1)))


def _shapeless(scene: world.Scene) -> world.Scene:
    return replace(scene, objects=tuple(replace(one, shape="") for one in scene.objects))


def object_places(scene: world.Scene, latent_px: int) -> np.ndarray:
    """Where a latent holds an object of any shape: float32 [latent frames, 1, H, W]."""
    scale = latent_px / world.SIZE
    masks = [
        world.shape_mask("square", 1.4 * scale * one.size, scale * one.path.centres(), latent_px)
        for one in scene.objects
    ]
    mask = np.max(masks, axis=0)
    # The first latent frame holds one frame and each of the others four.
    later = mask[1:].reshape(-1, 4, latent_px, latent_px).max(axis=1)
    return np.concatenate([mask[:1], later])[:, None]
