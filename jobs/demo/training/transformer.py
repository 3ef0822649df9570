"""Stage 2: the transformer and the text encoder, trained together as a plain text-to-video model.

The schedule is that of CogVideoX-5b: velocities, zero terminal signal-to-noise ratio, trailing
steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import nn
from transformers import PreTrainedTokenizerFast

from jobs.demo import world
from jobs.demo.training.attention import TrainingAttention
from jobs.demo.training.common import Stage, device_of, step_draws
from jobs.demo.training.plan import TransformerPlan
from jobs.demo.training.pool import Pool
from jobs.demo.training.text import make_text_encoder, make_tokenizer, tokenize

EMPTY_PROMPTS = 0.1
OBJECT_WEIGHT = 6.0


class Denoiser(nn.Module):
    """The transformer with its text encoder: velocities from latents, levels and prompts."""

    def __init__(self, plan: TransformerPlan, latent_channels: int, latent_px: int) -> None:
        super().__init__()
        self.transformer = make_transformer(plan, latent_channels, latent_px)
        self.text_encoder = make_text_encoder(plan)
        self.tokenizer: PreTrainedTokenizerFast = make_tokenizer(plan)
        self.signal, self.noise = signal_and_noise()
        side = latent_px // 2
        self.rotary = get_3d_rotary_pos_embed(
            embed_dim=plan.head_width,
            crops_coords=((0, 0), (side, side)),
            grid_size=(side, side),
            temporal_size=(world.FRAMES - 1) // 4 + 1,
        )

    def velocity(
        self, latents: torch.Tensor, levels: torch.Tensor, prompts: list[str]
    ) -> torch.Tensor:
        """The velocity of `latents` [B, F, C, H, W] at `levels` (int64 [B], 0 to 999).

        Both are on the CPU, and so is what is returned, wherever the model is.
        """
        device = device_of(self)
        ids = tokenize(self.tokenizer, prompts).to(device)
        cos, sin = (part.to(device) for part in self.rotary)
        with torch.autocast(device.type, torch.bfloat16):
            text = self.text_encoder(ids)[0]
            velocity: torch.Tensor = self.transformer(
                latents.to(device),
                text,
                levels.to(device),
                image_rotary_emb=(cos, sin),
                return_dict=False,
            )[0]
        return velocity.float().cpu()

    def mix(
        self, clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The noisy latent at `levels` and its velocity."""
        a = self.signal[levels].view(-1, 1, 1, 1, 1)
        s = self.noise[levels].view(-1, 1, 1, 1, 1)
        return a * clean + s * noise, a * noise - s * clean


def train_transformer(
    plan: TransformerPlan,
    pool: Pool,
    seed: int,
    work: Path,
    report: Callable[[str], None] = print,
    device: str = "cpu",
) -> Denoiser:
    """Train on single clips, with clauses of the prompt dropped and a tenth of prompts empty."""
    torch.manual_seed(seed)
    denoiser = Denoiser(plan, pool.latents.shape[3], pool.latents.shape[-1]).to(device)
    denoiser.transformer.set_attn_processor(TrainingAttention())
    if plan.compile:
        # A sixth of a step on a CPU; in place, so that the weights keep their names.
        for block in denoiser.transformer.transformer_blocks:
            block.compile(dynamic=False)
    stage = Stage(
        "transformer",
        denoiser,
        work / "transformer.pt",
        plan.steps,
        plan.learning_rate,
        plan.muon_rate,
        report=report,
    )
    stage.run(lambda step: plain_loss(denoiser, plan, pool, seed, step))
    return denoiser


def plain_loss(
    denoiser: Denoiser, plan: TransformerPlan, pool: Pool, seed: int, step: int
) -> torch.Tensor:
    """Mean squared error of the velocity for one batch of single clips, objects counting more."""
    rng, generator = step_draws(seed, "transformer", step)
    scenes = rng.integers(len(pool.looks), size=plan.batch)
    looks = rng.integers(len(pool.looks[0]), size=plan.batch)
    clean = with_latent_noise(pool.clean(scenes, looks), plan, generator)
    noise = torch.randn(clean.shape, generator=generator)
    levels = stratified_levels(rng, plan.batch)
    noisy, target = denoiser.mix(clean, noise, levels)
    prompts = [
        training_prompt(pool.looks[scene][look], rng)
        for scene, look in zip(scenes, looks, strict=True)
    ]
    weight = pool.object_weight(scenes, OBJECT_WEIGHT)
    error = (denoiser.velocity(noisy, levels, prompts) - target).square()
    return (weight * error).mean() / weight.mean()


def training_prompt(scene: world.Scene, rng: np.random.Generator) -> str:
    """The prompt of a scene with clauses dropped, or now and then the empty one."""
    return "" if rng.random() < EMPTY_PROMPTS else world.random_prompt(scene, rng)


def with_latent_noise(
    clean: torch.Tensor, plan: TransformerPlan, generator: torch.Generator
) -> torch.Tensor:
    """Latents with the fixed posterior noise that brings inverted noise near a unit Gaussian."""
    return clean + plan.latent_noise * torch.randn(clean.shape, generator=generator)


def stratified_levels(
    rng: np.random.Generator, batch: int, levels: int = 1000, exponent: float = 1.0
) -> torch.Tensor:
    """One level from each of `batch` equal strata, shuffled: int64 [B]."""
    strata = ((np.arange(batch) + rng.random(batch)) / batch) ** exponent
    return torch.from_numpy(rng.permutation((strata * levels).astype(np.int64)))


def make_scheduler() -> CogVideoXDDIMScheduler:
    """The schedule of CogVideoX-5b."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    )


def signal_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    """The share of signal and of noise in a latent at each of the 1000 levels."""
    kept = make_scheduler().alphas_cumprod.float()
    return kept.sqrt(), (1.0 - kept).clamp(min=0.0).sqrt()


def make_transformer(
    plan: TransformerPlan, latent_channels: int, latent_px: int
) -> CogVideoXTransformer3DModel:
    """An untrained transformer whose blocks and output start at zero."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=plan.heads,
        attention_head_dim=plan.head_width,
        in_channels=latent_channels,
        out_channels=latent_channels,
        time_embed_dim=plan.time_width,
        text_embed_dim=plan.text_width,
        num_layers=plan.layers,
        sample_width=latent_px,
        sample_height=latent_px,
        sample_frames=world.FRAMES,
        max_text_seq_length=plan.text_tokens,
        use_rotary_positional_embeddings=True,
    )
    zeroed = [transformer.norm_out.linear, transformer.proj_out]
    for block in transformer.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm2.linear]
    for layer in zeroed:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    bound = math.sqrt(1.0 / (latent_channels * plan.heads))
    nn.init.uniform_(transformer.patch_embed.proj.weight, -bound, bound)
    return transformer
