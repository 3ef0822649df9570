"""What every stage shares: seeded draws, a moving average of the weights, saving and resuming.

All draws of a step come from (seed, stage, step), so a run that was stopped and resumed sees the
same data as one that was not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

SAVE_EVERY_S = 120.0
REPORT_EVERY = 50


def step_draws(seed: int, stage: str, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The random generators of one step, the same whenever the step is run."""
    rng = np.random.default_rng([seed, *stage.encode(), step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are. All draws are made on the CPU, and moved there."""
    return next(module.parameters()).device


def cosine_rate(step: int, steps: int, warmup: int = 100) -> float:
    """The learning rate at a step as a share of its peak: a warm-up, then a half cosine to 2%."""
    warmup = min(warmup, steps // 4)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    along = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * along))


@dataclass
class Stage:
    """One stage of training: a module, its optimizer, the average of its weights, and where it is.

    `run` calls `loss_of(step)` for each step that is left, and saves to `path` every two minutes.
    With a `muon_rate` the weight matrices of transformer blocks are trained by Muon (Jordan et al.,
    2024), and the rest by AdamW: after 200 steps here that is further than AdamW alone after 250.
    """

    name: str
    module: nn.Module
    path: Path
    steps: int
    learning_rate: float
    muon_rate: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    average: float = 0.999
    report: Callable[[str], None] = print
    step: int = 0
    state: dict[str, torch.Tensor] = field(default_factory=dict)

    def run(self, loss_of: Callable[[int], torch.Tensor]) -> None:
        """Train to the last step; afterwards the module holds the averaged weights."""
        optimizers = self._optimizers()
        peaks = [group["lr"] for group in _groups(optimizers)]
        self._resume(optimizers)
        started = saved = time.monotonic()
        losses: list[float] = []
        self.module.train()
        first = self.step
        while self.step < self.steps:
            for group, peak in zip(_groups(optimizers), peaks, strict=True):
                group["lr"] = peak * cosine_rate(self.step, self.steps)
            loss = loss_of(self.step)
            self.module.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            self.step += 1
            self._follow()
            losses.append(float(loss.detach()))
            now = time.monotonic()
            if self.step % REPORT_EVERY == 0 or self.step == self.steps:
                pace = (now - started) / (self.step - first)
                recent = sum(losses[-REPORT_EVERY:]) / len(losses[-REPORT_EVERY:])
                self.report(
                    f"{self.name} {self.step}/{self.steps} loss {recent:.5f} {pace:.3f} s/step"
                )
            if now - saved > SAVE_EVERY_S or self.step == self.steps:
                self._save(optimizers)
                saved = time.monotonic()
        self.module.load_state_dict(self.state)
        self.module.eval()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        named = list(self.module.named_parameters())
        blocks = [weight for name, weight in named if "transformer_blocks." in name]
        matrices = [weight for weight in blocks if weight.ndim == 2 and self.muon_rate]
        by_muon = {id(weight) for weight in matrices}
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [weight for _, weight in named if id(weight) not in by_muon],
                lr=self.learning_rate,
                betas=self.betas,
                weight_decay=self.weight_decay,
            )
        ]
        if matrices:
            optimizers.append(
                torch.optim.Muon(
                    matrices,
                    lr=self.muon_rate,
                    weight_decay=self.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        return optimizers

    def _follow(self) -> None:
        # A young average follows closely, so that it does not remember the initialisation.
        keep = min(self.average, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                self.state[name].lerp_(value, 1.0 - keep)

    def _resume(self, optimizers: list[torch.optim.Optimizer]) -> None:
        if self.path.exists():
            saved: dict[str, Any] = torch.load(
                self.path, weights_only=True, map_location=device_of(self.module)
            )
            self.module.load_state_dict(saved["module"])
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.state, self.step = saved["average"], saved["step"]
            self.report(f"{self.name}: resumed at step {self.step}")
        else:
            self.state = {k: v.detach().clone() for k, v in self.module.state_dict().items()}

    def _save(self, optimizers: list[torch.optim.Optimizer]) -> None:
        partial = self.path.with_suffix(".partial")
        saved = {
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "average": self.state,
            "step": self.step,
        }
        torch.save(saved, partial)
        os.replace(partial, self.path)


def _groups(optimizers: list[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]
