"""The public script's algorithm told a second time, with diffusers' own schedulers and forward.

It follows zai-org/CogVideo `inference/ddim_inversion.py` in what it computes and shares no code
with `pipeline/`, so that the method `script` can be held to it in cases for which no recorded
numbers exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, DDIMInverseScheduler
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

Predict = Callable[[Tensor, int, Tensor | None], tuple[Tensor, Tensor]]
"""(x, timestep, reference) -> the negative and the positive velocity."""


class OwnAndReference:
    """Attention for a batch `[own | reference]`, each half of the same size, written out."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        image_rotary_emb: Any = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        text = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        batch = x.shape[0]
        q, k, v = (
            project(x).view(batch, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        q, k = attn.norm_q(q), attn.norm_k(k)
        if image_rotary_emb is not None:
            for y in (q, k):
                y[:, :, text:] = apply_rotary_emb(y[:, :, text:], image_rotary_emb)
        outs = []
        for i in range(batch):
            reference = [] if i >= batch // 2 else [i + batch // 2]
            keys, values = (torch.cat([y[j] for j in [i, *reference]], dim=1) for y in (k, v))
            weights = (q[i] @ keys.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
            outs.append((weights @ values).transpose(0, 1).flatten(1))
        out = attn.to_out[0](torch.stack(outs))
        return out[:, text:], out[:, :text]


@torch.no_grad()
def script_trajectory(
    transformer: Any,
    config: Mapping[str, Any],
    latents: Tensor,
    empty: Tensor,
    *,
    steps: int,
    guidance_scale: float,
) -> Tensor:
    """The trajectory [T, F, C, H, W] from clean latents; entry 0 is the first step's result."""
    transformer.set_attn_processor(CogVideoXAttnProcessor2_0())
    forward = CogVideoXDDIMScheduler.from_config(dict(config))
    scheduler = DDIMInverseScheduler(**forward.config)
    predict = _predictor(transformer, empty, empty, guidance_scale)
    scheduler.set_timesteps(steps)
    return _walk(predict, scheduler, latents, guidance_scale, None)


@torch.no_grad()
def script_reconstruction(
    transformer: Any,
    config: Mapping[str, Any],
    noise: Tensor,
    trajectory: Tensor,
    empty: Tensor,
    prompt: Tensor,
    *,
    steps: int,
    guidance_scale: float,
) -> Tensor:
    """The latents [T, F, C, H, W] after each step down, with the reference at every step."""
    transformer.set_attn_processor(OwnAndReference())
    scheduler = CogVideoXDDIMScheduler.from_config(dict(config))
    predict = _predictor(transformer, empty, prompt, guidance_scale)
    scheduler.set_timesteps(steps)
    return _walk(predict, scheduler, noise, guidance_scale, trajectory.flip(0))


def _predictor(transformer: Any, negative: Tensor, positive: Tensor, scale: float) -> Predict:
    prompts = [negative, positive] if scale > 1 else [positive]

    def predict(x: Tensor, timestep: int, reference: Tensor | None) -> tuple[Tensor, Tensor]:
        sources = [x] if reference is None else [x, reference]
        latents = torch.stack([source for source in sources for _ in prompts])
        velocity = transformer(
            hidden_states=latents,
            encoder_hidden_states=torch.stack(prompts * len(sources)),
            timestep=torch.full((len(latents),), timestep),
            image_rotary_emb=rotary_of_pipeline(transformer, x),
            return_dict=False,
        )[0]
        return velocity[0], velocity[len(prompts) - 1]

    return predict


def _walk(
    predict: Predict, scheduler: Any, x: Tensor, scale: float, references: Tensor | None
) -> Tensor:
    entries = []
    for i, timestep in enumerate(scheduler.timesteps):
        reference = None if references is None else references[i]
        negative, positive = predict(x, int(timestep), reference)
        v = negative + scale * (positive - negative) if scale > 1 else positive
        x = scheduler.step(v, timestep, x).prev_sample
        entries.append(x)
    return torch.stack(entries)


def rotary_of_pipeline(transformer: Any, x: Tensor) -> Any:
    """The rotary embedding that diffusers' pipeline makes for latents [F, C, H, W]."""
    if not transformer.config.use_rotary_positional_embeddings:
        return None
    pipeline = CogVideoXPipeline.__new__(CogVideoXPipeline)
    pipeline.transformer = transformer
    pipeline.vae_scale_factor_spatial = 8
    return pipeline._prepare_rotary_positional_embeddings(
        x.shape[2] * 8, x.shape[3] * 8, x.shape[0], torch.device("cpu")
    )
