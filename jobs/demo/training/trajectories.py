"""Trajectories of real inversions, for stage 3 to learn edits from.

A clean clip holds less noise than training adds to its latents, so an inverted latent is not what
`mix` makes: at each level it is smaller, and shaped by the clip. Edits start from inverted latents,
so most of what teaches them should be inverted too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from jobs.demo.training.plan import TransformerPlan
from jobs.demo.training.pool import Pool
from jobs.demo.training.transformer import Denoiser, make_scheduler
from pipeline.algorithm.inversion import invert
from pipeline.model.scheduler import schedule_from_config

STEPS = 25
STRIDE = 1000 // STEPS
BATCH = 32


def make_trajectories(
    denoiser: Denoiser,
    plan: TransformerPlan,
    pool: Pool,
    work: Path,
    report: Callable[[str], None] = print,
) -> torch.Tensor:
    """Invert the first look of the first `plan.inverted_scenes` scenes with the empty prompt.

    Returns float16 [scenes, 26, F, C, H, W], level 0 (the clean latent) first; from `work` where an
    earlier run left them.
    """
    path = work / "trajectories.safetensors"
    if path.exists():
        return load_file(path)["latents"]
    schedule = schedule_from_config(make_scheduler().config, STEPS)

    def velocity(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        levels = torch.full((len(latents),), timestep)
        return denoiser.velocity(latents, levels, [""] * len(latents))

    parts = []
    for start in range(0, plan.inverted_scenes, BATCH):
        scenes = np.arange(start, min(start + BATCH, plan.inverted_scenes))
        clean = pool.clean(scenes, np.zeros_like(scenes))
        with torch.no_grad():
            parts.append(invert(velocity, clean, schedule).transpose(0, 1).to(torch.float16))
    latents = torch.cat(parts).contiguous()
    save_file({"latents": latents}, path)
    top = latents[:, -1].float()
    report(f"trajectories: {len(latents)}, noise of mean {top.mean():.3f} and std {top.std():.3f}")
    return latents


def on_grid(levels: np.ndarray) -> np.ndarray:
    """Levels 0 to 999 moved up to the next one that trajectories hold."""
    grid: np.ndarray = (levels // STRIDE + 1) * STRIDE - 1
    return grid


def entries(trajectories: torch.Tensor, scenes: np.ndarray, levels: np.ndarray) -> torch.Tensor:
    """The latents of scenes at levels of the grid: float32 [B, F, C, H, W]."""
    index = torch.from_numpy((levels + 1) // STRIDE)
    return trajectories[torch.from_numpy(scenes), index].float()
